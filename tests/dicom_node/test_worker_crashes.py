"""kill -9 at any point of a job or its release leaves one job and one result, the same bytes as without."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from dicom_node import jobs, migrate, story
from dicom_node import worker as worker_module
from dicom_node.config import Config
from dicom_node.database import open_engine, reading
from dicom_node.deliverer import Deliverer
from dicom_node.results import Results
from dicom_node.schema import Delivery, Job
from dicom_node.states import DeliveryState, JobState
from dicom_node.worker import Worker
from tests.node_fixtures import BoxSegmenter, configuration, receive, write_package
from tests.phantoms import Phantom

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a worker and kills it")

RECEIVED_AT = 1000.0
POINTS: dict[str, tuple[Any, str, str]] = {
    # where the worker is killed: before or after this function of its
    "the job has begun": (worker_module.contouring, "segment", "before"),
    "contoured, nothing written": (Results, "keep", "before"),
    "written, not committed": (Results, "keep", "after"),
    "inside the last transaction": (jobs, "finish", "after"),
    "committed, not sent": (Deliverer, "wake", "before"),
}


PACS = {"name": "pacs", "host": "127.0.0.1", "port": 1, "ae_title": "PACS"}
HOLDING = {**PACS, "name": "tps", "hold": ["tilted"]}
TILTED = Phantom(
    orientation=(1.0, 0.0, 0.0, 0.0, 0.9659258262890683, -0.25881904510252074),
    step_direction=(0.0, 0.0, 1.0),
)


def _config(folder: Path, sha256: str) -> Config:
    return configuration(folder, sha256, destinations=[PACS, HOLDING])


def _killed_at(place: Any, name: str, when: str) -> None:
    original: Callable[..., Any] = getattr(place, name)

    def killing(*arguments: Any) -> None:
        if when == "after":
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, name, killing)


def _work(folder: Path, sha256: str, now: float, point: str | None) -> None:
    """A worker's whole life, in a process of its own."""
    if point is not None:
        _killed_at(*POINTS[point])
    config = _config(folder, sha256)
    engine = open_engine(config.storage.database)
    worker = Worker(config, engine, BoxSegmenter, lambda: now)  # type: ignore[arg-type]
    worker.recover()
    worker.step()
    worker.finish()
    worker.close()


def _release(folder: Path, sha256: str, killed: bool) -> None:
    """What `anatomynode jobs release` does, in a process of its own."""
    if killed:
        _killed_at(jobs, "release", "after")
    engine = open_engine(_config(folder, sha256).storage.database)
    story.release(engine, 1, lambda: RECEIVED_AT + 70.0, "tps")


def _run(folder: Path, sha256: str, now: float, point: str | None) -> int | None:
    return _ended(_work, folder, sha256, now, point)


def _ended(work: Callable[..., None], *arguments: Any) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    child.join(60)
    return child.exitcode


def _states(folder: Path, sha256: str) -> dict[str, DeliveryState]:
    engine = open_engine(_config(folder, sha256).storage.database)
    with reading(engine) as session:
        states = {one.destination: one.state for one in session.scalars(select(Delivery))}
    engine.dispose()
    return states


def _received(folder: Path) -> str:
    sha256 = write_package(folder / "packages")
    config = _config(folder, sha256)
    migrate.upgrade(config.storage.database)
    engine = open_engine(config.storage.database)
    receive(engine, config, TILTED, RECEIVED_AT)
    engine.dispose()
    return sha256


def _results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "results").glob("*.dcm")}


def test_killed_at_every_point_the_worker_leaves_one_job_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _run(whole, _received(whole), RECEIVED_AT + 2.0, None) == 0
    sha256 = _received(killed)
    for seconds, point in enumerate(POINTS, start=2):  # each restart is later than the one before
        assert _run(killed, sha256, RECEIVED_AT + seconds, point) == -signal.SIGKILL, point
    assert _run(killed, sha256, RECEIVED_AT + 60.0, None) == 0
    engine = open_engine(_config(killed, sha256).storage.database)
    with reading(engine) as session:
        job = session.scalars(select(Job)).one()
        assert (job.state, job.created_at, job.attempts) == (JobState.READY, RECEIVED_AT + 2.0, 5)
        assert session.scalar(select(func.count()).select_from(Delivery)) == 2
    engine.dispose()
    assert len(_results(whole)) == 1
    assert _results(killed) == _results(whole)
    held = {"pacs": DeliveryState.PENDING, "tps": DeliveryState.HELD}
    assert _states(killed, sha256) == held
    assert _ended(_release, killed, sha256, True) == -signal.SIGKILL
    assert _run(killed, sha256, RECEIVED_AT + 80.0, None) == 0
    assert _states(killed, sha256) == held, "half a release is none"
    assert _ended(_release, killed, sha256, False) == 0
    assert set(_states(killed, sha256).values()) == {DeliveryState.PENDING}
    assert _results(killed) == _results(whole)
