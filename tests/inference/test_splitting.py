"""Contours with too many points: the parts are the same region, each small enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.draw import polygon2mask

from inference.contours import Holes, trace
from inference.outlines import signed_area
from inference.rasterising import fill
from tests.inference.test_contours import planes
from tests.organs import structure_map

masks = arrays.arrays(np.bool_, st.tuples(st.just(1), st.integers(1, 14), st.integers(1, 14)))


@settings(max_examples=120, deadline=None)
@given(masks, st.sampled_from(["keyhole", "xor"]))
def test_the_parts_read_back_as_the_very_mask_by_two_readers(mask: np.ndarray, holes: Holes) -> None:
    contours = trace(structure_map(mask), planes(*mask.shape), "voxel", 0.0, holes, most_points=20)
    assert np.array_equal(fill([one.points for one in contours], *mask.shape[1:]), mask[0])
    other = np.zeros(mask.shape[1:], bool)
    for contour in contours:
        other ^= polygon2mask(mask.shape[1:], contour.points)
    assert np.array_equal(other, mask[0])
    assert sum(signed_area(one.points) for one in contours) == pytest.approx(mask.sum())
    assert all((signed_area(one.points) < 0) == one.is_hole for one in contours)
    assert holes == "xor" or not any(one.is_hole for one in contours)


@pytest.mark.parametrize("most_points", [20, 60, 200])
@pytest.mark.parametrize("holes", ["keyhole", "xor"])
@pytest.mark.parametrize("mode", ["voxel", "smooth"])
def test_no_part_has_more_points_than_may_be(mode, holes, most_points):
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:80, :90]
    blob = np.hypot(rows - 40, columns - 44) < 34 + 3 * np.sin(columns)
    probability = np.where(blob & (rng.random(blob.shape) > 0.03), 0.9, 0.1)[None]
    found = structure_map(probability)
    whole, parts = (
        trace(found, planes(1, 80, 90), mode, 0.05, holes, limit) for limit in (None, most_points)
    )
    assert max(len(one.points) for one in whole) > most_points or holes == "xor"
    assert max(len(one.points) for one in parts) <= most_points
    same = [fill([one.points for one in some], 80, 90) for some in (whole, parts)]
    assert np.array_equal(*same)
    areas = [sum(signed_area(one.points) for one in some) for some in (whole, parts)]
    assert areas[0] == pytest.approx(areas[1])
