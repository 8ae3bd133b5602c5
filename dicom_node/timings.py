"""What is measured of each job, kept in the transaction in which it happens.

Owns the names of the stages, and the rows of durations, findings and contacts.
Speaks rows inside a transaction that the caller has opened; seconds, cm3, UTC epoch seconds.
Never measures a job twice, and never counts a wait for a person as the node's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from dicom_node.schema import Contact, Delivery, Duration, Finding, Instance, Job, Series, Transition
from dicom_node.states import DeliveryState, JobState
from dicom_node.store_status import StoreKind


class Stage(StrEnum):
    """A part of a job's way. Those up to `sending` follow each other without a gap."""

    RECEIVING = "receiving"
    """First slice to last; of a later revision, of the late ones."""
    WAITING = "waiting"
    """Last slice until the worker begins: evidence that the series is complete, then the queue."""
    ASSEMBLING = "assembling"
    """What is left to decode, and the volume."""
    INFERENCE = "inference"
    """The network, with what is done before and after it."""
    CONTOURING = "contouring"
    """Mask to RT-STRUCT, in each edition."""
    CHECKING = "checking"
    """The RT-STRUCTs are read back and compared."""
    KEEPING = "keeping"
    """Until the bytes are fsynced and the job is READY."""
    SENDING = "sending"
    """READY until a destination has stored it."""
    COMMITTED = "committed"
    """Stored until the destination has committed itself to it."""


class Step(StrEnum):
    """A part of a stage: the first two of waiting, the others of inference."""

    COMPLETENESS = "completeness"
    QUEUE = "queue"
    PREPROCESS = "preprocess"
    FORWARD = "forward"
    POSTPROCESS = "postprocess"


class Turnaround(StrEnum):
    """The whole way until a destination has stored the RT-STRUCT, and since when."""

    FIRST_SLICE = "since_first_slice"
    LAST_SLICE = "since_last_slice"


_OF_REPORT = {
    Stage.ASSEMBLING: ("decode",),
    Stage.INFERENCE: (Step.PREPROCESS, Step.FORWARD, Step.POSTPROCESS),
    Stage.CONTOURING: ("rt_struct",),
    Stage.CHECKING: ("check",),
}
_ENDED = (JobState.HELD, JobState.FAILED, JobState.REJECTED, JobState.CANCELLED, JobState.IGNORED)
_STOPPED = (DeliveryState.HELD, DeliveryState.REFUSED, DeliveryState.CANCELLED)
"""From these it is a person who leads on."""

Measured = tuple[str, float, float]
"""Stage, when it began, seconds."""


def ready(session: Session, job: Job, at: float) -> None:
    """The job has just become READY, with its report: keep what it took, and what was found.

    The series' row is still that of the job's revision: late slices would have sent the job back.
    """
    series = session.get_one(Series, job.series_id)
    began_at = job.started_at or at
    if not _waited_for_a_person(session, job):
        _keep(session, job, "", _before_the_worker(session, series, job, began_at))
    _keep(session, job, "", _of_the_worker(job, began_at, at))
    for roi in (job.report or {}).get("rois") or ():
        row = {
            "job_id": job.id,
            "structure": roi["name"],
            "volume_cm3": roi["volume_cm3"] if roi["contours"] else None,
            "confidence": roi["confidence"],
            "flags": list(roi["flags"]),
        }
        session.execute(insert(Finding).values(row).on_conflict_do_nothing())


def stored(session: Session, delivery: Delivery, at: float) -> None:
    """A destination has just stored the job's result."""
    job = session.get_one(Job, delivery.job_id)
    if _waited_for_a_person(session, job, delivery):
        return
    ready_at = session.scalar(
        select(func.max(Transition.at)).where(*_changes("job", job.id), Transition.to_state == JobState.READY)
    )
    if ready_at is None:
        return
    taken: list[Measured] = [(Stage.SENDING, ready_at, at - ready_at)]
    receiving = session.scalars(
        select(Duration).where(Duration.job_id == job.id, Duration.stage == Stage.RECEIVING)
    ).one_or_none()
    if receiving is not None:
        first, last = receiving.began_at, receiving.began_at + receiving.seconds
        taken += [(Turnaround.FIRST_SLICE, first, at - first), (Turnaround.LAST_SLICE, last, at - last)]
    _keep(session, job, delivery.destination, taken)


