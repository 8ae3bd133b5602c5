"""Slices become a volume: every voxel where it is, and what is not whole refused with its numbers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.ct_series import SeriesBuilder, assemble
from dicom_node.ct_slice import CtSlice, SliceRejectedError, read_slice
from dicom_node.errors import SeriesRejectedError
from tests.phantoms import ORIENTATIONS, Phantom, encode, from_openkbp, series, slices

OPENKBP = Path(__file__).parents[3] / "shared" / "data" / "openkbp" / "validation"
SMALL = Phantom(rows=20, columns=16)
EVEN = tuple(3.0 * index for index in range(12))


def pieces(phantom: Phantom) -> list[CtSlice]:
    return [read_slice(BytesIO(encode(dataset))) for dataset in slices(phantom)]


def rotated(degrees: tuple[float, float, float]) -> tuple[float, ...]:
    """ImageOrientationPatient turned about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return (*matrix[:, 0], *matrix[:, 1])


OFFSETS = st.sampled_from(
    [EVEN, EVEN[::-1], (*EVEN[:6], *(15 + 5.0 * i for i in range(1, 7))), (9, 0, 3, 6, 15, 12, 21, 18)]
)


@settings(max_examples=25, deadline=None)
@given(
    orientation=st.one_of(
        st.sampled_from(sorted(ORIENTATIONS.values())),
        st.tuples(*[st.floats(-20, 20)] * 3).map(rotated),
    ),
    offsets=OFFSETS,
    spacing=st.tuples(st.floats(0.4, 5), st.floats(0.4, 5)),
    tilt=st.floats(-0.4, 0.4),
)
def test_every_voxel_lies_where_its_own_slice_says(
    orientation: tuple[float, ...], offsets: tuple[float, ...], spacing: tuple[float, float], tilt: float
) -> None:
    """Eight patient positions and oblique ones, tilted, uneven, reversed, shuffled, non-square pixels."""
    directions = np.array(orientation)
    step = np.cross(directions[:3], directions[3:]) + tilt * directions[3:]
    phantom = SMALL.but(
        orientation=orientation, offsets_mm=offsets, pixel_spacing=spacing, step_direction=tuple(step)
    )
    built = series(phantom)
    planes = built.volume.planes
    number = {header.sop_instance_uid: index for index, header in enumerate(built.headers)}
    corners = np.array([(0, 0), (phantom.rows - 1, 0), (0, phantom.columns - 1), (7, 5)], float)
    for dataset, hu in zip(slices(phantom), phantom.voxels, strict=True):
        index = number[dataset.SOPInstanceUID]
        np.testing.assert_array_equal(built.volume.hu[index], hu)
        position = np.array(dataset.ImagePositionPatient, float)
        row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, dataset.PixelSpacing)
        # PS3.3 C.7.6.2.1.1: columns run along the first triple, rows along the second.
        expected = position + corners[:, :1] * between_rows * column + corners[:, 1:] * between_columns * row
        np.testing.assert_allclose(planes.plane_points_mm(index, corners), expected, atol=1e-9)
    assert (np.diff(planes.offsets_mm) > 0).all()


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)), st.booleans())
def test_the_order_of_arrival_changes_nothing(order: list[int], twice: bool) -> None:
    phantom = SMALL.but(offsets_mm=EVEN)
    all_pieces = pieces(phantom)
    builder = SeriesBuilder()
    for index in order:
        builder.add(all_pieces[index])
        if twice:
            builder.add(all_pieces[index])
    built, expected = builder.build(2), assemble(all_pieces, 2)
    np.testing.assert_array_equal(built.volume.hu, expected.volume.hu)
    assert built.sha256s == expected.sha256s
    assert built.headers == expected.headers
    assert built.reference.SOPInstanceUID == built.headers[0].sop_instance_uid


def test_a_builder_goes_on_after_a_build_and_leaves_what_it_gave() -> None:
    phantom = SMALL.but(offsets_mm=tuple(3.0 * index for index in range(270)))
    shuffled = pieces(phantom)
    random.Random(7).shuffle(shuffled)
    builder = SeriesBuilder()
    for piece in shuffled[:269]:
        builder.add(piece)
    with pytest.raises(SeriesRejectedError):
        builder.build(270)
    builder.add(shuffled[269])
    first = builder.build(2)
    kept = first.volume.hu.copy()
    np.testing.assert_array_equal(kept, phantom.voxels)
    extra = pieces(SMALL.but(offsets_mm=(-3.0,), series="1", overrides={"SOPInstanceUID": "2.25.9"}))
    builder.add(extra[0])
    second = builder.build(2)
    np.testing.assert_array_equal(first.volume.hu, kept)
    np.testing.assert_array_equal(second.volume.hu[1:], kept)
    assert second.headers[0].sop_instance_uid == "2.25.9"


