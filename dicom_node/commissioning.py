"""`anatomynode commission`: what the installed node does with bodies that are known, in a report to sign.

Owns the points that are gone through, and their limits.
Speaks a configuration in; points with figures, and two files out.
Never judges a model on patients: that is the clinic's to do, and the report says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node import contouring, migrate, other_reader, rt_struct, rt_struct_check
from dicom_node.acquisitions import ACQUISITIONS, BALL, OBLIQUE, Acquisition
from dicom_node.commissioned import facts_of, settings_of
from dicom_node.commissioning_report import (
    Commissioning,
    Figure,
    Point,
    as_json,
    as_markdown,
    drifts,
    read_baseline,
)
from dicom_node.config import Config, read_config
from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from dicom_node.database import open_engine, transaction
from dicom_node.editions import Editions
from dicom_node.errors import AnatomyNodeError, SeriesRejectedError
from dicom_node.other_anatomies import write_other_anatomy
from dicom_node.phantom import write_phantom
from dicom_node.refusals import Refusal
from dicom_node.rt_struct import RtStruct, RtStructOptions
from dicom_node.schema import Constancy
from inference.segmentation import Segmentation, StructureMap
from models.card import ModelPackage, Structure

Vector = NDArray[np.float64]

FURTHEST_FROM_PLANE_MM = 0.01
FURTHEST_FROM_SURFACE_MM = {"smooth": 0.2, "voxel": 1.2}
"""By contour mode. A voxel's edge is up to half a pixel's diagonal, 0.9 mm here, from the surface."""
LARGEST_VOLUME_ERROR_PERCENT = {"smooth": 1.0, "voxel": 3.0}
FURTHEST_CENTRE_MM = 0.6
LARGEST_VOLUME_ERROR_OF_OTHERS_PERCENT = 12.0
"""Of rt-utils, which moves points to whole pixels and fills the pixels under the line, too."""
DRIFT_MM = 0.05
DRIFT_PERCENT = 0.5
DRIFT_CM3 = 0.2
"""How far a figure may be from the baseline's: the same program on the same machine gives the very same,
another machine's rounding moves a few voxels."""

_PHANTOM_SLICES = 70
_PHANTOM_MATRIX = 256
_PHANTOM_SPACING_MM = (3.0, 1.953125, 1.953125)
_REFUSED = ("water phantom", "Catphan-like phantom")
"""What a physicist has in the cupboard, and can scan to see the same."""
_BY_THE_NETWORK = ("no_structures", "not_this_anatomy", Refusal.NOTHING_FOUND)
"""Refused for any other reason, a body has not come as far as the network."""
_REFUSED_GRID = (50, 128, (3.0, 3.90625, 3.90625))


# --- the run ------------------------------------------------------------------------------------------


