"""Solids: signed distances from which a phantom is painted.

Owns the shapes (ellipsoid, swept tube, plate, loft) and how they combine.
Speaks LPS millimetres, points as broadcastable x, y, z arrays, distances negative inside.
Never measures exactly: a distance is right near the surface, where partial volume needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float32]
Distance = Callable[[Floats, Floats, Floats], Floats]


@dataclass(frozen=True)
class Solid:
    """A shape in space.

    Attributes:
        distance: of points x, y, z (LPS mm, broadcastable) to the surface in mm, negative inside.
        low, high: (3,) corners x, y, z of a box that contains it.
    """

    distance: Distance
    low: Floats
    high: Floats

    def grown(self, by_mm: float) -> Solid:
        """The same with its surface moved outwards; inwards where `by_mm` is negative."""
        return Solid(lambda x, y, z: self.distance(x, y, z) - by_mm, self.low - by_mm, self.high + by_mm)

    def without(self, other: Solid) -> Solid:
        """What of it does not lie in `other`."""
        return Solid(
            lambda x, y, z: np.maximum(self.distance(x, y, z), -other.distance(x, y, z)), self.low, self.high
        )

    def within(self, other: Solid) -> Solid:
        """What of it lies in `other` too."""
        return Solid(
            lambda x, y, z: np.maximum(self.distance(x, y, z), other.distance(x, y, z)),
            np.maximum(self.low, other.low),
            np.minimum(self.high, other.high),
        )

    def mirrored(self) -> Solid:
        """The same on the patient's other side: x becomes -x."""
        flip = np.array([-1, 1, 1], np.float32)
        corners = np.stack((self.low * flip, self.high * flip))
        return Solid(lambda x, y, z: self.distance(-x, y, z), corners.min(axis=0), corners.max(axis=0))


def union(*solids: Solid) -> Solid:
    """All of them as one solid."""

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        nearest = solids[0].distance(x, y, z)
        for solid in solids[1:]:
            nearest = np.minimum(nearest, solid.distance(x, y, z))
        return nearest

    return Solid(
        distance,
        np.min([solid.low for solid in solids], axis=0),
        np.max([solid.high for solid in solids], axis=0),
    )


def ellipsoid(centre: ArrayLike, radii: ArrayLike, tilt_deg: float = 0.0) -> Solid:
    """An ellipsoid; `tilt_deg` turns its upper end backwards, in the sagittal plane."""
    middle, half = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    cosine, sine = np.float32(np.cos(np.deg2rad(tilt_deg))), np.float32(np.sin(np.deg2rad(tilt_deg)))

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        across, along = y - middle[1], z - middle[2]
        squares = (
            ((x - middle[0]) / half[0]) ** 2
            + ((across * cosine - along * sine) / half[1]) ** 2
            + ((across * sine + along * cosine) / half[2]) ** 2
        )
        return np.asarray((np.sqrt(squares) - 1) * half.min(), np.float32)

    reach = half if tilt_deg == 0 else np.array([half[0], *(2 * [max(half[1:])])], np.float32)
    return Solid(distance, middle - reach, middle + reach)


def tube(path: ArrayLike, radii: ArrayLike, flatten: ArrayLike = (1, 1, 1)) -> Solid:
    """A rounded tube along a polyline.

    Args:
        path: (n, 3) x, y, z of the axis.
        radii: one, or one a point, in between linear.
        flatten: how much wider than `radii` the cross-section is along x, y and z.
    """
    wide = np.asarray(flatten, np.float32)
    points = np.asarray(path, np.float32)
    widths = np.broadcast_to(np.asarray(radii, np.float32), (len(points),))
    squeezed = points / wide

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        place = (x / wide[0], y / wide[1], z / wide[2])
        nearest: Floats | None = None
        for index in range(len(points) - 1):
            one = _segment(place, squeezed[index], squeezed[index + 1], widths[index], widths[index + 1])
            nearest = one if nearest is None else np.minimum(nearest, one)
        assert nearest is not None
        return nearest

    reach = widths[:, None] * wide
    return Solid(distance, (points - reach).min(axis=0), (points + reach).max(axis=0))


