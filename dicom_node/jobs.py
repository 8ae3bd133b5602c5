"""Every change of state of a series, a job or a delivery.

Owns the one function that moves a state, and what each event makes of the states around it.
Speaks rows inside a transaction that the caller has opened; times are UTC epoch seconds.
Never commits, never waits, and never does what `states.py` does not list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from dicom_node import timings
from dicom_node.errors import PermanentError
from dicom_node.schema import Companion, Delivery, Instance, Job, Series, Transition
from dicom_node.states import (
    COMPANION_TRANSITIONS,
    DELIVERY_SUCCESSES,
    DELIVERY_TRANSITIONS,
    DELIVERY_WAITS,
    JOB_ENDS,
    JOB_TRANSITIONS,
    SERIES_TRANSITIONS,
    DeliveryState,
    JobState,
    SeriesState,
)

Subject = Series | Job | Delivery | Companion

TRANSITIONS: Mapping[type[Subject], Mapping[Any, frozenset[Any]]] = {
    Series: SERIES_TRANSITIONS,
    Job: JOB_TRANSITIONS,
    Delivery: DELIVERY_TRANSITIONS,
    Companion: COMPANION_TRANSITIONS,
}
SUBJECT_NAMES: Mapping[type[Subject], str] = {
    Series: "series",
    Job: "job",
    Delivery: "delivery",
    Companion: "companion",
}

UNFINISHED = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.HELD})
RETRIABLE = JOB_ENDS - {JobState.SENT}
_UNSUCCESSFUL = frozenset({DeliveryState.REFUSED, DeliveryState.CANCELLED})

CRASHED = "the worker ended while it contoured this job; it is contoured again"
HELD_FOR_REVIEW = "a person should look before this is sent"
HELD_FOR_REVIEW_CODE = "held_for_review"
DEFAULT_TEMPLATE = "default"
"""Stands for the template of a result for which no rule names one."""
IGNORED_CODE = "routing_rule"
ASKED_AGAIN = "a person asked to do it again"
RELEASED = "a person released it"


@dataclass(frozen=True)
class Model:
    """Which network a job is for: its package's name and the sha256 of its `model.onnx`."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Order:
    """One job that a series is to have.

    Attributes:
        template: the file that a rule names for it, else `DEFAULT_TEMPLATE`.
        destinations: names; None means all.
        priority: of two jobs that wait the higher one runs first.
        rule: the rule of `routing` that asks for it; None where none is configured.
        ignore: why it is not to be contoured, in the rule's words; None where it is.
    """

    model: Model
    template: str = DEFAULT_TEMPLATE
    destinations: tuple[str, ...] | None = None
    priority: int = 0
    rule: str | None = None
    ignore: str | None = None

    def asks_for(self, job: Job) -> bool:
        """Whether it is this job that it asks for."""
        return (self.model.sha256, self.template) == (job.model_sha256, job.template)