def commission(
    config_path: Path,
    output: Path,
    now: datetime,
    baseline: Path | None = None,
    progress: Callable[[str], None] = print,
) -> Commissioning:
    """Go through all points; write `commissioning-DATE.md` and `.json` into `output`.

    Args:
        baseline: the JSON of an earlier run, to compare with; the outcome also goes into the node's database.

    Raises:
        ConfigurationError: the configuration, the model package or the device cannot be used.
        BaselineError: the baseline cannot be read.
    """
    known = None if baseline is None else read_baseline(baseline)
    config = read_config(config_path)
    package = contouring.package_of(config.model)
    options = Editions.read(config, package.description).plain
    points: list[Point] = []
    for point in _points(config, package, options):
        progress(f"{'ok' if point.holds else 'NO':<3} {point.name}: {point.problem or point.detail}")
        points.append(point)
    device = contouring.segmenter_of(package, config).device
    facts, settings = facts_of(config_path, package.description, device), settings_of(config)
    drifted = () if known is None else tuple(drifts(facts, settings, points, known))
    name = None if baseline is None else baseline.name
    done = Commissioning(now, facts, tuple(points), drifted, name, settings)
    output.mkdir(parents=True, exist_ok=True)
    stem = output / f"commissioning-{now:%Y%m%dT%H%M%SZ}"
    stem.with_suffix(".json").write_text(json.dumps(as_json(done), indent=2) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(as_markdown(done), encoding="utf-8")
    if known is not None:
        _record(config, done)
    return done


def _record(config: Config, done: Commissioning) -> None:
    """Leave what the comparison came to where the listener's metrics find it."""
    migrate.upgrade(config.storage.database)
    engine = open_engine(config.storage.database)
    failed = sum(not point.holds for point in done.points)
    row = Constancy(id=1, made_at=done.made_at.timestamp(), failed_points=failed, drifts=len(done.drifts))
    try:
        with transaction(engine) as session:
            session.merge(row)
    finally:
        engine.dispose()


def _points(config: Config, package: ModelPackage, options: RtStructOptions) -> Iterator[Point]:
    yield _approval(config, package)
    for acquisition in ACQUISITIONS:
        yield _geometry(acquisition, options)
    with tempfile.TemporaryDirectory() as scratch:
        yield _other_reader(options, Path(scratch))
        yield from _network(config, Path(scratch))
        for name in _REFUSED:
            yield _refusal(name, config, Path(scratch))


def _approval(config: Config, package: ModelPackage) -> Point:
    described = package.description
    detail = f"{described.name} {described.version}, sha256 {described.sha256}"
    approved = config.model.approved_of(config.model.package)
    if approved == described.sha256:
        return Point("the model is the approved one", detail)
    problem = (
        f"model.approved_sha256 is {approved or 'not set'}, the model's is "
        f"{described.sha256}: nothing is sent until a physicist sets it"
    )
    return Point("the model is the approved one", detail, problem=problem)


# --- geometry ------------------------------------------------------------------------------------------


def _geometry(acquisition: Acquisition, options: RtStructOptions) -> Point:
    """A ball through everything but the network: its contours lie on the ball, in their slices' planes."""
    name = f"geometry, {acquisition.name}"
    try:
        series, made = _drawn(acquisition, options)
    except AnatomyNodeError as problem:
        return Point(name, "", problem=problem.reason)
    contours = list(_contours(dcmread(BytesIO(made.data))))
    points = np.concatenate([points for _, points in contours])
    figures = (
        Figure(
            "furthest from the slice's plane",
            _off_plane_mm(contours, series),
            "mm",
            0.001,
            FURTHEST_FROM_PLANE_MM,
        ),
        Figure(
            "furthest from the ball's surface",
            float(np.abs(BALL.distances_mm(points)).max()),
            "mm",
            DRIFT_MM,
            FURTHEST_FROM_SURFACE_MM[options.contour_mode],
        ),
        Figure(
            "volume",
            _volume_error_percent(contours, acquisition),
            "% off",
            DRIFT_PERCENT,
            LARGEST_VOLUME_ERROR_PERCENT[options.contour_mode],
        ),
    )
    return Point(name, f"{len(contours)} contours, {len(points)} points", figures)


def _drawn(acquisition: Acquisition, options: RtStructOptions) -> tuple[CtSeries, RtStruct]:
    """The ball's series, and its RT Structure Set, which has passed the self-check."""
    ball = Structure.model_validate(
        {**options.model.structures[0].model_dump(), "volume_cm3": (1, 1000), "laterality": None}
    )
    series = assemble((read_slice(BytesIO(one)) for one in acquisition.slices()), min_slices=2)
    drawn = StructureMap(ball, (0, 0, 0), acquisition.probability(), 0.5, None, ())
    segmentation = Segmentation((drawn,), "none", {})
    made = rt_struct.build(series, segmentation, options)
    rt_struct_check.check(made.data, series, segmentation, options)
    return series, made


def _other_reader(options: RtStructOptions, scratch: Path) -> Point:
    """The ball of the oblique series, by code that shares nothing with ours."""
    name = "another reader finds the ball"
    folder, file = scratch / "ball", scratch / "ball.dcm"
    folder.mkdir()
    for index, one in enumerate(OBLIQUE.slices()):
        (folder / f"{index}.dcm").write_bytes(one)
    try:
        _, made = _drawn(OBLIQUE, options)
        file.write_bytes(made.data)
        (roi,) = made.rois
        seen = other_reader.read(folder, file, roi.name)
    except AnatomyNodeError as problem:
        return Point(name, "", problem=problem.reason)
    except Exception as problem:  # rt-utils raises nothing narrower
        return Point(name, "", problem=f"rt-utils cannot read it: {problem}")
    away = float(np.linalg.norm(seen.centre_mm - BALL.centre_mm))
    figures = (
        Figure("from the ball's centre", away, "mm", DRIFT_MM, FURTHEST_CENTRE_MM),
        Figure(
            "volume",
            100 * (seen.volume_cm3 / BALL.volume_cm3 - 1),
            "% off",
            DRIFT_PERCENT,
            LARGEST_VOLUME_ERROR_OF_OTHERS_PERCENT,
        ),
    )
    return Point(name, f"rt-utils, series {OBLIQUE.name}", figures)


def _contours(dataset: Dataset) -> Iterator[tuple[str, Vector]]:
    """The SOP Instance UID that each contour references, and its points (n, 3) in LPS millimetres."""
    for item in dataset.ROIContourSequence[0].ContourSequence:
        uid = str(item.ContourImageSequence[0].ReferencedSOPInstanceUID)
        yield uid, np.array(item.ContourData, float).reshape(-1, 3)


def _off_plane_mm(contours: Sequence[tuple[str, Vector]], series: CtSeries) -> float:
    headers = {header.sop_instance_uid: header for header in series.headers}
    furthest = 0.0
    for uid, points in contours:
        cosines = np.array(headers[uid].image_orientation_patient)
        normal = np.cross(cosines[:3], cosines[3:])
        away = (points - headers[uid].image_position_patient) @ normal
        furthest = max(furthest, float(np.abs(away).max()))
    return furthest


def _volume_error_percent(contours: Sequence[tuple[str, Vector]], acquisition: Acquisition) -> float:
    """Areas by the cross product, each for half the way to both neighbours; against the ball's formula."""
    _, _, normal = acquisition.directions
    planes = acquisition.positions_mm() @ normal
    edges = np.concatenate(([planes[0]], (planes[1:] + planes[:-1]) / 2, [planes[-1]]))
    thickness = np.diff(edges)
    cm3 = 0.0
    for _, points in contours:
        area = abs(0.5 * float(np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0) @ normal))
        cm3 += area * float(thickness[np.abs(planes - points[0] @ normal).argmin()]) / 1000
    return 100 * (cm3 / BALL.volume_cm3 - 1)


