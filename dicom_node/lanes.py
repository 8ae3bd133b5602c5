"""Threads that work for one destination each, so that none waits for another.

Owns their life: a step, a pause, the next step; a look at once when woken; an end within a grace.
Speaks `Lane`, whose steps find all that they need in the database.
Never ends a lane for an error: what it was about to do is still due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from dicom_node import logs

AFTER_A_BUG_S = 5.0
"""How long a lane rests after an error of its own, such as a full disk under the database."""

log = logs.get(__name__)


class Lane(Protocol):
    """What is done for one destination."""

    name: str
    """The destination's."""

    def step(self) -> object:
        """Do what is due now; leave off between two things once it is told to stop."""


class Lanes:
    """Runs lanes until they are stopped.

    Args:
        purpose: a word, for the threads' names and the log.
        lanes: each gets a thread.
        stopping: set by `stop`; the lanes' steps look at it too.
        poll_s: how soon a lane looks again that nobody wakes.
    """

    def __init__(self, purpose: str, lanes: Sequence[Lane], stopping: threading.Event, poll_s: float) -> None:
        self._purpose = purpose
        self._lanes = [(lane, threading.Event()) for lane in lanes]
        self._stopping = stopping
        self._poll_s = poll_s
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, in threads; returns at once."""
        self._threads = [
            threading.Thread(target=self._run, args=each, name=f"{self._purpose}-{each[0].name}", daemon=True)
            for each in self._lanes
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look now: something new is due."""
        for _, wake in self._lanes:
            wake.set()

    def stop(self, grace_s: float) -> None:
        """Begin nothing further, and wait up to `grace_s` for what is under way; else it is due again."""
        self._stopping.set()
        self.wake()
        until = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads = []

    def _run(self, lane: Lane, wake: threading.Event) -> None:
        while not self._stopping.is_set():
            try:
                lane.step()
                pause_s = self._poll_s
            except Exception:  # the lane outlives whatever the machine does: the rows are still there
                log.exception("interrupted", purpose=self._purpose, destination=lane.name)
                pause_s = AFTER_A_BUG_S
            wake.wait(pause_s)
            wake.clear()
