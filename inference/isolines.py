"""The iso-line of a probability map, with sub-pixel precision, simplified within a distance.

Owns contourpy and shapely, and how much of an area a polygon may lose: nothing.
Speaks rings of (row, column) index coordinates; distances in millimetres of the plane.
Never lets a simplified ring cross itself or another one of its plane.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import contourpy
import numpy as np
import shapely
from numpy.typing import NDArray

from inference.morphology import parts_of_planes
from inference.outlines import PlaneRing

SMALLEST_PX = 0.1
"""Islands and holes of less area than this (square pixels) are no shapes but accidents of the last digit."""

_SPECK_PX = 0.07
"""An island within a square of this side is left out at once. Even moved outwards by `_FURTHEST_PX` it would
stay below `SMALLEST_PX`, and until then it would make the simplification of its whole plane the slow one."""

_CLEARANCE = 1e-3
"""No value lies nearer to the threshold than this: lines then never run through a voxel centre."""

_LOST_BY_CURVATURE_PX = np.pi / 3
"""What the iso-line of a sampled shape lacks, in square pixels a closed line, whatever its size.

A pixel's coverage, the linear interpolation between pixels and the chords each place the line
too far inside by an amount that is proportional to its curvature, together by 1/6 of a pixel
over the radius in pixels; along a closed line that sums up to 2 pi / 6.
"""

_UNCOVERED = 0.01
"""A pixel that is covered by less than this, or up to so little, is not touched by the edge."""

_TOUCHED_A_CROSSING = 1.25
"""So many pixels a sharp edge touches at most for each line between pixel centres that it crosses."""

_FURTHEST_PX = 0.12
"""The restored area moves no line by more than this."""

_ROUNDS = 2
"""In the second one the points that may move take over from those that a voxel's centre has stopped."""

_SHORT_OF_CENTRE_PX = 0.01
"""A moved point stops so far before a voxel's centre: the probability alone says which voxels are inside."""

Vectors = NDArray[np.float64]
Geometries = NDArray[np.object_]


@dataclass(frozen=True)
class _Rings:
    """The closed lines of some multipolygons as parallel arrays, each ring's first point not repeated."""

    points: Vectors
    """(points, 2) of (row, column)."""
    ring: NDArray[np.intp]
    """The ring that each point belongs to; ascending."""
    starts: NDArray[np.intp]
    """Where each ring's points begin."""
    geometry: NDArray[np.intp]
    """The multipolygon that each ring belongs to; ascending."""

    @cached_property
    def lasts(self) -> NDArray[np.intp]:
        """Where each ring's last point stands."""
        return np.append(self.starts[1:], len(self.points)) - 1

    @cached_property
    def after(self) -> Vectors:
        """For each point the next one on its ring."""
        following = np.arange(1, len(self.points) + 1)
        following[self.lasts] = self.starts
        return self.points[following]

    @cached_property
    def before(self) -> Vectors:
        """For each point the previous one on its ring."""
        preceding = np.arange(-1, len(self.points) - 1)
        preceding[self.starts] = self.lasts
        return self.points[preceding]

    @property
    def outwards(self) -> Vectors:
        """For each point the gradient of its ring's area: half as long as the way between its neighbours."""
        before, after = self.before, self.after
        return np.stack((before[:, 1] - after[:, 1], after[:, 0] - before[:, 0]), axis=1) / 2

    def sums(self, values: Vectors) -> Vectors:
        """Sum of one value a point over each ring."""
        return np.bincount(self.ring, values, len(self.geometry)).astype(np.float64)

    def areas(self) -> Vectors:
        """Signed area of each ring, as `outlines.signed_area` has it."""
        across = self.points[:, 1] * self.after[:, 0] - self.points[:, 0] * self.after[:, 1]
        return np.asarray(self.sums(across) / 2)


