"""Components, holes and boxes are what SciPy finds voxel by voxel, for masks of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage as ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.morphology import bounds, largest_components, near_largest, plane_holes

SIDES = st.integers(1, 9)
ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """From empty to full; each shape has pieces, holes, bays and corners that touch."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(SIDES), draw(SIDES), draw(SIDES))
    return rng.random(shape) < draw(st.sampled_from((0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)))


@settings(max_examples=200, deadline=None)
@given(masks(), st.booleans(), st.integers(1, 6))
def test_components_of_a_size_are_those_that_labelling_finds(
    mask: np.ndarray, corners: bool, smallest: int
) -> None:
    labels, found = ndimage.label(mask, ALL_NEIGHBOURS if corners else None)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)
    expected = mask & (sizes >= smallest)[labels]
    np.testing.assert_array_equal(largest_components(mask, 0, smallest, corners), expected)


@settings(max_examples=200, deadline=None)
@given(masks(), st.booleans(), st.integers(1, 3))
def test_the_largest_components_come_first_and_of_equal_ones_the_first_in_the_array(
    mask: np.ndarray, corners: bool, count: int
) -> None:
    labels, _ = ndimage.label(mask, ALL_NEIGHBOURS if corners else None)
    sizes = np.bincount(labels.ravel())[1:]
    largest = 1 + np.argsort(-sizes, kind="stable")[:count]
    np.testing.assert_array_equal(largest_components(mask, count, 1, corners), np.isin(labels, largest))


@settings(max_examples=200, deadline=None)
@given(masks(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_near_the_largest_component_is_what_begins_within_reach_of_its_box_along_every_axis(
    mask: np.ndarray, slices: int, rows: int, columns: int
) -> None:
    labels, found = ndimage.label(mask, ALL_NEIGHBOURS)
    boxes = ndimage.find_objects(labels)
    expected = mask
    if found:
        largest = boxes[int(np.argmax(np.bincount(labels.ravel())[1:]))]
        near = [
            all(
                max(one.start - (big.stop - 1), big.start - (one.stop - 1)) <= reach
                for one, big, reach in zip(box, largest, (slices, rows, columns), strict=True)
            )
            for box in boxes
        ]
        expected = np.array([False, *near])[labels]
    np.testing.assert_array_equal(near_largest(mask, (slices, rows, columns)), expected)


@settings(max_examples=200, deadline=None)
@given(masks())
def test_holes_are_what_filling_plane_by_plane_adds(mask: np.ndarray) -> None:
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    np.testing.assert_array_equal(plane_holes(mask), filled & ~mask)


@settings(max_examples=200, deadline=None)
@given(masks(), st.integers(0, 2))
def test_the_box_is_the_smallest_one_with_its_margin_inside_the_array(mask: np.ndarray, margin: int) -> None:
    box = bounds(mask, margin)
    if not mask.any():
        assert box is None
        return
    assert box is not None
    for side, where, extent in zip(box, np.nonzero(mask), mask.shape, strict=True):
        assert (side.start, side.stop) == (
            max(0, where.min() - margin),
            min(extent, where.max() + 1 + margin),
        )


@pytest.mark.parametrize("shape", [(0, 0, 0), (2, 0, 3), (0, 4, 4)])
def test_an_empty_array_has_nothing(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, bool)
    assert largest_components(mask, 1, 1).shape == shape
    assert plane_holes(mask).shape == shape
    assert bounds(mask) is None
