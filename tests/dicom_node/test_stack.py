"""Whether positions form a gapless stack: missing slices, uneven spacing, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.stack import gap_report
from tests.phantoms import ORIENTATIONS

AXIAL = ORIENTATIONS["HFS"]


def positions(gaps: list[float]) -> list[tuple[float, float, float]]:
    return [(0.0, 0.0, z) for z in np.concatenate(([0.0], np.cumsum(gaps)))]


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([3] * 10, "gapless"),
        ([3, 3.2, 2.9, 3.1, 4.0, 3.3], "gapless"),  # table jitter
        ([3] * 5 + [6] + [3] * 5, "missing"),
        ([3] * 5 + [9] + [3] * 5, "missing"),
        ([3] * 5 + [4.6] + [3] * 5, "missing"),
        ([3] * 5 + [4.4] + [3] * 5, "gapless"),  # not more than 1.5 times
        ([6] + [3] * 9, "missing"),  # the second slice of all
        ([3] * 9 + [6], "missing"),
        ([3, 6] * 5, "missing"),
        ([3] * 4 + [6, 6] + [3] * 4, "missing"),  # two that are next but one to each other
        ([3] * 3 + [6] * 3, "uneven"),
        ([6] * 5 + [3] * 5, "uneven"),
        ([3] * 5 + [6] * 5 + [3] * 5, "uneven"),
        ([6] * 5 + [3] + [6] * 5, "irregular"),
        ([3], "gapless"),
    ],
)
def test_an_isolated_gap_is_a_missing_slice_and_a_lasting_change_is_uneven(
    gaps: list[float], verdict: str
) -> None:
    report = gap_report(positions(gaps), AXIAL)
    found = (
        "missing"
        if report.missing
        else "irregular"
        if report.irregular
        else "uneven"
        if report.is_uneven
        else "gapless"
    )
    assert found == verdict
    assert report.is_gapless == (verdict in {"gapless", "uneven"})


def test_a_missing_slice_is_told_with_its_place_and_widths() -> None:
    (gap,) = gap_report(positions([3, 3, 3, 6, 3, 3, 3]), AXIAL).missing
    assert (gap.index, gap.after_mm, gap.width_mm, gap.neighbour_mm) == (3, 9, 6, 3)


def test_two_slices_at_one_place_are_duplicates_however_far_apart_in_plane() -> None:
    report = gap_report([(0, 0, 0), (0, 0, 3), (50, 0, 3.001), (0, 0, 6)], AXIAL)
    assert report.duplicates == ((1, 2),)
    assert not report.is_gapless


def test_one_slice_or_none_is_no_stack() -> None:
    assert not gap_report([], AXIAL).is_gapless
    assert not gap_report([(0, 0, 0)], AXIAL).is_gapless


@given(
    name=st.sampled_from(sorted(ORIENTATIONS)),
    order=st.permutations(range(12)),
    tilt=st.floats(-0.5, 0.5),
    missing=st.one_of(st.none(), st.integers(2, 9)),
)
def test_order_orientation_and_tilt_do_not_change_the_verdict(
    name: str, order: list[int], tilt: float, missing: int | None
) -> None:
    directions = np.array(ORIENTATIONS[name])
    step = np.cross(directions[:3], directions[3:]) + tilt * directions[3:]
    kept = [index for index in order if index != missing]
    report = gap_report([tuple(3.0 * index * step) for index in kept], ORIENTATIONS[name])
    assert report.is_gapless == (missing is None)
    assert [kept[index] for index in report.order] == sorted(kept)