@dataclass(frozen=True)
class Kept:
    """One edition of a checked RT-STRUCT, whose bytes are fsynced in the results folder.

    Attributes:
        file: relative to the results folder.
        sha256: of the file's bytes.
        sop_instance_uid: of the RT-STRUCT.
    """

    file: str
    sha256: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Result:
    """What a job came to.

    Attributes:
        first: the edition that stands for the job.
        report: what `anatomynode contour --json` prints.
        in_words: one sentence of what was found, for the job's story.
        editions: what each destination gets, where it is not the first one; a destination that gets
            nothing has the reason in its place.
        hold: why a person should see it before it goes out at all; None where it may go.
        holds: why a person should see it before it goes to a destination, where that is so.
    """

    first: Kept
    report: Mapping[str, Any]
    in_words: str
    editions: Mapping[str, Kept | str] = field(default_factory=dict)
    hold: str | None = None
    holds: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Every edition that is on the disk."""
        return (self.first, *(one for one in self.editions.values() if isinstance(one, Kept)))


class IllegalTransitionError(PermanentError):
    """A change of state that the table does not list.

    Attributes:
        subject, subject_id: whose state it is.
        from_state, to_state: the change that was refused.
    """

    def __init__(self, subject: str, subject_id: int, from_state: StrEnum, to_state: StrEnum) -> None:
        super().__init__(f"{subject} {subject_id} is {from_state}; it cannot become {to_state}")
        self.subject, self.subject_id = subject, subject_id
        self.from_state, self.to_state = from_state, to_state


class NotHeldError(PermanentError):
    """There is nothing that could be released."""

    def __init__(self, job: Job, destination: str | None) -> None:
        what = "nothing of it" if destination is None else f"nothing for {destination}"
        super().__init__(f"job {job.id} is {job.state}, and {what} is held")


def move(
    session: Session, subject: Subject, to_state: StrEnum, at: float, reason: str, code: str | None = None
) -> None:
    """Change a state, and keep the change with its time and reason in the same transaction.

    Args:
        session: an open write transaction, through which `subject` was read.
        subject: whose state changes.
        to_state: the new state; the same state again is a transition too, and not listed.
        at: UTC epoch seconds.
        reason: one sentence for a person; no patient data.
        code: the reason of a job as a bounded word, for metrics.

    Raises:
        IllegalTransitionError: the table does not list the change; nothing was written.
    """
    from_state = subject.state
    if to_state not in TRANSITIONS[type(subject)][from_state]:
        raise IllegalTransitionError(SUBJECT_NAMES[type(subject)], subject.id, from_state, to_state)
    subject.state = to_state  # type: ignore[assignment]  # the table holds only states of its own kind
    if isinstance(subject, Job):
        subject.reason, subject.reason_code = reason, code
        subject.ended_at = at if to_state in JOB_ENDS else None
    elif isinstance(subject, Delivery | Companion):
        subject.reason = reason
    _keep(session, subject, from_state, at, reason)


def begin(session: Session, subject: Subject, at: float, reason: str) -> None:
    """Add a new series, job, delivery or companion, and keep its beginning as its first transition."""
    session.add(subject)
    _keep(session, subject, None, at, reason)


def _keep(session: Session, subject: Subject, from_state: StrEnum | None, at: float, reason: str) -> None:
    session.flush()  # numbers a new subject, and lets the database's own guard speak now
    session.add(
        Transition(
            subject=SUBJECT_NAMES[type(subject)],
            subject_id=subject.id,
            from_state=from_state,
            to_state=subject.state,
            at=at,
            reason=reason,
        )
    )
    session.flush()


# --- what arrives --------------------------------------------------------------------------------


def reopen_if_late(session: Session, series: Series, at: float) -> bool:
    """Whether slices came after the series was taken for complete; if so, it is being received again.

    A job that has not come to READY waits until the series is complete again, and then contours all
    of it. From READY on, and after any end, the late slices make a new revision; of several jobs one that
    has come so far is enough.
    """
    late = late_slices(session, series)
    if late <= 0:
        return False
    series.results_removed_at = None
    known_jobs = jobs_of_revision(session, series)
    waiting = [job for job in known_jobs if job.state in UNFINISHED]
    if not waiting or any(job.state not in {*UNFINISHED, JobState.CANCELLED} for job in known_jobs):
        series.revision += 1  # what waits of this one gives way, so that all results show the same slices
    series.completed_at, series.evidence = None, None
    move(
        session,
        series,
        SeriesState.RECEIVING,
        at,
        f"{late} late slice(s); this is revision {series.revision}",
    )
    for job in waiting:
        if job.state is JobState.RUNNING:
            move(
                session,
                job,
                JobState.QUEUED,
                at,
                "late slices came: contoured again, with them",
                "late_slice",
            )
    return True


# --- what the worker says ----------------------------------------------------------------------


def complete(
    session: Session,
    series: Series,
    evidence: Mapping[str, Any],
    in_words: str,
    orders: Iterable[Order],
    at: float,
) -> list[Job]:
    """The series is complete by evidence; from here on its revision has one job for each order."""
    series.evidence, series.completed_at = dict(evidence), at
    series.pushed_again_at = None  # what was resent until now was part of this push
    move(session, series, SeriesState.COMPLETE, at, in_words)
    return [ensure_job(session, series, order, at, in_words) for order in orders]


def ensure_job(session: Session, series: Series, order: Order, at: float, reason: str) -> Job:
    """The one job of this revision by this model and template: the one that is there, or a new one."""
    for job in jobs_of_revision(session, series):
        if order.asks_for(job):
            follow(session, job, order, at)
            return job
    job = Job(
        series_id=series.id,
        revision=series.revision,
        model_name=order.model.name,
        model_sha256=order.model.sha256,
        template=order.template,
        created_at=at,
    )
    job.predecessor_sop_instance_uid = _predecessor(session, job)
    begin(session, job, at, reason)
    follow(session, job, order, at)
    return job


def follow(session: Session, job: Job, order: Order, at: float) -> bool:
    """Bring a job to what its order says now; whether that ignores it."""
    if job.state not in UNFINISHED:
        return False
    job.destinations = None if order.destinations is None else list(order.destinations)
    job.priority, job.rule = order.priority, order.rule
    if order.ignore is None or job.state is not JobState.QUEUED:
        return False
    move(session, job, JobState.IGNORED, at, f"rule {order.rule}: {order.ignore}", IGNORED_CODE)
    return True


def addressees(job: Job, destinations: Iterable[str]) -> list[str]:
    """Those of the node's destinations that are to get what the job comes to."""
    return [name for name in destinations if job.destinations is None or name in job.destinations]


