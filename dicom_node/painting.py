"""What a companion shows: the contours on their CT, or the reason why there are none.

Owns the way from a job's row, its RT-STRUCT and its slices in the spool to the bytes of Secondary Captures.
Speaks an `Order` in, captures out; made of the same it is the same bytes, whenever it is painted.
Never files a notice under one patient where the slices name several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from dicom_node import __version__, jobs, preview_sheets, secondary_capture
from dicom_node.config import Storage
from dicom_node.contouring import write_preview
from dicom_node.ct_identity import local_time
from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from dicom_node.database import reading
from dicom_node.errors import PermanentError
from dicom_node.notice import SERIES_DESCRIPTION, notice_of
from dicom_node.preview import NOT_FOR_DIAGNOSIS, Preview, preview_of
from dicom_node.schema import Companion, Delivery, Instance, Job, Series
from dicom_node.secondary_capture import Caption, Capture
from dicom_node.states import CompanionKind, DeliveryState, JobState
from dicom_node.story import job_of

PICTURES_SERIES_NUMBER, NOTICE_SERIES_NUMBER = 9002, 9003
"""Beside the RT-STRUCT's own, far from those of scanners."""
_WHOSE = ("PatientID", "StudyInstanceUID")


class CannotPaintError(PermanentError):
    """There is nothing to paint from, or nobody to file it under."""


@dataclass(frozen=True)
class Order:
    """All that a companion is painted from, besides the files themselves.

    Attributes:
        job: its number.
        created_at: the job's, UTC epoch seconds.
        rt_struct: file and sha256 of the edition that is shown; None where there is none.
        instances: file in the spool by SOP Instance UID, in the order of their arrival.
    """

    kind: CompanionKind
    job: int
    state: JobState
    reason: str
    reason_code: str
    revision: int
    model_sha256: str
    template: str
    created_at: float
    series_instance_uid: str
    rt_struct: tuple[Path, str] | None
    report: Mapping[str, Any]
    instances: Mapping[str, Path]


def order_of_companion(session: Session, companion: Companion, storage: Storage) -> Order:
    """What is to be painted for a destination: its own edition, or why it has to wait for that."""
    of_it = Delivery.job_id == companion.job_id, Delivery.destination == companion.destination
    delivery = session.scalars(select(Delivery).where(*of_it)).one_or_none()
    edition = (None, None) if delivery is None else (delivery.rt_struct_file, delivery.rt_struct_sha256)
    order = _order(session, session.get_one(Job, companion.job_id), companion.kind, edition, storage)
    if delivery is None or delivery.state is not DeliveryState.HELD:
        return order
    return replace(
        order, state=JobState.HELD, reason=delivery.reason or "", reason_code=jobs.HELD_FOR_REVIEW_CODE
    )


def _order(
    session: Session,
    job: Job,
    kind: CompanionKind,
    edition: tuple[str | None, str | None],
    storage: Storage,
) -> Order:
    series = session.get_one(Series, job.series_id)
    rows = select(Instance.sop_instance_uid, Instance.file).where(Instance.series_id == series.id)
    file, sha256 = edition
    return Order(
        kind=kind,
        job=job.id,
        state=job.state,
        reason=job.reason or "",
        reason_code=job.reason_code or "",
        revision=job.revision,
        model_sha256=job.model_sha256,
        template=job.template,
        created_at=job.created_at,
        series_instance_uid=series.series_instance_uid,
        rt_struct=None if file is None or sha256 is None else (storage.results / file, sha256),
        report=job.report or {},
        instances={uid: storage.spool / name for uid, name in session.execute(rows.order_by(Instance.id))},
    )


def paint(order: Order) -> tuple[Capture, ...]:
    """The companion's sheets, encoded.

    Raises:
        CannotPaintError: the RT-STRUCT or a slice is gone, or the slices name several patients.
        OSError: the disk does not answer.
    """
    with _told_of_what_is_gone():
        return _pictures(order) if order.kind is CompanionKind.PICTURES else _notice(order)


def show(engine: Engine, number: int, storage: Storage, file: Path) -> None:
    """A job's contours for a person, from the edition that stands for the job; see `write_preview`.

    Raises:
        NoSuchJobError: there is no job of this number.
        CannotPaintError: it has no RT-STRUCT, or that or a slice is gone.
        PermanentError: the file cannot be written.
    """
    series, data, report = drawn(engine, number, storage)
    try:
        write_preview(series, data, report, file)
    except OSError as problem:
        raise PermanentError(f"{file}: {problem.strerror}") from problem


