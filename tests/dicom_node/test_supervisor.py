"""The supervisor: restarts what crashes, stops for a wrong configuration, leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dicom_node import notify, supervisor
from tests.tools import wait_until

READY_AND_WAIT = """
import os, sys, time
from dicom_node.notify import Notifier
notifier = Notifier()
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
notifier.ready("test")
while True:
    notifier.alive()
    time.sleep(0.1)
"""


def child(program: str, *arguments: Path | str) -> Sequence[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


class Running:
    """A supervisor in a thread."""

    def __init__(self, commands: dict[str, Sequence[str]]) -> None:
        self.stop = threading.Event()
        self.status: int | None = None
        kept = supervisor.Supervisor(commands, notify.Notifier({}))
        self.thread = threading.Thread(target=lambda: setattr(self, "status", kept.run(self.stop)))
        self.thread.start()

    def end(self) -> int | None:
        self.stop.set()
        self.thread.join(20)
        return self.status


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_crashed_child_is_started_again_and_the_other_is_left_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    running = Running({"one": child(READY_AND_WAIT, first), "two": child(READY_AND_WAIT, second)})
    try:
        wait_until(lambda: bool(pids(first) and pids(second)), what="both children")
        os.kill(pids(first)[0], 9)
        wait_until(lambda: len(pids(first)) == 2, what="the restart")
        assert len(pids(second)) == 1
    finally:
        status = running.end()

    assert status == 0
    assert not any(lives(pid) for pid in [*pids(first), *pids(second)])


def test_a_wrong_configuration_ends_the_node_with_78(tmp_path: Path) -> None:
    marks = tmp_path / "pids"
    running = Running({"good": child(READY_AND_WAIT, marks), "bad": child("raise SystemExit(78)")})
    running.thread.join(20)

    assert running.status == 78
    assert not any(lives(pid) for pid in pids(marks))


def test_a_child_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WATCHDOG_S", 0.5)
    marks = tmp_path / "pids"
    silent_after_ready = READY_AND_WAIT.replace("    notifier.alive()\n", "")
    running = Running({"silent": child(silent_after_ready, marks)})
    try:
        wait_until(lambda: len(pids(marks)) == 2, what="the restart")
    finally:
        running.end()


def test_the_restart_delay_doubles_up_to_its_cap() -> None:
    delays = [supervisor.restart_delay_s(crashes) for crashes in range(1, 9)]

    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_channel_hears_what_its_child_says() -> None:
    with notify.Channel(watchdog_s=3.0) as channel:
        subprocess.run(
            child("from dicom_node.notify import Notifier; n = Notifier(); n.ready('up'); n.stopping()"),
            env={**os.environ, **channel.environment()},
            check=True,
        )
        time.sleep(0.01)

        assert channel.heard() == {"READY=1", "STATUS=up", "STOPPING=1"}
        assert channel.heard() == frozenset()
    assert notify.Notifier({"WATCHDOG_USEC": "3000000"}).every_s == 1.0
