"""What a person is shown of a structure set: which planes, which structures, which words.

Owns the choice of views, the legend and the sentences; `preview_sheets.py` and `preview_page.py` draw them.
Speaks the very bytes of the RT Structure Set, its `CtSeries` and the report of the contouring.
Never shows who the patient is, and never leaves out that this is no medical device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import dcmread

from dicom_node.ct_series import CtSeries
from dicom_node.received import ReceivedRoi, read_rois
from dicom_node.views import Floats, View, three_views
from inference.flags import LEFT_OUT, NOT_FOUND, flag_words
from inference.volume import PlaneStack

TITLE = "Automatic contours, not approved"
NOT_FOR_DIAGNOSIS = "Not for diagnosis. Not approved."
DISCLAIMER = "Not a medical device. Every contour must be reviewed by a qualified person before any use."
WINDOW_HU = (-160.0, 240.0)
"""A soft-tissue window; wider ones hide the glands, narrower ones the bone's edge."""
WINDOW_IN_WORDS = "window 400 HU, level 40 HU"
OVERVIEW_SIZE, CLOSE_UP_SIZE = (458, 560), (330, 316)
"""Width and height of a view in pixels."""

_AROUND_ALL_MM, _LEAST_ALL_MM = 45.0, 200.0
_AROUND_ONE_MM, _LEAST_ONE_MM = 25.0, 120.0
"""How much of the patient is shown around the structures, and the least that a view is wide."""
_BIN_MM = 2.0
_SAID_OTHERWISE = (NOT_FOUND, LEFT_OUT)


@dataclass(frozen=True)
class Line:
    """One structure in the legend.

    Attributes:
        number: its ROI Number; None where the structure set has no contour of it.
        color: as in the structure set; None where it is not there.
        volume_cm3, contours: as in the structure set.
        confidence, flags: as in the report of the contouring.
    """

    number: int | None
    name: str
    color: tuple[int, int, int] | None
    volume_cm3: float | None
    contours: int
    confidence: float | None
    flags: tuple[str, ...]

    @property
    def is_drawn(self) -> bool:
        """Whether the structure set has contours of it."""
        return self.number is not None

    @property
    def is_missing(self) -> bool:
        """Whether it was looked for in vain; what is neither drawn nor missing was left out by a rule."""
        return not self.is_drawn and NOT_FOUND in self.flags

    @property
    def remarks(self) -> str:
        """What to look at, in words."""
        return flag_words(self.flags, unsaid=_SAID_OTHERWISE)

    @property
    def volume(self) -> str:
        """In words, with the figures that matter."""
        if not self.is_drawn:
            return "not found" if self.is_missing else "left out"
        if self.volume_cm3 is None:
            return ""
        return f"{self.volume_cm3:.2f} cm3" if self.volume_cm3 < 1 else f"{self.volume_cm3:.1f} cm3"


@dataclass(frozen=True)
class CloseUp:
    """One structure and the three planes through its centre."""

    roi: ReceivedRoi
    line: Line
    views: tuple[View, View, View]