def start(session: Session, job: Job, at: float, reason: str) -> None:
    """The worker contours the job now."""
    move(session, job, JobState.RUNNING, at, reason)
    job.started_at, job.not_before, job.traceback = at, None, None
    job.attempts += 1


def finish(session: Session, job: Job, result: Result, destinations: Iterable[str], at: float) -> None:
    """The RT-STRUCT is checked and fsynced: the job is READY, with a delivery for each destination.

    A destination that is to be asked for a person's word waits for it, once, while the others get theirs;
    what waits so of an earlier revision never goes out any more.
    """
    first = result.first
    job.rt_struct_file, job.rt_struct_sha256 = first.file, first.sha256
    job.sop_instance_uid, job.report = first.sop_instance_uid, dict(result.report)
    held = "".join(f"; held for {destination}: {why}" for destination, why in result.holds.items())
    move(session, job, JobState.READY, at, f"{result.in_words}{held}")
    timings.ready(session, job, at)
    known = {delivery.destination: delivery for delivery in deliveries_of(session, job)}
    for destination in destinations:
        if destination not in known:
            delivery = Delivery(job_id=job.id, destination=destination, created_at=at, next_attempt_at=at)
            begin(session, delivery, at, f"the RT-STRUCT is to go to {destination}")
            known[destination] = delivery
    for destination, delivery in known.items():
        if delivery.state not in DELIVERY_SUCCESSES:
            _assign(delivery, result.editions.get(destination, first))
    _resend(session, job, _UNSUCCESSFUL, "the job was contoured again", at)
    for destination, delivery in known.items():
        edition, why = result.editions.get(destination), result.holds.get(destination)
        if isinstance(edition, str) and delivery.state in DELIVERY_WAITS:
            move(session, delivery, DeliveryState.REFUSED, at, edition)
        elif why is not None and delivery.state is DeliveryState.PENDING and not _released(session, delivery):
            move(session, delivery, DeliveryState.HELD, at, _why_held(delivery, why))
        _supersede(session, job, destination, at)
    settle(session, job, at)


def _why_held(delivery: Delivery, why: str) -> str:
    job, to = delivery.job_id, delivery.destination
    return (
        f"{HELD_FOR_REVIEW} to {to}: {why}; to send it, "
        f"run `anatomynode jobs release {job} --destination {to}`"
    )


def _released(session: Session, delivery: Delivery) -> bool:
    """Whether a person has released it already; that counts for as long as the job is there."""
    released = select(Transition.id).where(
        Transition.subject == "delivery",
        Transition.subject_id == delivery.id,
        Transition.from_state == DeliveryState.HELD,
        Transition.to_state == DeliveryState.PENDING,
    )
    return session.scalars(released.limit(1)).first() is not None


def _supersede(session: Session, job: Job, destination: str, at: float) -> None:
    """Nobody is to release an earlier revision where a later one has come."""
    earlier = (
        select(Delivery, Job)
        .join(Job, Job.id == Delivery.job_id)
        .where(
            Job.series_id == job.series_id,
            Job.revision < job.revision,
            Delivery.destination == destination,
            Delivery.state == DeliveryState.HELD,
        )
    )
    for delivery, of_job in session.execute(earlier).all():
        reason = f"revision {job.revision} of the series has taken the place of {of_job.revision}"
        move(session, delivery, DeliveryState.CANCELLED, at, reason)
        settle(session, of_job, at)


