"""Two processes kept running: the listener and the worker.

Owns their starts, restarts and ends; a crash of one never touches the other.
Speaks argument lists, signals and the notifications of `notify.py`.
Never receives, contours or sends anything itself, and never opens the database.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from dicom_node import logs, notify

WATCHDOG_S = 60.0
"""A child that says nothing for this long hangs, and is started again."""
START_LIMIT_S = 600.0
"""A child is ready by then: the first warm-up of a network on a new GPU takes minutes."""
DRAIN_LIMIT_S = 90.0
"""A child has ended this long after SIGTERM, or is killed; what it received is on disk."""
MAX_RESTART_DELAY_S = 60.0
POLL_S = 0.1
SUPERVISED = "ANATOMYNODE_SUPERVISED"
"""Set for a child whose standard input is a pipe from here: when it closes, the supervisor is gone."""

EXIT_CONFIGURATION = 78


def restart_delay_s(crashes_in_a_row: int) -> float:
    """1, 2, 4 ... 60 seconds, so that a process that cannot start does not burn a core."""
    return min(MAX_RESTART_DELAY_S, 2.0 ** (crashes_in_a_row - 1))


@dataclass
class _Child:
    name: str
    command: Sequence[str]
    channel: notify.Channel
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    heard_at: float = 0.0
    ready: bool = False
    crashes_in_a_row: int = 0
    restart_at: float = 0.0

    @property
    def runs(self) -> bool:
        return self.process is not None


@dataclass
class Supervisor:
    """Keeps each command of `commands` running until told to stop.

    Attributes:
        commands: the argument list of each child, by its name.
        notifier: told READY once all children are, and alive while all are.
        clock: monotonic seconds.
    """

    commands: Mapping[str, Sequence[str]]
    notifier: notify.Notifier
    clock: Callable[[], float] = time.monotonic
    _children: list[_Child] = field(default_factory=list)
    _was_ready: bool = False

    def run(self, stop: threading.Event) -> int:
        """Start the children and keep them until `stop` is set; then drain. Returns the exit status.

        A child that ends with 78 before all were ready ends the node with 78: the configuration is
        wrong, and a person is there to see it. Later the others go on, and it is started again.
        """
        log = logs.get(__name__)
        with ExitStack() as channels:
            self._children = [
                _Child(name, command, channels.enter_context(notify.Channel(WATCHDOG_S)))
                for name, command in self.commands.items()
            ]
            status = 0
            try:
                while not stop.is_set() and status == 0:
                    status = self._tend()
                    stop.wait(POLL_S)
            finally:
                self.notifier.stopping()
                log.info("draining", limit_s=DRAIN_LIMIT_S)
                self._drain()
        log.info("stopped", status=status)
        return status

    def _tend(self) -> int:
        """One look at every child. Returns the exit status that ends the node, else 0."""
        for child in self._children:
            if child.process is None:
                if self.clock() >= child.restart_at:
                    self._start(child)
                continue
            self._listen_to(child)
            status = child.process.poll()
            if status is not None:
                if status == EXIT_CONFIGURATION and not self._was_ready:
                    child.process = None
                    return status
                self._note_crash(child, status)
            elif self._hangs(child):
                logs.get(__name__).error("a process hangs and is killed", child=child.name)
                child.process.kill()
        self._tell_keeper()
        return 0

    def _start(self, child: _Child) -> None:
        child.process = subprocess.Popen(
            child.command,
            stdin=subprocess.PIPE,
            env={**os.environ, **child.channel.environment(), SUPERVISED: "1"},
        )
        child.started_at = child.heard_at = self.clock()
        child.ready = False
        logs.get(__name__).info("started", child=child.name, pid=child.process.pid)

    def _listen_to(self, child: _Child) -> None:
        words = child.channel.heard()
        if words:
            child.heard_at = self.clock()
        if notify.READY in words:
            child.ready = True
        if child.ready and self.clock() - child.started_at > MAX_RESTART_DELAY_S:
            child.crashes_in_a_row = 0

    def _hangs(self, child: _Child) -> bool:
        limit_s = WATCHDOG_S if child.ready else START_LIMIT_S
        return self.clock() - child.heard_at > limit_s

    def _note_crash(self, child: _Child, status: int) -> None:
        child.crashes_in_a_row += 1
        delay_s = restart_delay_s(child.crashes_in_a_row)
        child.process, child.ready, child.restart_at = None, False, self.clock() + delay_s
        logs.get(__name__).error(
            "a process ended and is started again",
            child=child.name,
            status=status,
            delay_s=delay_s,
        )

    def _tell_keeper(self) -> None:
        if not all(child.ready for child in self._children):
            return
        if not self._was_ready:
            self._was_ready = True
            self.notifier.ready("listener and worker run")
            logs.get(__name__).info("ready")
        self.notifier.alive()

    def _drain(self) -> None:
        """SIGTERM to all at once, then SIGKILL to those that are not done in time."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = self.clock() + DRAIN_LIMIT_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - self.clock()))
            except subprocess.TimeoutExpired:
                logs.get(__name__).error("a process did not drain in time and is killed", pid=process.pid)
                process.kill()
                process.wait()