@dataclass(frozen=True)
class Preview:
    """Everything that is shown.

    Attributes:
        rois: those that have contours; every view shows each of them that it cuts.
        lines: one a structure of the model.
        overview: three planes where most of the structures are cut widest.
        close_ups: one a structure that was found.
        facts: label and value: what was contoured, by what.
        sop_instance_uid: of the structure set.
    """

    series: CtSeries
    rois: tuple[ReceivedRoi, ...]
    lines: tuple[Line, ...]
    overview: tuple[View, View, View]
    close_ups: tuple[CloseUp, ...]
    facts: tuple[tuple[str, str], ...]
    sop_instance_uid: str

    @property
    def uids(self) -> tuple[tuple[str, str], ...]:
        """Label and value: which objects these are."""
        ct = self.series.headers[0].series_instance_uid
        return ("CT series", ct), ("RT Structure Set", self.sop_instance_uid)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever opens the page must know first; empty where all was found and nothing is odd."""
        missing = [line.name for line in self.lines if line.is_missing]
        left_out = [_told(line) for line in self.lines if not line.is_drawn and not line.is_missing]
        odd = [_told(line) for line in self.lines if line.is_drawn and line.remarks]
        told = []
        if missing:
            told.append(f"Not found, contour by hand: {', '.join(missing)}.")
        if left_out:
            told.append(f"Left out of the structure set: {', '.join(left_out)}.")
        if odd:
            told.append(f"Look closely at {', '.join(odd)}.")
        return tuple(told)


def preview_of(series: CtSeries, rt_struct: bytes, report: Mapping[str, Any]) -> Preview:
    """What is to be shown of a structure set.

    Args:
        series: the CT that it was drawn on.
        rt_struct: the bytes of the Part 10 file, with one ROI at least: what is shown is what stands there.
        report: see `contouring.Report`.

    Raises:
        KeyError: the structure set belongs to another series.
    """
    dataset = dcmread(BytesIO(rt_struct))
    rois = read_rois(dataset, series)
    drawn = {roi.number: roi for roi in rois}
    # ROIs are numbered by their place in the model, whatever a destination's edition calls or leaves out.
    lines = tuple(_line(told, drawn.get(number)) for number, told in enumerate(report["rois"], start=1))
    planes = series.volume.planes
    return Preview(
        series,
        rois,
        lines,
        _views_of_all([roi.voxels_mm for roi in rois], planes),
        tuple(
            CloseUp(roi, line, _views_of_one(roi.voxels_mm, planes))
            for roi in rois
            for line in lines
            if line.number == roi.number
        ),
        _facts(series, report),
        str(dataset.SOPInstanceUID),
    )


def _told(line: Line) -> str:
    return f"{line.name} ({line.remarks})" if line.remarks else line.name


def _line(told: Mapping[str, Any], roi: ReceivedRoi | None) -> Line:
    return Line(
        number=None if roi is None else roi.number,
        name=told["name"] if roi is None else roi.name,
        color=None if roi is None else roi.color,
        volume_cm3=None if roi is None else roi.volume_cm3,
        contours=0 if roi is None else sum(len(rings) for rings in roi.rings.values()),
        confidence=told["confidence"],
        flags=tuple(told["flags"]),
    )


def _views_of_all(structures: Sequence[Floats], planes: PlaneStack) -> tuple[View, View, View]:
    """Where most of the structures, each by its own largest cut, are cut widest."""
    every = np.concatenate(structures)
    at_mm = np.array([_fullest([points[:, axis] for points in structures]) for axis in range(3)])
    return _views(every, at_mm, planes, _AROUND_ALL_MM, _LEAST_ALL_MM, OVERVIEW_SIZE)


def _views_of_one(points: Floats, planes: PlaneStack) -> tuple[View, View, View]:
    """Through the voxel nearest to the centroid, so that each plane cuts the structure."""
    nearest = np.abs(points - points.mean(axis=0)).sum(axis=1).argmin()
    return _views(points, points[nearest], planes, _AROUND_ONE_MM, _LEAST_ONE_MM, CLOSE_UP_SIZE)


def _views(
    points: Floats,
    at_mm: Floats,
    planes: PlaneStack,
    around_mm: float,
    least_mm: float,
    size: tuple[int, int],
) -> tuple[View, View, View]:
    low, high = points.min(axis=0), points.max(axis=0)
    width_mm = max(float((high - low).max()) + 2 * around_mm, least_mm)
    return three_views(planes, at_mm, (low + high) / 2, width_mm, size)


def _fullest(structures: Sequence[Floats]) -> float:
    """The coordinate at which the structures' voxels, each by its own largest count, add up to most."""
    every = np.concatenate(structures)
    edges = np.arange(every.min() - 2 * _BIN_MM, every.max() + 3 * _BIN_MM, _BIN_MM)
    total = np.zeros(len(edges) - 1)
    for positions in structures:
        near = np.convolve(np.histogram(positions, edges)[0], np.ones(3), "same")
        total += near / near.max()
    fullest = int(total.argmax())
    return float(edges[fullest] + edges[fullest + 1]) / 2


def _facts(series: CtSeries, report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    planes, model = series.volume.planes, report["model"]
    gaps = np.diff(planes.offsets_mm)
    apart = f"{gaps[0]:.2f}" if np.ptp(gaps) < 0.01 else f"{gaps.min():.2f} to {gaps.max():.2f}"
    return (
        (
            "Model",
            f"{model['name']} {model['version']}, sha256 {model['sha256'][:12]}, on {report['device']}",
        ),
        (
            "CT",
            f"{planes.shape[0]} slices {apart} mm apart, {planes.rows} x {planes.columns} pixels of "
            f"{planes.row_spacing_mm:.2f} x {planes.column_spacing_mm:.2f} mm",
        ),
    )
