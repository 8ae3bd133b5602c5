"""What feeds the watchdog: progress that was seen; whoever hangs is not kept alive by a thread beside it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from dicom_node import listener
from dicom_node.database import open_engine, reading
from dicom_node.migrate import upgrade
from dicom_node.schema import WorkerStatus
from dicom_node.worker_figures import JOB_LIMIT_S, LOOP_LIMIT_S, Heartbeat, WorkerFigures
from tests.dicom_node.reception_rig import configuration, listening
from tests.tools import wait_until


def test_an_accept_loop_that_hangs_is_no_longer_called_listening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "STUCK_S", 0.5)
    config, held = configuration(tmp_path), threading.Event()
    with listening(config) as reception:
        assert reception.is_listening
        server = reception._server
        assert server is not None
        monkeypatch.setattr(server, "process_request", lambda *_: held.wait(60))
        with socket.create_connection((config.listener.host, config.listener.port)):
            wait_until(lambda: not reception.is_listening, what="the hang to be seen")
            held.set()
            wait_until(lambda: reception.is_listening, what="the loop to come around again")


@pytest.mark.parametrize(
    ("seconds_since_the_loop_came_around", "seconds_of_the_job", "is_fed"),
    [
        (0.0, None, True),
        (LOOP_LIMIT_S - 1, None, True),
        (LOOP_LIMIT_S, None, False),
        (0.0, JOB_LIMIT_S - 1, True),
        (0.0, JOB_LIMIT_S, False),
    ],
)
def test_a_worker_gives_a_sign_of_life_only_while_its_loop_and_its_job_go_on(
    tmp_path: Path,
    seconds_since_the_loop_came_around: float,
    seconds_of_the_job: float | None,
    is_fed: bool,
) -> None:
    now, clock = 1e9, [0.0]
    figures, fed = WorkerFigures(now, lambda: clock[0]), []
    if seconds_of_the_job is not None:
        clock[0] = -seconds_of_the_job
        figures.job_begins(7)
    clock[0] = -seconds_since_the_loop_came_around
    figures.progress()
    clock[0] = 0.0
    upgrade(tmp_path / "node.sqlite")
    engine = open_engine(tmp_path / "node.sqlite")

    Heartbeat(engine, figures, lambda: now, lambda: fed.append(now)).beat()

    with reading(engine) as session:
        assert (len(fed), session.get(WorkerStatus, 1) is not None) == (is_fed, is_fed)
    engine.dispose()