def iso_lines(
    probability: NDArray[np.float32], threshold: float, spacing_mm: tuple[float, float], simplify_mm: float
) -> list[PlaneRing]:
    """The lines where the probability is the threshold, in each plane of a box.

    Values outside the box mirror those at its border about the threshold: a structure that is cut
    by the volume ends at the edge of its last voxels.

    Args:
        probability: (slices, rows, columns).
        threshold: the level; a voxel centre is inside where its value is at least that.
        spacing_mm: between rows, between columns.
        simplify_mm: how far a simplified line may leave the traced one. Which line encloses which
            stays as it is, and so does the area (`_LOST_BY_CURVATURE_PX` is given back to it).
    """
    scale = np.array(spacing_mm)
    planes, exact = _trace(probability, threshold, scale)
    if not len(planes):
        return []
    traced = _rings(exact)
    coverage = _coverage(probability[planes], threshold, traced, scale)
    rings = _rings(_balanced(exact, traced, coverage, simplify_mm, spacing_mm))
    areas = rings.areas() / scale.prod()
    points = np.split(rings.points / scale, rings.starts[1:])
    return [
        PlaneRing(plane, ring, area)
        for plane, ring, area in zip(planes[rings.geometry].tolist(), points, areas.tolist(), strict=True)
        if abs(area) >= SMALLEST_PX
    ]


def _picture(
    probability: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], Vectors]:
    """The planes as one picture, one below the other, each with one more row and column on each side.

    A line that leaves the box closes on its voxels' edge. No value is near the threshold. Rows of a
    plane that hold nothing of the structure, nor lie beside one that does, are left out, and columns
    that are neither in any plane.

    Returns:
        The numbers of the picture's rows, counted through all planes; of its columns; its values.
    """
    rows, columns = probability.shape[1:]
    inside = probability >= threshold
    held, used = np.asarray(inside.any(axis=2)), np.flatnonzero(inside.any(axis=(0, 1)))
    if not len(used):
        return used, used, np.empty((0, 0))
    first, stop = max(0, used[0] - 1), min(columns, used[-1] + 2)
    above, below = np.s_[:, :-2], np.s_[:, 2:]
    # One more row on each side; np.pad would take longer than the rest together.
    wanted = np.zeros((len(held), rows + 2), np.bool_)
    for rows_around in (above, np.s_[:, 1:-1], below):
        wanted[rows_around] |= held
    plane, row = np.nonzero(wanted)
    lines = probability[:, :, first:stop][plane, np.clip(row - 1, 0, rows - 1)]
    values = np.empty((len(lines), lines.shape[1] + 2))
    values[:, 1:-1], values[:, 0], values[:, -1] = lines, lines[:, 0], lines[:, -1]
    near = np.abs(values - threshold) < _CLEARANCE
    values[near] = np.where(values[near] >= threshold, threshold + _CLEARANCE, threshold - _CLEARANCE)
    for border in ((row == 0) | (row > rows), np.s_[:, 0], np.s_[:, -1]):
        beyond = values[border]
        values[border] = np.where(beyond >= threshold, 2 * threshold - beyond, 0.0)
    return plane * (rows + 2) + row, np.arange(first, stop + 2), values


def _trace(
    probability: NDArray[np.float32], threshold: float, scale: Vectors
) -> tuple[NDArray[np.intp], Geometries]:
    """The planes that hold anything, and for each a multipolygon of (row, column) points in mm."""
    row, column, values = _picture(probability, threshold)
    if not row.size:
        return np.empty(0, np.intp), np.empty(0, np.object_)
    rows = probability.shape[1] + 2
    row_of, column_of = np.meshgrid(row.astype(float), column.astype(float), indexing="ij", copy=False)
    # contourpy's factory would search every value for NaN, which takes as long as the tracing.
    generator = contourpy.SerialContourGenerator(
        column_of,
        row_of,
        values,
        None,  # type: ignore[arg-type]  # no mask; the stub forgets that this is allowed
        corner_mask=False,
        line_type=contourpy.LineType.Separate,
        fill_type=contourpy.FillType.ChunkCombinedOffsetOffset,
        quad_as_tri=False,
        z_interp=contourpy.ZInterp.Linear,
    )
    # One chunk of (points, where each ring begins, where each polygon's rings begin): something is inside.
    points, rings, polygons = cast(
        tuple[Vectors, ...], (chunks[0] for chunks in generator.filled(threshold, np.inf))
    )
    plane_of_point = (points[:, 1] // rows).astype(np.intp)
    points[:, 1] -= plane_of_point * rows
    offsets = (rings.astype(np.int64), polygons.astype(np.int64))
    points_mm = (points[:, ::-1] - 1) * scale
    shapes = np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, points_mm, offsets))
    plane_of_shape = plane_of_point[rings[polygons[:-1]]]
    order = np.argsort(plane_of_shape, kind="stable")
    order = order[~_are_specks(shapes[order], scale)]
    planes, geometry = np.unique(plane_of_shape[order], return_inverse=True)
    return planes, np.asarray(shapely.multipolygons(shapes[order], indices=geometry))


