"""How the network's probabilities become structures that a person can review.

Owns components, holes, smoothing and exclusiveness, as the model package says.
Speaks float32 probabilities (slices, rows, columns) on the model's grid first, on the CT's in the end.
Never moves a boundary except by the package's own smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from inference.confidence import sureness
from inference.morphology import (
    bounds,
    largest_components,
    near_largest,
    opened,
    plane_holes,
    smoothed,
    without_islands,
)
from inference.segmentation import Box, StructureMap
from inference.volume import PlaneStack
from models.card import Postprocessing, Structure

Probability = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """One structure on the model's grid.

    Attributes:
        start: model grid index of the box's first voxel.
        probability: the box, zero where a component was removed; empty where nothing is left.
        sureness: see `inference.confidence.sureness`; None where empty.
        at_end: whether it reaches the first or last voxel of the grid along some axis.
    """

    start: tuple[int, int, int]
    probability: Probability
    sureness: float | None
    at_end: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the box."""
        slices, rows, columns = self.probability.shape
        return slices, rows, columns

    @property
    def box(self) -> Box:
        """Where it lies in the model's grid."""
        first, second, third = (
            slice(start, start + extent) for start, extent in zip(self.start, self.shape, strict=True)
        )
        return first, second, third


def propose(
    probability: Probability, rule: Postprocessing, spacing_mm: tuple[float, float, float]
) -> Candidate:
    """Keep what the rule keeps of one structure's probabilities over the whole crop.

    Components are chosen here, where a structure has thousands of voxels and not a million. No cell of
    eight neighbours holds voxels of two components, so interpolation cannot join them again.
    """
    if rule.smooth_mm > 0:
        probability = smoothed(probability, tuple(rule.smooth_mm / step for step in spacing_mm))
    mask = probability >= rule.threshold
    # The CT's finer grid decides about size in the end; half of it is enough to look at it there.
    smallest = float(rule.min_component_cm3 * 1000 / np.prod(spacing_mm) / 2)
    kept = largest_components(mask, rule.components, smallest)
    if rule.reach_mm is not None:
        slices, rows, columns = (rule.reach_mm / step for step in spacing_mm)
        kept = near_largest(kept, (slices, rows, columns))
    # Two voxels: the border is held beyond the box, and an iso-line beside a held value lies too far out.
    box = bounds(kept, margin=2)
    if box is None:
        return Candidate((0, 0, 0), np.zeros((0, 0, 0), np.float32), None, at_end=False)
    inner = np.where(mask[box] & ~kept[box], np.float32(0), probability[box])
    tight = bounds(kept)
    assert tight is not None
    at_end = any(
        side.start == 0 or side.stop == extent for side, extent in zip(tight, probability.shape, strict=True)
    )
    return Candidate((box[0].start, box[1].start, box[2].start), inner, sureness(inner, kept[box]), at_end)


def finish(found: StructureMap, planes: PlaneStack) -> StructureMap:
    """Clean one structure's interpolated box on the CT's grid, by its rule.

    Thin bridges and specks go, then small islands of a plane; holes are filled in each plane.

    A filled voxel gets its probability mirrored at the threshold, so that the map stays continuous.
    """
    rule = found.structure.postprocessing
    voxel_mm3 = planes.slice_thickness_mm[found.box[0]] * (planes.row_spacing_mm * planes.column_spacing_mm)
    smallest = rule.min_component_cm3 / (voxel_mm3 / 1000).mean()
    found = trimmed(found)
    if not found.probability.size:
        return found
    kept = found.mask
    if rule.min_width_mm > 0:
        radius_mm = rule.min_width_mm / 2
        kept = opened(kept, (radius_mm / planes.row_spacing_mm, radius_mm / planes.column_spacing_mm))
    kept = largest_components(kept, rule.components, smallest)
    if rule.min_island_mm2 > 0:
        kept = without_islands(kept, rule.min_island_mm2 / (planes.row_spacing_mm * planes.column_spacing_mm))
    clean = np.where(found.mask & ~kept, np.float32(0), found.probability)
    if rule.fill_holes:
        holes = plane_holes(kept)
        filled = np.clip(2 * rule.threshold - clean[holes], rule.threshold, 1)
        # Rounded to float32, the threshold itself must not fall below the threshold.
        clean[holes] = np.maximum(filled, np.nextafter(np.float32(rule.threshold), np.float32(1)))
    return replace(found, probability=clean)


def exclusive(maps: Sequence[StructureMap]) -> list[StructureMap]:
    """No voxel in two structures: it stays with the one of the higher probability, else with the first.

    Softmax adds up to one, so above a threshold of 0.5 this is so already; filled holes, smoothing
    and lower thresholds are what it takes care of.
    """
    result = list(maps)
    for first, second in combinations(range(len(result)), 2):
        result[first], result[second] = _separated(result[first], result[second])
    return result


def _separated(first: StructureMap, second: StructureMap) -> tuple[StructureMap, StructureMap]:
    common = [
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first.box, second.box, strict=True)
    ]
    if any(side.start >= side.stop for side in common):
        return first, second
    here, there = _local(common, first.start), _local(common, second.start)
    mine, theirs = first.probability[here], second.probability[there]
    both = (mine >= first.threshold) & (theirs >= second.threshold)
    if not both.any():
        return first, second
    loses = both & (theirs > mine)
    return _without(first, here, loses), _without(second, there, both & ~loses)


def _local(box: list[slice], start: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    first, second, third = (
        slice(side.start - origin, side.stop - origin) for side, origin in zip(box, start, strict=True)
    )
    return first, second, third


def _without(found: StructureMap, box: tuple[slice, slice, slice], lost: NDArray[np.bool_]) -> StructureMap:
    probability = found.probability.copy()
    probability[box][lost] = np.nextafter(np.float32(found.threshold), np.float32(0)) / 2
    return replace(found, probability=probability)


def trimmed(found: StructureMap) -> StructureMap:
    """The smallest box with a margin of one voxel within the volume; empty where nothing is left."""
    box = bounds(found.mask, margin=1)
    if box is None:
        return absent(found.structure)
    start = tuple(origin + side.start for origin, side in zip(found.start, box, strict=True))
    return replace(found, start=(start[0], start[1], start[2]), probability=found.probability[box])


def absent(structure: Structure) -> StructureMap:
    """A structure of which nothing was found."""
    return StructureMap(
        structure=structure,
        start=(0, 0, 0),
        probability=np.zeros((0, 0, 0), np.float32),
        threshold=structure.postprocessing.threshold,
        confidence=None,
        flags=(),
    )


def volume_cm3(found: StructureMap, planes: PlaneStack) -> float:
    """Volume of the mask; each plane counts with half the way to its neighbours."""
    thickness_mm = planes.slice_thickness_mm[found.box[0]]
    return float(found.voxels @ thickness_mm) * planes.row_spacing_mm * planes.column_spacing_mm / 1000
