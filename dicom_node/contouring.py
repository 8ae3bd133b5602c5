"""From a CT series to a checked RT Structure Set, and what is told of it.

Owns the order segment, build, check, and the report that `anatomynode contour --json` prints.
Speaks `CtSeries` in, the bytes of a DICOM file and a report out; seconds by stage.
Never hands out an RT Structure Set that was not read back and compared with its mask.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_node import preview_page, preview_sheets, review, rt_struct, rt_struct_check
from dicom_node.config import Config, ModelChoice
from dicom_node.ct_folder import Progress, no_progress, read_folder
from dicom_node.ct_series import CtSeries
from dicom_node.durable import write_durably
from dicom_node.editions import Editions
from dicom_node.errors import (
    AnatomyNodeError,
    ConfigurationError,
    PermanentError,
    SeriesRejectedError,
    TransientError,
)
from dicom_node.preview import preview_of
from dicom_node.rt_struct import IncompleteError, RtStruct, RtStructOptions
from dicom_node.rt_struct_check import RtStructCheckError
from inference.errors import (
    DeviceLostError,
    DeviceMemoryError,
    DeviceUnavailableError,
    InferenceFailedError,
    OutsideModelError,
)
from inference.flags import LEFT_OUT, NOT_FOUND, flag_words
from inference.segmentation import Segmentation
from inference.segmenter import Segmenter
from models.card import PACKAGES, ModelDescription, ModelPackage, ModelPackageError, read_package

Report = dict[str, Any]
"""`status`, `reason`, `rt_struct`, `sop_instance_uid`, `series_instance_uid`, `model`, `device`, `seconds`,
`rois`, `notes`: plain JSON values, free of patient data."""

UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
"""The date of an RT Structure Set whose CT states none at all."""
BY_UMASK = 0o666
"""A file for whoever asked for it: who else may read it is the umask's to say."""


_CODES: dict[type[InferenceFailedError], str] = {
    DeviceMemoryError: "device_memory",
    DeviceLostError: "device_lost",
}


class ForwardPassError(TransientError):
    """The network did not run through, mostly for want of the GPU's memory, which others may free again.

    Attributes:
        code: the same as a bounded word, for metrics.
        is_device_lost: whether only a new process can use the device again.
    """

    BEGINNING = "the network did not run through"
    """How each such reason begins, so that they can be counted."""

    def __init__(self, problem: InferenceFailedError) -> None:
        super().__init__(f"{self.BEGINNING}: {problem.reason}")
        self.code = next((code for kind, code in _CODES.items() if isinstance(problem, kind)), "forward_pass")
        self.is_device_lost = isinstance(problem, DeviceLostError)


@dataclass(frozen=True)
class Contoured:
    """What became of a series.

    Attributes:
        rt_struct: the first edition that could be made; the report is about this one.
        editions: each one that was asked for, in that order, built and checked; or why there is none.
        seconds: wall time by stage: `preprocess`, `forward`, `postprocess`, `rt_struct`, `check`.
    """

    rt_struct: RtStruct
    editions: tuple[RtStruct | IncompleteError, ...]
    segmentation: Segmentation
    report: Report
    seconds: dict[str, float]