def _are_specks(shapes: Geometries, scale: Vectors) -> NDArray[np.bool_]:
    """Whether each polygon lies within a square of `_SPECK_PX`."""
    bounds = shapely.bounds(shapes)
    return np.asarray((bounds[:, 2:] - bounds[:, :2] < _SPECK_PX * scale).all(axis=1))


@dataclass(frozen=True)
class _Coverage:
    """What the lines around each connected part of a plane enclose together.

    Attributes:
        part: of each ring.
        mm2: of each part; NaN where it is not known.
    """

    part: NDArray[np.intp]
    mm2: Vectors


def _coverage(probability: NDArray[np.float32], threshold: float, rings: _Rings, scale: Vectors) -> _Coverage:
    """How much the structure covers, where its values say how much of each pixel it covers.

    They do where no more pixels lie between inside and outside than a sharp edge touches, which
    crosses about as many lines between pixel centres, each in one point of the traced line. Elsewhere,
    as where a network is not sure, the probabilities are no areas.

    Args:
        probability: (planes, rows, columns) of the traced planes.
        rings: as they were traced.
    """
    touched = (probability > _UNCOVERED) & (probability < 1 - _UNCOVERED)
    lines_crossed = np.bincount(rings.geometry[rings.ring], minlength=len(probability))
    is_sharp = np.count_nonzero(touched, axis=(1, 2)) <= _TOUCHED_A_CROSSING * lines_crossed
    if threshold != 0.5 or not is_sharp.any():
        return _Coverage(np.zeros(len(rings.geometry), np.intp), np.array([np.nan]))
    parts, count = parts_of_planes((probability > _UNCOVERED) & is_sharp[:, None, None], corners=True)
    mm2 = np.bincount(parts.ravel(), probability.ravel(), count + 1) * scale.prod()
    mm2[0] = np.nan
    # A traced point lies between two pixels, of which one belongs to the structure.
    first = rings.points[rings.starts] / scale
    highest = np.array(probability.shape[1:]) - 1
    around = [np.clip(side(first), 0, highest).astype(np.intp) for side in (np.floor, np.ceil)]
    planes = rings.geometry
    values = [probability[planes, pixel[:, 0], pixel[:, 1]] for pixel in around]
    inner = np.where((values[0] >= values[1])[:, None], *around)
    return _Coverage(parts[planes, inner[:, 0], inner[:, 1]].astype(np.intp), mm2)


def _balanced(
    exact: Geometries,
    traced: _Rings,
    coverage: _Coverage,
    simplify_mm: float,
    spacing_mm: tuple[float, float],
) -> Geometries:
    """Simplified, with each line moved sidewards until it encloses what it should.

    Where the move would make lines touch, the simplified ones stay as they are.
    """
    simple = _simplified(exact, simplify_mm)
    rings, scale = _rings(simple), np.array(spacing_mm)
    wanted = _wanted(rings, traced.areas(), coverage, spacing_mm[0] * spacing_mm[1])
    moved = rings
    for _ in range(_ROUNDS):
        moved = _near(_moved(moved, wanted, scale), rings.points, _FURTHEST_PX * scale.min())
    balanced = _with_points(simple, rings, moved.points)
    return np.where(shapely.is_valid(balanced), balanced, simple)


