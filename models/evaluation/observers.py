"""How far two people agree: clinical against radiographer's contours of the same patients.

Owns the data's own limit; no product and no model is in it.
Speaks `Score`: the radiographer's drawing stands where the product's would, the clinical one judges.
Never counts a pair of which one drawing is a gross error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from models.archives.openkbp_dicom import read_grid
from models.evaluation.metrics import compare
from models.evaluation.references import Drawing, Standing, read_drawings
from models.evaluation.scores import Score, in_order


def compare_observers(folders: Iterable[Path]) -> list[Score]:
    """A score for each structure that both drew; a pair is inside the slab where both drawings are."""
    return in_order(
        score for folder in folders for npz in sorted(folder.glob("*.npz")) for score in _pairs(npz)
    )


def _pairs(npz: Path) -> Iterator[Score]:
    clinical, radiographer = read_drawings(npz, "clinical"), read_drawings(npz, "radiographer")
    shared = [name for name in clinical if name in radiographer]
    spacing_mm = read_grid(npz).spacing_mm if shared else (0.0, 0.0, 0.0)
    for name in shared:
        drawn, other = clinical[name], radiographer[name]
        lesser = min(drawn, other, key=_rank)
        yield Score(
            patient=npz.stem,
            structure=name,
            standing=lesser.standing,
            fault=lesser.fault,
            fraction_inside=lesser.fraction_inside,
            drawn_cm3=drawn.volume_cm3,
            drawn_mean_hu=drawn.mean_hu,
            found_cm3=other.volume_cm3,
            agreement=compare(other.mask, drawn.mask, spacing_mm),
        )


def _rank(drawing: Drawing) -> tuple[int, float]:
    order = (Standing.LEFT_OUT, Standing.CUT, Standing.INSIDE)
    return order.index(drawing.standing), drawing.fraction_inside