def hold_for_review(session: Session, job: Job, result: Result, at: float) -> bool:
    """Whether the job waits for a person now, with the report of what was found but without its RT-STRUCT.

    Released, it is contoured again, to the same bytes; it is held only once.
    """
    if result.hold is None or times_so_far(session, job, HELD_FOR_REVIEW) > 0:
        return False
    job.report = dict(result.report)
    reason = f"{HELD_FOR_REVIEW}: {result.hold}; to send it, run `anatomynode jobs release {job.id}`"
    move(session, job, JobState.HELD, at, reason, HELD_FOR_REVIEW_CODE)
    return True


def _assign(delivery: Delivery, edition: Kept | str) -> None:
    """What goes to the destination; nothing where there is a reason instead."""
    kept = None if isinstance(edition, str) else edition
    delivery.rt_struct_file = None if kept is None else kept.file
    delivery.rt_struct_sha256 = None if kept is None else kept.sha256
    delivery.sop_instance_uid = None if kept is None else kept.sop_instance_uid


def postpone(
    session: Session, job: Job, reason: str, not_before: float, at: float, code: str = "transient"
) -> None:
    """A transient failure: the job waits in the queue until `not_before`."""
    move(session, job, JobState.QUEUED, at, reason, code)
    job.not_before = not_before


def fail(session: Session, job: Job, reason: str, code: str, at: float, traceback: str | None = None) -> None:
    """Ours to do, and we could not; somebody is paged."""
    move(session, job, JobState.FAILED, at, reason, code)
    job.traceback = traceback


def recover(session: Session, max_crashes: int, at: float) -> list[Job]:
    """At the worker's start: what runs by the database does not run; it goes back to the queue.

    A job under which the worker died `max_crashes` times would kill it for ever: it fails.
    """
    interrupted = list(session.scalars(select(Job).where(Job.state == JobState.RUNNING)))
    for job in interrupted:
        crashes = times_so_far(session, job, CRASHED) + 1
        if crashes >= max_crashes:
            reason = (
                f"the worker ended {crashes} times while it contoured this job; the last time at {at:.0f}"
            )
            fail(session, job, reason, "worker_crashed", at)
        else:
            move(session, job, JobState.QUEUED, at, CRASHED, "worker_crashed")
    return interrupted


def deliver_again(session: Session, series: Series, in_words: str, at: float) -> list[Job]:
    """The whole series was pushed again after the end: each stored RT-STRUCT goes out again, the same bytes.

    Returns:
        The jobs whose results go out again; not those that are under way anyhow.
    """
    series.pushed_again_at = None
    sent = [job for job in jobs_of_revision(session, series) if job.rt_struct_file is not None]
    again = [job for job in sent if job.state in {JobState.SENT, JobState.FAILED}]
    for job in again:
        move(session, job, JobState.READY, at, in_words)
        _resend(session, job, set(DeliveryState) - DELIVERY_WAITS, in_words, at)
        settle(session, job, at)
    return again


# --- what sending says -------------------------------------------------------------------------


def delivery_stored(
    session: Session,
    delivery: Delivery,
    status: int | None,
    reason: str,
    at: float,
    asks_commitment: bool = False,
) -> None:
    """The destination has the object, perhaps with a warning (PS3.4 B.2.3).

    Args:
        status: its answer; None where its kind gives none.
        asks_commitment: whether it is there only once the destination has committed itself to it.
    """
    delivery.stored_at = at
    delivery.commitment_due_at = at if asks_commitment else None
    timings.stored(session, delivery, at)
    _answered(session, delivery, DeliveryState.STORED, status, reason, at)


def delivery_refused(
    session: Session, delivery: Delivery, status: int | None, reason: str, at: float
) -> None:
    """The destination will never take the object as it is; a person must look."""
    _answered(session, delivery, DeliveryState.REFUSED, status, reason, at)


def _answered(
    session: Session, delivery: Delivery, state: DeliveryState, status: int | None, reason: str, at: float
) -> None:
    """The last attempt for now; what it makes of the job."""
    delivery.attempts += 1
    delivery.last_status = status
    move(session, delivery, state, at, reason)
    settle(session, session.get_one(Job, delivery.job_id), at)


def delivery_postponed(
    session: Session, delivery: Delivery, status: int | None, reason: str, next_attempt_at: float
) -> None:
    """A transient failure: the delivery stays PENDING and is due again at `next_attempt_at`."""
    delivery.attempts += 1
    delivery.last_status, delivery.reason = status, reason
    delivery.next_attempt_at = next_attempt_at


def awaits_commitment(delivery: Delivery) -> bool:
    """Whether the destination has stored it, and is to commit itself to it before it counts as there."""
    return delivery.state is DeliveryState.STORED and delivery.commitment_due_at is not None