def _segment(
    place: tuple[Floats, Floats, Floats], start: Floats, end: Floats, first: np.float32, last: np.float32
) -> Floats:
    """Distance to a segment whose radius goes from `first` to `last`."""
    axis = end - start
    length_squared = np.float32(max(float(axis @ axis), 1e-6))
    offsets = [coordinate - origin for coordinate, origin in zip(place, start, strict=True)]
    share = np.clip(sum(o * a for o, a in zip(offsets, axis, strict=True)) / length_squared, 0, 1)
    squares = sum((o - share * a) ** 2 for o, a in zip(offsets, axis, strict=True))
    return np.asarray(np.sqrt(squares) - (first + share * (last - first)), np.float32)


def plate(polygon: ArrayLike, middle_x: float, lean: float, half_thickness: float) -> Solid:
    """A sagittal plate: a polygon (n, 2) of (y, z), thick along x around `middle_x + lean * z`."""
    corners = np.asarray(polygon, np.float32)

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        outline = _polygon(y, z, corners)
        side = np.abs(x - (middle_x + lean * z)) - half_thickness
        outside = np.hypot(np.maximum(outline, 0), np.maximum(side, 0))
        return np.asarray(outside + np.minimum(np.maximum(outline, side), 0), np.float32)

    reach_x = half_thickness + abs(lean) * float(np.abs(corners[:, 1]).max())
    low = np.array([middle_x - reach_x, *corners.min(axis=0)], np.float32)
    high = np.array([middle_x + reach_x, *corners.max(axis=0)], np.float32)
    return Solid(distance, low, high)


def _polygon(y: Floats, z: Floats, corners: Floats) -> Floats:
    """Signed distance in the plane: nearest edge, and even-odd crossings for the sign."""
    nearest = np.full(np.broadcast(y, z).shape, np.inf, np.float32)
    inside = np.zeros(nearest.shape, bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge = end - start
        share = np.clip(((y - start[0]) * edge[0] + (z - start[1]) * edge[1]) / (edge @ edge), 0, 1)
        gap = np.hypot(y - start[0] - share * edge[0], z - start[1] - share * edge[1])
        nearest = np.minimum(nearest, gap)
        if edge[1] != 0:
            crosses = (start[1] > z) != (end[1] > z)
            inside ^= crosses & (y < start[0] + (z - start[1]) / edge[1] * edge[0])
    return np.where(inside, -nearest, nearest)


@dataclass(frozen=True)
class Section:
    """An axial cross-section of a loft: an egg of `half_width`, widest at `widest_y`."""

    z: float
    half_width: float
    front_y: float
    widest_y: float
    back_y: float
    power: float = 2.0
    """2 is an ellipse; larger is squarer."""


def loft(sections: Sequence[Section]) -> Solid:
    """A solid through cross-sections in ascending z, smooth between them, constant beyond them."""
    heights = [section.z for section in sections]
    table = np.array([[s.half_width, s.front_y, s.widest_y, s.back_y, s.power] for s in sections], np.float32)
    profile = PchipInterpolator(heights, table)

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        at = profile(np.clip(z, heights[0], heights[-1])).astype(np.float32)
        width, front, widest, back, power = np.moveaxis(at, -1, 0)
        depth = np.where(y < widest, widest - front, back - widest)
        across = (np.abs(x) / width) ** power
        along = (np.abs(y - widest) / depth) ** power
        radius = (across + along) ** (1 / power)
        return np.asarray((radius - 1) * np.minimum(width, depth), np.float32)

    half = table[:, 0].max()
    low = np.array([-half, table[:, 1].min(), -1e4], np.float32)
    high = np.array([half, table[:, 3].max(), 1e4], np.float32)
    return Solid(distance, low, high)
