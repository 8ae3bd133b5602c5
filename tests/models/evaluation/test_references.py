"""Which drawings count: plausible, and inside the slab.

Owns the rules of `models.evaluation.references`.
Speaks archives of blocks in soft tissue.
Never runs the product.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.references import Standing, count_drawings, read_drawings
from tests.models.openkbp_patients import SPACING_MM, write_archive

SHAPE = (40, 40, 40)
VOXEL_CM3 = float(np.prod(SPACING_MM) / 1000)


def block(voxels: int) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask.reshape(-1)[:voxels] = True
    return mask


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    hu = np.full(SHAPE, 40, np.int16)
    hu[20:] = 900  # bone
    return write_archive(
        tmp_path / "pt_1.npz",
        hu,
        {
            "clinical/Brainstem": block(500),
            "clinical/SpinalCord": block(400),
            "clinical/Parotid_L": block(8000),
            "clinical/Parotid_R": np.flip(block(500), 0),
            "clinical/Larynx": np.flip(block(8000), 0),
            "clinical/Esophagus": block(0),
            "radiographer/Brainstem": block(600),
            "clinical/SpinalCanal": block(300),
        },
        {"clinical/SpinalCord": 0.979, "clinical/Brainstem": 0.98},
    )


def test_a_drawing_counts_where_it_is_plausible_and_inside_the_slab(archive: Path) -> None:
    drawings = read_drawings(archive, "clinical")
    assert {name: (one.standing, one.fault) for name, one in drawings.items()} == {
        "Brainstem": (Standing.INSIDE, ""),
        "SpinalCord": (Standing.CUT, ""),
        "Parotid_L": (Standing.LEFT_OUT, "volume"),
        "Parotid_R": (Standing.LEFT_OUT, "HU"),
        "Larynx": (Standing.LEFT_OUT, "volume and HU"),
    }
    assert drawings["Brainstem"].volume_cm3 == pytest.approx(500 * VOXEL_CM3)
    assert drawings["Parotid_R"].mean_hu == 900


def test_the_radiographers_contours_are_a_reference_of_their_own(archive: Path) -> None:
    assert {name: int(one.mask.sum()) for name, one in read_drawings(archive, "radiographer").items()} == {
        "Brainstem": 600
    }
    assert count_drawings(archive.parent, "radiographer") == {"Brainstem": 1}


def test_an_archive_that_does_not_say_what_it_cut_is_refused(tmp_path: Path) -> None:
    with np.load(
        write_archive(tmp_path / "a.npz", np.zeros(SHAPE, np.int16), {"clinical/Brainstem": block(9)})
    ) as old:
        np.savez(tmp_path / "b.npz", **{key: old[key] for key in old.files if key != "fraction_inside"})
    with pytest.raises(ValueError, match="clinical/Brainstem"):
        read_drawings(tmp_path / "b.npz", "clinical")
