"""The candidate's process: begun when there is nothing else to do, ended at once when there is.

Owns that process: its start, its priority, its end, and what is kept of one that died.
Speaks argument lists and signals, and the rows of `shadow_runs.py`.
Never lets a candidate's crash, hang or hunger reach a real job.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Engine

from dicom_node import logs, shadow_runs
from dicom_node.database import reading
from dicom_node.supervisor import EXIT_CONFIGURATION, SUPERVISED
from models.card import ModelDescription

LOOK_EVERY_S = 5.0
"""How often a job is looked for that has not been compared yet."""
LIMIT_S = 7200.0
"""A candidate that takes longer on one series hangs; on a busy machine the lowest priority may get little."""
LOWEST_PRIORITY = 19

log = logs.get(__name__)


@dataclass
class _Running:
    job: int
    process: subprocess.Popen[bytes]
    began_at: float


class ShadowRunner:
    """Compares one job after the other, in a process of its own, while it may.

    Args:
        command: the argument list that compares one job; its number is put at the end.
        candidate: what is compared.
        approved_sha256: of the model whose jobs it is compared with.
        clock: UTC epoch seconds.
        monotonic: seconds that nobody sets.
    """

    def __init__(
        self,
        command: Sequence[str],
        candidate: ModelDescription,
        approved_sha256: str,
        engine: Engine,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._command = command
        self._candidate = candidate
        self._approved_sha256 = approved_sha256
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._running: _Running | None = None
        self._look_at = -math.inf
        self._is_usable = True

    def step(self) -> float:
        """There is nothing else to do: see to the process, or begin one; seconds until the next look."""
        if self._running is not None:
            self._look_after(self._running)
        if self._running is None and self._is_usable and self._monotonic() >= self._look_at:
            self._begin()
        return LOOK_EVERY_S

    def give_way(self) -> None:
        """There is something else to do: end the process now; its job is compared another time."""
        running, self._running = self._running, None
        if running is None:
            return
        log.info("the candidate gives way", job=running.job)
        running.process.kill()
        running.process.wait()

    close = give_way

    def _begin(self) -> None:
        with reading(self._engine) as session:
            job = shadow_runs.next_job(session, self._candidate, self._approved_sha256)
        if job is None:
            self._look_at = self._monotonic() + LOOK_EVERY_S
            return
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        process = subprocess.Popen(
            [*self._command, str(job)],
            stdin=subprocess.PIPE,  # when it closes, this worker is gone
            stdout=subprocess.DEVNULL,
            env={**environment, SUPERVISED: "1"},
        )
        with suppress(OSError):  # a service that may not set priorities has the candidate run at its own
            os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
        self._running = _Running(job, process, self._monotonic())

    def _look_after(self, running: _Running) -> None:
        status = running.process.poll()
        if status is None and self._monotonic() - running.began_at < LIMIT_S:
            return
        self._running = None
        if status is None:
            running.process.kill()
            running.process.wait()
            self._failed(running.job, f"it took longer than {LIMIT_S:.0f} s and was ended")
        elif status == EXIT_CONFIGURATION:
            self._is_usable = False
            log.error("the candidate cannot be used; see `anatomynode check`", status=status)
        elif status != 0:
            self._failed(running.job, f"its process ended with {_in_words(status)}")
        else:
            log.info("the candidate is compared", job=running.job)

    def _failed(self, job: int, why: str) -> None:
        log.warning("the candidate failed", job=job, why=why)
        shadow_runs.keep(self._engine, job, self._candidate, self._clock(), None, why)


def _in_words(status: int) -> str:
    if status >= 0:
        return f"status {status}; see the log"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