def test_slices_may_come_from_many_threads() -> None:
    phantom = SMALL.but(offsets_mm=tuple(3.0 * index for index in range(270)))
    all_pieces = pieces(phantom)
    builder = SeriesBuilder()
    threads = [
        threading.Thread(target=lambda part=part: [builder.add(piece) for piece in all_pieces[part::8]])
        for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(builder.build(2).volume.hu, phantom.voxels)


def changed(index: int, **overrides: object) -> Callable[[], list[CtSlice]]:
    """A series in which one slice differs."""

    def make() -> list[CtSlice]:
        base = SMALL.but(offsets_mm=EVEN)
        return [
            piece if number != index else other
            for number, (piece, other) in enumerate(
                zip(pieces(base), pieces(base.but(overrides=overrides)), strict=True)
            )
        ]

    return make


def doubled(**overrides: object) -> Callable[[], list[CtSlice]]:
    """A series that has its fifth slice a second time, changed."""
    return lambda: (
        pieces(SMALL.but(offsets_mm=EVEN)) + pieces(SMALL.but(offsets_mm=EVEN, overrides=overrides))[4:5]
    )


def of(**fields: object) -> Callable[[], list[CtSlice]]:
    return lambda: pieces(SMALL.but(offsets_mm=EVEN).but(**fields))


def blank(count: int, low: int, high: int, value: int) -> np.ndarray:
    hu = SMALL.but(offsets_mm=tuple(3.0 * index for index in range(count))).voxels.copy()
    hu[low:high] = value
    return hu


REFUSALS: dict[str, tuple[Callable[[], list[CtSlice]], str, str]] = {
    "two series": (
        changed(3, SeriesInstanceUID="2.25.7"),
        "mixed_series",
        "2 different values of SeriesInst",
    ),
    "two studies": (changed(3, StudyInstanceUID="2.25.7"), "mixed_series", "StudyInstanceUID in 12 slices"),
    "two patients": (changed(3, PatientID="OTHER"), "mixed_series", "2 different values of PatientID"),
    "two frames": (changed(3, FrameOfReferenceUID="2.25.7"), "mixed_series", "FrameOfReferenceUID"),
    "turned slice": (
        changed(3, ImageOrientationPatient=["1", "0", "0", "0", "0.9998", "0.01999"]),
        "mixed_geometry",
        "0.0200",
    ),
    "other spacing": (changed(3, PixelSpacing=["4", "4.1"]), "mixed_geometry", "0.1000 mm"),
    "sagittal": (of(orientation=(0, 1, 0, 0, 0, -1)), "not_axial", "90 degrees"),
    "same place": (
        doubled(SOPInstanceUID="2.25.7"),
        "duplicate_position",
        "1 of 13 slices",
    ),
    "same instance": (doubled(InstanceNumber=99), "conflicting_instances", "13 contents under 12"),
    "missing slice": (of(offsets_mm=EVEN[:6] + EVEN[7:]), "missing_slice", "6.00 mm between slices 6 and 7"),
    "irregular": (
        of(offsets_mm=(0, 6, 12, 18, 21, 27, 33, 39)),
        "irregular_spacing",
        "3.00 mm between slices 4 and 5",
    ),
    "too few": (of(offsets_mm=EVEN[:7]), "too_few_slices", "7 CT slices; a planning CT has at least 8"),
    "blank inside": (of(hu=blank(12, 5, 6, -1000)), "blank_slice", "first slice 6 (-1000 HU"),
    "all constant": (of(hu=blank(12, 0, 12, 0)), "absurd_hu", "all 12 slices are constant"),
    "no air": (of(hu=np.maximum(blank(12, 0, 0, 0), 0)), "absurd_hu", "lowest value 0 HU"),
    "no tissue": (of(hu=np.minimum(blank(12, 0, 0, 0), -900)), "absurd_hu", "0.00 %"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_one_whole_series_is_refused_with_its_numbers(name: str) -> None:
    make, code, numbers = REFUSALS[name]
    forwards, backwards = make(), make()[::-1]
    for order in (forwards, backwards):
        with pytest.raises(SeriesRejectedError) as caught:
            assemble(order, 8)
        assert caught.value.code == code
        assert numbers in caught.value.reason
        assert "Phantom" not in caught.value.reason


def test_two_matrices_in_a_series_are_refused() -> None:
    wide = pieces(SMALL.but(offsets_mm=(36.0,), columns=18, overrides={"SOPInstanceUID": "2.25.8"}))
    with pytest.raises(SeriesRejectedError, match="20 x 16 and 20 x 18"):
        assemble(pieces(SMALL.but(offsets_mm=EVEN)) + wide, 2)


def test_air_above_the_head_is_no_blank_slice() -> None:
    phantom = SMALL.but(offsets_mm=EVEN, hu=blank(12, 10, 12, -1000))
    np.testing.assert_array_equal(series(phantom).volume.hu, phantom.voxels)


def test_a_slice_that_could_not_be_read_refuses_its_series() -> None:
    builder = SeriesBuilder()
    for piece in pieces(SMALL.but(offsets_mm=EVEN)):
        builder.add(piece)
    for number in (1, 2):
        builder.refuse(SliceRejectedError("truncated", f"{number} bytes of pixels", "2.25.1"))
    with pytest.raises(SeriesRejectedError, match=r"1 bytes of pixels \(and 1 more such slices\)"):
        builder.build(2)


def test_a_localizer_under_the_series_own_uid_does_not_spoil_it() -> None:
    builder = SeriesBuilder()
    builder.refuse(SliceRejectedError("localizer", "a localizer: ImageType has LOCALIZER", "2.25.1"))
    with pytest.raises(SeriesRejectedError, match="a localizer"):
        builder.build(2)
    for piece in pieces(SMALL.but(offsets_mm=EVEN)):
        builder.add(piece)
    assert len(builder.build(2).headers) == len(EVEN)


@pytest.mark.skipif(not OPENKBP.is_dir(), reason="../shared/data/openkbp is not here")
def test_a_real_patient_comes_through_unchanged() -> None:
    phantom = from_openkbp(min(OPENKBP.glob("*.npz")))
    built = series(phantom, 20)
    np.testing.assert_array_equal(built.volume.hu, phantom.hu)
    assert not built.is_uneven
