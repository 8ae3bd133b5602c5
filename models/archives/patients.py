"""A training patient, and what of the drawings in an archive is believed.

Owns the value that every adapter makes: CT, one label map, and which organs were drawn at all.
Speaks HU and label arrays (slices, rows, columns) with spacing in mm, LPS axes with z to the head.
Never invents an annotation: an organ without a plausible drawing of all of it is unknown, not absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.morphology import bounds, grown
from models.anatomy import ANATOMY
from models.card import Window

_AIR_HU = -900
_PIXEL_MM = 4.0


@dataclass(frozen=True)
class Patient:
    """One training patient on its native grid.

    Attributes:
        hu: int16 (slices, rows, columns).
        labels: uint8, same shape; 0 is background, `i + 1` is `structures[i]`.
        annotated: bool (classes,); entry 0 is true.
        spacing_mm: (slice, row, column) distances.
        refused: organs that were drawn, but so that nobody can believe it.
    """

    name: str
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    annotated: NDArray[np.bool_]
    spacing_mm: NDArray[np.float64]
    refused: tuple[str, ...] = ()


class Archive(Protocol):
    """A folder of patients, as an adapter sees it."""

    def names(self) -> list[str]:
        """Every patient, in a fixed order."""

    def read(self, name: str, structures: Sequence[str]) -> Patient:
        """One patient with the labels of these structures.

        Raises:
            ArchiveError: naming the file and what is wrong with it.
        """


class ArchiveError(Exception):
    """A patient of an archive that cannot be read; the message says which file, and why."""


def labelled(
    name: str,
    hu: NDArray[np.int16],
    spacing_mm: NDArray[np.float64],
    drawn: Mapping[str, NDArray[np.bool_]],
    structures: Sequence[str],
) -> Patient:
    """A patient from the masks that an archive holds, by TG-263 name.

    A voxel of two drawings belongs to the smaller one: a brainstem within a brain is brainstem.
    """
    believed = {
        organ: mask
        for organ, mask in drawn.items()
        if ANATOMY[organ].is_plausible(hu, mask, spacing_mm)
        and ANATOMY[organ].is_whole(mask, spacing_mm)
        and _is_in_tissue(hu, mask)
    }
    labels = np.zeros(hu.shape, np.uint8)
    annotated = np.zeros(len(structures) + 1, bool)
    annotated[0] = True
    for organ in sorted(believed, key=lambda organ: -int(believed[organ].sum())):
        index = structures.index(organ) + 1
        labels[believed[organ]] = index
        annotated[index] = True
    refused = tuple(organ for organ in drawn if organ not in believed)
    return Patient(name, hu, labels, annotated, spacing_mm, refused)


def _is_in_tissue(hu: NDArray[np.int16], mask: NDArray[np.bool_]) -> bool:
    """Whether there is more than air around a drawing.

    Archives cut patients free: one brain of OpenKBP lies in air without its skull, as no CT will show it.
    """
    box = bounds(mask, margin=1)
    if box is None:
        return False
    inside = mask[box]
    around = grown(inside, 1) & ~inside
    return bool(np.mean(hu[box][around] > _AIR_HU) > 0.5)


def windowed(hu: NDArray[np.int16], window: Window) -> NDArray[np.float32]:
    """HU clipped to the window and scaled to 0..1, so that air outside the volume is 0."""
    scaled = (hu.astype(np.float32) - window.lower_hu) / (window.upper_hu - window.lower_hu)
    return np.clip(scaled, 0, 1, out=scaled)


def thinned(patient: Patient) -> Patient:
    """Every n-th pixel in-plane, so that a pixel measures about `_PIXEL_MM`: as OpenKBP was made.

    A model of a few millimetres sees no more, and a hundred patients fit into the memory.
    """
    step = max(1, int(_PIXEL_MM / float(patient.spacing_mm[1:].max()) + 0.01))
    kept = (slice(None), slice(None, None, step), slice(None, None, step))
    return replace(
        patient,
        hu=np.ascontiguousarray(patient.hu[kept]),
        labels=np.ascontiguousarray(patient.labels[kept]),
        spacing_mm=patient.spacing_mm * (1, step, step),
    )


def count_drawn(patients: Sequence[Patient]) -> NDArray[np.intp]:
    """(structures,) in how many patients each structure was drawn."""
    return np.sum([patient.annotated[1:] for patient in patients], axis=0).astype(np.intp)


def split_in_folds(names: Sequence[str], folds: int) -> list[list[str]]:
    """The same parts for the same names: every `folds`-th of them goes into one part."""
    return [list(names[first::folds]) for first in range(folds)]
