"""Contours: what is traced is what the mask, or the iso-line, says."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon2mask

from inference.contours import Contour, trace
from inference.outlines import signed_area
from inference.rasterising import fill
from inference.volume import PlaneStack
from tests.organs import boxed, read_nrrd, structure_map
from tests.tools import SHARED_DATA, needs_shared_data

LABELS = SHARED_DATA / "labels"


def planes(slices: int, rows: int, columns: int, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> PlaneStack:
    origins = np.zeros((slices, 3))
    origins[:, 2] = 2.5 * np.arange(slices)
    return PlaneStack(origins, np.eye(3)[0], np.eye(3)[1], *spacing_mm, rows, columns)


def filled(contours: tuple[Contour, ...], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.stack(
        [
            fill([one.points for one in contours if one.slice_index == index], *shape[1:])
            for index in range(shape[0])
        ]
    )


def disc(radius: float, row: float, column: float, extent: int, fine: int = 24) -> NDArray[np.float64]:
    """How much of each voxel a disc covers."""
    at = (np.arange(extent * fine) + 0.5) / fine - 0.5
    inside = (at[:, None] - row) ** 2 + (at[None] - column) ** 2 <= radius**2
    return inside.reshape(extent, fine, extent, fine).mean(axis=(1, 3))


masks = arrays.arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_voxel_contours_read_back_as_the_very_mask_by_two_readers(mask):
    contours = trace(structure_map(mask), planes(*mask.shape), "voxel", 0.0)
    assert np.array_equal(filled(contours, mask.shape), mask)
    other = np.zeros_like(mask)
    for contour in contours:
        other[contour.slice_index] ^= polygon2mask(mask.shape[1:], contour.points)
    assert np.array_equal(other, mask)


@settings(max_examples=100, deadline=None)
@given(masks)
def test_each_four_connected_region_is_one_clockwise_contour_with_the_area_of_its_voxels(mask):
    contours = trace(structure_map(mask), planes(*mask.shape), "voxel", 0.0)
    areas: Counter[int] = Counter()
    for contour in contours:
        area = signed_area(contour.points)
        assert area > 0
        assert len(np.unique(contour.points, axis=0)) >= 4
        assert np.all(np.any(contour.points != np.roll(contour.points, 1, axis=0), axis=1))
        assert np.all(contour.points % 1 == 0.5)
        areas[contour.slice_index] += round(area)
    regions = [ndimage.label(plane)[1] for plane in mask]
    assert [Counter(one.slice_index for one in contours)[index] for index in range(len(mask))] == regions
    assert [areas[index] for index in range(len(mask))] == mask.sum(axis=(1, 2)).tolist()


@pytest.mark.parametrize("mode", ["voxel", "smooth"])
def test_nested_rings_are_one_keyhole_contour_each_and_read_back(mode):
    rows, columns = np.mgrid[:41, :41]
    distance = np.hypot(rows - 20, columns - 20)
    rings = (distance < 18) & ~(distance < 14) | (distance < 10) & ~(distance < 6) | (distance < 2.5)
    contours = trace(structure_map(rings[None]), planes(1, 41, 41), mode, 0.1)
    assert len(contours) == 3
    assert np.array_equal(filled(contours, (1, 41, 41))[0], rings)


@pytest.mark.parametrize("mode", ["voxel", "smooth"])
def test_many_holes_in_one_region_are_all_left_out(mode):
    mask = np.ones((1, 19, 19), bool)
    mask[0, 3:17:4, 2:17:3] = False
    contours = trace(structure_map(mask), planes(1, 19, 19), mode, 0.0)
    assert len(contours) == 1
    assert np.array_equal(filled(contours, mask.shape), mask)


def test_the_box_is_placed_at_its_own_start():
    mask = np.zeros((6, 30, 40), bool)
    mask[2:4, 10:15, 20:22] = True
    contours = trace(boxed(mask), planes(*mask.shape), "voxel", 0.0)
    assert [one.slice_index for one in contours] == [2, 3]
    assert contours[0].points.min(axis=0).tolist() == [9.5, 19.5]
    assert contours[0].points.max(axis=0).tolist() == [14.5, 21.5]


def test_an_empty_structure_has_no_contours():
    assert trace(structure_map(np.zeros((0, 0, 0))), planes(1, 9, 9), "smooth", 0.1) == ()
    assert trace(structure_map(np.zeros((2, 4, 4))), planes(2, 9, 9), "smooth", 0.1) == ()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="smooth or voxel"):
        trace(structure_map(np.ones((1, 2, 2))), planes(1, 2, 2), "fancy", 0.1)


def ellipse(radii: tuple[float, float], angle: float, row: float, column: float, extent: int) -> NDArray:
    """How much of each voxel an ellipse covers."""
    at = (np.arange(extent * 16) + 0.5) / 16 - 0.5
    down, across = at[:, None] - row, at[None] - column
    along, aside = (
        down * np.cos(angle) + across * np.sin(angle),
        across * np.cos(angle) - down * np.sin(angle),
    )
    inside = (along / radii[0]) ** 2 + (aside / radii[1]) ** 2 <= 1
    return inside.reshape(extent, 16, extent, 16).mean(axis=(1, 3))


def enclosed(covered: NDArray, simplify_mm: float) -> float:
    extent = planes(1, *covered.shape)
    contours = trace(structure_map(covered[None]), extent, "smooth", simplify_mm)
    return sum(signed_area(contour.points) for contour in contours)


@pytest.mark.parametrize("simplify_mm", [0.0, 0.1])
@pytest.mark.parametrize("radius", [3.0, 3.5, 4.0, 6.0, 12.0])
def test_each_disc_of_partial_volume_has_its_analytic_area_within_one_percent(radius, simplify_mm):
    rng = np.random.default_rng(1)
    extent = 2 * int(radius) + 8
    for _ in range(25):
        row, column = (extent - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        area = enclosed(disc(radius, row, column, extent, fine=16), simplify_mm)
        assert area == pytest.approx(np.pi * radius**2, rel=0.01)


@pytest.mark.parametrize(("outer", "inner"), [(7, 3), (7, 4), (12, 6), (16, 12)])
def test_each_ring_of_partial_volume_has_its_analytic_area_within_one_percent(outer, inner):
    rng = np.random.default_rng(2)
    extent = 2 * outer + 8
    for _ in range(10):
        row, column = (extent - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        covered = disc(outer, row, column, extent, 16) - disc(inner, row, column, extent, 16)
        assert enclosed(covered, 0.1) == pytest.approx(np.pi * (outer**2 - inner**2), rel=0.01)


@pytest.mark.parametrize("radii", [(3, 6), (3, 12), (5, 8)])
def test_each_section_of_an_ellipsoid_has_its_analytic_area_within_one_percent(radii):
    """Three axes, tilted in the plane; sections down to radii of 3 pixels."""
    rng = np.random.default_rng(3)
    extent = 4 * max(radii) + 8
    for height in np.linspace(-0.85, 0.85, 7):
        shrunk = np.sqrt(1 - height**2) * np.array(radii) * 2
        row, column = (extent - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        covered = ellipse((shrunk[0], shrunk[1]), rng.uniform(0, np.pi), row, column, extent)
        assert shrunk.min() >= 3
        assert enclosed(covered, 0.1) == pytest.approx(np.pi * shrunk.prod(), rel=0.01)


@pytest.mark.parametrize("radius", [1.4, 1.8, 2.2, 2.6, 3.0])
def test_a_cord_a_few_pixels_wide_keeps_the_voxels_of_its_mask(radius):
    rng = np.random.default_rng(3)
    row, column = np.ogrid[:20, :20]
    distance = np.stack(
        [np.hypot(row - 9.5 - rng.uniform(-1, 1), column - 9.5 - rng.uniform(-1, 1)) for _ in range(60)]
    )
    found = structure_map(1 / (1 + np.exp(3 * (distance - radius))))  # as soft an edge as a network's
    got = filled(trace(found, planes(60, 20, 20, (3.9, 3.9)), "smooth", 0.1), distance.shape)
    assert 2 * (got & found.mask).sum() >= 0.97 * (got.sum() + found.mask.sum())


def test_simplification_keeps_within_its_millimetres_where_pixels_are_not_square():
    spacing_mm = np.array([0.5, 2.0])
    covered = disc(9, 14.3, 14.8, 30)[None]
    exact, simple = (
        trace(structure_map(covered), planes(1, 30, 30, (0.5, 2.0)), "smooth", simplify_mm)[0].points
        for simplify_mm in (0.0, 0.1)
    )
    apart_mm = shapely.hausdorff_distance(
        shapely.LinearRing(exact * spacing_mm).segmentize(0.05),
        shapely.LinearRing(simple * spacing_mm).segmentize(0.05),
    )
    assert len(simple) < len(exact)
    assert apart_mm <= 0.1 + 0.05  # both are moved by up to a tenth of the smaller spacing to keep the area


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 2.5), st.floats(0, 0.1))
def test_smooth_contours_lose_no_slice_and_cross_nothing(seed, sigma, simplify_mm):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random((2, 24, 24)), (0, sigma, sigma))
    probability = np.clip(0.5 + (field - 0.5) * sigma * 4, 0, 1)
    found = structure_map(probability)
    contours = trace(found, planes(2, 24, 24), "smooth", simplify_mm)
    for index in range(2):
        polygons = [shapely.Polygon(one.points) for one in contours if one.slice_index == index]
        # A keyhole touches itself along its bridge; buffered by nothing, it is the plain shape.
        shapes = [one if one.is_valid else one.buffer(0) for one in polygons]
        voxels = np.count_nonzero(found.mask[index])
        assert all(len(np.unique(one.points, axis=0)) >= 3 for one in contours)
        assert abs(sum(one.area for one in shapes) - voxels) <= 0.25 * voxels + 0.01 * len(shapes)
        for first, second in combinations(shapes, 2):
            assert first.intersection(second).area < 1e-6
    got = filled(contours, probability.shape)
    wrong = got != found.mask
    assert 2 * (got & found.mask).sum() >= 0.9 * (got.sum() + found.mask.sum())
    assert np.all(np.abs(probability[wrong] - 0.5) < 0.25)


@pytest.mark.parametrize("peak", [0.5, 0.51, 0.75, 1.0])
def test_a_single_voxel_never_vanishes(peak):
    probability = np.zeros((3, 5, 5))
    probability[1, 2, 2] = peak
    (contour,) = trace(structure_map(probability), planes(3, 5, 5), "smooth", 0.1)
    assert contour.slice_index == 1
    assert signed_area(contour.points) == pytest.approx(1.0, abs=0.25)


def test_parts_far_apart_and_specks_between_them_leave_each_line_as_it_is_alone():
    upper, lower = (np.pad(disc(radius, 8.2, 7.9, 17), ((0, 40), (0, 0))) for radius in (3.0, 6.0))
    lower = np.roll(lower, 35, axis=0)
    both = np.maximum(upper, lower)
    both[26, 8] = 0.5  # barely inside: its line is an island of a thousandth of a pixel
    extent = planes(1, *both.shape)
    alone = [trace(structure_map(part[None]), extent, "smooth", 0.1)[0] for part in (upper, lower)]
    together = trace(structure_map(both[None]), extent, "smooth", 0.1)
    assert len(together) == 2
    for one, same in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.points, same.points, atol=1e-9)


@pytest.mark.parametrize("level", [0.6, 1.0])
def test_a_structure_cut_by_the_volume_ends_at_the_edge_of_its_last_voxels(level):
    probability = np.full((1, 6, 7), level)
    (contour,) = trace(structure_map(probability), planes(1, 6, 7), "smooth", 0.0)
    low, high = contour.points.min(axis=0), contour.points.max(axis=0)
    assert low == pytest.approx([-0.5, -0.5], abs=0.1)
    assert high == pytest.approx([5.5, 6.5], abs=0.1)


@needs_shared_data("labels")
@pytest.mark.parametrize("organ", ["Parotid-Lt", "Mandible", "Spinal-Cord", "Optic-Nerve-Lt", "Lens-Rt"])
def test_real_organs_keep_their_voxels_and_their_volume(organ):
    mask = read_nrrd(LABELS / "0522c0017" / f"{organ}.nrrd")
    found = boxed(mask)
    soft = structure_map(ndimage.gaussian_filter(found.probability, (0.4, 0.8, 0.8)), found.start)
    for structure, dice in ((found, 0.999), (soft, 0.97)):
        contours = trace(structure, planes(*mask.shape, (0.98, 0.98)), "smooth", 0.1)
        shift = structure.start[1:]
        shifted = tuple(Contour(one.slice_index - structure.start[0], one.points - shift) for one in contours)
        got, wanted = filled(shifted, structure.mask.shape), structure.mask
        assert 2 * (got & wanted).sum() >= dice * (got.sum() + wanted.sum())
        area = sum(signed_area(one.points) for one in contours)
        assert area == pytest.approx(wanted.sum(), rel=0.1)
