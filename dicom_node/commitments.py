"""What a destination was asked to commit itself to, what it reported, and what follows from that.

Owns the rows of requests and reports, and the changes of state that a report brings about.
Speaks rows inside a transaction that the caller has opened; times are UTC epoch seconds.
Never calls an object committed that its destination did not report so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pydicom.uid import generate_uid
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from dicom_node import jobs, timings
from dicom_node.commitment_status import Fate, Meaning, Report, of_action, of_failure
from dicom_node.config import Destination
from dicom_node.retry import is_due
from dicom_node.schema import Commitment, Delivery, Job
from dicom_node.states import DeliveryState


@dataclass(frozen=True)
class Question:
    """One request that is to go out; its row is committed before.

    Attributes:
        number: how many times this storing has been asked about, this time included.
    """

    delivery_id: int
    transaction_uid: str
    sop_instance_uid: str
    number: int


def due(session: Session, destination: str, longest_s: float, at: float) -> list[int]:
    """The deliveries about which `destination` is to be asked now.

    Args:
        longest_s: the longest wait; see `retry.is_due`.
    """
    when = Delivery.commitment_due_at
    rows = select(Delivery.id).where(
        Delivery.destination == destination,
        Delivery.state == DeliveryState.STORED,
        when.is_not(None),
        is_due(when, at, longest_s),
    )
    return list(session.scalars(rows.order_by(when, Delivery.id)))


def begin(session: Session, delivery_id: int, at: float) -> Question | None:
    """The row of a new request; None where nobody waits for the commitment any more.

    The delivery stays due until the answer is here: after a crash between the two it is asked again.
    """
    delivery = session.get_one(Delivery, delivery_id)
    if not jobs.awaits_commitment(delivery):
        return None
    assert delivery.sop_instance_uid is not None
    assert delivery.stored_at is not None
    request = Commitment(
        delivery_id=delivery.id,
        transaction_uid=str(generate_uid(prefix=None)),
        sop_instance_uid=delivery.sop_instance_uid,
        stored_at=delivery.stored_at,
        asked_at=at,
    )
    session.add(request)
    session.flush()
    asked = select(func.count()).where(
        Commitment.delivery_id == delivery.id, Commitment.stored_at == delivery.stored_at
    )
    return Question(
        delivery.id, request.transaction_uid, request.sop_instance_uid, session.scalars(asked).one()
    )


def taken(session: Session, question: Question, report_until: float) -> None:
    """The destination took the request: its report is waited for until then."""
    delivery = session.get_one(Delivery, question.delivery_id)
    if jobs.awaits_commitment(delivery):
        delivery.commitment_due_at = report_until
        delivery.reason = f"stored; asked {question.number} time(s) to commit itself, no report yet"


def not_taken(session: Session, question: Question, status: int | None, ask_at: float, at: float) -> None:
    """The destination answered the request with a failure, or not at all."""
    meaning = of_action(status)
    if meaning.fate is Fate.REFUSED:
        refused(session, question, f"stored, but the destination {meaning.reason}", at)
    else:
        put_off(session, question, f"stored, but the destination {meaning.reason}", ask_at)


def refused(session: Session, question: Question, reason: str, at: float) -> None:
    """The destination will never take the request as it is; a person must look."""
    delivery = session.get_one(Delivery, question.delivery_id)
    if jobs.awaits_commitment(delivery):
        _end(session, delivery, DeliveryState.REFUSED, reason, at)


def put_off(session: Session, question: Question, reason: str, ask_at: float) -> None:
    """The destination could not be asked now; it is at `ask_at`."""
    delivery = session.get_one(Delivery, question.delivery_id)
    if jobs.awaits_commitment(delivery):
        delivery.commitment_due_at, delivery.reason = ask_at, reason


def note(session: Session, report: Report, destinations: Collection[str], at: float) -> bool:
    """Keep a report; the first one of each request counts.

    Args:
        destinations: those for which the peer that reports may speak.

    Returns:
        whether it answers a request to one of them, and speaks of the object that was asked about.
    """
    request = session.scalars(
        select(Commitment)
        .join(Delivery, Delivery.id == Commitment.delivery_id)
        .where(Commitment.transaction_uid == report.transaction_uid, Delivery.destination.in_(destinations))
    ).first()
    if request is None:
        return False
    failure = report.failures.get(request.sop_instance_uid)
    if failure is None and request.sop_instance_uid not in report.committed:
        return False
    if request.reported_at is None:
        request.reported_at, request.failure_reason = at, failure
    return True


def has_reports(session: Session, destination: str) -> bool:
    """Whether there is something to weigh; a look that holds up no writer."""
    return session.execute(_unweighed(destination).limit(1)).first() is not None


def weigh(session: Session, destination: Destination, delay_s: Callable[[int], float], at: float) -> int:
    """Make of each new report what follows from it; how many there were.

    Args:
        delay_s: how long to wait after so many failures.
    """
    found = list(session.execute(_unweighed(destination.name)))
    for request, delivery in found:
        request.weighed_at = at
        if not jobs.awaits_commitment(delivery) or request.stored_at != delivery.stored_at:
            continue  # ended meanwhile, or about an earlier storing
        if request.failure_reason is None:
            reason = f"{destination.name} has committed itself to it"
            timings.committed(session, delivery, at)
            _end(session, delivery, DeliveryState.COMMITTED, reason, at)
        else:
            _not_kept(session, delivery, of_failure(request.failure_reason), destination, delay_s, at)
    return len(found)


def give_up(session: Session, asked: Collection[str], at: float) -> None:
    """Wait no more for what the configuration no longer asks for: `asked` are those whom it does ask."""
    waiting = select(Delivery).where(
        Delivery.state == DeliveryState.STORED,
        Delivery.commitment_due_at.is_not(None),
        Delivery.destination.not_in(asked),
    )
    for delivery in session.scalars(waiting):
        reason = "stored; the configuration no longer asks this destination for a commitment"
        jobs.stop_awaiting(session, delivery, reason, at)


def requests_of(session: Session, delivery: Delivery) -> int:
    """How often the destination was asked to commit itself to it."""
    return session.scalars(select(func.count()).where(Commitment.delivery_id == delivery.id)).one()


def _unweighed(destination: str) -> Select[Commitment, Delivery]:
    return (
        select(Commitment, Delivery)
        .join(Delivery, Delivery.id == Commitment.delivery_id)
        .where(
            Commitment.reported_at.is_not(None),
            Commitment.weighed_at.is_(None),
            Delivery.destination == destination,
        )
        .order_by(Commitment.reported_at, Commitment.id)
    )


def _not_kept(
    session: Session,
    delivery: Delivery,
    meaning: Meaning,
    destination: Destination,
    delay_s: Callable[[int], float],
    at: float,
) -> None:
    """The destination reported a failure."""
    delivery.commitment_failures += 1
    said = f"{delivery.destination} did not commit itself: {meaning.reason}"
    if meaning.fate is Fate.REFUSED:
        _end(session, delivery, DeliveryState.REFUSED, said, at)
    elif delivery.commitment_failures >= destination.storage_commitment.max_failures:
        reason = f"{said}; {delivery.commitment_failures} time(s). Look at it there, then retry"
        _end(session, delivery, DeliveryState.REFUSED, reason, at)
    elif meaning.fate is Fate.STORE_AGAIN:
        delivery.next_attempt_at = at + delay_s(delivery.commitment_failures)
        _end(session, delivery, DeliveryState.PENDING, f"{said}; it is stored again", at)
    else:
        delivery.commitment_due_at = at + delay_s(delivery.commitment_failures)
        delivery.reason = f"stored, but {said}; it is asked again"


def _end(session: Session, delivery: Delivery, state: DeliveryState, reason: str, at: float) -> None:
    """The wait for the commitment is over."""
    delivery.commitment_due_at = None
    jobs.move(session, delivery, state, at, reason)
    jobs.settle(session, session.get_one(Job, delivery.job_id), at)
