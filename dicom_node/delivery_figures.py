"""How each destination is doing, read from the rows of its deliveries.

Owns the figures that `/metrics` shows and alerts stand on.
Speaks a read-only session of the database, in whichever process asks; times are seconds.
Never keeps anything of its own: a restart changes no figure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.config import Retry
from dicom_node.retry import needs_a_person
from dicom_node.schema import Delivery, Transition
from dicom_node.states import DeliveryState


@dataclass(frozen=True)
class DestinationFigures:
    """What is known of one destination.

    Attributes:
        pending: deliveries that are not yet there.
        refused: deliveries that wait for a person.
        oldest_pending_s: for how long the oldest pending one has waited since it last became PENDING, or 0.
        consecutive_failures: of the pending delivery that failed most often, its failures in a row.
        last_success_at: UTC epoch seconds; None before the first.
        uncommitted: deliveries that are stored and wait for the destination's commitment.
        oldest_uncommitted_s: for how long the oldest of them has been stored, or 0.
        needs_a_person: whether one has waited for either for `retry.alert_after_s` or longer.
    """

    destination: str
    pending: int
    refused: int
    oldest_pending_s: float
    consecutive_failures: int
    last_success_at: float | None
    uncommitted: int
    oldest_uncommitted_s: float
    needs_a_person: bool


def read_figures(
    session: Session, destinations: Iterable[str], retry: Retry, now: float
) -> tuple[DestinationFigures, ...]:
    """The figures of each of `destinations`, in their order."""
    return tuple(_figures_of(session, destination, retry, now) for destination in destinations)


def _figures_of(session: Session, destination: str, retry: Retry, now: float) -> DestinationFigures:
    of_it = Delivery.destination == destination
    pending = Delivery.state == DeliveryState.PENDING
    failures = session.scalars(select(func.max(Delivery.attempts)).where(of_it, pending)).one()
    refused = select(func.count()).where(of_it, Delivery.state == DeliveryState.REFUSED)
    stored_at = select(Delivery.stored_at).where(
        of_it, Delivery.state == DeliveryState.STORED, Delivery.commitment_due_at.is_not(None)
    )
    uncommitted_s = [max(0.0, now - (at or now)) for at in session.scalars(stored_at)]
    waited_s = [max(0.0, now - since) for since in _waiting_since(session, destination)]
    return DestinationFigures(
        destination=destination,
        pending=len(waited_s),
        refused=session.scalars(refused).one(),
        oldest_pending_s=max(waited_s, default=0.0),
        consecutive_failures=failures or 0,
        last_success_at=session.scalars(select(func.max(Delivery.stored_at)).where(of_it)).one(),
        uncommitted=len(uncommitted_s),
        oldest_uncommitted_s=max(uncommitted_s, default=0.0),
        needs_a_person=any(needs_a_person(waited, retry) for waited in (*waited_s, *uncommitted_s)),
    )


def _waiting_since(session: Session, destination: str) -> list[float]:
    """When each pending delivery last became PENDING: one that goes out again waits anew."""
    became_pending = (
        select(func.max(Transition.at))
        .where(
            Transition.subject == "delivery",
            Transition.subject_id == Delivery.id,
            Transition.to_state == DeliveryState.PENDING,
        )
        .scalar_subquery()
    )
    of_it = Delivery.destination == destination, Delivery.state == DeliveryState.PENDING
    return list(session.scalars(select(func.coalesce(became_pending, Delivery.created_at)).where(*of_it)))
