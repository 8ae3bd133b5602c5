"""What goes to a destination beside an RT-STRUCT or in place of one: pictures, or a notice.

Owns which companions a job has, and what each event makes of them.
Speaks rows inside a transaction that the caller has opened; times are UTC epoch seconds.
Never decides what becomes of a job: a picture that is refused takes no contour back.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node import jobs
from dicom_node.config import Config
from dicom_node.schema import Companion, Job
from dicom_node.states import CompanionKind, DeliveryState, JobState

_WITHOUT_CONTOURS = frozenset({JobState.REJECTED, JobState.FAILED})
"""Ends of a job after which somebody waits for contours in vain."""

_UNSUCCESSFUL = frozenset({DeliveryState.REFUSED, DeliveryState.CANCELLED})


def follow(session: Session, job: Job, config: Config, at: float) -> None:
    """Ask for what the job's present state calls for, for each destination that wants companions.

    That is pictures where there is an RT-STRUCT, a notice where a job ended without one or waits for a
    person's review, be it for this destination alone, and nothing else.
    What was asked for before is drawn anew: where nothing has changed, it is the same object again.
    """
    held = _held_for(session, job)
    names = jobs.addressees(job, [destination.name for destination in config.destinations])
    for destination in config.destinations:
        if destination.name not in names:
            continue
        kind = CompanionKind.NOTICE if destination.name in held else _called_for(job)
        if destination.preview and kind is not None:
            _ask(session, job, destination.name, kind, at)


def _ask(session: Session, job: Job, destination: str, kind: CompanionKind, at: float) -> None:
    shows = kind is CompanionKind.PICTURES
    in_words = "the contours are to be shown" if shows else "it is to be told why there are no contours"
    for companion in of_job(session, job):
        if (companion.kind, companion.destination) == (kind, destination):
            _again(session, companion, in_words, at)
            companion.files = None
            return
    companion = Companion(
        job_id=job.id, destination=destination, kind=kind, created_at=at, next_attempt_at=at
    )
    jobs.begin(session, companion, at, in_words)


def _held_for(session: Session, job: Job) -> set[str]:
    """The destinations for which the job's result waits until a person releases it."""
    return {
        delivery.destination
        for delivery in jobs.deliveries_of(session, job)
        if delivery.state is DeliveryState.HELD
    }


def _called_for(job: Job) -> CompanionKind | None:
    if job.state in {JobState.READY, JobState.SENT}:
        return CompanionKind.PICTURES
    ended_without = job.state in _WITHOUT_CONTOURS and job.rt_struct_file is None
    # A model that is not approved holds its jobs too, but sends nothing, not even a notice.
    is_held = job.state is JobState.HELD and job.reason_code == jobs.HELD_FOR_REVIEW_CODE
    return CompanionKind.NOTICE if ended_without or is_held else None


def of_job(session: Session, job: Job) -> list[Companion]:
    """The job's companions, in the order in which they were made."""
    return list(session.scalars(select(Companion).where(Companion.job_id == job.id).order_by(Companion.id)))


def named_files(session: Session) -> set[str]:
    """The results that a companion names."""
    lists = session.scalars(select(Companion.files))
    return {file for files in lists if files for file in files}


def send_again(session: Session, job: Job, in_words: str, at: float) -> None:
    """The job's RT-STRUCT goes out again, and so do its pictures: the same bytes."""
    for companion in of_job(session, job):
        if companion.kind is CompanionKind.PICTURES:
            _again(session, companion, in_words, at)


def refuse_forgotten(session: Session, destinations: Iterable[str], at: float) -> None:
    """End companions of destinations that the configuration no longer has: they would wait unseen."""
    forgotten = select(Companion).where(
        Companion.state == DeliveryState.PENDING, Companion.destination.not_in(list(destinations))
    )
    for companion in session.scalars(forgotten):
        reason = f"the configuration has no destination {companion.destination}; add it, then retry"
        refused(session, companion, None, reason, at)


# --- what sending says -------------------------------------------------------------------------


def stored(session: Session, companion: Companion, status: int | None, reason: str, at: float) -> None:
    """The destination has all sheets."""
    companion.stored_at = at
    _answered(session, companion, DeliveryState.STORED, status, reason, at)


def refused(session: Session, companion: Companion, status: int | None, reason: str, at: float) -> None:
    """They cannot be drawn, or the destination will never take them; a person must look."""
    _answered(session, companion, DeliveryState.REFUSED, status, reason, at)


def postponed(companion: Companion, status: int | None, reason: str, next_attempt_at: float) -> None:
    """A transient failure: due again at `next_attempt_at`."""
    companion.attempts += 1
    companion.last_status, companion.reason = status, reason
    companion.next_attempt_at = next_attempt_at


def _answered(
    session: Session, companion: Companion, state: DeliveryState, status: int | None, reason: str, at: float
) -> None:
    companion.attempts += 1
    companion.last_status = status
    jobs.move(session, companion, state, at, reason)


# --- what a person says ------------------------------------------------------------------------


def retry(session: Session, job: Job, at: float) -> None:
    """The job again, as `jobs.retry` does it; where it has ended well, what was refused beside it.

    A notice that has not gone out yet is none any more.

    Raises:
        IllegalTransitionError: the job has not ended, or has ended well and nothing beside it was refused.
    """
    wanted = [one for one in of_job(session, job) if one.state in _UNSUCCESSFUL]
    if job.state is JobState.SENT and wanted:
        for companion in wanted:
            _again(session, companion, "a person asked to send it again", at)
        return
    jobs.retry(session, job, at)
    _take_back_notices(session, job, at)


def release(session: Session, job: Job, at: float, destination: str | None = None) -> None:
    """What is held goes on, as `jobs.release` does it; a notice that has not gone out yet is none any more.

    A destination that was to be told that the contours wait is then to be shown them.

    Raises:
        NotHeldError: nothing is held.
    """
    held = _held_for(session, job)
    jobs.release(session, job, at, destination)
    _take_back_notices(session, job, at)
    told = {one.destination for one in of_job(session, job) if one.kind is CompanionKind.NOTICE}
    for released in sorted((held - _held_for(session, job)) & told):
        _ask(session, job, released, CompanionKind.PICTURES, at)


def cancel(session: Session, job: Job, at: float) -> None:
    """What is left to be sent of the job, as `jobs.cancel` does it, and of its companions.

    Raises:
        IllegalTransitionError: there is nothing left to cancel.
    """
    pending = [one for one in of_job(session, job) if one.state is DeliveryState.PENDING]
    for companion in pending:
        jobs.move(session, companion, DeliveryState.CANCELLED, at, "a person cancelled it")
    try:
        jobs.cancel(session, job, at)
    except jobs.IllegalTransitionError:
        if not pending:
            raise


def _take_back_notices(session: Session, job: Job, at: float) -> None:
    held = _held_for(session, job)
    for companion in of_job(session, job):
        is_waiting = companion.kind is CompanionKind.NOTICE and companion.state is DeliveryState.PENDING
        if is_waiting and companion.destination not in held:
            jobs.move(session, companion, DeliveryState.CANCELLED, at, "the job goes on")


def _again(session: Session, companion: Companion, in_words: str, at: float) -> None:
    if companion.state is not DeliveryState.PENDING:
        jobs.move(session, companion, DeliveryState.PENDING, at, in_words)
    companion.next_attempt_at, companion.attempts = at, 0
