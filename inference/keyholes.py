"""Holes become keyholes: one closed contour that reaches each hole over a bridge without width.

Owns where a bridge goes (DICOM PS3.3 C.8.8.6.3, the keyhole technique).
Speaks rings of (row, column) index coordinates of one plane.
Never lets a bridge cross anything: it ends at the first line that it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.outlines import Ring


@dataclass(frozen=True)
class Region:
    """One connected region of a plane.

    Attributes:
        contour: its outer ring and its holes as one contour.
        rings: the same apart, the outer one first.
    """

    contour: Ring
    rings: tuple[Ring, ...]


def join(outers: Sequence[Ring], holes: Sequence[Ring]) -> list[Region]:
    """One region for each outer ring, with its holes joined to it.

    From the leftmost point of a hole a bridge runs along its row to the left, to the first line
    that it meets. That line bounds the same region: the bridge never leaves the region, and a
    region is connected. Taken from left to right, each hole meets a contour that is already
    complete to its left. A bridge is passed twice between the same two points, in opposite
    directions, so it counts for nothing in an even-odd fill, and nothing in an area.

    Args:
        outers: open rings (n, 2), none within another's region except inside one of its holes.
        holes: open rings that run the other way round; each lies in one of the regions.

    Raises:
        ValueError: a hole with no line to its left; it lies in no region.
    """
    regions = [Region(outer, (outer,)) for outer in outers]
    for hole in sorted((_from_leftmost(hole) for hole in holes), key=lambda hole: float(hole[0, 1])):
        met = [_first_line_to_the_left(region.contour, hole[0]) for region in regions]
        nearest = max(range(len(regions)), key=lambda index: met[index][0])
        column, edge = met[nearest]
        region = regions[nearest]
        regions[nearest] = Region(_splice(region.contour, edge, column, hole), (*region.rings, hole))
    return regions


def _from_leftmost(ring: Ring) -> Ring:
    """The same ring, begun at its leftmost point (the uppermost of those)."""
    first = int(np.lexsort((ring[:, 0], ring[:, 1]))[0])
    return np.roll(ring, -first, axis=0)


def _first_line_to_the_left(contour: Ring, start: Ring) -> tuple[float, int]:
    """Column of the nearest line at or to the left of a point, on its row, and the edge that it belongs to.

    The column is -inf where there is none. Edges along the row are left out: their ends belong to others.
    """
    row, column = start
    rows, columns = contour[:, 0], contour[:, 1]
    next_rows, next_columns = np.roll(rows, -1), np.roll(columns, -1)
    edges = np.flatnonzero(
        (rows != next_rows) & (np.minimum(rows, next_rows) <= row) & (row <= np.maximum(rows, next_rows))
    )
    along = (row - rows[edges]) / (next_rows[edges] - rows[edges])
    crossings = columns[edges] + along * (next_columns[edges] - columns[edges])
    crossings[crossings > column] = -np.inf
    if not len(edges):
        return -np.inf, 0
    nearest = int(np.argmax(crossings))
    return float(crossings[nearest]), int(edges[nearest])


def _splice(contour: Ring, edge: int, column: float, hole: Ring) -> Ring:
    """Walk the contour to the bridge's foot, over it, round the hole, back over it, and on."""
    if not np.isfinite(column):
        raise ValueError(f"the hole at row {hole[0, 0]}, column {hole[0, 1]} lies in no region")
    foot = np.array([[hole[0, 0], column]])
    walk = np.concatenate((contour[: edge + 1], foot, hole, hole[:1], foot, contour[edge + 1 :]))
    return np.asarray(walk[np.any(walk != np.roll(walk, 1, axis=0), axis=1)])
