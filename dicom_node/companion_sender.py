"""Paints companions and brings them to their destinations, one lane (a thread) for each.

Owns when a companion is painted and when it is tried.
Speaks the companions' rows, and `outputs.storing` with the very bytes that were fsynced.
Never holds up an RT-STRUCT: those have lanes of their own, and go out while the pictures are still drawn.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from random import Random

from sqlalchemy import Engine, select

from dicom_node import companions, logs, outputs, timings
from dicom_node.config import AnyDestination, Config
from dicom_node.database import reading, transaction
from dicom_node.deliverer import Store
from dicom_node.errors import PermanentError
from dicom_node.lanes import Lanes
from dicom_node.painting import order_of_companion, paint
from dicom_node.results import Results
from dicom_node.retry import delay_s, is_due
from dicom_node.schema import Companion
from dicom_node.states import DeliveryState
from dicom_node.store_status import DELIVERED, StoreKind, StoreOutcome

POLL_S = 1.0
"""How soon a companion is seen; nobody waits for a picture as for a contour."""

log = logs.get(__name__)


class CompanionSender:
    """Sends what is due, until it is stored, refused or cancelled; what must survive is in the database."""

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
        stopping = threading.Event()
        rng = rng or Random()  # noqa: S311  (jitter, no secret)
        painting = threading.Lock()
        self._lanes = tuple(
            _Lane(config, destination, engine, clock, store, rng, stopping, painting)
            for destination in config.destinations
        )
        self._running = Lanes("companions", self._lanes, stopping, POLL_S)

    def start(self) -> None:
        """Begin to paint and send, in threads; returns at once."""
        self._refuse_forgotten()
        self._running.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Begin nothing further, and wait up to `grace_s` for what is under way; it is still PENDING else."""
        self._running.stop(grace_s)

    def step(self) -> int:
        """Try everything that is due now, in the caller's thread; how many."""
        self._refuse_forgotten()
        return sum(lane.step() for lane in self._lanes)

    def _refuse_forgotten(self) -> None:
        with transaction(self._engine) as session:
            names = [destination.name for destination in self._config.destinations]
            companions.refuse_forgotten(session, names, self._clock())


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
        painting: threading.Lock,
    ) -> None:
        self.name = destination.name
        self._destination = destination
        self._own_ae_title = config.listener.ae_title
        self._storage = config.storage
        self._results = Results(config.storage.results)
        self._retry = config.retry
        self._engine = engine
        self._clock = clock
        self._store = store
        self._rng = rng
        self._stopping = stopping
        self._painting = painting
        """One CT at a time in memory, and one core at most taken from the contouring."""

    def step(self) -> int:
        """Try each companion that is due, until the destination turns out to be away; how many were tried."""
        tried = 0
        for companion_id in self._due():
            if self._stopping.is_set():
                break
            tried += 1
            if self._attempt(companion_id).kind is StoreKind.UNREACHABLE:
                break
        return tried

    def _due(self) -> list[int]:
        """The least tried first."""
        at = Companion.next_attempt_at
        due = select(Companion.id).where(
            Companion.destination == self.name,
            Companion.state == DeliveryState.PENDING,
            is_due(at, self._clock(), self._retry.max_delay_s),
        )
        with reading(self._engine) as session:
            return list(session.scalars(due.order_by(Companion.attempts, at, Companion.id)))

    def _attempt(self, companion_id: int) -> StoreOutcome:
        """Paint if need be, send each sheet, and record what became of it."""
        files: list[str] | None = None
        try:
            files = self._painted(companion_id)
            outcome = self._sent(files)
        except PermanentError as problem:
            outcome = StoreOutcome(StoreKind.REFUSED, None, problem.reason)
        except OSError as problem:
            reason = f"the storage folder cannot be used now: {problem.strerror}"
            outcome = StoreOutcome(StoreKind.TRANSIENT, None, reason)
        except Exception as bug:  # trying again would meet it again
            log.exception("a companion cannot be made", companion=companion_id)
            reason = f"an error of this program: {type(bug).__name__}; its traceback is in the log"
            outcome = StoreOutcome(StoreKind.REFUSED, None, reason)
        self._record(companion_id, files, outcome)
        say = log.info if outcome.kind in DELIVERED else log.warning
        say(
            "tried to send pictures or a notice",
            companion=companion_id,
            destination=self.name,
            outcome=str(outcome.kind),
            reason=outcome.reason,
        )
        return outcome

    def _painted(self, companion_id: int) -> list[str]:
        """The sheets' files, whose bytes are fsynced and whose names are committed before the first try.

        Raises:
            CannotPaintError: there is nothing to paint from.
            OSError: the disk does not answer, or is full.
        """
        with reading(self._engine) as session:
            companion = session.get_one(Companion, companion_id)
            order = order_of_companion(session, companion, self._storage)
            files = companion.files
        if files and all(self._is_whole(file) for file in files):
            return files
        with self._painting:
            files = [self._results.keep(capture.data)[0] for capture in paint(order)]
        with transaction(self._engine) as session:
            session.get_one(Companion, companion_id).files = files
        return files

    def _is_whole(self, file: str) -> bool:
        path = self._storage.results / file
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == path.stem

    def _sent(self, files: list[str]) -> StoreOutcome:
        """What became of the sheets: of the last one, or of the first that was not taken."""
        outcome = StoreOutcome(StoreKind.REFUSED, None, "there is no sheet to send")
        for file in files:
            with self._store(self._destination, self._own_ae_title, self._storage.results / file) as answer:
                outcome = answer
            if outcome.kind not in DELIVERED:
                break
        return outcome

    def _record(self, companion_id: int, files: list[str] | None, outcome: StoreOutcome) -> None:
        """Keep what became of an attempt, unless a person or another result was quicker; one transaction."""
        with transaction(self._engine) as session:
            companion, now = session.get_one(Companion, companion_id), self._clock()
            timings.answered(session, self.name, outcome.kind, outcome.status, now)
            is_another = files is not None and companion.files != files
            if companion.state is not DeliveryState.PENDING or is_another:
                return
            match outcome.kind:
                case kind if kind in DELIVERED:
                    companions.stored(session, companion, outcome.status, outcome.reason, now)
                case StoreKind.REFUSED:
                    companions.refused(session, companion, outcome.status, outcome.reason, now)
                case StoreKind.TRANSIENT | StoreKind.UNREACHABLE:
                    delay = delay_s(companion.attempts + 1, self._retry, self._rng)
                    companions.postponed(companion, outcome.status, outcome.reason, now + delay)
