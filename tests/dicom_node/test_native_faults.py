"""A network's library that hangs or dies costs its own job, after a few tries, and no other."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from dicom_node import migrate, notify, supervisor
from dicom_node.config import Config
from dicom_node.database import open_engine, reading
from dicom_node.metrics import NodeCollector, exposition
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.schema import Delivery, Job
from dicom_node.states import JobState
from tests import native_faults
from tests.node_fixtures import configuration, receive, write_package
from tests.phantoms import Phantom
from tests.tools import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and sockets of Linux")

POISONED = Phantom(offsets_mm=tuple(3.0 * index for index in range(native_faults.POISONED_SLICES)))
HARMLESS = Phantom(series="2", study="2")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("fault", "tries"), [*zip(native_faults.FAULTS, (2, 1, 1), strict=True)])
def test_a_fault_in_native_code_ends_its_own_job_after_a_few_tries_and_the_next_series_is_contoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, tries: int
) -> None:
    monkeypatch.setattr(supervisor, "WATCHDOG_S", 4.0)
    monkeypatch.setattr(supervisor, "restart_delay_s", lambda _crashes: 0.1)
    sha256 = write_package(tmp_path / "packages")
    config = configuration(tmp_path, sha256)
    migrate.upgrade(config.storage.database)
    engine = open_engine(config.storage.database)
    for phantom in (POISONED, HARMLESS):
        receive(engine, config, phantom, time.time() - 60.0)

    stop = threading.Event()
    command = [sys.executable, "-m", "tests.native_faults", str(tmp_path), sha256, fault, str(tries)]
    keeper = threading.Thread(
        target=supervisor.Supervisor({"work": command}, notify.Notifier({})).run, args=(stop,)
    )
    keeper.start()
    try:
        wait_until(lambda: _states(engine) == [JobState.FAILED, JobState.READY], 150, "both ends")
    finally:
        stop.set()
        keeper.join(30)

    with reading(engine) as session:
        poisoned = session.get_one(Job, 1)
        assert list(session.scalars(select(Delivery.job_id))) == [2], "nothing of the first is to be sent"
    assert poisoned.reason_code == "worker_crashed"
    assert str(poisoned.reason).startswith(f"the worker ended {tries} times while it contoured this job")
    assert 'jobs_by_reason{reason="worker_crashed",state="FAILED"} 1.0' in _shown(engine, config)
    engine.dispose()


def _states(engine: Engine) -> list[JobState]:
    with reading(engine) as session:
        return list(session.scalars(select(Job.state).order_by(Job.id)))


def _shown(engine: Engine, config: Config) -> str:
    return exposition(NodeCollector(engine, config, ReceptionFigures()))().decode()
