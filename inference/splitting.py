"""A region that has too many points is cut in two, so that each part is a contour that a receiver takes.

Owns where a cut lies and how the rings are closed along it.
Speaks rings of (row, column) index coordinates of one plane.
Never cuts through a voxel's centre, and changes neither area nor winding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from inference.outlines import Ring

_BETWEEN_CENTRES = 0.25
"""So far behind a line of voxel centres lies a cut: neither on a centre nor on a voxel's edge."""
_ASIDE = 2.0**-10
"""A cut moves by this where it would run through a point."""


def halves(rings: Sequence[Ring]) -> tuple[list[Ring], list[Ring]] | None:
    """Cut a region across its longer extent, near the middle.

    Args:
        rings: open rings of one region, outer ones and holes, each with the region to the right of its way.

    Returns:
        The rings of both halves, with the same rule; None where the region lies within one voxel.
    """
    points = np.concatenate(rings)
    low, high = points.min(axis=0), points.max(axis=0)
    axis = int(np.argmax(high - low))
    cut = np.floor((low[axis] + high[axis]) / 2) + _BETWEEN_CENTRES
    while np.any(points[:, axis] == cut):
        cut += _ASIDE
    if not low[axis] < cut < high[axis]:
        return None
    return _one_side(rings, axis, cut, below=True), _one_side(rings, axis, cut, below=False)


def _one_side(rings: Sequence[Ring], axis: int, cut: float, below: bool) -> list[Ring]:
    whole, chains = [], []
    for ring in rings:
        inside = (ring[:, axis] < cut) == below
        if inside.all():
            whole.append(ring)
        elif inside.any():
            chains += list(_chains(ring, inside, axis, cut))
    return whole + _closed(chains, 1 - axis)


def _chains(ring: Ring, inside: NDArray[np.bool_], axis: int, cut: float) -> Iterator[Ring]:
    """The parts of a ring on one side, each from where it comes over the cut to where it goes back."""
    entries = np.flatnonzero(inside & ~np.roll(inside, 1))
    ring, inside = np.roll(ring, -entries[0], axis=0), np.roll(inside, -entries[0])
    begins = np.flatnonzero(inside & ~np.roll(inside, 1))
    ends = np.flatnonzero(inside & ~np.roll(inside, -1))
    for begin, end in zip(begins, ends, strict=True):
        entry = _crossing(ring[begin - 1], ring[begin], axis, cut)
        leave = _crossing(ring[end], ring[(end + 1) % len(ring)], axis, cut)
        yield np.concatenate(([entry], ring[begin : end + 1], [leave]))


def _crossing(first: Ring, second: Ring, axis: int, cut: float) -> Ring:
    share = (cut - first[axis]) / (second[axis] - first[axis])
    point = first + share * (second - first)
    point[axis] = cut
    return np.asarray(point)


def _closed(chains: Sequence[Ring], along: int) -> list[Ring]:
    """Join chains along the cut: its crossings in order lead by turns into the region and out of it."""
    ends = [(float(chain[end, along]), index, end) for index, chain in enumerate(chains) for end in (0, -1)]
    ends.sort()
    follower = {}
    for (_, index, end), (_, other, _) in zip(ends[0::2], ends[1::2], strict=True):
        # Of the two one leaves this side and the other comes back to it.
        leaves, comes = (index, other) if end == -1 else (other, index)
        follower[leaves] = comes
    closed, left = [], set(follower)
    while left:
        way = [min(left)]
        while (after := follower[way[-1]]) != way[0]:
            way.append(after)
        left -= set(way)
        closed.append(np.concatenate([chains[index] for index in way]))
    return closed
