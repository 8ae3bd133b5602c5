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
    crossed_rows = np.clip(np.ceil(lower[:, 0]), 0, rows).astype(np.intp) - first
    edge = np.repeat(np.arange(len(starts)), crossed_rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed_rows) - crossed_rows, crossed_rows) + first[edge]
    height = lower[edge, 0] - upper[edge, 0]
    crossing = upper[edge, 1] + (row - upper[edge, 0]) / height * (lower[edge, 1] - upper[edge, 1])
    column = np.clip(np.ceil(crossing), 0, columns).astype(np.intp)
    toggles = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1))
    # Only whether a count is odd matters: that is its last bit, and "exclusive or" adds those up.
    odd = toggles.astype(np.uint8).reshape(rows, columns + 1)[:, :columns] & 1
    return np.asarray(np.bitwise_xor.accumulate(odd, axis=1), np.bool_)
