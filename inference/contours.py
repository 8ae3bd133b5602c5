"""From a structure's map to closed contours, slice by slice.

Owns the choice between the exact outline and the smooth line, and the slices that smoothing would lose.
Speaks (row, column) index coordinates of the CT; voxel centres at integers.
Never closes a hole and never drops a slice: a hole becomes a keyhole, a lost slice its exact outline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inference import keyholes
from inference.isolines import iso_lines
from inference.outlines import PlaneRing, Ring, signed_area, voxel_outlines
from inference.segmentation import StructureMap
from inference.splitting import halves
from inference.volume import PlaneStack

ContourMode = Literal["smooth", "voxel"]
Holes = Literal["keyhole", "xor"]

LOST_AREA = 0.25
"""Smooth lines that enclose this much less or more than their slice's mask do not stand for it."""

LOST_VOLUME = 0.06
"""Nor do lines that are this far off over a whole structure, as thin ones on coarse pixels are."""

_COUNTABLE_VOXELS = 500
"""From so many voxels on their count says how large a structure is; fewer scatter about it by chance."""


@dataclass(frozen=True)
class Contour:
    """One closed polygon in the plane of one slice.

    Attributes:
        slice_index: the slice.
        points: float64 (n, 2), n >= 3, of (row, column) index coordinates of the CT, voxel centres
            at integers; closed from the last point to the first. With rows downwards and columns to
            the right it runs clockwise; the ring of a hole, which stands alone only where holes are
            `xor`, runs counter-clockwise. A keyhole is reached over a bridge that is passed twice.
        is_hole: whether it is what is taken out of the contours around it.
    """

    slice_index: int
    points: NDArray[np.float64]
    is_hole: bool = False


def trace(
    found: StructureMap,
    planes: PlaneStack,
    mode: ContourMode,
    simplify_mm: float,
    holes: Holes = "keyhole",
    most_points: int | None = None,
) -> tuple[Contour, ...]:
    """The contours of one structure, in the order of the slices.

    `voxel` follows the edges of the mask's voxels: filled by voxel centre the contours are the mask.
    `smooth` follows the line where the probability is the threshold. Before simplification that
    line, too, has the voxel centres of the mask inside and all others outside; simplification may
    exchange those that lie within `simplify_mm` of it. A slice with so few voxels that the line
    encloses a quarter less or more than they do gets its voxel outline instead; so do the worst
    slices of a structure whose lines are off by more than `LOST_VOLUME` in sum.

    Args:
        found: the structure; only its box is worked on.
        planes: where the voxels lie; the box must lie within.
        mode: `smooth` or `voxel`.
        simplify_mm: how far a smooth line may be simplified; 0 keeps every point.
        holes: whether a hole is joined to the contour around it or is a contour of its own.
        most_points: a contour with more is cut into parts that touch along a line between voxel centres.

    Raises:
        ValueError: another mode.
    """
    if not found.voxels.any():
        return ()
    match mode:
        case "voxel":
            rings = voxel_outlines(found.mask)
        case "smooth":
            spacing_mm = (planes.row_spacing_mm, planes.column_spacing_mm)
            lines = iso_lines(found.probability, found.threshold, spacing_mm, simplify_mm)
            rings = _with_lost_slices(lines, found)
        case _:
            raise ValueError(f"contour mode {mode!r}: smooth or voxel")
    corner = np.array(found.start[1:], np.float64)
    return tuple(
        Contour(found.start[0] + plane, points + corner, is_hole)
        for plane, points, is_hole in _pieces(rings, holes, most_points)
    )


def _with_lost_slices(lines: list[PlaneRing], found: StructureMap) -> list[PlaneRing]:
    """The smooth lines, but voxel outlines for the slices that they misrepresent."""
    voxels = found.voxels
    areas = np.zeros(len(voxels))
    for line in lines:
        areas[line.plane] += line.area
    off = np.abs(areas - voxels)
    lost = off > LOST_AREA * voxels
    whole = voxels.sum()
    if whole >= _COUNTABLE_VOXELS and abs(areas.sum() - whole) > LOST_VOLUME * whole:
        lost |= off > LOST_VOLUME * voxels
    if not lost.any():
        return lines
    kept = [line for line in lines if not lost[line.plane]]
    return kept + voxel_outlines(found.mask & lost[:, None, None])


def _pieces(
    rings: list[PlaneRing], holes: Holes, most_points: int | None
) -> Iterator[tuple[int, Ring, bool]]:
    """Plane, points, and whether it is a hole, of each contour, plane by plane."""
    planes: defaultdict[int, list[Ring]] = defaultdict(list)
    for ring in rings:
        planes[ring.plane].append(ring.points)
    for plane in sorted(planes):
        if holes == "keyhole":
            for points in _keyholes(planes[plane], most_points):
                yield plane, points, False
        else:
            for whole in planes[plane]:
                for points in _parts(whole, most_points):
                    yield plane, points, signed_area(points) < 0


def _keyholes(rings: list[Ring], most_points: int | None) -> Iterator[Ring]:
    """One contour a region, or several where one would have too many points."""
    for region in keyholes.join(*_outers_and_holes(rings)):
        parts = _cut(region.rings, len(region.contour), most_points)
        if parts is None:
            yield region.contour
        else:
            for part in parts:
                yield from _keyholes(part, most_points)


def _outers_and_holes(rings: list[Ring]) -> tuple[list[Ring], list[Ring]]:
    """By the way round that they run; one alone is no hole."""
    if len(rings) == 1:
        return rings, []
    areas = [signed_area(ring) for ring in rings]
    outers = [ring for ring, area in zip(rings, areas, strict=True) if area > 0]
    holes = [ring for ring, area in zip(rings, areas, strict=True) if area <= 0]
    return outers, holes


def _parts(ring: Ring, most_points: int | None) -> Iterator[Ring]:
    """The ring, or several where it has too many points."""
    parts = _cut((ring,), len(ring), most_points)
    if parts is None:
        yield ring
    else:
        for part in parts:
            for piece in part:
                yield from _parts(piece, most_points)


def _cut(
    rings: tuple[Ring, ...], points: int, most_points: int | None
) -> tuple[list[Ring], list[Ring]] | None:
    return None if most_points is None or points <= most_points else halves(rings)