def is_open() -> ColumnElement[bool]:
    """Of deliveries: those that have not come to their end, as a condition of a query.

    A job can have ended before all of them have: one that is refused fails it, while the others go on.
    """
    awaits = and_(Delivery.state == DeliveryState.STORED, Delivery.commitment_due_at.is_not(None))
    return or_(Delivery.state.in_(list(DELIVERY_WAITS)), awaits)


def stop_awaiting(session: Session, delivery: Delivery, reason: str, at: float) -> None:
    """Stored is enough from now on."""
    delivery.commitment_due_at, delivery.reason = None, reason
    settle(session, session.get_one(Job, delivery.job_id), at)


def settle(session: Session, job: Job, at: float) -> None:
    """What the deliveries together make of a READY job.

    One refused fails it at once, while the others go on; otherwise it ends when none waits, be it for a
    commitment.
    """
    if job.state is not JobState.READY:
        return
    deliveries = deliveries_of(session, job)
    states = [delivery.state for delivery in deliveries]
    refused = [delivery.destination for delivery in deliveries if delivery.state is DeliveryState.REFUSED]
    if refused:
        move(session, job, JobState.FAILED, at, f"refused by {', '.join(refused)}", "refused")
    elif DELIVERY_WAITS.intersection(states) or any(map(awaits_commitment, deliveries)):
        return
    elif states and not DELIVERY_SUCCESSES.intersection(states):
        move(session, job, JobState.CANCELLED, at, "every delivery was cancelled", "cancelled")
    else:
        stored = [delivery.destination for delivery in deliveries if delivery.state in DELIVERY_SUCCESSES]
        move(
            session,
            job,
            JobState.SENT,
            at,
            f"stored by {', '.join(stored) or 'nobody: no destination is configured'}",
        )


# --- what a person says ------------------------------------------------------------------------


def retry(session: Session, job: Job, at: float) -> None:
    """Again: only the deliveries where their results are stored, else the contouring.

    Raises:
        IllegalTransitionError: the job has not ended, or has ended well.
    """
    has_all = job.rt_struct_file is not None and not any(
        delivery.state is DeliveryState.REFUSED and delivery.rt_struct_file is None
        for delivery in deliveries_of(session, job)
    )
    if job.state is JobState.FAILED and has_all:
        move(session, job, JobState.READY, at, "a person asked to send it again")
        _resend(session, job, _UNSUCCESSFUL, "a person asked to send it again", at)
        settle(session, job, at)
        return
    if job.state not in RETRIABLE:
        raise IllegalTransitionError("job", job.id, job.state, JobState.QUEUED)
    move(session, job, JobState.QUEUED, at, ASKED_AGAIN)
    job.not_before = None


def release(session: Session, job: Job, at: float, destination: str | None = None) -> None:
    """A held job goes on; of one that is not held, the deliveries that are.

    Args:
        destination: only what is held for this one.

    Raises:
        NotHeldError: neither is held.
    """
    held = [
        delivery
        for delivery in deliveries_of(session, job)
        if delivery.state is DeliveryState.HELD and destination in {None, delivery.destination}
    ]
    if destination is None and job.state is JobState.HELD:
        move(session, job, JobState.QUEUED, at, RELEASED, "released")
        return
    if not held:
        raise NotHeldError(job, destination)
    for delivery in held:
        move(session, delivery, DeliveryState.PENDING, at, RELEASED)
        delivery.next_attempt_at = at


def cancel(session: Session, job: Job, at: float) -> None:
    """The job ends, and what is left of its deliveries; what is stored already stays so, uncommitted.

    Raises:
        IllegalTransitionError: there is nothing left to cancel.
    """
    deliveries = deliveries_of(session, job)
    waiting = [delivery for delivery in deliveries if delivery.state in DELIVERY_WAITS]
    for delivery in waiting:
        move(session, delivery, DeliveryState.CANCELLED, at, "a person cancelled it")
    awaiting = [delivery for delivery in deliveries if awaits_commitment(delivery)]
    for delivery in awaiting:
        reason = "stored; a person ended the wait for the destination's commitment"
        stop_awaiting(session, delivery, reason, at)
    if job.state is JobState.READY:
        settle(session, job, at)
    elif job.state not in JOB_ENDS or not (waiting or awaiting):
        move(session, job, JobState.CANCELLED, at, "a person cancelled it", "cancelled")


