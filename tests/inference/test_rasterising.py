"""The even-odd fill, against shapes whose voxels are known and against another reader."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

import inference.rasterising
from inference.rasterising import fill


def rectangle(top: float, left: float, bottom: float, right: float) -> np.ndarray:
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)])


def test_a_voxel_is_inside_by_its_centre():
    mask = fill([rectangle(0.6, 1.4, 2.4, 3.6)], 4, 5)
    assert np.argwhere(mask).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_polygons_of_one_plane_are_exclusive_or():
    mask = fill([rectangle(-0.5, -0.5, 4.5, 4.5), rectangle(0.5, 0.5, 3.5, 3.5)], 5, 5)
    assert mask.sum() == 25 - 9
    assert not mask[1:4, 1:4].any()


def test_what_lies_outside_the_grid_counts_for_the_voxels_inside_it():
    assert fill([rectangle(-50, -50, 50, 50)], 3, 4).all()
    assert not fill([rectangle(10, 10, 20, 20)], 3, 4).any()
    assert fill([rectangle(-9, -9, 0.5, 99)], 3, 4).sum() == 4


def test_no_polygon_is_an_empty_mask():
    assert fill([], 3, 4).shape == (3, 4)
    assert not fill([], 3, 4).any()


def test_a_bridge_that_is_passed_twice_counts_for_nothing_even_through_voxel_centres():
    ring = rectangle(-0.5, -0.5, 6.5, 6.5)
    hole = rectangle(1.5, 2.5, 4.5, 4.5)
    slanted = np.concatenate((ring[:1], hole, hole[:1], ring))
    straight = np.concatenate((ring, [ring[0], (3.0, -0.5), (3.0, 2.5), (4.5, 2.5), (4.5, 4.5)]))
    straight = np.concatenate((straight, [(1.5, 4.5), (1.5, 2.5), (3.0, 2.5), (3.0, -0.5)]))
    for keyhole in (slanted, straight):
        assert fill([keyhole], 7, 7).sum() == 49 - 6


@settings(max_examples=150, deadline=None)
@given(st.integers(3, 12), st.integers(0, 10**6))
def test_any_polygon_is_filled_as_by_another_reader(corners, seed):
    points = np.random.default_rng(seed).uniform(-3, 18, (corners, 2))
    assert np.array_equal(fill([points], 15, 16), polygon2mask((15, 16), points))


def test_the_fill_shares_no_code_with_the_tracing():
    tree = ast.parse(Path(inference.rasterising.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module and module.startswith(("inference", "dicom_node"))]
