"""How well two drawings of one structure agree.

Owns Dice, surface Dice, HD95, mean surface distance, volume error and ends, and what each of them means.
Speaks bool masks (slices, rows, columns) and spacing in mm; distances in mm, volume error in percent.
Never measures from voxel to voxel: where a voxel is as wide as the error, that halves the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from skimage.measure import marching_cubes

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

TOLERANCE_MM = 2.0
"""Of the surface Dice."""
_PERCENTILE = 0.95


@dataclass(frozen=True)
class Agreement:
    """What was found against what was drawn.

    Attributes:
        dice: 0 to 1.
        surface_dice: share of both surfaces' area that lies within `TOLERANCE_MM` of the other surface
            (Nikolov et al., arXiv:1809.04430); 0 where nothing was found.
        hd95_mm: of each surface, the distance to the other that 95 % of its area does not exceed; the
            larger of the two. None where nothing was found.
        mean_distance_mm: mean distance to the other surface over the area of both. None likewise.
        volume_error_percent: how much more (or, negative, less) was found than was drawn.
        dice_between_ends: Dice over the slices in which both are. Where the ends of an organ are a matter
            of protocol, it tells the drawing from the protocol. None where there is no such slice.
        above_mm, below_mm: how much farther up (or, negative, less far) the found mask reaches than the
            drawn one, and how much farther down. None where nothing was found.
    """

    dice: float
    surface_dice: float
    hd95_mm: float | None
    mean_distance_mm: float | None
    volume_error_percent: float
    dice_between_ends: float | None = None
    above_mm: float | None = None
    below_mm: float | None = None

    @property
    def missed(self) -> bool:
        """Whether nothing was found."""
        return self.hd95_mm is None


def compare(found: Mask, drawn: Mask, spacing_mm: Sequence[float]) -> Agreement:
    """Judge one mask by another on the same grid.

    Surfaces are triangle meshes half-way between voxel centres (marching cubes), distances those from
    the middle of each triangle to the nearest point of the other mesh, weighted by its area.

    Args:
        found, drawn: bool (slices, rows, columns), slices upwards.
        spacing_mm: (slice, row, column) distances.

    Raises:
        ValueError: nothing was drawn, so that there is nothing to judge by.
    """
    if not drawn.any():
        raise ValueError("an empty drawing is no reference")
    more = 100 * (int(found.sum()) / int(drawn.sum()) - 1)
    if not found.any():
        return Agreement(0.0, 0.0, None, None, more)
    box = _box(found | drawn)
    mine, theirs = _surface(found[box], spacing_mm), _surface(drawn[box], spacing_mm)
    ways = [_distances(mine, theirs), _distances(theirs, mine)]
    (low, high), (drawn_low, drawn_high) = _ends(found), _ends(drawn)
    both = slice(max(low, drawn_low), min(high, drawn_high) + 1)
    distances = np.concatenate([way[0] for way in ways])
    areas = np.concatenate([way[1] for way in ways])
    return Agreement(
        dice=dice(found, drawn),
        surface_dice=float(areas[distances <= TOLERANCE_MM].sum() / areas.sum()),
        hd95_mm=max(_percentile(*way) for way in ways),
        mean_distance_mm=float(distances @ areas / areas.sum()),
        volume_error_percent=more,
        dice_between_ends=dice(found[both], drawn[both]) if both.start < both.stop else None,
        above_mm=float((high - drawn_high) * spacing_mm[0]),
        below_mm=float((drawn_low - low) * spacing_mm[0]),
    )


def dice(first: Mask, second: Mask) -> float:
    """Twice the common volume by the sum of both; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def _ends(mask: Mask) -> tuple[int, int]:
    """The lowest and the highest slice of a mask."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(slices[0]), int(slices[-1])


def _box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds a mask."""
    where = np.argwhere(mask)
    return tuple(slice(low, high + 1) for low, high in zip(where.min(0), where.max(0), strict=True))


def _surface(mask: Mask, spacing_mm: Sequence[float]) -> trimesh.Trimesh:
    """The closed surface around a mask, in mm; a mask that touches the grid's border is capped there."""
    vertices, faces, _, _ = marching_cubes(
        np.pad(mask, 1).astype(np.float32), 0.5, spacing=tuple(spacing_mm), allow_degenerate=False
    )
    return trimesh.Trimesh(vertices, faces, process=False)


def _distances(of: trimesh.Trimesh, to: trimesh.Trimesh) -> tuple[Floats, Floats]:
    """For each triangle of one surface: the distance of its middle to the other, and its area."""
    _, distances, _ = trimesh.proximity.closest_point(to, of.triangles_center)
    return np.asarray(distances, np.float64), np.asarray(of.area_faces, np.float64)


def _percentile(distances: Floats, areas: Floats) -> float:
    """The distance that 95 % of the area does not exceed."""
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][int(np.searchsorted(share, _PERCENTILE))])
