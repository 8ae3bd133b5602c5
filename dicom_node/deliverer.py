"""Brings each stored RT-STRUCT to each of its destinations.

Owns when an attempt is made, and one lane (a thread) for each destination, so that none waits for another.
Speaks the deliveries' rows, and `outputs.storing` with the very bytes that were fsynced.
Never keeps anything in memory that a restart would need, and never takes silence for success.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from dicom_node import jobs, logs, outputs, timings
from dicom_node.config import AnyDestination, Config
from dicom_node.database import reading, transaction
from dicom_node.errors import PermanentError
from dicom_node.lanes import Lanes
from dicom_node.retry import delay_s, is_due
from dicom_node.schema import Delivery, Job
from dicom_node.states import DeliveryState
from dicom_node.store_status import DELIVERED, StoreKind, StoreOutcome

POLL_S = 0.5
"""How soon a delivery is seen that nobody woke us for, such as one that a person retries."""

Store = Callable[[AnyDestination, str, Path], AbstractContextManager[StoreOutcome]]
"""Sends a file as the node of this AE title; the outcome is known inside the block."""

log = logs.get(__name__)


class DamagedResultError(PermanentError):
    """The stored RT-STRUCT is not the one that was checked; it is not sent."""


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come.

    Attributes:
        file: in the results folder; None where it was found damaged.
        sha256: of the file's bytes when the RT-STRUCT was checked.
    """

    delivery_id: int
    job_id: int
    file: Path | None
    sha256: str | None


class Deliverer:
    """Sends what is due, until it is stored, refused or cancelled.

    All that must outlive a crash is in the database: after one, what was under way is still PENDING and goes
    out again, the same bytes under the same SOP Instance UID.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        clock: Callable[[], float],
        store: Store = outputs.storing,
        rng: Random | None = None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._clock = clock
        rng = rng or Random()  # noqa: S311  (jitter, no secret)
        stopping = threading.Event()
        self._lanes = tuple(
            _Lane(config, destination, engine, clock, store, rng, stopping)
            for destination in config.destinations
        )
        self._running = Lanes("deliver", self._lanes, stopping, POLL_S)

    def start(self) -> None:
        """Begin to send, in threads; returns at once."""
        self._refuse_forgotten()
        self._running.start()

    def wake(self) -> None:
        """Look now: a delivery was just made."""
        self._running.wake()

    def stop(self, grace_s: float = 10.0) -> None:
        """Begin no further attempt, and wait up to `grace_s` for those under way.

        One that takes longer is abandoned: it is still PENDING, and goes out again after the next start.
        """
        self._running.stop(grace_s)

    def step(self) -> int:
        """Try everything that is due now, destination by destination, in the caller's thread; how many."""
        self._refuse_forgotten()
        return sum(lane.step() for lane in self._lanes)

    def _refuse_forgotten(self) -> None:
        """End deliveries to destinations that the configuration no longer has: they would wait unseen."""
        known = [destination.name for destination in self._config.destinations]
        forgotten = select(Delivery).where(
            Delivery.state == DeliveryState.PENDING, Delivery.destination.not_in(known)
        )
        with transaction(self._engine) as session:
            for delivery in session.scalars(forgotten):
                reason = f"the configuration has no destination {delivery.destination}; add it, then retry"
                jobs.delivery_refused(session, delivery, None, reason, self._clock())


