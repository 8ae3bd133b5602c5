"""The story of a job: what came, what was made of it, where it went, and why.

Owns the answers of `anatomynode jobs` and its verbs, as data and as words.
Speaks rows in; plain JSON values or lines of text out; times as UTC.
Never shows a patient: who asks for one must bring the number, which is compared by its keyed hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Engine, distinct, func, or_, select
from sqlalchemy.orm import Session

from dicom_node import commitments, companions, completeness, jobs
from dicom_node.database import reading, transaction
from dicom_node.errors import PermanentError
from dicom_node.keyed_hash import KeyedHash
from dicom_node.schema import (
    Arrival,
    Association,
    Companion,
    Delivery,
    Instance,
    Job,
    Removal,
    Series,
    Transition,
)
from dicom_node.states import CompanionKind, DeliveryState

LISTED = 200
"""How many jobs a list shows, the newest first."""

_NAMES = {CompanionKind.PICTURES: "pictures", CompanionKind.NOTICE: "notice"}

Clock = Callable[[], float]


class NoSuchJobError(PermanentError):
    """There is no job of this number."""

    def __init__(self, job: int) -> None:
        super().__init__(f"there is no job {job}; `anatomynode jobs` lists those that there are")
        self.job = job


@dataclass(frozen=True)
class JobLine:
    """One job in a list.

    Attributes:
        turnaround_s: from the last slice until the job came to READY or another end; None while it has not.
    """

    job: int
    state: str
    slices: int
    revision: int
    created_at: str
    turnaround_s: float | None
    reason: str | None


@dataclass(frozen=True)
class JobList:
    """Jobs, the newest first."""

    lines: tuple[JobLine, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """One mapping a job, with the fields of `JobLine`."""
        return [asdict(line) for line in self.lines]

    def in_words(self) -> str:
        """A table; the reason is the rest of the line."""
        if not self.lines:
            return "no jobs"
        head = f"{'JOB':>5}  {'STATE':<9}  {'SLICES':>6}  {'CREATED (UTC)':<19}  {'TURNAROUND':>10}  REASON"
        return "\n".join([head, *map(_row, self.lines)])


@dataclass(frozen=True)
class Story:
    """All that is known of one job; every value is plain JSON, every time ISO 8601 in UTC."""

    job: dict[str, Any]
    series: dict[str, Any]
    associations: tuple[dict[str, Any], ...]
    transitions: tuple[dict[str, Any], ...]
    deliveries: tuple[dict[str, Any], ...]
    companions: tuple[dict[str, Any], ...]
    report: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def in_words(self) -> str:
        """A few paragraphs for a person."""
        return "\n".join(_told(self))


def headline(job: int, state: str, reason: str | None) -> str:
    """How a job stands, in a sentence; also what a notice says where there are no contours."""
    return f"Job {job} is {state}: {reason or 'waits for the worker'}."


def list_jobs(engine: Engine) -> JobList:
    """The newest jobs."""
    return _listed(engine)


def find(engine: Engine, hashed: KeyedHash, number: str) -> JobList:
    """The jobs of an accession number or a patient ID."""
    key = hashed(number)
    return _listed(engine, or_(Series.accession_key == key, Series.patient_key == key))


def show(engine: Engine, job: int) -> Story:
    """The story of one job.

    Raises:
        NoSuchJobError: there is none of this number.
    """
    with reading(engine) as session:
        found = job_of(session, job)
        series = session.get_one(Series, found.series_id)
        return Story(
            job=_job_facts(found),
            series=_series_facts(session, series),
            associations=tuple(_associations(session, series)),
            transitions=tuple(_transitions(session, found, series)),
            deliveries=tuple(
                {**_delivery_facts(one), **_commitment_facts(session, one)}
                for one in jobs.deliveries_of(session, found)
            ),
            companions=tuple(
                {"kind": str(one.kind), **_delivery_facts(one)} for one in companions.of_job(session, found)
            ),
            report=found.report,
        )


def retry(engine: Engine, job: int, clock: Clock = time.time) -> str:
    """Do a job that has ended again, or only what was refused or cancelled of its deliveries and companions.

    Raises:
        NoSuchJobError: there is none of this number.
        IllegalTransitionError: it has not ended, or has ended well.
    """
    return _ask(engine, job, companions.retry, clock)


def release(engine: Engine, job: int, clock: Clock = time.time, destination: str | None = None) -> str:
    """Let go on what is held: a job, or its deliveries, or the one to a destination.

    Raises:
        NoSuchJobError: there is none of this number.
        NotHeldError: nothing of it is held.
    """
    return _ask(engine, job, partial(companions.release, destination=destination), clock)


def cancel(engine: Engine, job: int, clock: Clock = time.time) -> str:
    """End a job, or what is left of its deliveries.

    Raises:
        NoSuchJobError: there is none of this number.
        IllegalTransitionError: there is nothing left to cancel.
    """
    return _ask(engine, job, companions.cancel, clock)


def _ask(engine: Engine, number: int, verb: Callable[[Session, Job, float], None], clock: Clock) -> str:
    with transaction(engine) as session:
        job = job_of(session, number)
        before = job.state
        verb(session, job, clock())
        states = [one.state for one in jobs.deliveries_of(session, job)]
        told = {"to go out": DeliveryState.PENDING, "still held": DeliveryState.HELD}
        counts = {words: states.count(state) for words, state in told.items()}
        left = "".join(f"; {count} delivery(ies) {words}" for words, count in counts.items() if count)
        return f"job {number} was {before} and is now {job.state}{left}"


def job_of(session: Session, number: int) -> Job:
    """The row of a job.

    Raises:
        NoSuchJobError: there is none of this number.
    """
    job = session.get(Job, number)
    if job is None:
        raise NoSuchJobError(number)
    return job


# --- rows to values ------------------------------------------------------------------------------


def _listed(engine: Engine, *conditions: ColumnElement[bool]) -> JobList:
    slices = select(func.count()).where(Instance.series_id == Series.id).scalar_subquery()
    ready_at = (
        select(func.min(Transition.at))
        .where(Transition.subject == "job", Transition.subject_id == Job.id, Transition.to_state == "READY")
        .scalar_subquery()
    )
    rows = (
        select(Job, Series, slices, ready_at)
        .join(Series, Series.id == Job.series_id)
        .where(*conditions)
        .order_by(Job.id.desc())
        .limit(LISTED)
    )
    with reading(engine) as session:
        return JobList(
            tuple(_line(job, series, count, ready) for job, series, count, ready in session.execute(rows))
        )


def _line(job: Job, series: Series, slices: int, ready_at: float | None) -> JobLine:
    done_at = ready_at or job.ended_at
    # The last slice of a later revision says nothing about this one.
    is_present = job.revision == series.revision
    turnaround_s = round(done_at - series.last_instance_at, 3) if done_at and is_present else None
    return JobLine(
        job=job.id,
        state=str(job.state),
        slices=slices,
        revision=job.revision,
        created_at=_iso(job.created_at),
        turnaround_s=turnaround_s,
        reason=job.reason,
    )


def _job_facts(job: Job) -> dict[str, Any]:
    return {
        "number": job.id,
        "state": str(job.state),
        "reason": job.reason,
        "reason_code": job.reason_code,
        "revision": job.revision,
        "model": {"name": job.model_name, "sha256": job.model_sha256},
        "template": job.template,
        "rule": job.rule,
        "destinations": job.destinations,
        "priority": job.priority,
        "attempts": job.attempts,
        "created_at": _iso(job.created_at),
        "started_at": _iso_or_none(job.started_at),
        "ended_at": _iso_or_none(job.ended_at),
        "tried_again_from": _iso_or_none(job.not_before),
        "rt_struct_file": job.rt_struct_file,
        "sop_instance_uid": job.sop_instance_uid,
        "predecessor_sop_instance_uid": job.predecessor_sop_instance_uid,
        "traceback": job.traceback,
    }


def _series_facts(session: Session, series: Series) -> dict[str, Any]:
    return {
        "series_instance_uid": series.series_instance_uid,
        "study_instance_uid": series.study_instance_uid,
        "state": str(series.state),
        "revision": series.revision,
        "slices": jobs.instances_of(session, series),
        "first_slice_at": _iso(series.first_instance_at),
        "last_slice_at": _iso(series.last_instance_at),
        "completed_at": _iso_or_none(series.completed_at),
        "evidence": series.evidence,
        "flag": series.flag,
        "removals": [
            {"what": one.what, "cause": one.cause, "files": one.files, "at": _iso(one.at)}
            for one in session.scalars(
                select(Removal).where(Removal.series_id == series.id).order_by(Removal.id)
            )
        ],
    }


def _associations(session: Session, series: Series) -> Iterator[dict[str, Any]]:
    """The associations that brought something of the series, in the order of their first arrivals."""
    rows = session.execute(
        select(
            Association,
            func.min(Arrival.at).label("first_at"),
            func.count(distinct(Arrival.instance_id)).label("slices"),
        )
        .join(Arrival, Arrival.association_id == Association.id)
        .join(Instance, Instance.id == Arrival.instance_id)
        .where(Instance.series_id == series.id)
        .group_by(Association.id)
        .order_by("first_at", Association.id)
    )
    for association, first_at, slices in rows:
        yield {
            "calling_ae_title": association.calling_ae_title,
            "called_ae_title": association.called_ae_title,
            "peer_address": association.peer_address,
            "first_slice_at": _iso(first_at),
            "slices": slices,
            "outcome": association.outcome,
        }


def _transitions(session: Session, job: Job, series: Series) -> Iterator[dict[str, Any]]:
    """Every change of the job, its series, its deliveries and its companions, in order."""
    deliveries = {one.id: one.destination for one in jobs.deliveries_of(session, job)}
    beside = {one.id: f"{_NAMES[one.kind]} to {one.destination}" for one in companions.of_job(session, job)}
    of_ours = or_(
        (Transition.subject == "job") & (Transition.subject_id == job.id),
        (Transition.subject == "series") & (Transition.subject_id == series.id),
        (Transition.subject == "delivery") & (Transition.subject_id.in_(deliveries)),
        (Transition.subject == "companion") & (Transition.subject_id.in_(beside)),
    )
    for change in session.scalars(select(Transition).where(of_ours).order_by(Transition.id)):
        subject = change.subject
        if subject == "delivery":
            subject = f"delivery to {deliveries[change.subject_id]}"
        elif subject == "companion":
            subject = beside[change.subject_id]
        yield {
            "subject": subject,
            "from": change.from_state,
            "to": change.to_state,
            "at": _iso(change.at),
            "reason": change.reason,
        }


def _delivery_facts(delivery: Delivery | Companion) -> dict[str, Any]:
    return {
        "destination": delivery.destination,
        "state": str(delivery.state),
        "reason": delivery.reason,
        "attempts": delivery.attempts,
        "last_status": None if delivery.last_status is None else f"0x{delivery.last_status:04X}",
        "stored_at": _iso_or_none(delivery.stored_at),
        "next_attempt_at": _iso(delivery.next_attempt_at)
        if delivery.state is DeliveryState.PENDING
        else None,
    }


def _commitment_facts(session: Session, delivery: Delivery) -> dict[str, Any]:
    waits = jobs.awaits_commitment(delivery)
    return {
        "sop_instance_uid": delivery.sop_instance_uid,
        "commitment_requests": commitments.requests_of(session, delivery),
        "commitment_failures": delivery.commitment_failures,
        "commitment_asked_again_at": _iso_or_none(delivery.commitment_due_at) if waits else None,
    }


# --- values to words -----------------------------------------------------------------------------


def _row(line: JobLine) -> str:
    turnaround = "" if line.turnaround_s is None else f"{line.turnaround_s:.1f} s"
    return (
        f"{line.job:>5}  {line.state:<9}  {line.slices:>6}  {_clock_words(line.created_at):<19}  "
        f"{turnaround:>10}  {line.reason or ''}"
    ).rstrip()


def _told(story: Story) -> Iterator[str]:
    job, series = story.job, story.series
    yield headline(job["number"], job["state"], job["reason"])
    yield ""
    yield (
        f"The first slice came at {_clock_words(series['first_slice_at'])} UTC, the last at "
        f"{_clock_words(series['last_slice_at'])}; {series['slices']} slices are here."
    )
    for one in story.associations:
        yield (
            f"  {one['calling_ae_title']} at {one['peer_address']} brought {one['slices']} slice(s) from "
            f"{_clock_words(one['first_slice_at'])} on; its association {_outcome(one['outcome'])}."
        )
    if series["evidence"] is not None:
        yield f"Complete by evidence: {completeness.in_words(series['evidence'])}."
    if job["rule"] is not None:
        to = ", ".join(job["destinations"] or ()) or "every destination"
        in_words = "" if job["template"] == jobs.DEFAULT_TEMPLATE else f" with the template {job['template']}"
        asked = f"Rule {job['rule']} asked for {job['model']['name']}{in_words}"
        yield f"{asked}, for {to}, priority {job['priority']}."
    if series["flag"] is not None:
        yield f"Note: {series['flag']}."
    for one in series["removals"]:
        why = "they were of age" if one["cause"] == "age" else "space was wanted"
        at = _clock_words(one["at"])
        yield f"{one['files']} file(s) of its {one['what']} were removed at {at} UTC: {why}."
    yield ""
    for change in story.transitions:
        yield f"  {_clock_words(change['at'])}  {change['subject']:<8} -> {change['to']}: {change['reason']}"
    yield from _told_work(story.report)
    yield from _told_deliveries(story.deliveries, story.companions)
    if job["traceback"] is not None:
        yield from ("", "Where it went wrong:", job["traceback"])


def _told_work(report: dict[str, Any] | None) -> Iterator[str]:
    if report is None:
        return
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report["seconds"].items())
    yield from ("", f"Contoured on {report['device']}: {stages}.")
    for roi in report["rois"]:
        flags = f" ({', '.join(roi['flags'])})" if roi["flags"] else ""
        yield f"  {roi['name']:<16} {roi['volume_cm3']:8.1f} cm3  {roi['contours']:4d} contours{flags}"


def _told_deliveries(deliveries: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]]) -> Iterator[str]:
    if deliveries or beside:
        yield ""
    for one in deliveries:
        yield _told_delivery("To", one)
    for one in beside:
        yield _told_delivery(f"{_NAMES[one['kind']]} to".capitalize(), one)


def _told_delivery(what: str, one: dict[str, Any]) -> str:
    again = "" if one["next_attempt_at"] is None else f", next {_clock_words(one['next_attempt_at'])}"
    if asked := one.get("commitment_requests"):
        again += f", asked {asked} time(s) to commit itself"
    if (ask_at := one.get("commitment_asked_again_at")) is not None:
        again += f", again at {_clock_words(ask_at)} without a report"
    why = f": {one['reason']}" if one["reason"] else ""
    return f"{what} {one['destination']}: {one['state']} after {one['attempts']} attempt(s){again}{why}"


def _outcome(outcome: str | None) -> str:
    return "is still open" if outcome is None else f"was {outcome}"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _iso_or_none(at: float | None) -> str | None:
    return None if at is None else _iso(at)


def _clock_words(iso: str) -> str:
    """`2026-01-02T03:04:05.678+00:00` as `2026-01-02 03:04:05`."""
    return iso[:19].replace("T", " ")
