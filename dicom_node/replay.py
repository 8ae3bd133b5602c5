"""`anatomynode replay`: a series that was received is contoured again, into a file, to see what would change.

Owns the way from a job's number to the comparison of what it came to with what it would come to now.
Speaks the database, spool and results of the node, all of which it only reads; one file out.
Never sends anything, never changes a state, and never takes another series' slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from sqlalchemy import Engine, select

from dicom_node import agreement, contouring, jobs, painting
from dicom_node.agreement import Agreement
from dicom_node.config import Config
from dicom_node.contouring import BY_UMASK, Report
from dicom_node.ct_folder import Progress, no_progress
from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from dicom_node.database import reading
from dicom_node.durable import write_durably
from dicom_node.editions import Editions
from dicom_node.errors import PermanentError
from dicom_node.networks import read_networks
from dicom_node.rt_struct import RtStructOptions
from dicom_node.schema import Instance, Series
from dicom_node.story import job_of
from models.card import ModelDescription


class CannotReplayError(PermanentError):
    """The slices are not here any more, or not those that the job was made of."""


@dataclass(frozen=True)
class Replay:
    """What a job would come to now.

    Attributes:
        was: how it stands, and by which model, in words.
        report: as `anatomynode contour --json` has it.
        is_the_same: whether the new RT-STRUCT is the old one, byte for byte; None without an old one.
        agreements: structure by structure; empty without an old one.
    """

    job: int
    was: str
    report: Report
    is_the_same: bool | None
    agreements: tuple[Agreement, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def in_words(self) -> str:
        """What a person wants to know first: what would change."""
        return "\n".join(_told(self))


@dataclass(frozen=True)
class ContouredAgain:
    """What came of it; `data` and `before` are the bytes of the RT-STRUCT now and then, if there was one."""

    was: str
    report: Report
    data: bytes
    before: bytes | None
    agreements: tuple[Agreement, ...]


def replay(
    engine: Engine, number: int, output: Path, settings: Config, progress: Progress = no_progress
) -> Replay:
    """Contour the series of a job again into a file; see `contour_again`.

    Args:
        output: where the new RT-STRUCT goes.
    """
    if not output.parent.is_dir():
        raise PermanentError(f"{output.parent} is no folder to write {output.name} into; make it first")
    done = contour_again(engine, number, settings, progress)
    try:
        write_durably(output, done.data, mode=BY_UMASK)
    except OSError as problem:
        raise PermanentError(f"{output}: {problem.strerror}") from problem
    is_the_same = None if done.before is None else done.before == done.data
    return Replay(number, done.was, {**done.report, "rt_struct": str(output)}, is_the_same, done.agreements)


def as_now(engine: Engine, number: int, settings: Config) -> Config:
    """The settings with the package that a rule would have the job contoured by, where there are several.

    Raises:
        NoSuchJobError: there is no job of this number.
        ConfigurationError: a package cannot be used.
    """
    with reading(engine) as session:
        job = job_of(session, number)
        made_by = job.model_sha256, job.model_name
    networks = read_networks(settings).values()
    same = [one.name for one in networks if one.model.sha256 == made_by[0]]
    alike = [one.name for one in networks if one.model.name == made_by[1]]
    package = next(iter(same + alike), settings.model.package)
    return settings.model_copy(update={"model": settings.model.model_copy(update={"package": package})})


def contour_again(
    engine: Engine, number: int, settings: Config, progress: Progress = no_progress
) -> ContouredAgain:
    """Contour the series of a job again, with the settings and the program as they are now; into memory.

    Args:
        settings: the configuration, perhaps with another model package in it.

    Raises:
        NoSuchJobError: there is no job of this number.
        CannotReplayError: its slices were removed.
        SeriesRejectedError: it would be rejected now.
        ConfigurationError: the model package or the device cannot be used.
    """
    package = contouring.package_of(settings.model)
    options, was = _as_it_was(engine, number, settings, package.description)
    progress("reading the slices", 0, 1)
    series, before = _slices(engine, number, settings)
    progress("loading the model", 0, 1)
    segmenter = contouring.segmenter_of(package, settings)
    progress("contouring", 0, 1)
    done = contouring.contour(series, segmenter, options)
    data = done.rt_struct.data
    progress("comparing", 0, 1)
    found = () if before is None else agreement.compare(_read(before), _read(data), series)
    return ContouredAgain(was, done.report, data, before, found)


def _as_it_was(
    engine: Engine, number: int, settings: Config, model: ModelDescription
) -> tuple[RtStructOptions, str]:
    """The first edition, dated as the job's own and with its predecessors; and how the job stands."""
    with reading(engine) as session:
        job = job_of(session, number)
        predecessors = jobs.predecessors(session, job)
        created_at = datetime.fromtimestamp(job.created_at, UTC)
        template = None if job.template == jobs.DEFAULT_TEMPLATE else Path(job.template)
        editions = Editions.read(settings, model, template, f"the template of job {job.id}")
        names = jobs.addressees(job, editions.by_destination)
        wanted = editions.of_job(created_at, job.predecessor_sop_instance_uid, predecessors, names)
        reason = "" if job.reason is None else f": {job.reason}"
        was = f"job {job.id} is {job.state} by {job.model_name}, sha256 {job.model_sha256}{reason}"
        return wanted[0][0], was


def _slices(engine: Engine, number: int, settings: Config) -> tuple[CtSeries, bytes | None]:
    """The series, of the very slices that the job's RT-STRUCT was made of; and that, where there is one."""
    with reading(engine) as session:
        job = job_of(session, number)
        series = session.get_one(Series, job.series_id)
        if series.slices_removed_at is not None:
            at = datetime.fromtimestamp(series.slices_removed_at, UTC)
            raise CannotReplayError(
                f"the slices of job {number} were removed on {at:%Y-%m-%d}, as retention says: "
                "push the series again, then replay it"
            )
        has_result, is_latest = job.rt_struct_file is not None, job.revision == series.revision
        named = session.scalars(
            select(Instance.file).where(Instance.series_id == series.id).order_by(Instance.id)
        )
        files = [settings.storage.spool / name for name in named]
    if has_result:
        contoured, rt_struct, _ = painting.drawn(engine, number, settings.storage)
        return contoured, rt_struct
    if not is_latest:
        raise CannotReplayError(
            f"job {number} has no RT-STRUCT that would say which slices it had; more have come since: "
            "replay the job of the latest revision"
        )
    try:
        return assemble(map(read_slice, files), settings.series.min_slices), None
    except OSError as problem:
        raise CannotReplayError(f"a slice of job {number} cannot be read: {problem.strerror}") from problem


def _read(data: bytes) -> Any:
    return dcmread(BytesIO(data))


def _told(done: Replay) -> Iterator[str]:
    model, report = done.report["model"], done.report
    yield f"{done.was}."
    yield f"Now, by {model['name']} {model['version']}, sha256 {model['sha256']}, on {report['device']}:"
    if done.is_the_same is None:
        yield from contouring.in_words(report)
        yield "There is no RT-STRUCT of it to compare with."
        return
    yield from agreement.in_words(done.agreements)
    same = "the very same bytes" if done.is_the_same else "another object; nothing of it was sent"
    yield f"{report['rt_struct']}: {same}."
