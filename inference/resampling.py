"""From the CT's planes to the network's grid, and exactly back.

Owns the maps between the two grids' indices, and linear sampling along them.
Speaks index coordinates (slice, row, column), voxel centres at integers, and LPS millimetres.
Never averages: the training data were point-sampled, and so is what the network is shown.

Both maps are exact for any orientation, flipped, oblique or tilted, and for uneven slices: each plane
keeps its own origin, and between two planes the origin moves linearly along with the slice index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.volume import PlaneStack

Vector = NDArray[np.float64]
Coordinates = tuple[Vector, Vector, Vector]
"""Slice, row and column coordinates of a block of points: each (slices, rows, columns), or 1 along an
axis on which it does not depend, so that aligned grids cost three short vectors."""

# LPS component of the model grid's slices (z), rows (y) and columns (x).
_LPS_OF_AXIS = (2, 1, 0)
# A term that moves a point by less than this over the whole block is rounding in a direction cosine.
_NEGLIGIBLE_VOXELS = 1e-6


@dataclass(frozen=True)
class ModelGrid:
    """The network's grid: slices towards the head, rows to posterior, columns to the patient's left.

    Attributes:
        origin_mm: (z, y, x) LPS of the centre of voxel (0, 0, 0).
        spacing_mm: (slice, row, column) distances.
        shape: (slices, rows, columns).
    """

    origin_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    def box(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> ModelGrid:
        """The part of `shape` voxels that begins at index `start`; it may reach beyond this grid."""
        z, y, x = (
            origin + first * step
            for origin, first, step in zip(self.origin_mm, start, self.spacing_mm, strict=True)
        )
        return ModelGrid((z, y, x), self.spacing_mm, shape)


def covering_grid(planes: PlaneStack, spacing_mm: tuple[float, float, float]) -> ModelGrid:
    """The grid over the whole CT, centred on its LPS bounding box so that flipping it changes nothing."""
    across = (planes.rows - 1) * planes.row_step_mm
    along = (planes.columns - 1) * planes.column_step_mm
    corners = np.concatenate([planes.origins_mm + step for step in (0, across, along, across + along)])
    low, high = corners.min(axis=0)[::-1], corners.max(axis=0)[::-1]
    counts = np.floor((high - low) / spacing_mm + 1e-6).astype(int) + 1
    origin = (low + high) / 2 - (counts - 1) / 2 * np.array(spacing_mm)
    return ModelGrid(
        (float(origin[0]), float(origin[1]), float(origin[2])),
        spacing_mm,
        (int(counts[0]), int(counts[1]), int(counts[2])),
    )


def ct_coordinates(grid: ModelGrid, planes: PlaneStack) -> Coordinates:
    """Where the model grid's voxels lie in the CT's indices.

    One spacing beyond the first and the last plane the slice coordinate stays: there is no CT there.
    """
    offsets, origins = _with_ends(planes)
    normal, across, along = planes.normal, planes.column_direction, planes.row_direction
    height = _projection(grid, normal)
    slices = np.interp(height, offsets, np.arange(-1.0, len(offsets) - 1))
    rows = _in_plane(_projection(grid, across), height, offsets, origins @ across, planes.row_spacing_mm)
    columns = _in_plane(_projection(grid, along), height, offsets, origins @ along, planes.column_spacing_mm)
    return slices, rows, columns


def model_coordinates(
    planes: PlaneStack, start: tuple[int, int, int], shape: tuple[int, int, int], grid: ModelGrid
) -> Coordinates:
    """Where the voxels of a box of the CT lie in the model grid's indices."""
    counts = [first + np.arange(extent) for first, extent in zip(start, shape, strict=True)]

    def coordinate(axis: int) -> Vector:
        lps, step = _LPS_OF_AXIS[axis], grid.spacing_mm[axis]
        origins = (planes.origins_mm[counts[0], lps] - grid.origin_mm[axis]) / step
        if np.ptp(origins) < _NEGLIGIBLE_VOXELS:
            origins = origins[:1]
        return reduce(
            np.add,
            (
                origins[:, None, None],
                _term(counts[1], planes.row_step_mm[lps] / step, 1),
                _term(counts[2], planes.column_step_mm[lps] / step, 2),
            ),
        )

    return coordinate(0), coordinate(1), coordinate(2)


