"""The worker's sign of life, and its figures, which reach the listener through the database.

Owns the JSON of `worker_status.figures`: its keys are listed at `WorkerFigures.as_json`.
Speaks seconds and bytes.
Never says that a worker lives which makes no progress.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from dicom_node import logs
from dicom_node.database import transaction
from dicom_node.schema import WorkerStatus

BEAT_S = 1.0
LOOP_LIMIT_S = 60.0
"""The worker looks around many times a second; one that did not for this long hangs."""
JOB_LIMIT_S = 1800.0
"""No job takes this long, not even a whole CT on a slow CPU."""

log = logs.get(__name__)


class WorkerFigures:
    """What the worker is and does. Any thread may write or read.

    Args:
        started_at: UTC epoch seconds.
        monotonic: seconds that nobody sets: no change of the clock makes a worker seem to hang, or hides it.
    """

    def __init__(self, started_at: float, monotonic: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {"started_at": started_at, "running_job": None}
        self._monotonic = monotonic
        self._progress_at = self._job_began_at = monotonic()

    def put(self, **values: Any) -> None:
        """Set figures, such as `device="cuda"`."""
        with self._lock:
            self._values.update(values)

    def progress(self) -> None:
        """The worker has come around its loop."""
        with self._lock:
            self._progress_at = self._monotonic()

    def job_begins(self, job: int) -> None:
        """The job is contoured from now on."""
        with self._lock:
            self._values["running_job"], self._job_began_at = job, self._monotonic()

    def job_ends(self) -> None:
        """No job is contoured any more."""
        with self._lock:
            self._values["running_job"] = None

    def is_alive(self) -> bool:
        """Whether the worker comes around its loop, and its job, if there is one, to an end."""
        with self._lock:
            now = self._monotonic()
            job_hangs = self._values["running_job"] is not None and now - self._job_began_at >= JOB_LIMIT_S
            return now - self._progress_at < LOOP_LIMIT_S and not job_hangs

    def as_json(self) -> dict[str, Any]:
        """The keys that `metrics.py` reads.

        `started_at`; `device` (`cuda` or `cpu`, as it really runs); `model` (`name`, `version`, `sha256`,
        `approved`: bool); `warm_up_seconds`; `peak_memory_bytes` of the process; `running_job` (number or
        null); `open_series` and `open_series_bytes` (decoded ahead). The seconds of a job's stages are in
        its own report.
        """
        with self._lock:
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return {**self._values, "peak_memory_bytes": peak_kib * 1024}


class Heartbeat:
    """Writes the figures every second, in its own thread: a long forward pass does not stop it.

    Attributes:
        alive: called with each beat, for the process's keeper.
    """

    def __init__(
        self,
        engine: Engine,
        figures: WorkerFigures,
        clock: Callable[[], float],
        alive: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._figures = figures
        self._clock = clock
        self.alive = alive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """The first beat is written when this returns."""
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def beat(self) -> None:
        """Give one sign of life, unless the worker hangs."""
        if not self._figures.is_alive():
            return
        self.alive()
        figures, now = self._figures.as_json(), self._clock()
        status = WorkerStatus(id=1, pid=os.getpid(), heartbeat_at=now, figures=figures)
        with transaction(self._engine) as session:
            session.merge(status)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except OperationalError as problem:
                log.warning("no heartbeat this time", exc_info=problem)
