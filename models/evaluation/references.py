"""What a patient's structures are judged by: the drawings of an archive, and which of them count.

Owns two rules: a drawing must be plausible, and the structure must lie inside the slab that was kept.
Speaks OpenKBP archives (`.npz`); masks bool (slices, rows, columns), cm3 and HU.
Never drops a drawing in silence: one that does not count says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.anatomy import ANATOMY

Reference = Literal["clinical", "radiographer"]
INSIDE = 0.98
"""From this share of its volume within the slab on, a structure counts as inside."""


class Standing(StrEnum):
    """Whether a drawing counts."""

    INSIDE = "inside"
    """It is plausible and within the slab: the headline figures."""
    CUT = "cut"
    """It is plausible, but the archive cut its CT through it: only among all plausible ones."""
    LEFT_OUT = "left out"
    """No such organ looks like that: in no figure, but listed by name."""


@dataclass(frozen=True)
class Drawing:
    """One structure as somebody drew it.

    Attributes:
        mask: bool (slices, rows, columns) on the archive's grid.
        fraction_inside: how much of the structure lies within the slab that the archive kept.
        fault: what about it is not the organ's: "volume", "HU" or both; empty where it may be one.
    """

    structure: str
    mask: NDArray[np.bool_]
    volume_cm3: float
    mean_hu: float
    fraction_inside: float
    fault: str

    @property
    def standing(self) -> Standing:
        """Whether it counts."""
        if self.fault:
            return Standing.LEFT_OUT
        return Standing.INSIDE if self.fraction_inside >= INSIDE else Standing.CUT


def read_drawings(npz: Path, reference: Reference) -> dict[str, Drawing]:
    """What was drawn of the organs that `models.anatomy` knows, in its order; empty masks are none.

    Raises:
        ValueError: the archive does not say how much of a structure it kept.
    """
    with np.load(npz) as archive:
        hu = archive["ct_hu"]
        spacing_mm = archive["spacing_mm"].astype(np.float64)
        inside = json.loads(str(archive["fraction_inside"])) if "fraction_inside" in archive.files else {}
        keys = [(name, f"{reference}/{name}") for name in ANATOMY if f"{reference}/{name}" in archive.files]
        masks = {name: (key, archive[key].astype(bool)) for name, key in keys}
    if unsaid := [key for key, mask in masks.values() if mask.any() and key not in inside]:
        raise ValueError(f"{npz}: fraction_inside lacks {', '.join(unsaid)}")
    return {
        name: judge(name, hu, mask, spacing_mm, float(inside[key]))
        for name, (key, mask) in masks.items()
        if mask.any()
    }


def judge(
    structure: str,
    hu: NDArray[np.int16],
    mask: NDArray[np.bool_],
    spacing_mm: NDArray[np.float64],
    fraction_inside: float,
) -> Drawing:
    """A drawing and whether it may be the organ; the mask is not empty."""
    organ = ANATOMY[structure]
    volume_cm3, mean_hu = float(mask.sum() * spacing_mm.prod() / 1000), float(hu[mask].mean())
    judged = {"volume": (volume_cm3, organ.volume_cm3), "HU": (mean_hu, organ.mean_hu)}
    faults = [what for what, (value, (low, high)) in judged.items() if not low <= value <= high]
    fault = "" if organ.is_plausible(hu, mask, spacing_mm) else " and ".join(faults) or "other"
    return Drawing(structure, mask, volume_cm3, mean_hu, fraction_inside, fault)


def count_drawings(folder: Path, reference: Reference) -> Mapping[str, int]:
    """In how many patients of a folder each organ was drawn, by name."""
    counts = dict.fromkeys(ANATOMY, 0)
    for npz in folder.glob("*.npz"):
        with np.load(npz) as archive:
            for name in counts:
                counts[name] += f"{reference}/{name}" in archive.files
    return {name: count for name, count in counts.items() if count}
