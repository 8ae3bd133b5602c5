"""Asks each destination to commit itself to what it has stored, where the configuration wants that.

Owns when it is asked, in a thread for each destination beside the one that stores.
Speaks the rows of `commitments.py` and the door `storage_commitment.py`.
Never keeps anything in memory that a restart would need: the request's row is there before it goes out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

from pydicom.uid import RTStructureSetStorage
from sqlalchemy import Engine

from dicom_node import commitments, logs, storage_commitment, timings
from dicom_node.commitment_status import Report
from dicom_node.commitments import Question
from dicom_node.config import Config, Destination
from dicom_node.database import reading, transaction
from dicom_node.errors import PermanentError, TransientError
from dicom_node.lanes import Lanes
from dicom_node.retry import delay_s
from dicom_node.scu import SUCCESS

POLL_S = 1.0
"""How soon a report, or what has just been stored, is seen."""

log = logs.get(__name__)


class Committer:
    """Asks what is due and weighs what was reported, until each delivery is COMMITTED or REFUSED."""

    def __init__(
        self, config: Config, engine: Engine, clock: Callable[[], float], rng: Random | None = None
    ) -> None:
        self._engine = engine
        self._clock = clock
        stopping = threading.Event()
        rng = rng or Random()  # noqa: S311  (jitter, no secret)
        self._lanes = tuple(
            _Lane(config, destination, engine, clock, rng, stopping)
            for destination in config.dicom_destinations
            if destination.storage_commitment.enabled
        )
        self._running = Lanes("commit", self._lanes, stopping, POLL_S)

    def start(self) -> None:
        """Begin to ask, in threads; returns at once."""
        self._give_up()
        self._running.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask nothing further, and wait up to `grace_s` for what is under way; it is asked again else."""
        self._running.stop(grace_s)

    def step(self) -> None:
        """Weigh what was reported and ask what is due now, in the caller's thread."""
        self._give_up()
        for lane in self._lanes:
            lane.step()

    def _give_up(self) -> None:
        with transaction(self._engine) as session:
            commitments.give_up(session, [lane.name for lane in self._lanes], self._clock())


class _Lane:
    """One destination that is asked."""

    def __init__(
        self,
        config: Config,
        destination: Destination,
        engine: Engine,
        clock: Callable[[], float],
        rng: Random,
        stopping: threading.Event,
    ) -> None:
        self.name = destination.name
        self._destination = destination
        self._settings = destination.storage_commitment
        self._calling = destination.calling_ae_title or config.listener.ae_title
        self._retry = config.retry
        self._longest_s = max(self._settings.report_within_s, config.retry.max_delay_s)
        self._engine = engine
        self._clock = clock
        self._rng = rng
        self._stopping = stopping

    def step(self) -> None:
        """Weigh, then ask until the destination turns out to be away, then weigh what came meanwhile."""
        self._weigh()
        with reading(self._engine) as session:
            due = commitments.due(session, self.name, self._longest_s, self._clock())
        for delivery_id in due:
            if self._stopping.is_set() or not self._ask(delivery_id):
                break
        if due:
            self._weigh()

    def _weigh(self) -> None:
        with reading(self._engine) as session:
            if not commitments.has_reports(session, self.name):
                return
        with transaction(self._engine) as session:
            weighed = commitments.weigh(session, self._destination, self._delay_s, self._clock())
        log.info("weighed reports of storage commitment", destination=self.name, reports=weighed)

    def _ask(self, delivery_id: int) -> bool:
        """Ask about one delivery; whether anybody was there."""
        with transaction(self._engine) as session:
            question = commitments.begin(session, delivery_id, self._clock())
        if question is None:
            return True
        try:
            status = storage_commitment.ask(
                self._destination,
                self._calling,
                RTStructureSetStorage,
                question.sop_instance_uid,
                question.transaction_uid,
                self._note,
                self._settings.wait_s,
            )
        except TransientError as problem:
            self._put_off(question, problem.reason)
            return False
        except PermanentError as problem:
            with transaction(self._engine) as session:
                reason = f"stored, but no commitment can be asked for: {problem.reason}"
                commitments.refused(session, question, reason, self._clock())
            log.warning("cannot ask for a commitment", destination=self.name, reason=problem.reason)
            return False
        self._answered(question, status)
        return True

    def _answered(self, question: Question, status: int | None) -> None:
        with transaction(self._engine) as session:
            now = self._clock()
            if status is not None:
                timings.contact(session, self.name, True, now)
            if status == SUCCESS:
                commitments.taken(session, question, now + self._settings.report_within_s)
            else:
                again = now + self._delay_s(question.number)
                commitments.not_taken(session, question, status, again, now)
        log.info("asked for a commitment", destination=self.name, status=status, number=question.number)

    def _put_off(self, question: Question, reason: str) -> None:
        with transaction(self._engine) as session:
            now = self._clock()
            timings.contact(session, self.name, False, now)
            again = now + self._delay_s(question.number)
            commitments.put_off(session, question, f"stored; to be asked to commit itself: {reason}", again)
        log.warning("cannot ask for a commitment now", destination=self.name, reason=reason)

    def _note(self, report: Report) -> bool:
        """Make a report durable that came on the association that asked."""
        with transaction(self._engine) as session:
            return commitments.note(session, report, [self.name], self._clock())

    def _delay_s(self, failures: int) -> float:
        return delay_s(failures, self._retry, self._rng)