def drawn(engine: Engine, number: int, storage: Storage) -> tuple[CtSeries, bytes, dict[str, Any]]:
    """A job's CT, the bytes of the structure set that stands for the job, and its report.

    Raises:
        NoSuchJobError: there is no job of this number.
        CannotPaintError: it has no RT-STRUCT, or that or a slice is gone.
    """
    with reading(engine) as session:
        job = job_of(session, number)
        edition = (job.rt_struct_file, job.rt_struct_sha256)
        order = _order(session, job, CompanionKind.PICTURES, edition, storage)
    with _told_of_what_is_gone():
        return *_drawn(order), dict(order.report)


@contextmanager
def _told_of_what_is_gone() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as problem:
        raise CannotPaintError(
            "a slice, or the RT-STRUCT, is not in the storage folder any more"
        ) from problem


def _drawn(order: Order) -> tuple[CtSeries, bytes]:
    """The CT, and the very bytes of the structure set that was drawn on it."""
    if order.rt_struct is None:
        raise CannotPaintError(f"job {order.job} has no RT-STRUCT that could be shown there")
    file, sha256 = order.rt_struct
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CannotPaintError("the stored RT-STRUCT changed on the disk; retry to contour again")
    return _series(dcmread(BytesIO(data), stop_before_pixels=True), order), data


def _pictures(order: Order) -> tuple[Capture, ...]:
    series, data = _drawn(order)
    shown = preview_of(series, data, order.report)
    caption = Caption(
        made_of=("pictures", shown.sop_instance_uid),
        created_at=datetime.fromtimestamp(order.created_at, UTC),
        series_number=PICTURES_SERIES_NUMBER,
        series_description=_pictures_description(shown),
        comments=" ".join((*shown.warnings, NOT_FOR_DIAGNOSIS)),
        derivation=f"RT Structure Set {shown.sop_instance_uid} drawn on its CT by AnatomyNode {__version__}",
    )
    return secondary_capture.build(series.reference, preview_sheets.sheets(shown), caption)


def _series(rt_struct: Dataset, order: Order) -> CtSeries:
    """The very slices that were contoured; others may have come since."""
    study = rt_struct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    return assemble(
        (read_slice(order.instances[image.ReferencedSOPInstanceUID]) for image in images), min_slices=2
    )


def _pictures_description(shown: Preview) -> str:
    """What the list of series shows, within 64 characters."""
    counts = {
        "not found": sum(line.is_missing for line in shown.lines),
        "left out": sum(not line.is_drawn and not line.is_missing for line in shown.lines),
        "to check": sum(line.is_drawn and bool(line.remarks) for line in shown.lines),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return ": ".join(filter(None, ("AnatomyNode pictures", told)))


def _notice(order: Order) -> tuple[Capture, ...]:
    reference = _reference(order)
    series_number = str(reference.get("SeriesNumber") or "").strip()
    created_at = datetime.fromtimestamp(order.created_at, UTC)
    notice = notice_of(
        *(order.job, order.state, order.reason, series_number, len(order.instances)),
        complete_at=local_time(created_at, reference),
    )
    caption = Caption(
        made_of=(
            *("notice", order.series_instance_uid, str(order.revision), order.model_sha256, order.template),
            *(order.state, order.reason_code, order.reason),
        ),
        created_at=created_at,
        series_number=NOTICE_SERIES_NUMBER,
        series_description=SERIES_DESCRIPTION,
        comments=notice.comments,
        derivation=f"Written by AnatomyNode {__version__} in place of a structure set",
    )
    sheet = preview_sheets.text_sheet(notice.title, notice.message, notice.paragraphs)
    return secondary_capture.build(reference, [sheet], caption)


def _reference(order: Order) -> Dataset:
    """The first slice that can be read, without its pixels.

    Raises:
        CannotPaintError: none can be read, or they name several patients or studies.
    """
    reference, whose = None, set()
    for file in order.instances.values():
        try:
            dataset = dcmread(file, stop_before_pixels=True)
            whose.add(tuple(str(dataset.get(keyword) or "") for keyword in _WHOSE))
        except OSError:
            raise
        except Exception:  # noqa: S112 (pydicom has no common root for what malformed bytes can raise)
            continue
        reference = reference or dataset
    if reference is None:
        raise CannotPaintError("no slice can be read, so nobody knows whose study the notice belongs to")
    if len(whose) > 1:
        raise CannotPaintError(
            f"the slices name {len(whose)} patients or studies: no notice is filed under one of them"
        )
    return reference