def _wanted(rings: _Rings, traced_mm2: Vectors, coverage: _Coverage, pixel_mm2: float) -> Vectors:
    """The signed area that each ring should have.

    What the lines around one part are off together from its coverage is shared among them by length.
    """
    wanted = traced_mm2 + np.sign(traced_mm2) * _LOST_BY_CURVATURE_PX * pixel_mm2
    part, count = coverage.part, len(coverage.mm2)
    around = rings.sums(_lengths(rings.outwards))
    off_mm2 = np.nan_to_num(coverage.mm2 - np.bincount(part, wanted, count))
    share = around / np.maximum(np.bincount(part, around, count), np.finfo(float).tiny)[part]
    return np.asarray(wanted + off_mm2[part] * share)


def _moved(rings: _Rings, wanted: Vectors, scale: Vectors) -> _Rings:
    """Each ring moved sidewards towards its area, as far as voxel centres let it."""
    outwards = rings.outwards
    lengths = _lengths(outwards)
    move = (wanted - rings.areas()) / rings.sums(lengths)
    units = outwards / np.maximum(lengths, np.finfo(float).tiny)[:, None]
    steps = _short_of_centres(rings.points, move[rings.ring, None] * units, scale)
    return replace(rings, points=rings.points + steps)


def _lengths(vectors: Vectors) -> Vectors:
    """(n,) of vectors (n, 2); a norm along so short an axis takes three times as long."""
    return np.asarray(np.hypot(vectors[:, 0], vectors[:, 1]))


def _near(rings: _Rings, points: Vectors, furthest_mm: float) -> _Rings:
    """The same, each point brought back where it is further than that from where it was."""
    ways = rings.points - points
    lengths = np.maximum(_lengths(ways), np.finfo(float).tiny)
    return replace(rings, points=points + ways * np.minimum(1, furthest_mm / lengths)[:, None])


def _short_of_centres(points: Vectors, steps: Vectors, scale: Vectors) -> Vectors:
    """The same steps, each ended before it would pass the voxel centre that lies nearest ahead.

    On a cord that is 3 pixels wide one voxel in ten would otherwise change sides.
    """
    to_centre = np.rint(points / scale) * scale - points
    ahead = to_centre[:, 0] * steps[:, 0] + to_centre[:, 1] * steps[:, 1] > 0
    room = np.maximum(_lengths(to_centre) - _SHORT_OF_CENTRE_PX * scale.min(), 0)
    lengths = np.maximum(_lengths(steps), np.finfo(float).tiny)
    return steps * np.where(ahead, np.minimum(1, room / lengths), 1)[:, None]


def _simplified(exact: Geometries, simplify_mm: float) -> Geometries:
    """By Douglas and Peucker; where that would break a shape, again with a watch on every crossing.

    The watchful way takes three times as long and is hardly ever needed.
    """
    simple = np.asarray(shapely.simplify(exact, simplify_mm, preserve_topology=False))
    broken = ~shapely.is_valid(simple) | (_ring_counts(simple) != _ring_counts(exact))
    simple[broken] = shapely.simplify(exact[broken], simplify_mm, preserve_topology=True)
    return simple


def _ring_counts(geometries: Geometries) -> NDArray[np.intp]:
    polygons, geometry = shapely.get_parts(geometries, return_index=True)
    rings = shapely.get_num_interior_rings(polygons) + 1
    return np.bincount(geometry, rings, len(geometries)).astype(np.intp)


def _rings(geometries: Geometries) -> _Rings:
    polygons, geometry = shapely.get_parts(geometries, return_index=True)
    lines, polygon = shapely.get_rings(polygons, return_index=True)
    closed, ring = shapely.get_coordinates(lines, return_index=True)
    is_first = np.concatenate(([True], ring[1:] != ring[:-1]))
    starts = np.flatnonzero(is_first)
    return _Rings(closed[~is_first], ring[~is_first], starts - np.arange(len(starts)), geometry[polygon])


def _with_points(geometries: Geometries, rings: _Rings, points: Vectors) -> Geometries:
    """The same lines through other points; each ring is closed again by its last point, put first."""
    closed = np.insert(points, rings.starts, points[rings.lasts], axis=0)
    return np.asarray(shapely.transform(geometries, lambda _: closed))