# --- the network ---------------------------------------------------------------------------------------


def _network(config: Config, scratch: Path) -> Iterator[Point]:
    """The built-in phantom through the whole product, twice."""
    write_phantom(scratch / "ct", _PHANTOM_SLICES, _PHANTOM_MATRIX, _PHANTOM_SPACING_MM)
    try:
        report = contouring.contour_folder(scratch / "ct", scratch / "first.dcm", config)
        contouring.contour_folder(scratch / "ct", scratch / "second.dcm", config)
    except AnatomyNodeError as problem:
        yield Point("the network draws the phantom", "", problem=problem.reason)
        return
    figures = tuple(
        Figure(f"{roi['name']}, volume", round(roi["volume_cm3"], 3), "cm3", DRIFT_CM3)
        for roi in report["rois"]
    )
    found = sum(1 for roi in report["rois"] if roi["contours"])
    detail = f"{found} of {len(report['rois'])} structures found on {report['device']}"
    yield Point("the network draws the phantom", detail, figures)
    same = (scratch / "first.dcm").read_bytes() == (scratch / "second.dcm").read_bytes()
    yield Point(
        "the same series gives the same bytes",
        f"sha256 {sha256((scratch / 'first.dcm').read_bytes()).hexdigest()}",
        problem=None if same else "two runs on one series wrote different RT Structure Sets",
    )


def _refusal(body: str, config: Config, scratch: Path) -> Point:
    """No head and neck: nothing may come back."""
    name = f"a {body} is refused"
    folder = scratch / body
    write_other_anatomy(body, folder, *_REFUSED_GRID)
    try:
        report = contouring.contour_folder(folder, scratch / f"{body}.dcm", config)
    except SeriesRejectedError as refused:
        told = f"{refused.code}: {refused.reason}"
        return Point(name, told, problem=None if refused.code in _BY_THE_NETWORK else told)
    except AnatomyNodeError as problem:
        return Point(name, "", problem=problem.reason)
    found = ", ".join(roi["name"] for roi in report["rois"] if roi["contours"])
    return Point(name, "", problem=f"it came back with {found}")
