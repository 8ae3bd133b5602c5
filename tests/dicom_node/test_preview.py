"""What a person is shown: the structure set's own contours, where the organs are, with every flag.

Owns the rules of the pictures and of the page.
Speaks phantoms of geometry, balls as organs, pixels and SVG.
Never runs a network.
"""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node import preview_page, preview_sheets, rt_struct
from dicom_node.ct_series import CtSeries
from dicom_node.preview import Preview, preview_of
from inference.segmentation import Segmentation
from tests import organs, phantoms
from tests.phantoms import ORIENTATIONS, Phantom

TILTED = Phantom(
    orientation=(1.0, 0.0, 0.0, 0.0, 0.9659258262890683, -0.25881904510252074),
    step_direction=(0.0, 0.0, 1.0),
)
UNEVEN = (*(3.0 * index for index in range(14)), *(39.0 + 6.0 * index for index in range(1, 8)))
GEOMETRIES = {
    **{name: Phantom(orientation=orientation) for name, orientation in ORIENTATIONS.items()},
    "tilted gantry": TILTED,
    "oblique": Phantom(orientation=(0.9961947, 0.0871557, 0.0, -0.0858317, 0.9810603, 0.1736482)),
    "uneven slices": Phantom(offsets_mm=UNEVEN),
    "oblong pixels": Phantom(rows=100, columns=40, pixel_spacing=(2.0, 6.0)),
    "from head to foot": Phantom(offsets_mm=tuple(-3.0 * index for index in range(24))),
}
FLAGGED = ("cut_by_field_of_view", "unequal_sides")


def shown(series: CtSeries, missing: bool = False) -> tuple[Preview, Segmentation, bytes]:
    """Balls as organs, drawn into a structure set and shown; the first is missing or flagged."""
    drawn = organs.segmentation(series.volume.planes)
    first = drawn.structures[0]
    if missing:
        empty = np.zeros((0, 0, 0), np.float32)
        first = replace(first, probability=empty, confidence=None, flags=("not_found",))
    else:
        first = replace(first, flags=FLAGGED)
    drawn = Segmentation((first, *drawn.structures[1:]), "cpu", {})
    built = rt_struct.build(series, drawn, organs.options())
    report: dict[str, Any] = {
        "model": {"name": "anatomynet-test", "version": "1", "sha256": "ab" * 32},
        "device": "cpu",
        # Numbers, volumes and counts are those of another edition: what is shown is the structure set's own.
        "rois": [
            {"number": None, "name": roi.name, "confidence": roi.confidence, "flags": list(roi.flags)}
            for roi in built.rois
        ],
    }
    return preview_of(series, built.data, report), drawn, built.data


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_view_shows_a_structure_where_its_voxels_are_and_upright(geometry: str) -> None:
    series = phantoms.series(GEOMETRIES[geometry])
    planes = series.volume.planes
    preview, drawn, _ = shown(series)
    for close_up, found in list(zip(preview.close_ups, drawn.structures, strict=True))[::4]:
        at = np.argwhere(np.ones(found.probability.shape, bool)) + found.start
        where_mm = planes.plane_points_mm(at[:, 0], at[:, 1:].astype(float))
        for view, letters in zip(close_up.views, ("RLAP", "RLHF", "APHF"), strict=True):
            assert "".join(letter[0] for letter in view.letters) == letters
            # Voxels whose slab the plane cuts near their centre, well inside or well outside the ball.
            away_mm = (where_mm - view.corner_mm) @ np.cross(view.across, view.down)
            x, y = np.rint(view.pixels(where_mm)).astype(int).T
            seen = (np.abs(away_mm) < 0.3) & (x >= 0) & (y >= 0) & (x < view.size[0]) & (y < view.size[1])
            probability = found.probability.ravel()
            share = view.share(close_up.roi)
            inside, outside = seen & (probability > 0.8), seen & (probability < 0.2)
            assert outside.any()
            assert (share[y[inside], x[inside]] > 0.5).all(), (view.name, found.structure.name)
            assert (share[y[outside], x[outside]] < 0.5).all(), (view.name, found.structure.name)


@pytest.mark.parametrize("geometry", ["oblong pixels", "uneven slices", "FFDL"])
def test_a_ball_is_round_in_every_view(geometry: str) -> None:
    series = phantoms.series(GEOMETRIES[geometry])
    preview, _, _ = shown(series)
    thickest_mm = float(series.volume.planes.slice_thickness_mm.max())
    for view in preview.close_ups[-1].views:
        (line,) = view.outlines(preview.close_ups[-1].roi)
        width_mm, height_mm = np.ptp(line, axis=0) * view.pixel_mm
        assert abs(width_mm - height_mm) <= 2 * thickest_mm
        assert 30 < width_mm < 48


