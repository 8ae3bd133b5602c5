"""The patient in the CT: what the network is shown, and how much of it.

Owns finding the body, removing the couch, and cutting the crop to the extent that the model knows.
Speaks HU on the CT and 0..1 on the model grid; `True` in a mask is body.
Never changes the CT: it only decides which part is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.errors import OutsideModelError
from inference.morphology import Mask, bounds, grown, largest_components, plane_holes, shrunk
from inference.resampling import ModelGrid, covering_grid, ct_coordinates, linear, nearest
from inference.volume import Volume
from models.card import Input, Window

AIR_HU = -1000
# Couch shells, masks and headrests are thinner than twice this; no cross-section of a patient's trunk is.
THIN_MM = 8.0
# A new-born's head is larger; a phantom for quality assurance may be smaller.
SMALLEST_BODY_CM3 = 300.0

_IN_PLANE = (1, 2)


@dataclass(frozen=True)
class Framed:
    """What the network is shown.

    Attributes:
        image: float32 (slices, rows, columns), 0..1; air outside the body and in the padding.
        grid: where its voxels lie.
        cut: whether the body goes on beyond the image because of the model's largest extent.
    """

    image: NDArray[np.float32]
    grid: ModelGrid
    cut: bool


def frame(volume: Volume, model: Input) -> Framed:
    """The body's crop of a CT, windowed, on the model's grid.

    Raises:
        OutsideModelError: `no_body`.
    """
    whole = covering_grid(volume.planes, model.spacing_mm)
    coarse_hu = nearest(volume.hu, ct_coordinates(whole, volume.planes), AIR_HU)
    body = find_body(coarse_hu > model.body_threshold_hu, model.spacing_mm)
    start, extent, cut = crop(body, model)
    padded = tuple(-(-side // model.multiple_of) * model.multiple_of for side in extent)
    grid = whole.box(start, (padded[0], padded[1], padded[2]))
    image = _windowed_image(volume, grid, model.window)
    inside = np.zeros(grid.shape, bool)
    # One voxel more than the body, or the skin's partial volume would be cut off.
    kept = tuple(slice(first, first + side) for first, side in zip(start, extent, strict=True))
    inside[: extent[0], : extent[1], : extent[2]] = grown(body, 1)[kept]
    image[~inside] = 0
    return Framed(image, grid, cut)


def find_body(dense: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """The largest thick object among what is denser than air, with its cavities filled plane by plane.

    Raises:
        OutsideModelError: `no_body`, where that is smaller than `SMALLEST_BODY_CM3`.
    """
    voxels = max(1, round(THIN_MM / spacing_mm[1]))
    core = shrunk(dense, voxels, _IN_PLANE)
    trunk = largest_components(core, count=1, min_voxels=1, corners=False)
    body = grown(trunk, voxels, _IN_PLANE) & dense
    volume_cm3 = float(np.count_nonzero(body) * np.prod(spacing_mm) / 1000)
    if volume_cm3 < SMALLEST_BODY_CM3:
        raise OutsideModelError(
            "no_body",
            f"no body was found: the largest dense object has {volume_cm3:.0f} cm3, and a head and neck "
            f"has more than {SMALLEST_BODY_CM3:.0f} cm3",
        )
    return np.asarray(body | plane_holes(body))


def crop(body: Mask, model: Input) -> tuple[tuple[int, int, int], tuple[int, int, int], bool]:
    """Start and extent of the image in the body's grid, and whether the model's largest extent cut it.

    Too long a body keeps its superior end, too wide a one its centre.
    """
    box = bounds(body)
    assert box is not None
    limits = [int(mm / step) for mm, step in zip(model.max_extent_mm, model.spacing_mm, strict=True)]
    lower = max(box[0].start, box[0].stop - limits[0])
    kept = bounds(body[lower : box[0].stop])
    assert kept is not None
    sides = [slice(lower, box[0].stop), *(_middle(kept[axis], limits[axis]) for axis in _IN_PLANE)]
    cut = any(
        side.stop - side.start < whole.stop - whole.start for side, whole in zip(sides, box, strict=True)
    )
    starts = (sides[0].start, sides[1].start, sides[2].start)
    extents = (sides[0].stop - starts[0], sides[1].stop - starts[1], sides[2].stop - starts[2])
    return starts, extents, cut


def _middle(side: slice, limit: int) -> slice:
    """The side, or its middle `limit` voxels."""
    excess = max(0, side.stop - side.start - limit)
    return slice(side.start + excess // 2, side.stop - (excess - excess // 2))


def _windowed_image(volume: Volume, grid: ModelGrid, window: Window) -> NDArray[np.float32]:
    """Clipped before it is interpolated, as in training: an edge to air weighs no more than one to fat."""
    lower, upper = np.float32(window.lower_hu), np.float32(window.upper_hu)

    def clipped(hu: NDArray[np.int16]) -> NDArray[np.float32]:
        return np.asarray(np.clip(hu.astype(np.float32), lower, upper) - lower)

    image = linear(volume.hu, ct_coordinates(grid, volume.planes), clipped)
    image /= upper - lower
    return np.clip(image, 0, 1, out=image)