class Stopwatch:
    """Wall time by stage, from a clock that the caller gives."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = self._clock()
        yield
        self.seconds[name] = self._clock() - start


def contour(
    series: CtSeries, segmenter: Segmenter, options: RtStructOptions, *others: RtStructOptions
) -> Contoured:
    """Segment a series, write its RT Structure Set in each edition, and read those back against the mask.

    Raises:
        as `segment` and `draw`.
    """
    return draw(series, segment(series, segmenter), options, *others)


def segment(series: CtSeries, segmenter: Segmenter) -> Segmentation:
    """Find the structures.

    Raises:
        SeriesRejectedError: the volume is nothing that the model was made for.
        ForwardPassError: the network did not run through; it may later.
        MemoryError: the machine has too little for this series.
    """
    try:
        return segmenter.segment(series.volume)
    except OutsideModelError as problem:
        raise SeriesRejectedError(problem.code, problem.reason) from problem
    except InferenceFailedError as problem:
        raise ForwardPassError(problem) from problem


def draw(
    series: CtSeries, segmentation: Segmentation, options: RtStructOptions, *others: RtStructOptions
) -> Contoured:
    """Write the RT Structure Set of a segmentation in each edition, and read those back against the mask.

    Raises:
        SeriesRejectedError: nothing would be left of what was found.
        IncompleteError: a structure was not found, and no edition does without it.
        RtStructCheckError: what was written is not what was segmented.
    """
    watch = Stopwatch()
    segmentation = review.without(segmentation, options.leave_out)
    watch.seconds.update(segmentation.seconds)
    wanted = (options, *others)
    with watch.stage("rt_struct"):
        editions = tuple(_built(series, segmentation, one) for one in wanted)
    with watch.stage("check"):
        for edition, one in zip(editions, wanted, strict=True):
            if isinstance(edition, RtStruct):
                rt_struct_check.check(edition.data, series, segmentation, one)
    first = next((edition for edition in editions if isinstance(edition, RtStruct)), None)
    if first is None:
        raise next(edition for edition in editions if isinstance(edition, IncompleteError))
    report = _report(series, first, segmentation, options.model, watch.seconds)
    return Contoured(first, editions, segmentation, report, watch.seconds)


def _built(
    series: CtSeries, segmentation: Segmentation, options: RtStructOptions
) -> RtStruct | IncompleteError:
    try:
        return rt_struct.build(series, segmentation, options)
    except IncompleteError as incomplete:
        return incomplete


def contour_folder(
    folder: Path,
    output: Path,
    settings: Config,
    picture: Path | None = None,
    progress: Progress = no_progress,
    destination: str | None = None,
) -> Report:
    """Contour the CT series in a folder into one file.

    The dates inside are the CT's own latest, not the clock's, so that a rerun writes the same bytes.

    Args:
        folder: read with everything below it; what is no CT is ignored, and the report says so.
        output: written atomically: it is there whole, or not at all.
        settings: the model, the device, the rules for series, and how contours are drawn.
        picture: where to show the contours on the CT, see `write_preview`; None shows them nowhere.
        progress: told what is being done.
        destination: the one as which the object is to be made; None takes no destination's wishes.

    Raises:
        SeriesRejectedError: the series is not ours to contour.
        ConfigurationError: the model package, the device or the destination cannot be used.
        AnatomyNodeError: the work failed, or a file cannot be read or written.
    """
    with _told_of_files():
        return _contour_folder(folder, output, settings, picture, progress, destination)


def _contour_folder(
    folder: Path,
    output: Path,
    settings: Config,
    picture: Path | None,
    progress: Progress,
    destination: str | None,
) -> Report:
    for target in (output, picture):
        if target is not None and not target.parent.is_dir():
            raise PermanentError(f"{target.parent} is no folder to write {target.name} into; make it first")
    watch = Stopwatch()
    package = package_of(settings.model)
    options = options_of(settings, package.description, UNDATED, destination)
    with watch.stage("read"):
        spacing_mm = package.description.input.spacing_mm[0]
        series, notes = read_folder(folder, settings.series, spacing_mm, progress)
    with watch.stage("load_model"):
        progress("loading the model", 0, 1)
        segmenter = segmenter_of(package, settings)
    progress("contouring", 0, 1)
    try:
        done = contour(series, segmenter, replace(options, created_at=created_at(series)))
    except RtStructCheckError as refused:
        evidence = output.with_name(f"{output.name}.refused")
        write_durably(evidence, refused.data, mode=BY_UMASK)
        raise refused.kept_at(evidence) from refused
    with watch.stage("write"):
        write_durably(output, done.rt_struct.data, mode=BY_UMASK)
    if picture is not None:
        progress("drawing the preview", 0, 1)
        write_preview(series, done.rt_struct.data, done.report, picture)
    own = {stage: round(value, 4) for stage, value in watch.seconds.items()}
    seconds = {**own, **done.report["seconds"]}
    return {
        **done.report,
        "rt_struct": str(output),
        "seconds": seconds,
        "notes": [*done.report["notes"], *notes, *_holds(series, done, settings, destination)],
    }


def _holds(series: CtSeries, done: Contoured, settings: Config, destination: str | None) -> Iterator[str]:
    """What the node would not send before a person released it."""
    why = review.why_to_hold(series, done.segmentation, settings.review.hold)
    if why is not None:
        yield f"the node would hold this until a person releases it: {why}"
    why = review.holds(series, done.segmentation, settings).get(destination or "")
    if why is not None:
        yield f"the node would hold this for {destination} until a person releases it: {why}"


def write_preview(series: CtSeries, data: bytes, report: Report, file: Path) -> None:
    """Show a structure set on its CT: as a page where the file's name ends in `.html`, else as a PNG.

    Args:
        data: the bytes of the RT Structure Set: what is shown is what stands there.
        report: of its contouring.

    Raises:
        OSError: the file cannot be written.
    """
    shown = preview_of(series, data, report)
    is_page = file.suffix.lower() == ".html"
    drawn = preview_page.html(shown).encode() if is_page else preview_sheets.png(shown)
    write_durably(file, drawn, mode=BY_UMASK)


def failure_report(problem: AnatomyNodeError) -> Report:
    """The report of a series that was rejected, or that we could not contour."""
    rejected = isinstance(problem, SeriesRejectedError)
    return {
        "status": "rejected" if rejected else "failed",
        "reason": problem.reason,
        "reason_code": problem.code if isinstance(problem, SeriesRejectedError) else None,
        "rt_struct": None,
        "sop_instance_uid": None,
        "series_instance_uid": None,
        "model": None,
        "device": None,
        "seconds": {},
        "rois": [],
        "notes": [],
    }


def in_words(report: Report) -> list[str]:
    """A report as lines for a person: the ROIs with their volumes, then what else is to be known."""
    model, seconds = report["model"], report["seconds"]
    lines = [f"{report['rt_struct']}  {model['name']} {model['version']} on {report['device']}"]
    for roi in report["rois"]:
        found = f"{roi['volume_cm3']:8.1f} cm3  {roi['contours']:4d} contours"
        if not roi["contours"]:
            found = "left out" if LEFT_OUT in roi["flags"] else "not found"
        flags = flag_words(roi["flags"], unsaid=(NOT_FOUND, LEFT_OUT))
        lines.append("  ".join((f"  {roi['name']:<16}", found, flags)).rstrip())
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append("seconds: " + ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items()))
    lines.append("Not a medical device: every contour must be reviewed by a qualified person.")
    return lines


def package_of(choice: ModelChoice) -> ModelPackage:
    """The configured model package.

    Raises:
        ConfigurationError: it is missing, damaged or not what its description says.
    """
    try:
        return read_package((choice.folder or PACKAGES) / choice.package)
    except ModelPackageError as problem:
        raise ConfigurationError((f"model: {problem}",)) from problem


def segmenter_of(package: ModelPackage, settings: Config) -> Segmenter:
    """The network on the configured device.

    Raises:
        ConfigurationError: the device cannot be used.
    """
    wanted = settings.inference
    try:
        return Segmenter(package, wanted.device, wanted.allow_cpu, wanted.threads)
    except DeviceUnavailableError as problem:
        raise ConfigurationError((f"inference.device: {problem.reason}",)) from problem


def options_of(
    settings: Config, model: ModelDescription, created: datetime, destination: str | None = None
) -> RtStructOptions:
    """How the configuration wants the RT Structure Set, dated `created` (aware, UTC).

    Args:
        destination: the one that it is for; None takes no destination's wishes.

    Raises:
        ConfigurationError: the template, a name or a label does not fit; or there is no such destination.
    """
    editions = Editions.read(settings, model)
    if destination is None:
        return replace(editions.plain, created_at=created)
    if destination not in editions.by_destination:
        known = ", ".join(editions.by_destination) or "none"
        raise ConfigurationError((f"destinations: there is no {destination!r}; known: {known}",))
    return replace(editions.by_destination[destination], created_at=created)


def created_at(series: CtSeries) -> datetime:
    """The latest date and time that the CT's slices state, read as UTC; `UNDATED` where there is none."""
    latest = max((header.content_date_time for header in series.headers), default="")
    if not re.fullmatch(r"[0-9]{14}", latest):
        return UNDATED
    try:
        return datetime.strptime(latest, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:  # such as the 31st of February
        return UNDATED


@contextmanager
def _told_of_files() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise PermanentError(f"{problem.filename or 'the disk'}: {problem.strerror}") from problem


def _report(
    series: CtSeries,
    structure_set: RtStruct,
    segmentation: Segmentation,
    model: ModelDescription,
    seconds: dict[str, float],
) -> Report:
    notes = ["the slice spacing changes within the series; each contour lies in its own slice's plane"]
    return {
        "status": "done",
        "reason": None,
        "rt_struct": None,
        "sop_instance_uid": structure_set.sop_instance_uid,
        "series_instance_uid": series.headers[0].series_instance_uid,
        "model": {"name": model.name, "version": model.version, "sha256": model.sha256},
        "device": segmentation.device,
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "rois": [{**asdict(roi), "flags": list(roi.flags)} for roi in structure_set.rois],
        "notes": notes if series.is_uneven else [],
    }
