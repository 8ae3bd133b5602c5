"""Polygons back to a mask, to check what the contours say.

Owns the even-odd fill by voxel centre.
Speaks rings of (row, column) index coordinates and bool masks.
Never shares code with the tracing of contours: a reader that repeats the writer's error proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def fill(polygons: Sequence[NDArray[np.float64]], rows: int, columns: int) -> NDArray[np.bool_]:
    """Even-odd fill over all polygons of one plane: bool (rows, columns).

    A voxel is inside where a ray from its centre to the left crosses an odd number of edges. An
    edge counts on the rows from its upper end (inclusive) to its lower end (exclusive), and for
    the centres strictly to the right of it or on it.

    Args:
        polygons: each (n, 2) of (row, column), closed from its last point to its first; parts
            outside the grid count for the voxels inside it.
        rows, columns: extent of the grid, whose voxel centres are at integers from 0.
    """
    if not polygons:
        return np.zeros((rows, columns), np.bool_)
    starts = np.concatenate(polygons)
    lengths = np.array([len(polygon) for polygon in polygons])
    lasts = np.cumsum(lengths) - 1
    ends = np.roll(starts, -1, axis=0)
    ends[lasts] = starts[lasts + 1 - lengths]
    upside_down = starts[:, 0] > ends[:, 0]
    upper = np.where(upside_down[:, None], ends, starts)
    lower = np.where(upside_down[:, None], starts, ends)
    first = np.clip(np.ceil(upper[:, 0]), 0, rows).astype(np.intp)
    last = np.clip(np.ceil(lower[:, 0]), 0, rows).astype(np.intp)
    edge, row = np.repeat(np.arange(len(starts)), last - first), _ranges(first, last)
    height = lower[edge, 0] - upper[edge, 0]
    crossing = upper[edge, 1] + (row - upper[edge, 0]) / height * (lower[edge, 1] - upper[edge, 1])
    column = np.clip(np.ceil(crossing), 0, columns).astype(np.intp)
    # Along a row one crossing leads in and the next one out, at the latest in the column beyond the grid.
    crossings = np.sort(row * (columns + 1) + column)
    inside = np.zeros(rows * (columns + 1), np.bool_)
    inside[_ranges(crossings[0::2], crossings[1::2])] = True
    return inside.reshape(rows, columns + 1)[:, :columns]


def _ranges(begin: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.intp]:
    """The integers from each `begin` to before its `end`, one range after the other."""
    counts = end - begin
    return np.asarray(np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - begin, counts))
