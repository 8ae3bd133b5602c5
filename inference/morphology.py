"""Shapes in voxels: components, holes, shells and smoothing; the door to SciPy.

Owns what is done to a mask or a probability map on one grid.
Speaks arrays (slices, rows, columns); distances in voxels.
Never knows which organ it handles or where the grid lies.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndimage
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], bool)


def largest_components(mask: Mask, count: int, min_voxels: float, corners: bool = True) -> Mask:
    """The `count` largest components of at least `min_voxels`; `count` 0 keeps all of that size.

    Voxels that only share a corner are connected where `corners` says so (26 neighbours, else 6).
    """
    labels, found = ndimage.label(mask, structure=np.ones((3, 3, 3), bool) if corners else None)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    by_size = np.argsort(-sizes, kind="stable")[: count or None]
    kept = np.zeros(found + 1, bool)
    kept[1 + by_size] = sizes[by_size] >= max(min_voxels, 1)
    return np.asarray(kept[labels])


def plane_holes(mask: Mask) -> Mask:
    """What is enclosed by the mask within its plane: background that does not reach the plane's border."""
    labels, found = ndimage.label(~mask, structure=_IN_PLANE)
    outside = np.zeros(found + 1, bool)
    for border in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[border] = True
    outside[0] = True  # the mask itself
    return np.asarray(~outside[labels])


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


def shell(mask: Mask) -> Mask:
    """The voxels on both sides of the mask's boundary, one deep."""
    return grown(mask, 1) & ~shrunk(mask, 1)


def bounds(mask: Mask, margin: int = 0) -> tuple[slice, slice, slice] | None:
    """The smallest box around the mask, widened by `margin` within the array; None where it is empty."""
    box = ndimage.find_objects(mask.view(np.uint8), max_label=1)[0]
    if box is None:
        return None
    first, second, third = (
        slice(max(0, side.start - margin), min(extent, side.stop + margin))
        for side, extent in zip(box, mask.shape, strict=True)
    )
    return first, second, third


def smoothed(probability: NDArray[np.float32], sigmas: tuple[float, ...]) -> NDArray[np.float32]:
    """A Gaussian with a standard deviation in voxels for each axis; the border's value goes on outside."""
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(probability, sigmas, mode="nearest", truncate=3)
    return blurred
