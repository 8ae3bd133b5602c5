"""kill -9 at any point of a job leaves one job and one result, the same bytes as without it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from dicom_node import jobs, migrate
from dicom_node import worker as worker_module
from dicom_node.database import open_engine, reading
from dicom_node.deliverer import Deliverer
from dicom_node.results import Results
from dicom_node.schema import Delivery, Job
from dicom_node.states import JobState
from dicom_node.worker import Worker
from tests.node_fixtures import BoxSegmenter, configuration, receive, write_package
from tests.phantoms import Phantom

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a worker and kills it")

RECEIVED_AT = 1000.0
POINTS: dict[str, tuple[Any, str, str]] = {
    # where the worker is killed: before or after this function of its
    "the job has begun": (worker_module.contouring, "contour", "before"),
    "contoured, nothing written": (Results, "keep", "before"),
    "written, not committed": (Results, "keep", "after"),
    "inside the last transaction": (jobs, "finish", "after"),
    "committed, not sent": (Deliverer, "wake", "before"),
}


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
    config = configuration(folder, sha256)
    engine = open_engine(config.storage.database)
    worker = Worker(config, engine, BoxSegmenter, lambda: now)  # type: ignore[arg-type]
    worker.recover()
    worker.step()
    worker.finish()
    worker.close()


def _run(folder: Path, sha256: str, now: float, point: str | None) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=_work, args=(folder, sha256, now, point))
    child.start()
    child.join(60)
    return child.exitcode


def _received(folder: Path) -> str:
    sha256 = write_package(folder / "packages")
    config = configuration(folder, sha256)
    migrate.upgrade(config.storage.database)
    engine = open_engine(config.storage.database)
    receive(engine, config, Phantom(), RECEIVED_AT)
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
    engine = open_engine(configuration(killed, sha256).storage.database)
    with reading(engine) as session:
        job = session.scalars(select(Job)).one()
        assert (job.state, job.created_at, job.attempts) == (JobState.READY, RECEIVED_AT + 2.0, 5)
        assert session.scalar(select(func.count()).select_from(Delivery)) == 1
    engine.dispose()
    assert len(_results(whole)) == 1
    assert _results(killed) == _results(whole)
