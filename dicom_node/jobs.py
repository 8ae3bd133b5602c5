"""Every change of state of a series, a job or a delivery.

Owns the one function that moves a state, and what each event makes of the states around it.
Speaks rows inside a transaction that the caller has opened; times are UTC epoch seconds.
Never commits, never waits, and never does what `states.py` does not list.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from dicom_node.errors import PermanentError
from dicom_node.schema import Delivery, Job, Series, Transition
from dicom_node.states import (
    DELIVERY_TRANSITIONS,
    JOB_ENDS,
    JOB_TRANSITIONS,
    SERIES_TRANSITIONS,
)

Subject = Series | Job | Delivery

TRANSITIONS: Mapping[type[Subject], Mapping[Any, frozenset[Any]]] = {
    Series: SERIES_TRANSITIONS,
    Job: JOB_TRANSITIONS,
    Delivery: DELIVERY_TRANSITIONS,
}
SUBJECT_NAMES: Mapping[type[Subject], str] = {Series: "series", Job: "job", Delivery: "delivery"}


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
    elif isinstance(subject, Delivery):
        subject.reason = reason
    _keep(session, subject, from_state, at, reason)


def begin(session: Session, subject: Subject, at: float, reason: str) -> None:
    """Add a new series, job or delivery, and keep its beginning as its first transition."""
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
