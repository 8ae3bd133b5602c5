"""What the network found: one probability map a structure, on the CT's own grid.

Owns the value that passes from inference to contours.
Speaks probabilities and masks in boxes of (slices, rows, columns) indices of the CT.
Never holds a whole-volume map: each structure has its own box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.card import Structure

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class StructureMap:
    """One structure on the CT's grid, postprocessed.

    Attributes:
        structure: what it is, from the model package.
        start: CT index (slice, row, column) of the box's first voxel.
        probability: float32 (slices, rows, columns) of the box; zero where postprocessing removed
            a component, at least the threshold where it filled a hole. The box has a margin of at
            least one voxel below the threshold on each side that is not the volume's own border.
        threshold: a voxel belongs to the structure where `probability >= threshold`.
        confidence: 0..1, the Dice to be expected (see `inference.confidence`); None where empty.
        flags: bounded words for a person, such as `cut_by_field_of_view`, `volume_out_of_range`, `not_found`.
    """

    structure: Structure
    start: tuple[int, int, int]
    probability: NDArray[np.float32]
    threshold: float
    confidence: float | None
    flags: tuple[str, ...]

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Bool, same shape as `probability`."""
        return self.probability >= self.threshold

    @cached_property
    def voxels(self) -> NDArray[np.intp]:
        """(slices,) how many voxels of the mask lie in each slice of the box."""
        return np.array([np.count_nonzero(plane) for plane in self.mask], np.intp)

    @property
    def box(self) -> Box:
        """Where the box lies in the CT's array."""
        first, extent = self.start, self.probability.shape
        return (
            slice(first[0], first[0] + extent[0]),
            slice(first[1], first[1] + extent[1]),
            slice(first[2], first[2] + extent[2]),
        )


@dataclass(frozen=True)
class Segmentation:
    """All structures of one volume.

    Attributes:
        structures: one a structure of the model, in its order; an absent one has an empty box (extents 0).
        device: where the forward pass really ran: `cuda` or `cpu`.
        seconds: wall time by stage: `preprocess`, `forward`, `postprocess`.
    """

    structures: tuple[StructureMap, ...]
    device: str
    seconds: Mapping[str, float]