def ct_box(grid: ModelGrid, planes: PlaneStack) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and shape of the CT's box that the grid and one voxel around it can reach; it may be empty."""
    slices, rows, columns = (side + 2 for side in grid.shape)
    around = ct_coordinates(grid.box((-1, -1, -1), (slices, rows, columns)), planes)
    starts = [max(0, int(np.floor(axis.min()))) for axis in around]
    extents = [
        max(0, min(extent, int(np.ceil(axis.max())) + 1) - start)
        for axis, extent, start in zip(around, planes.shape, starts, strict=True)
    ]
    return (starts[0], starts[1], starts[2]), (extents[0], extents[1], extents[2])


def held_at_border(coordinates: Coordinates, shape: tuple[int, int, int]) -> Coordinates:
    """Up to half a voxel beyond the outermost centres, where their voxels still reach, moved onto them."""
    reach = 0.5 + _NEGLIGIBLE_VOXELS

    def held(coordinate: Vector, extent: int) -> Vector:
        near = (coordinate >= -reach) & (coordinate <= extent - 1 + reach)
        return np.where(near, np.clip(coordinate, 0, extent - 1), coordinate)

    slices, rows, columns = (held(axis, extent) for axis, extent in zip(coordinates, shape, strict=True))
    return slices, rows, columns


def _with_ends(planes: PlaneStack) -> tuple[Vector, Vector]:
    """Offsets and origins with one more plane at each end, as far away as the neighbour on the other side."""
    origins = planes.origins_mm
    if len(origins) == 1:
        before, after = -planes.normal, planes.normal
    else:
        before, after = origins[0] - origins[1], origins[-1] - origins[-2]
    extended = np.concatenate(([origins[0] + before], origins, [origins[-1] + after]))
    return extended @ planes.normal, extended


def _projection(grid: ModelGrid, direction: Vector) -> Vector:
    """Millimetres of the grid's voxel centres along a direction, in the smallest shape that holds them."""
    terms = [
        _term(np.arange(grid.shape[axis]), direction[_LPS_OF_AXIS[axis]] * grid.spacing_mm[axis], axis)
        for axis in range(3)
    ]
    constant = sum(grid.origin_mm[axis] * direction[_LPS_OF_AXIS[axis]] for axis in range(3))
    return reduce(np.add, terms, np.full((1, 1, 1), constant))


def _term(indices: NDArray[np.int_], slope: float, axis: int) -> Vector:
    """`slope * indices` along one axis of a block, or a single zero where it is negligible."""
    if abs(slope) * max(1, int(indices[-1])) < _NEGLIGIBLE_VOXELS:
        return np.zeros((1, 1, 1))
    shape = [1, 1, 1]
    shape[axis] = len(indices)
    return np.asarray(slope * indices, np.float64).reshape(shape)


def _in_plane(position: Vector, height: Vector, offsets: Vector, drift: Vector, spacing_mm: float) -> Vector:
    """Row or column coordinate: the way from the plane's own origin, which drifts in a tilted stack."""
    if np.ptp(drift) < _NEGLIGIBLE_VOXELS * spacing_mm:
        return np.asarray((position - drift[0]) / spacing_mm)
    return np.asarray((position - np.interp(height, offsets, drift)) / spacing_mm)


def _block_shape(coordinates: Coordinates) -> tuple[int, int, int]:
    first, second, third = np.broadcast_shapes(*(axis.shape for axis in coordinates))
    return first, second, third


def _layers(coordinates: Coordinates) -> Iterator[Coordinates]:
    """One block a layer, so that intermediate arrays stay in the cache."""

    def cut(axis: Vector, layer: int) -> Vector:
        return axis if len(axis) == 1 else axis[layer : layer + 1]

    slices, rows, columns = coordinates
    for layer in range(_block_shape(coordinates)[0]):
        yield cut(slices, layer), cut(rows, layer), cut(columns, layer)


def nearest(values: NDArray[Any], coordinates: Coordinates, outside: float) -> NDArray[Any]:
    """The value of the nearest voxel; `outside` where there is none."""
    if _is_separable(coordinates):
        return _nearest_by_axis(values, coordinates, outside)
    result = np.empty(_block_shape(coordinates), values.dtype)
    for layer, block in enumerate(_layers(coordinates)):
        indices = [np.rint(axis).astype(np.intp) for axis in block]
        inside = reduce(
            np.logical_and, [(i >= 0) & (i < n) for i, n in zip(indices, values.shape, strict=True)]
        )
        clipped = [np.clip(i, 0, n - 1) for i, n in zip(indices, values.shape, strict=True)]
        result[layer] = np.where(inside, values[tuple(clipped)], outside)[0]
    return result