# --- questions ---------------------------------------------------------------------------------


def late_slices(session: Session, series: Series) -> int:
    """How many slices came after the series was taken for complete; 0 where it is not."""
    if series.state is not SeriesState.COMPLETE or series.evidence is None:
        return 0
    known = 0 if series.results_removed_at is not None else series.evidence["instances"]
    return int(instances_of(session, series) - known)


def jobs_of_revision(session: Session, series: Series) -> list[Job]:
    """The jobs of the series' present revision, the newest first."""
    of_revision = select(Job).where(Job.series_id == series.id, Job.revision == series.revision)
    return list(session.scalars(of_revision.order_by(Job.id.desc())))


def is_followed(session: Session, job: Job) -> bool:
    """Whether another result of the same revision by the same model waits for the worker."""
    others = select(Job.id).where(
        Job.series_id == job.series_id,
        Job.revision == job.revision,
        Job.model_sha256 == job.model_sha256,
        Job.state == JobState.QUEUED,
        Job.id != job.id,
    )
    return session.scalars(others.limit(1)).first() is not None


def instances_of(session: Session, series: Series) -> int:
    """How many different instances of the series are here."""
    counted = select(func.count()).select_from(Instance).where(Instance.series_id == series.id)
    return session.scalars(counted).one()


def was_asked_for(session: Session, job: Job) -> bool:
    """Whether a person asked for the job, which no rule then sets aside."""
    asked = select(Transition.id).where(
        Transition.subject == "job", Transition.subject_id == job.id, Transition.reason == ASKED_AGAIN
    )
    return session.scalars(asked.limit(1)).first() is not None


def times_so_far(session: Session, job: Job, beginning: str) -> int:
    """How many changes of the job had a reason that begins so, since a person last asked for it."""
    history = session.scalars(
        select(Transition.reason)
        .where(Transition.subject == "job", Transition.subject_id == job.id)
        .order_by(Transition.id)
    )
    times = 0
    for reason in history:
        times = 0 if reason == ASKED_AGAIN else times + reason.startswith(beginning)
    return times


def named_files(session: Session) -> set[str]:
    """The results that a job or a delivery names."""
    of_jobs = session.scalars(select(Job.rt_struct_file).where(Job.rt_struct_file.is_not(None)))
    of_deliveries = select(Delivery.rt_struct_file).where(Delivery.rt_struct_file.is_not(None))
    return {name for name in (*of_jobs, *session.scalars(of_deliveries)) if name is not None}


def predecessors(session: Session, job: Job) -> dict[str, str]:
    """What each destination has, or will have, of the last earlier revision of the job's series."""
    earlier = (
        select(Delivery.destination, Delivery.sop_instance_uid)
        .join(Job, Job.id == Delivery.job_id)
        .where(
            _earlier(job),
            Delivery.sop_instance_uid.is_not(None),
            Delivery.state.not_in({*_UNSUCCESSFUL, DeliveryState.HELD}),
        )
        .order_by(Job.revision, Job.id)
    )
    return {destination: uid for destination, uid in session.execute(earlier) if uid is not None}


def deliveries_of(session: Session, job: Job) -> list[Delivery]:
    """The job's deliveries, in the order in which they were made."""
    return list(session.scalars(select(Delivery).where(Delivery.job_id == job.id).order_by(Delivery.id)))


def _predecessor(session: Session, job: Job) -> str | None:
    """The SOP Instance UID of the RT-STRUCT that the last earlier revision came to, if any."""
    earlier = select(Job.sop_instance_uid).where(_earlier(job), Job.sop_instance_uid.is_not(None))
    return session.scalars(earlier.order_by(Job.revision.desc(), Job.id.desc()).limit(1)).first()


def _earlier(job: Job) -> ColumnElement[bool]:
    """Jobs of earlier revisions by the same model and template, the place of whose results it takes."""
    return and_(
        Job.series_id == job.series_id,
        Job.revision < job.revision,
        Job.model_name == job.model_name,
        Job.template == job.template,
    )


def _resend(session: Session, job: Job, states: Collection[DeliveryState], reason: str, at: float) -> None:
    for delivery in deliveries_of(session, job):
        if delivery.state in states and delivery.rt_struct_file is not None:
            move(session, delivery, DeliveryState.PENDING, at, reason)
            delivery.next_attempt_at, delivery.attempts = at, 0
            delivery.commitment_due_at, delivery.commitment_failures = None, 0
