"""Figures of agreement against shapes whose distances are known.

Owns spheres and cubes on coarse and anisotropic grids.
Speaks millimetres.
Never compares with another implementation: geometry is the judge.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("trimesh", reason="the extra [train] is not installed")

from models.evaluation.metrics import compare, dice

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 1.0, 1.0), (3.0, 4.0, 4.0)]


def sphere(radius_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    axes = [(np.arange(-n, n + 1) + 0.27) * mm for n, mm in ((int(32 / mm), mm) for mm in spacing_mm)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.asarray(z**2 + y**2 + x**2 <= radius_mm**2)


def cube(shift: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    mask = np.zeros([int(90 / mm) for mm in spacing_mm], bool)
    sides = [round(60 / mm) for mm in spacing_mm]
    mask[tuple(slice(2 + by, 2 + by + n) for by, n in zip(shift, sides, strict=True))] = True
    return mask


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_concentric_spheres_are_as_far_apart_as_their_radii_differ(
    spacing_mm: tuple[float, float, float],
) -> None:
    result = compare(sphere(25, spacing_mm), sphere(20, spacing_mm), spacing_mm)
    assert result.hd95_mm is not None
    assert result.mean_distance_mm == pytest.approx(5, abs=0.4)
    assert result.hd95_mm == pytest.approx(5, abs=1.2)
    assert result.surface_dice < 0.01
    assert result.dice == pytest.approx(2 * 20**3 / (20**3 + 25**3), abs=0.02)
    assert result.volume_error_percent == pytest.approx(100 * ((25 / 20) ** 3 - 1), rel=0.06)


@pytest.mark.parametrize(
    ("spacing_mm", "shift"), [((3, 4, 4), (1, 0, 0)), ((3, 4, 4), (0, 0, 1)), ((2, 1, 1), (0, 3, 0))]
)
def test_a_shifted_cube_differs_by_the_shift_at_two_faces_and_along_the_rims_of_the_others(
    spacing_mm: tuple[float, float, float], shift: tuple[int, int, int]
) -> None:
    side = 60.0
    by_mm = float(np.dot(spacing_mm, shift))
    result = compare(cube(shift, spacing_mm), cube((0, 0, 0), spacing_mm), spacing_mm)
    assert result.hd95_mm == pytest.approx(by_mm, rel=0.03)
    # Two faces at the shift, four of which a strip as wide as the shift is half as far on average.
    expected_mm = (2 * side**2 * by_mm + 4 * side * by_mm * by_mm / 2) / (6 * side**2)
    assert result.mean_distance_mm == pytest.approx(expected_mm, rel=0.12)
    within = (4 * side * (side - by_mm + 2) + 0.5 * (side**2 - (side - 4) ** 2)) / (6 * side**2)
    assert result.surface_dice == pytest.approx(within, abs=0.03)
    assert result.dice == pytest.approx(1 - by_mm / side)
    assert result.volume_error_percent == 0


def test_exchanging_found_and_drawn_changes_only_the_volume_error() -> None:
    spacing_mm = (2.5, 1.0, 1.0)
    first, second = sphere(14, spacing_mm), np.roll(sphere(12, spacing_mm), 3, axis=1)
    one, other = compare(first, second, spacing_mm), compare(second, first, spacing_mm)
    assert one.volume_error_percent > 0 > other.volume_error_percent
    assert (one.above_mm, one.below_mm) == (-(other.above_mm or 0), -(other.below_mm or 0))
    same = replace(
        other,
        volume_error_percent=one.volume_error_percent,
        above_mm=one.above_mm,
        below_mm=one.below_mm,
    )
    assert [getattr(one, name) for name in vars(one)] == pytest.approx(
        [getattr(same, name) for name in vars(same)]
    )


def test_a_voxel_more_at_the_border_of_the_grid_is_still_a_closed_surface() -> None:
    whole = np.ones((2, 3, 4), bool)
    result = compare(whole, whole, (3, 4, 4))
    assert (result.dice, result.surface_dice) == (1, 1)
    assert (result.hd95_mm, result.mean_distance_mm) == pytest.approx((0, 0), abs=1e-9)


def test_what_was_not_found_has_dice_zero_and_no_distances() -> None:
    drawn = sphere(10, (3, 4, 4))
    result = compare(np.zeros_like(drawn), drawn, (3, 4, 4))
    assert result.missed
    assert (result.dice, result.surface_dice, result.volume_error_percent) == (0, 0, -100)
    assert (result.hd95_mm, result.mean_distance_mm) == (None, None)


def test_an_empty_drawing_judges_nothing() -> None:
    with pytest.raises(ValueError, match="no reference"):
        compare(sphere(10, (3, 4, 4)), np.zeros_like(sphere(10, (3, 4, 4))), (3, 4, 4))


def test_dice_of_half_overlapping_equal_volumes_is_a_half() -> None:
    first, second = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    first[0, :2], second[0, 1:3] = True, True
    assert dice(first, second) == 0.5


def test_a_drawing_that_only_stops_early_is_perfect_between_the_ends() -> None:
    spacing_mm = (3.0, 4.0, 4.0)
    drawn = cube((0, 0, 0), spacing_mm)
    found = drawn.copy()
    found[2:5] = False  # three of its twenty slices, from below
    found[22] = drawn[21]
    result = compare(found, drawn, spacing_mm)
    assert result.dice == pytest.approx(2 * 17 / (20 + 18))
    assert (result.dice_between_ends, result.above_mm, result.below_mm) == (1.0, 3.0, -9.0)


def test_masks_that_share_no_slice_have_no_dice_between_their_ends() -> None:
    spacing_mm = (3.0, 4.0, 4.0)
    drawn = np.zeros((10, 6, 6), bool)
    found = drawn.copy()
    drawn[1:3, 2:4, 2:4] = found[6:8, 2:4, 2:4] = True
    result = compare(found, drawn, spacing_mm)
    assert (result.dice_between_ends, result.above_mm, result.below_mm) == (None, 15.0, -15.0)