def linear(
    values: NDArray[Any],
    coordinates: Coordinates,
    prepare: Callable[[NDArray[Any]], NDArray[np.float32]] = np.asarray,
) -> NDArray[np.float32]:
    """Trilinear interpolation, fading to zero within one voxel beyond the array's border.

    Args:
        values: (slices, rows, columns), of any type.
        coordinates: where to sample.
        prepare: applied to the voxels that are read, before they are weighted.
    """
    if _is_separable(coordinates):
        return _linear_by_axis(values, coordinates, prepare)
    flat = values.reshape(-1)
    strides = (values.shape[1] * values.shape[2], values.shape[2], 1)
    result = np.zeros(_block_shape(coordinates), np.float32)
    for layer, block in enumerate(_layers(coordinates)):
        sides = [
            _sides(axis, extent, stride)
            for axis, extent, stride in zip(block, values.shape, strides, strict=True)
        ]
        for corner in product(*sides):
            index = corner[0][0] + corner[1][0] + corner[2][0]
            weight = corner[0][1] * corner[1][1] * corner[2][1]
            result[layer] += (weight * prepare(flat.take(index)))[0]
    return result


def _is_separable(coordinates: Coordinates) -> bool:
    """Whether each coordinate changes along its own axis only, as it does where the axes agree."""
    return all(axis.size == axis.shape[number] for number, axis in enumerate(coordinates))


def _nearest_by_axis(values: NDArray[Any], coordinates: Coordinates, outside: float) -> NDArray[Any]:
    """`nearest` as a choice of slices, of rows in them, and of columns in those."""
    slices, rows, columns = (np.rint(axis.ravel()).astype(np.intp) for axis in coordinates)
    result = np.empty(_block_shape(coordinates), values.dtype)
    for layer, index in zip(result, np.clip(slices, 0, len(values) - 1), strict=True):
        chosen = values[index].take(rows, axis=0, mode="clip")
        chosen.take(columns, axis=1, mode="clip", out=layer)
    for axis, indices in enumerate((slices, rows, columns)):
        beyond = (indices < 0) | (indices >= values.shape[axis])
        np.moveaxis(result, axis, 0)[beyond] = outside
    return result


def _linear_by_axis(
    values: NDArray[Any],
    coordinates: Coordinates,
    prepare: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """`linear` row by row, then column by column, within each slice, and in the end between slices.

    Each slice is brought to the new rows and columns once, and stays in the cache meanwhile. Without
    matrix products: BLAS would start threads, and on busy cores their waiting takes longer than the work.
    """
    slices, rows, columns = (
        _sides(axis.ravel(), extent, stride=1) for axis, extent in zip(coordinates, values.shape, strict=True)
    )
    height, width = coordinates[1].size, coordinates[2].size

    @lru_cache(maxsize=2)
    def plane(index: int) -> NDArray[np.float32]:
        lines = np.zeros((height, values.shape[2]), np.float32)
        for row, weight in rows:
            lines += weight[:, None] * prepare(values[index].take(row, axis=0))
        points = np.zeros((height, width), np.float32)
        for column, weight in columns:
            points += weight * lines.take(column, axis=1)
        return points

    result = np.zeros(_block_shape(coordinates), np.float32)
    for number, layer in enumerate(result):
        for index, weight in slices:
            layer += weight[number] * plane(int(index[number]))
    return result


def _sides(
    coordinate: Vector, extent: int, stride: int
) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Flat index and weight of the voxels below and above; a voxel beyond the border weighs nothing."""
    below = np.floor(coordinate)
    fraction = coordinate - below
    sides = []
    for index, weight in ((below, 1 - fraction), (below + 1, fraction)):
        inside = (index >= 0) & (index < extent)
        if np.any(inside & (weight > 0)):
            flat = np.clip(index, 0, extent - 1).astype(np.intp) * stride
            sides.append((flat, np.where(inside, weight, 0).astype(np.float32)))
    return sides
