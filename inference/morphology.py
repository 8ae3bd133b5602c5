"""Shapes in voxels: components, holes and smoothing; the door to SciPy.

Owns what is done to a mask or a probability map on one grid.
Speaks arrays (slices, rows, columns); distances in voxels.
Never knows which organ it handles or where the grid lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndimage
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class _Runs:
    """The stretches of True along the columns of a mask, in the order of its voxels.

    An organ has a run or two in a row: joining them takes a fraction of the time of looking at each voxel.

    Attributes:
        first, stop: where each begins, and the place after its end, counted through an array with one
            more row before and one more column behind: no run has a neighbour across a border.
        shape: of that array, (slices, rows, columns).
    """

    first: Indices
    stop: Indices
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, mask: Mask) -> _Runs:
        """The runs of a mask (slices, rows, columns)."""
        slices, rows, columns = mask.shape
        spaced = np.zeros((slices, rows + 1, columns + 1), bool)
        spaced[:, 1:, :-1] = mask
        flat = spaced.ravel()
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        return cls(edges[0::2], edges[1::2], (slices, rows + 1, columns + 1))

    @property
    def voxels(self) -> Indices:
        """How many each run has."""
        return self.stop - self.first

    def components(self, ways: tuple[tuple[int, int], ...], corners: bool) -> tuple[int, Indices]:
        """How many components there are, and the one that each run belongs to.

        Args:
            ways: to the neighbouring rows as (slices, rows), one of two opposite ways.
            corners: whether runs that only share a corner touch.
        """
        reach = 1 if corners else 0
        runs = len(self.first)
        pairs = []
        for slices, rows in ways:
            way = (slices * self.shape[1] + rows) * self.shape[2]
            begin = np.searchsorted(self.stop, self.first + way - reach, side="right")
            end = np.searchsorted(self.first, self.stop + way + reach, side="left")
            pairs.append((np.repeat(np.arange(runs), end - begin), _ranges(begin, end)))
        one, other = np.concatenate(pairs, axis=1)
        touching = coo_array((np.ones(len(one), bool), (one, other)), (runs, runs))
        count, component = connected_components(touching, directed=False)
        return count, component

    def mask(self, chosen: NDArray[np.bool_]) -> Mask:
        """The mask of the chosen ones."""
        spaced = np.zeros(self.shape, bool)
        spaced.ravel()[_ranges(self.first[chosen], self.stop[chosen])] = True
        return spaced[:, 1:, :-1].copy()


def _ranges(begin: Indices, end: Indices) -> Indices:
    """The integers from each `begin` to before its `end`, one range after the other."""
    counts = end - begin
    return np.asarray(np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - begin, counts))


def largest_components(mask: Mask, count: int, min_voxels: float, corners: bool = True) -> Mask:
    """The `count` largest components of at least `min_voxels`; `count` 0 keeps all of that size.

    Voxels that only share a corner are connected where `corners` says so (26 neighbours, else 6).
    """
    runs = _Runs.of(mask)
    ways = ((0, 1), (1, -1), (1, 0), (1, 1)) if corners else ((0, 1), (1, 0))
    found, component = runs.components(ways, corners)
    sizes = np.bincount(component, runs.voxels, found)
    by_size = np.argsort(-sizes, kind="stable")[: count or None]
    kept = np.zeros(found, bool)
    kept[by_size] = sizes[by_size] >= min_voxels
    return runs.mask(kept[component])


def count_components(mask: Mask) -> int:
    """How many components there are, of voxels that share at least a corner."""
    found, _ = _Runs.of(mask).components(((0, 1), (1, -1), (1, 0), (1, 1)), corners=True)
    return found


def near_largest(mask: Mask, reach_voxels: tuple[float, float, float]) -> Mask:
    """The mask without the components whose box begins farther from the largest one's along some axis."""
    runs = _Runs.of(mask)
    found, component = runs.components(((0, 1), (1, -1), (1, 0), (1, 1)), corners=True)
    if found < 2:
        return mask
    _, rows, columns = runs.shape
    low = np.full((found, 3), np.iinfo(np.intp).max)
    high = np.full((found, 3), -1)
    plane, row = runs.first // (rows * columns), runs.first // columns % rows
    first = runs.first % columns
    for axis, (begin, end) in enumerate(((plane, plane), (row, row), (first, first + runs.voxels - 1))):
        np.minimum.at(low[:, axis], component, begin)
        np.maximum.at(high[:, axis], component, end)
    largest = int(np.argmax(np.bincount(component, runs.voxels)))
    apart = np.maximum(low - high[largest], low[largest] - high)
    return runs.mask((apart <= reach_voxels).all(axis=1)[component])