class _Lane:
    """The way to one destination."""

    def __init__(
        self,
        config: Config,
        destination: AnyDestination,
        engine: Engine,
        clock: Callable[[], float],
        store: Store,
        rng: Random,
        stopping: threading.Event,
    ) -> None:
        self.name = destination.name
        self._stopping = stopping
        self._destination = destination
        self._own_ae_title = config.listener.ae_title
        self._results = config.storage.results
        self._retry = config.retry
        self._engine = engine
        self._clock = clock
        self._store = store
        self._rng = rng
        # Whether the last attempt found nobody. True at the start: what waited for an absent archive before a
        # restart goes out with the first success after it.
        self._was_away = True

    def step(self) -> int:
        """Try each delivery that is due, until the destination turns out to be away; how many were tried."""
        tried = 0
        for due in self._due():
            if self._stopping.is_set():
                break
            outcome = self._attempt(due)
            tried += 1
            if outcome.kind is StoreKind.UNREACHABLE:
                break  # the others would wait for the same silence; their turn comes in the next step
        return tried

    def _due(self) -> list[Due]:
        """What is due, the least tried first, so that one that always fails starves no other."""
        rows = (
            select(Delivery.id, Delivery.job_id, Delivery.rt_struct_file, Delivery.rt_struct_sha256)
            .where(
                Delivery.destination == self.name,
                Delivery.state == DeliveryState.PENDING,
                is_due(Delivery.next_attempt_at, self._clock(), self._retry.max_delay_s),
            )
            .order_by(Delivery.attempts, Delivery.next_attempt_at, Delivery.id)
        )
        with reading(self._engine) as session:
            return [
                Due(delivery_id, job_id, None if file is None else self._results / file, sha256)
                for delivery_id, job_id, file, sha256 in session.execute(rows)
            ]

    def _attempt(self, due: Due) -> StoreOutcome:
        """Send once, and record what became of it."""
        traceback, damaged = None, False
        with ExitStack() as until_recorded:
            try:
                sending = self._store(self._destination, self._own_ae_title, _checked(due))
                outcome = until_recorded.enter_context(sending)
            except DamagedResultError as damage:
                damaged = True
                outcome = StoreOutcome(StoreKind.REFUSED, None, damage.reason)
            except OSError as problem:
                outcome = StoreOutcome(
                    StoreKind.TRANSIENT, None, f"the stored RT-STRUCT cannot be read now: {problem.strerror}"
                )
            except Exception as bug:  # not foreseen by the door: trying again would meet it again
                traceback = logs.describe(bug)
                reason = f"an error of this program: {type(bug).__name__}"
                outcome = StoreOutcome(StoreKind.REFUSED, None, reason)
            with transaction(self._engine) as session:
                self._record(session, due, outcome, traceback)
                if damaged:
                    # A retry contours again.
                    session.get_one(Job, due.job_id).rt_struct_file = None
                    session.get_one(Delivery, due.delivery_id).rt_struct_file = None
        say = log.info if outcome.kind in DELIVERED else log.warning
        say(
            "tried to send",
            job=due.job_id,
            destination=self.name,
            outcome=str(outcome.kind),
            status=outcome.status,
            reason=outcome.reason,
        )
        return outcome

    def _record(self, session: Session, due: Due, outcome: StoreOutcome, traceback: str | None) -> None:
        """Keep what became of an attempt; one transaction."""
        now = self._clock()
        timings.answered(session, self.name, outcome.kind, outcome.status, now)
        delivery = session.get_one(Delivery, due.delivery_id)
        if delivery.state is not DeliveryState.PENDING:  # a person was quicker
            delivery.reason = f"{delivery.reason}; meanwhile it was on its way: {outcome.reason}"
            delivery.last_status = outcome.status
            return
        match outcome.kind:
            case kind if kind in DELIVERED:
                asks = self._destination.storage_commitment.enabled
                jobs.delivery_stored(session, delivery, outcome.status, _in_words(outcome), now, asks)
                self._hurry(session, now)
            case StoreKind.REFUSED:
                jobs.delivery_refused(session, delivery, outcome.status, outcome.reason, now)
                if traceback is not None:
                    session.get_one(Job, due.job_id).traceback = traceback
            case StoreKind.TRANSIENT | StoreKind.UNREACHABLE:
                delay = delay_s(delivery.attempts + 1, self._retry, self._rng)
                jobs.delivery_postponed(session, delivery, outcome.status, outcome.reason, now + delay)
        self._was_away = outcome.kind is StoreKind.UNREACHABLE

    def _hurry(self, session: Session, now: float) -> None:
        """The destination is back: what waited only because it was away goes out now."""
        if self._was_away:
            session.execute(
                update(Delivery)
                .where(
                    Delivery.destination == self.name,
                    Delivery.state == DeliveryState.PENDING,
                    Delivery.last_status.is_(None),
                    Delivery.next_attempt_at > now,
                )
                .values(next_attempt_at=now)
            )


def _in_words(outcome: StoreOutcome) -> str:
    """Why it counts as stored."""
    if outcome.kind is StoreKind.DUPLICATE:
        return f"{outcome.reason}; it is this one, from an earlier attempt"
    return outcome.reason


def _checked(due: Due) -> Path:
    """The file, after a look that it holds the bytes that were checked against the mask: only they may leave.

    Raises:
        DamagedResultError: they are gone, or others.
        OSError: the disk does not answer.
    """
    if due.file is None or not due.file.exists():
        raise DamagedResultError(
            "the stored RT-STRUCT is gone from the results folder; retry to contour again"
        )
    if hashlib.sha256(due.file.read_bytes()).hexdigest() != due.sha256:
        raise DamagedResultError("the stored RT-STRUCT changed on the disk; retry to contour again")
    return due.file
