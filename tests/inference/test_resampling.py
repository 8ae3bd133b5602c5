"""The maps between the CT's and the model's grid are exact, for any stack of planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.resampling import (
    ModelGrid,
    covering_grid,
    ct_box,
    ct_coordinates,
    held_at_border,
    linear,
    model_coordinates,
    nearest,
)
from inference.volume import PlaneStack

SPACING_MM = (3.0, 4.0, 4.0)


@st.composite
def stacks(draw: st.DrawFn) -> PlaneStack:
    """Any orientation, any pixel aspect, uneven slices, with or without tilt."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        directions = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    else:
        directions = np.eye(3)[rng.permutation(3)] * rng.choice((-1.0, 1.0), (3, 1))
    row, column = directions[0], directions[1]
    gaps = rng.uniform(1, 5, 23) if draw(st.booleans()) else np.full(23, 2.5)
    offsets = np.concatenate(([0.0], np.cumsum(gaps)))
    tilt = np.tan(np.deg2rad(draw(st.sampled_from((0.0, 0.0, 17.0)))))
    along = np.cross(row, column) + tilt * column
    return PlaneStack(
        origins_mm=rng.uniform(-300, 300, 3) + offsets[:, None] * along,
        row_direction=row,
        column_direction=column,
        row_spacing_mm=draw(st.sampled_from((0.9, 1.7))),
        column_spacing_mm=draw(st.sampled_from((0.9, 2.1))),
        rows=48,
        columns=41,
    )


def lps_of_model(grid: ModelGrid) -> np.ndarray:
    """(slices, rows, columns, 3) x, y, z."""
    axes = [
        origin + step * np.arange(extent)
        for origin, step, extent in zip(grid.origin_mm, grid.spacing_mm, grid.shape, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)[..., ::-1]


def lps_of_ct(planes: PlaneStack) -> np.ndarray:
    return (
        planes.origins_mm[:, None, None]
        + np.arange(planes.rows)[None, :, None, None] * planes.row_step_mm
        + np.arange(planes.columns)[None, None, :, None] * planes.column_step_mm
    )


@settings(max_examples=40, deadline=None)
@given(stacks())
def test_each_ct_voxel_lies_on_the_model_grid_where_its_patient_coordinates_say(planes: PlaneStack) -> None:
    grid = covering_grid(planes, SPACING_MM)
    found = np.stack(np.broadcast_arrays(*model_coordinates(planes, (0, 0, 0), planes.shape, grid)), axis=-1)
    expected = (lps_of_ct(planes)[..., ::-1] - grid.origin_mm) / SPACING_MM
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The grid covers the CT: nothing lies further out than half a model voxel.
    assert (found >= -0.5 - 1e-5).all()
    assert (found <= np.array(grid.shape) - 0.5 + 1e-5).all()


@settings(max_examples=40, deadline=None)
@given(stacks())
def test_ct_coordinates_lead_back_to_the_same_patient_position(planes: PlaneStack) -> None:
    grid = covering_grid(planes, SPACING_MM)
    slices, rows, columns = np.broadcast_arrays(*ct_coordinates(grid, planes))
    within = (slices >= 0) & (slices <= len(planes.origins_mm) - 1)
    knots = np.arange(len(planes.origins_mm))
    origins = np.stack([np.interp(slices, knots, planes.origins_mm[:, axis]) for axis in range(3)], axis=-1)
    positions = origins + rows[..., None] * planes.row_step_mm + columns[..., None] * planes.column_step_mm
    np.testing.assert_allclose(positions[within], lps_of_model(grid)[within], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(stacks(), st.integers(0, 2**32 - 1))
def test_a_blob_on_the_model_grid_lands_in_the_ct_where_it_is_in_millimetres(
    planes: PlaneStack, seed: int
) -> None:
    whole = covering_grid(planes, SPACING_MM)
    middle = lps_of_ct(planes).mean(axis=(0, 1, 2))
    centre = middle + np.random.default_rng(seed).uniform(-2, 2, 3)
    distance = np.linalg.norm(lps_of_model(whole) - centre, axis=-1)
    probability = np.clip(0.5 + (9 - distance) / 12, 0, 1).astype(np.float32)
    start, shape = ct_box(whole, planes)
    assert start == (0, 0, 0)
    assert shape == planes.shape
    coordinates = held_at_border(model_coordinates(planes, start, shape, whole), whole.shape)
    mask = linear(probability, coordinates) >= 0.5
    truth = np.linalg.norm(lps_of_ct(planes) - centre, axis=-1)
    assert mask[truth < 7.5].all()
    assert not mask[truth > 9.5].any()


@settings(max_examples=25, deadline=None)
@given(stacks())
def test_a_linear_field_is_sampled_exactly_inside_the_ct(planes: PlaneStack) -> None:
    field = (lps_of_ct(planes) @ (0.3, -0.2, 0.5)).astype(np.float64)
    grid = covering_grid(planes, SPACING_MM)
    coordinates = ct_coordinates(grid, planes)
    inside = np.logical_and.reduce(
        np.broadcast_arrays(
            *[(axis >= 0) & (axis <= n - 1) for axis, n in zip(coordinates, planes.shape, strict=True)]
        )
    )
    sampled = linear(field, coordinates)
    np.testing.assert_allclose(sampled[inside], (lps_of_model(grid) @ (0.3, -0.2, 0.5))[inside], atol=2e-3)


def test_beyond_the_border_linear_fades_to_zero_and_nearest_gives_what_it_is_told() -> None:
    values = np.ones((3, 3, 3), np.int16)
    at = np.array([-2.0, -1.0, -0.75, 0.0, 2.0, 2.25, 3.0]).reshape(-1, 1, 1)
    centre = np.ones((1, 1, 1))
    np.testing.assert_allclose(
        linear(values, (at, centre, centre)).ravel(), [0, 0, 0.25, 1, 1, 0.75, 0], atol=1e-6
    )
    assert nearest(values, (at, centre, centre), -7).ravel().tolist() == [-7, -7, -7, 1, 1, 1, -7]


@pytest.mark.parametrize(
    ("coordinate", "held"), [(-0.5, 0.0), (-0.6, -0.6), (4.5, 4.0), (4.6, 4.6), (2.2, 2.2)]
)
def test_a_border_voxel_reaches_half_a_voxel_beyond_its_centre(coordinate: float, held: float) -> None:
    block = np.full((1, 1, 1), coordinate)
    assert held_at_border((block, block, block), (5, 5, 5))[1].item() == pytest.approx(held)


def test_axis_by_axis_gives_what_voxel_by_voxel_does_also_beyond_the_border() -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(-1000, 1000, (7, 6, 9)).astype(np.int16)
    by_axis = (
        rng.uniform(-2, 8, (11, 1, 1)),
        rng.uniform(-2, 7, (1, 13, 1)),
        rng.uniform(-2, 10, (1, 1, 12)),
    )
    slices, rows, columns = np.broadcast_arrays(*by_axis)
    by_voxel = (slices, rows, columns)

    def clipped(taken: np.ndarray) -> np.ndarray:
        return np.clip(taken.astype(np.float32), -300, 200)

    np.testing.assert_array_equal(nearest(values, by_axis, -7), nearest(values, by_voxel, -7))
    np.testing.assert_allclose(linear(values, by_axis), linear(values, by_voxel), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        linear(values, by_axis, clipped), linear(values, by_voxel, clipped), rtol=1e-5, atol=1e-3
    )
    # Clipping what is read is not clipping what comes out.
    assert np.abs(linear(values, by_axis, clipped) - clipped(linear(values, by_axis))).max() > 1
