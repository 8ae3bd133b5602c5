"""The audit trail: who sent what when, where results went, what was removed, and what a person decided.

Owns the choice of events and their order; the rows are those that the node works by.
Speaks rows in; plain JSON values or lines of text out; times as UTC.
Never names a patient: the keyed hash of the patient ID stands for him, and `jobs find` finds by the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, distinct, func, literal, select
from sqlalchemy.orm import Session

from dicom_node.database import reading
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

_HASH_SHOWN = 12


@dataclass(frozen=True)
class Event:
    """One thing that happened to one series.

    Attributes:
        at: UTC epoch seconds.
        event: `received`, `outgoing`, `decided` or `removed`.
        who: the peer, the destination, `a person` or `retention`.
        patient_key, accession_key: keyed hashes.
        series_instance_uid: of the CT.
        what: in words.
    """

    at: float
    event: str
    who: str
    patient_key: str
    accession_key: str
    series_instance_uid: str
    what: str


@dataclass(frozen=True)
class AuditTrail:
    """Events, the oldest first."""

    events: tuple[Event, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """One mapping an event; its time as ISO 8601 in UTC."""
        return [{**asdict(event), "at": _utc(event.at).isoformat()} for event in self.events]

    def in_words(self) -> str:
        """A line an event; of the patient's hash the beginning."""
        return "\n".join(
            f"{_utc(event.at):%Y-%m-%d %H:%M:%S}  {event.event:<8}  {event.who:<24}  "
            f"{event.patient_key[:_HASH_SHOWN]}  {event.what}"
            for event in self.events
        )


def trail(engine: Engine, since: datetime, until: datetime) -> AuditTrail:
    """What happened from `since` on and before `until`, both aware."""
    first, stop = since.timestamp(), until.timestamp()
    with reading(engine) as session:
        found = [
            *_received(session, first, stop),
            *_outgoing(session, Delivery, "delivery", first, stop),
            *_outgoing(session, Companion, "companion", first, stop),
            *_decided(session, first, stop),
            *_removed(session, first, stop),
        ]
    return AuditTrail(tuple(sorted(found, key=lambda event: event.at)))


def _received(session: Session, first: float, stop: float) -> Iterator[Event]:
    """What each association brought of each series, at its last slice."""
    last = func.max(Arrival.at)
    rows = session.execute(
        select(Association, Series, last, func.count(distinct(Arrival.instance_id)))
        .join(Arrival, Arrival.association_id == Association.id)
        .join(Instance, Instance.id == Arrival.instance_id)
        .join(Series, Series.id == Instance.series_id)
        .group_by(Association.id, Series.id)
        .having(last >= first, last < stop)
    )
    for association, series, at, slices in rows:
        who = f"{association.calling_ae_title} at {association.peer_address}"
        yield _event(
            at, "received", who, series, f"{slices} slice(s), association {association.outcome or 'open'}"
        )


def _outgoing(
    session: Session, kind: type[Delivery] | type[Companion], subject: str, first: float, stop: float
) -> Iterator[Event]:
    """What became of each object at its destination."""
    rows = session.execute(
        select(Transition, kind.destination, Series, Job.id)
        .join(kind, kind.id == Transition.subject_id)
        .join(Job, Job.id == kind.job_id)
        .join(Series, Series.id == Job.series_id)
        .where(Transition.subject == subject, Transition.at >= first, Transition.at < stop)
        .where(Transition.to_state.in_(("STORED", "COMMITTED", "REFUSED")))
    )
    name = "RT-STRUCT" if kind is Delivery else "pictures or notice"
    for change, destination, series, job in rows:
        yield _event(change.at, "outgoing", destination, series, f"{name} of job {job}: {change.to_state}")


def _decided(session: Session, first: float, stop: float) -> Iterator[Event]:
    """What a person asked for, released or cancelled, of a whole job or for one destination."""
    by_a_person = Transition.reason.like("a person %") & Transition.reason.not_like("a person should %")
    when = (Transition.at >= first) & (Transition.at < stop)
    of_jobs = (
        select(Transition, Series, Job.id, literal("the job"))
        .join(Job, Job.id == Transition.subject_id)
        .join(Series, Series.id == Job.series_id)
        .where(Transition.subject == "job", by_a_person, when)
    )
    of_deliveries = (
        select(Transition, Series, Job.id, Delivery.destination)
        .join(Delivery, Delivery.id == Transition.subject_id)
        .join(Job, Job.id == Delivery.job_id)
        .join(Series, Series.id == Job.series_id)
        .where(Transition.subject == "delivery", by_a_person, when)
    )
    for change, series, job, whose in (*session.execute(of_jobs), *session.execute(of_deliveries)):
        what = f"job {job}, {whose} -> {change.to_state}: {change.reason}"
        yield _event(change.at, "decided", "a person", series, what)


def _removed(session: Session, first: float, stop: float) -> Iterator[Event]:
    rows = session.execute(
        select(Removal, Series)
        .join(Series, Series.id == Removal.series_id)
        .where(Removal.at >= first, Removal.at < stop)
    )
    for removal, series in rows:
        what = f"{removal.files} file(s) of its {removal.what}, for {removal.cause}"
        yield _event(removal.at, "removed", "retention", series, what)


def _event(at: float, event: str, who: str, series: Series, what: str) -> Event:
    return Event(at, event, who, series.patient_key, series.accession_key, series.series_instance_uid, what)


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