def plane_holes(mask: Mask) -> Mask:
    """What is enclosed by the mask within its plane: background that does not reach the plane's border."""
    runs = _Runs.of(~mask)
    _, rows, columns = runs.shape
    found, component = runs.components(((0, 1),), corners=False)
    row, column = runs.first // columns % rows, runs.first % columns
    # The array has one more row before the mask's own, and one more column behind.
    at_border = (row == 1) | (row == rows - 1) | (column == 0) | (column + runs.voxels == columns - 1)
    outside = np.zeros(found, bool)
    outside[component[at_border]] = True
    return runs.mask(~outside[component])


def grown(mask: Mask, voxels: int, axes: tuple[int, ...] = (0, 1, 2)) -> Mask:
    """The mask and its neighbours along `axes`, one voxel at a time (a diamond)."""
    for _ in range(voxels):
        wider = mask.copy()
        for axis in axes:
            ahead, behind = _shifted(axis)
            wider[ahead] |= mask[behind]
            wider[behind] |= mask[ahead]
        mask = wider
    return mask


def shrunk(mask: Mask, voxels: int, axes: tuple[int, ...] = (0, 1, 2)) -> Mask:
    """The mask without what lies next to background along `axes`; beyond the border nothing is background."""
    return ~grown(~mask, voxels, axes)


def _shifted(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    whole = [slice(None)] * 3
    ahead, behind = list(whole), list(whole)
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    return tuple(ahead), tuple(behind)


def bounds(mask: Mask, margin: int = 0) -> tuple[slice, slice, slice] | None:
    """The smallest box around the mask, widened by `margin` within the array; None where it is empty."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not slices.size:
        return None
    shadow = np.asarray(mask[slices[0] : slices[-1] + 1].any(axis=0))
    occupied = (slices, np.flatnonzero(shadow.any(axis=1)), np.flatnonzero(shadow.any(axis=0)))
    first, second, third = (
        slice(max(0, int(where[0]) - margin), min(extent, int(where[-1]) + 1 + margin))
        for where, extent in zip(occupied, mask.shape, strict=True)
    )
    return first, second, third


def smoothed(probability: NDArray[np.float32], sigmas: tuple[float, ...]) -> NDArray[np.float32]:
    """A Gaussian with a standard deviation in voxels for each axis; the border's value goes on outside."""
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(probability, sigmas, mode="nearest", truncate=3)
    return blurred


def parts_of_planes(mask: Mask, corners: bool) -> tuple[NDArray[np.int32], int]:
    """The connected parts of each plane: their numbers from 1 on, 0 outside, and how many there are.

    Args:
        corners: whether voxels that only share a corner touch.
    """
    touching = np.zeros((3, 3, 3), np.bool_)
    touching[1] = ndimage.generate_binary_structure(2, 2 if corners else 1)
    labels, count = ndimage.label(mask, touching)
    return labels, int(count)


def without_islands(mask: Mask, smallest: float) -> Mask:
    """Without the parts of a plane that have fewer voxels; the largest part of each plane stays."""
    labels, count = parts_of_planes(mask, corners=False)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    of_voxel = sizes[labels]
    largest = of_voxel.max(axis=(1, 2), keepdims=True, initial=0)
    return np.asarray(mask & (of_voxel >= np.minimum(smallest, largest)))


def opened(mask: Mask, radii: tuple[float, float]) -> Mask:
    """Without what is thinner in its plane than an ellipse of these radii (rows, columns).

    A plane that would be empty stays as it is.
    """
    rows, columns = (int(radius) for radius in radii)
    at = np.ogrid[-rows : rows + 1, -columns : columns + 1]
    ellipse = sum((axis / max(radius, 1e-9)) ** 2 for axis, radius in zip(at, radii, strict=True)) <= 1
    # What the volume's border cuts goes on behind it.
    around = ((0, 0), (rows, rows), (columns, columns))
    padded = np.pad(mask, around, mode="edge")
    inner = ndimage.binary_opening(padded, np.asarray(ellipse)[None])
    inner = inner[:, rows : rows + mask.shape[1], columns : columns + mask.shape[2]] & mask
    return np.where(inner.any(axis=(1, 2))[:, None, None], inner, mask)