@pytest.mark.parametrize("geometry", ["HFS", "HFDR", "tilted gantry"])
def test_axial_views_show_the_contour_data_point_by_point(geometry: str) -> None:
    series = phantoms.series(GEOMETRIES[geometry])
    preview, _, data = shown(series)
    dataset = dcmread(BytesIO(data))
    for close_up, item in zip(preview.close_ups, dataset.ROIContourSequence, strict=True):
        view = close_up.views[0]
        assert view.slice_index is not None
        uid = series.headers[view.slice_index].sop_instance_uid
        written = [
            np.array(contour.ContourData, float).reshape(-1, 3)
            for contour in item.ContourSequence
            if contour.ContourImageSequence[0].ReferencedSOPInstanceUID == uid
        ]
        lines = view.outlines(close_up.roi)
        assert len(lines) == len(written) > 0
        for line, points in zip(lines, written, strict=True):
            back = view.corner_mm + view.pixel_mm * (line[:, :1] * view.across + line[:, 1:] * view.down)
            assert np.abs(back - points).max() < 1e-3


def test_the_ct_lies_under_the_contours() -> None:
    """The HU at a voxel's place are the voxel's, in all three planes of a tilted, uneven scan."""
    series = phantoms.series(TILTED.but(offsets_mm=UNEVEN))
    preview, _, _ = shown(series)
    planes = series.volume.planes
    at = np.argwhere(np.ones(series.volume.hu.shape, bool))
    where_mm = planes.plane_points_mm(at[:, 0], at[:, 1:].astype(float))
    for view in preview.close_ups[-1].views:
        away_mm = (where_mm - view.corner_mm) @ np.cross(view.across, view.down)
        x, y = np.rint(view.pixels(where_mm)).astype(int).T
        seen = (np.abs(away_mm) < 0.2) & (x >= 0) & (y >= 0) & (x < view.size[0]) & (y < view.size[1])
        hu = view.hu(series.volume)[y[seen], x[seen]]
        assert seen.sum() > 50
        assert np.median(np.abs(hu - series.volume.hu.ravel()[seen])) < 20


def test_the_sheet_has_each_structures_colour_where_it_is_and_nowhere_else() -> None:
    series = phantoms.series()
    preview, _, _ = shown(series)
    sheet = preview_sheets.sheets(replace(preview, close_ups=()))[0].astype(int)
    for place, view in enumerate(preview.overview):
        left, top = preview_sheets.overview_corner(place)
        width, height = view.size
        # A margin without letters and marks.
        panel = sheet[top : top + height, left : left + width][60:-60, 60:-60]
        is_grey = np.ptp(panel, axis=2) < 8
        near = np.max([view.share(roi) for roi in preview.rois], axis=0)[60:-60, 60:-60]
        ys, xs = np.nonzero(near > 0)
        covered = np.zeros_like(is_grey)
        covered[max(ys.min() - 3, 0) : ys.max() + 4, max(xs.min() - 3, 0) : xs.max() + 4] = True
        assert not is_grey[near == 1].any(), view.name
        assert is_grey[~covered].all(), view.name


def test_what_is_missing_or_flagged_comes_first_on_the_page() -> None:
    series = phantoms.series()
    missing, flagged = shown(series, missing=True)[0], shown(series)[0]
    assert missing.warnings == ("Not found, contour by hand: Brainstem.",)
    assert flagged.warnings == ("Look closely at Brainstem (cut by field of view, unequal sides).",)
    assert len(missing.close_ups) == len(missing.lines) - 1
    page = preview_page.html(missing)
    assert page.index("Not found, contour by hand: Brainstem.") < page.index("<svg")
    assert "not found" in page
    left_out = replace(missing, lines=(replace(missing.lines[0], flags=("in_pieces",)), *missing.lines[1:]))
    assert left_out.warnings == ("Left out of the structure set: Brainstem (in pieces).",)
    page = preview_page.html(flagged)
    for words in (
        "cut by field of view, unequal sides",
        "0.90",
        "Parotid_L",
        "Not for diagnosis. Not approved.",
    ):
        assert words in page


def test_the_page_needs_nothing_but_itself() -> None:
    page = preview_page.html(shown(phantoms.series())[0])
    assert "default-src 'none'" in page
    assert re.findall(r"https?:|<script|<link|\ssrc=|@import|url\(", page) == []
    assert set(re.findall(r'href="([^,"]{0,22})', page)) == {"data:image/png;base64"}
    assert "prefers-color-scheme: dark" in page


def test_neither_page_nor_sheets_depend_on_who_the_patient_is() -> None:
    pages, sheets = set(), set()
    for name in ("Phantom^Test", "Doe^Jane"):
        overrides = {"PatientName": name, "PatientID": name}
        preview = replace(
            shown(phantoms.series(Phantom(overrides=overrides)))[0], close_ups=(), sop_instance_uid=""
        )
        pages.add(preview_page.html(preview))
        sheets.add(preview_sheets.sheets(preview)[0].tobytes())
    assert len(pages) == len(sheets) == 1


def test_a_structures_name_cannot_break_the_page() -> None:
    preview, _, _ = shown(phantoms.series())
    roi = replace(preview.rois[0], name="<b>&")
    preview = replace(preview, rois=(roi, *preview.rois[1:]), lines=(replace(preview.lines[0], name="<b>&"),))
    page = preview_page.html(preview)
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
