"""The exact outline of a mask along the edges of its voxels.

Owns the rule where regions touch at a corner: a region is 4-connected, so they stay apart.
Speaks closed rings of (row, column) index coordinates; voxel edges lie at half-integers.
Never rounds or smooths: filled by voxel centre, the rings are the very mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]


@dataclass(frozen=True)
class PlaneRing:
    """One closed ring in one plane of a box.

    Attributes:
        plane: index of the plane within the box.
        points: float64 (n, 2) of (row, column), the first point not repeated. Seen with rows
            downwards and columns to the right, the mask lies to the right of the way: the outer
            ring of a region runs clockwise, the ring of a hole counter-clockwise.
        area: square pixels; positive for an outer ring, negative for a hole.
    """

    plane: int
    points: Ring
    area: float


def signed_area(points: Ring) -> float:
    """Area of a ring of (row, column) points: positive where it runs clockwise with rows downwards."""
    rows, columns = points[:, 0], points[:, 1]
    along = columns[:-1] @ rows[1:] - rows[:-1] @ columns[1:]
    return float(along + columns[-1] * rows[0] - rows[-1] * columns[0]) / 2


# A lattice point is seen with its four voxels: upper left 1, upper right 2, lower left 4, lower right 8.
# The outline turns there where an odd number of them belongs to the mask, and twice where two
# opposite ones do.
# For each turn: does the horizontal edge lead to the right, the vertical one downwards, and does
# the way leave along the horizontal one?
_TURNS: dict[int, tuple[tuple[bool, bool, bool], ...]] = {
    0b0001: ((False, False, True),),
    0b0010: ((True, False, False),),
    0b0100: ((False, True, False),),
    0b1000: ((True, True, True),),
    0b1110: ((False, False, False),),
    0b1101: ((True, False, True),),
    0b1011: ((False, True, True),),
    0b0111: ((True, True, False),),
    0b1001: ((False, False, True), (True, True, True)),
    0b0110: ((True, False, False), (False, True, False)),
}


@dataclass(frozen=True)
class _Corners:
    """Every turn of every outline of a box, as parallel arrays."""

    planes: NDArray[np.intp]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    rightwards: NDArray[np.bool_]
    downwards: NDArray[np.bool_]
    leaves_horizontally: NDArray[np.bool_]


def voxel_outlines(mask: NDArray[np.bool_]) -> list[PlaneRing]:
    """The rings of a mask (slices, rows, columns), outer ones and holes, with collinear points merged.

    A ring may pass twice through the point where two voxels of a hole touch at a corner; it
    never crosses itself or another one.
    """
    corners = _find_corners(mask)
    points = np.stack((corners.rows, corners.columns), axis=1).astype(np.float64) - 0.5
    planes = corners.planes
    cycles = _cycles(_successors(corners))
    rings = [points[cycle] for cycle in cycles]
    return [
        PlaneRing(int(planes[cycle[0]]), ring, signed_area(ring))
        for cycle, ring in zip(cycles, rings, strict=True)
    ]


def _find_corners(mask: NDArray[np.bool_]) -> _Corners:
    voxels = np.pad(mask.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    around = voxels[:, :-1, :-1] | voxels[:, :-1, 1:] << 1 | voxels[:, 1:, :-1] << 2 | voxels[:, 1:, 1:] << 3
    turns = np.array([len(_TURNS.get(code, ())) for code in range(16)])
    table = np.zeros((16, 2, 3), np.bool_)
    for code, each in _TURNS.items():
        table[code, : len(each)] = each
    where = np.flatnonzero(turns[around])
    codes = around.ravel()[where]
    saddles = turns[codes] == 2
    places = np.concatenate((where, where[saddles]))
    ways = np.concatenate((table[codes, 0], table[codes[saddles], 1]))
    planes, rows, columns = np.unravel_index(places, around.shape)
    return _Corners(planes, rows, columns, ways[:, 0], ways[:, 1], ways[:, 2])


def _successors(corners: _Corners) -> list[int]:
    """The corner that follows each one.

    Along a lattice line the corners pair up: an edge begins at one that leads forwards and ends
    at the next. So sorting finds the other end of every edge at once.
    """
    along_row = np.lexsort((corners.rightwards, corners.columns, corners.rows, corners.planes))
    along_column = np.lexsort((corners.downwards, corners.rows, corners.columns, corners.planes))
    partners = np.where(corners.leaves_horizontally, _partners(along_row), _partners(along_column))
    successors: list[int] = partners.tolist()
    return successors


def _partners(order: NDArray[np.intp]) -> NDArray[np.intp]:
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _cycles(successors: list[int]) -> list[list[int]]:
    seen = bytearray(len(successors))
    cycles = []
    for first in range(len(successors)):
        if seen[first]:
            continue
        cycle, corner = [], first
        while not seen[corner]:
            seen[corner] = 1
            cycle.append(corner)
            corner = successors[corner]
        cycles.append(cycle)
    return cycles