def committed(session: Session, delivery: Delivery, at: float) -> None:
    """A destination has just committed itself to the job's result."""
    if delivery.stored_at is not None:
        job = session.get_one(Job, delivery.job_id)
        wait = (Stage.COMMITTED, delivery.stored_at, at - delivery.stored_at)
        _keep(session, job, delivery.destination, [wait])


_THERE = frozenset({StoreKind.STORED, StoreKind.WARNING, StoreKind.DUPLICATE})
"""A folder or a web service says so without a number."""


def answered(session: Session, destination: str, kind: StoreKind, status: int | None, at: float) -> None:
    """What a try to store says about the way to the destination; nothing where nothing was sent."""
    if kind is StoreKind.UNREACHABLE:
        contact(session, destination, False, at)
    elif status is not None or kind in _THERE:
        contact(session, destination, True, at)


def contact(session: Session, destination: str, is_reached: bool, at: float) -> None:
    """A destination was tried just now."""
    known = session.get(Contact, destination) or Contact(destination=destination, reached_at=None)
    known.tried_at, known.is_reached = at, is_reached
    if is_reached:
        known.reached_at = at
    session.add(known)


def _before_the_worker(session: Session, series: Series, job: Job, began_at: float) -> Iterator[Measured]:
    last = series.last_instance_at
    first = min(_first_slice(session, series, job), last)
    complete_at = series.completed_at or began_at
    yield Stage.RECEIVING, first, last - first
    yield Stage.WAITING, last, began_at - last
    yield Step.COMPLETENESS, last, complete_at - last
    yield Step.QUEUE, complete_at, began_at - complete_at


def _first_slice(session: Session, series: Series, job: Job) -> float:
    """When the first slice came that an earlier revision did not have."""
    earlier = select(func.max(Job.created_at)).where(Job.series_id == series.id, Job.revision < job.revision)
    before = session.scalar(earlier)
    if before is None:
        return series.first_instance_at
    late = select(func.min(Instance.received_at)).where(
        Instance.series_id == series.id, Instance.received_at > before
    )
    return session.scalar(late) or series.last_instance_at


def _of_the_worker(job: Job, began_at: float, ready_at: float) -> Iterator[Measured]:
    """One after the other, as the report has them."""
    told = (job.report or {}).get("seconds") or {}
    at = began_at
    for stage, names in _OF_REPORT.items():
        stage_began_at = at
        for name in names:
            seconds = float(told.get(name, 0.0))
            if name in tuple(Step):
                yield name, at, seconds
            at += seconds
        yield stage, stage_began_at, at - stage_began_at
    yield Stage.KEEPING, at, ready_at - at


def _keep(session: Session, job: Job, destination: str, measured: Iterable[Measured]) -> None:
    """The first time counts. A clock that was set back makes no negative duration."""
    rows = [
        {
            "job_id": job.id,
            "stage": str(stage),
            "destination": destination,
            "began_at": began_at,
            "seconds": max(0.0, seconds),
        }
        for stage, began_at, seconds in measured
    ]
    if rows:
        session.execute(insert(Duration).values(rows).on_conflict_do_nothing())


def _waited_for_a_person(session: Session, job: Job, delivery: Delivery | None = None) -> bool:
    """Whether it was held, or had ended and was asked for again: how long that took is not the node's."""
    led_on = and_(*_changes("job", job.id), Transition.from_state.in_(_ENDED))
    if delivery is not None:
        of_delivery = and_(*_changes("delivery", delivery.id), Transition.from_state.in_(_STOPPED))
        led_on = or_(led_on, of_delivery)
    return session.scalars(select(Transition.id).where(led_on).limit(1)).first() is not None


def _changes(subject: str, number: int) -> tuple[Any, Any]:
    return Transition.subject == subject, Transition.subject_id == number
