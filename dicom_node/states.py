"""The states of a series, a job and a delivery, and which may follow which.

Owns the transition tables, as data; the database's triggers are generated from them.
Speaks the words of docs/ARCHITECTURE.md.
Never changes a state: that is `jobs.py`'s, which asks here first.
"""

from __future__ import annotations

from enum import StrEnum


class SeriesState(StrEnum):
    """What is known about the arrival of a series."""

    RECEIVING = "RECEIVING"
    """Slices may still come."""
    COMPLETE = "COMPLETE"
    """Complete by evidence, which is kept with it; a job exists for this revision."""


class JobState(StrEnum):
    """Where one contouring of one revision of a series stands."""

    QUEUED = "QUEUED"
    """Waits for the worker."""
    RUNNING = "RUNNING"
    """The worker contours it now; after a crash it goes back to QUEUED."""
    READY = "READY"
    """The RT-STRUCT is checked and fsynced; its deliveries are under way."""
    SENT = "SENT"
    """Every delivery has ended well."""
    REJECTED = "REJECTED"
    """Not ours to contour, with the reason; nobody is paged."""
    FAILED = "FAILED"
    """Ours, and we could not; somebody is paged."""
    CANCELLED = "CANCELLED"
    """A person, or a later revision of the series, ended it."""
    IGNORED = "IGNORED"
    """A rule said that this series is not to be contoured."""
    HELD = "HELD"
    """Waits until a person releases it."""


class DeliveryState(StrEnum):
    """Where a job's result stands for one destination."""

    PENDING = "PENDING"
    """Not yet there; tried again with backoff until it is, or until a person cancels it."""
    STORED = "STORED"
    """The destination answered success (or a warning) to C-STORE."""
    COMMITTED = "COMMITTED"
    """The destination said that it has the object and is to be relied on for it (PS3.4 Annex J)."""
    HELD = "HELD"
    """Waits until a person releases it for this destination; the others do not wait."""
    REFUSED = "REFUSED"
    """The destination will never take it as it is."""
    CANCELLED = "CANCELLED"
    """A person ended it."""


class CompanionKind(StrEnum):
    """What goes to a destination beside an RT-STRUCT, or in place of one; a delivery's states but HELD."""

    PICTURES = "PICTURES"
    """The contours on the CT, for whoever opens the study."""
    NOTICE = "NOTICE"
    """Why there are no contours, for whoever waits for them."""


SERIES_TRANSITIONS: dict[SeriesState, frozenset[SeriesState]] = {
    SeriesState.RECEIVING: frozenset({SeriesState.COMPLETE}),
    SeriesState.COMPLETE: frozenset({SeriesState.RECEIVING}),  # late slices reopen it
}

JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.CANCELLED, JobState.IGNORED, JobState.HELD, JobState.REJECTED}
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.READY,
            JobState.REJECTED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.HELD,
        }
    ),
    JobState.READY: frozenset({JobState.SENT, JobState.FAILED, JobState.CANCELLED}),
    JobState.HELD: frozenset({JobState.QUEUED, JobState.READY, JobState.CANCELLED}),
    JobState.SENT: frozenset({JobState.READY}),  # pushed again: the stored bytes go out again
    JobState.REJECTED: frozenset({JobState.QUEUED}),  # a person says: again
    JobState.FAILED: frozenset({JobState.QUEUED, JobState.READY}),  # a person says: again
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
    JobState.IGNORED: frozenset({JobState.QUEUED}),
}

DELIVERY_TRANSITIONS: dict[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.PENDING: frozenset(
        {DeliveryState.STORED, DeliveryState.HELD, DeliveryState.REFUSED, DeliveryState.CANCELLED}
    ),
    DeliveryState.HELD: frozenset({DeliveryState.PENDING, DeliveryState.REFUSED, DeliveryState.CANCELLED}),
    # What a destination says that it has not kept is stored again, and refused where that does not help.
    DeliveryState.STORED: frozenset({DeliveryState.COMMITTED, DeliveryState.PENDING, DeliveryState.REFUSED}),
    DeliveryState.COMMITTED: frozenset({DeliveryState.PENDING}),
    DeliveryState.REFUSED: frozenset({DeliveryState.PENDING}),
    DeliveryState.CANCELLED: frozenset({DeliveryState.PENDING}),
}

COMPANION_TRANSITIONS: dict[DeliveryState, frozenset[DeliveryState]] = {
    state: followers - {DeliveryState.HELD}
    for state, followers in DELIVERY_TRANSITIONS.items()
    if state is not DeliveryState.HELD  # what is held is told of by a notice, which goes out at once
}

JOB_ENDS = frozenset(
    {JobState.SENT, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED, JobState.IGNORED}
)
DELIVERY_WAITS = frozenset({DeliveryState.PENDING, DeliveryState.HELD})
DELIVERY_SUCCESSES = frozenset({DeliveryState.STORED, DeliveryState.COMMITTED})
