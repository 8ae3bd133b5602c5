"""Each result comes to each destination exactly once as an object, however often it is sent."""

import hashlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import Engine, select

from dicom_node import jobs, migrate, scu, stow
from dicom_node.config import Config, Destination, FolderDestination, Storage, WebDestination
from dicom_node.database import open_engine, reading, transaction
from dicom_node.deliverer import Deliverer
from dicom_node.delivery_figures import read_figures
from dicom_node.jobs import Kept, Model, Order, Result
from dicom_node.schema import Delivery, Job, Series
from dicom_node.stand_in_pacs import StandInPacs
from dicom_node.states import DeliveryState, JobState
from dicom_node.store_status import StoreKind, StoreOutcome
from tests import fault_pacs, web_service
from tests.fault_pacs import destination
from tests.instances import data_set_bytes, write_instance
from tests.tools import ROOT, free_port, needs, running, wait_until

MODEL = Model("anatomynet-hn", "a" * 64)
HOUR_S = 3600.0


class FakeClock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Node:
    """The part of a node that sends: a database, a results folder, and a deliverer stepped by hand."""

    config: Config
    engine: Engine
    clock: FakeClock
    deliverer: Deliverer

    def make_result(self, number: int = 1) -> int:
        """A READY job with its stored RT-STRUCT and deliveries, as the worker leaves it; its number."""
        self.config.storage.results.mkdir(exist_ok=True)
        file = write_instance(self.config.storage.results / f"{number}.dcm", f"2.25.{number}")
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        result = Result(
            Kept(file.name, sha256, f"2.25.{number}"),
            {"rois": [], "seconds": {}, "device": "cpu"},
            "5 structures",
        )
        now = self.clock()
        with transaction(self.engine) as session:
            series = Series(
                series_instance_uid=f"1.2.{number}",
                study_instance_uid="1.2",
                patient_key="p",
                accession_key="a",
                revision=1,
                first_instance_at=now,
                last_instance_at=now,
            )
            jobs.begin(session, series, now, "the first slice came")
            evidence = {"kind": "query", "instances": 1}
            (job,) = jobs.complete(session, series, evidence, "all here", [Order(MODEL)], now)
            jobs.start(session, job, now, "begun")
            names = [known.name for known in self.config.destinations]
            jobs.finish(session, job, result, names, now)
            return job.id

    def file(self, number: int = 1) -> Path:
        return self.config.storage.results / f"{number}.dcm"

    def deliveries(self, job_id: int = 1) -> dict[str, Delivery]:
        with reading(self.engine) as session:
            rows = select(Delivery).where(Delivery.job_id == job_id)
            return {delivery.destination: delivery for delivery in session.scalars(rows)}

    def job(self, job_id: int = 1) -> Job:
        with reading(self.engine) as session:
            return session.get_one(Job, job_id)

    def retry(self, job_id: int = 1) -> None:
        with transaction(self.engine) as session:
            jobs.retry(session, session.get_one(Job, job_id), self.clock())

    def pass_to_next_attempt(self, name: str = "archive") -> None:
        self.clock.now = max(self.clock.now, self.deliveries()[name].next_attempt_at)


@pytest.fixture
def node(tmp_path):
    """Makes a node with the destinations that the test names."""
    engines = []

    def make(*destinations: Destination, **changes) -> Node:
        settings = Config(peers=(), destinations=destinations, storage=Storage(folder=tmp_path / "node"))
        settings = settings.model_copy(update=changes)
        migrate.upgrade(settings.storage.database)
        engine = open_engine(settings.storage.database)
        engines.append(engine)
        clock = FakeClock()
        return Node(settings, engine, clock, Deliverer(settings, engine, clock, rng=Random(1)))

    yield make
    for engine in engines:
        engine.dispose()


# --- outcomes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state", "job_state"),
    [
        (0x0000, DeliveryState.STORED, JobState.SENT),
        (0xB000, DeliveryState.STORED, JobState.SENT),
        (0x0111, DeliveryState.STORED, JobState.SENT),
        (0xA700, DeliveryState.PENDING, JobState.READY),
        (0x9999, DeliveryState.PENDING, JobState.READY),
        (0xA900, DeliveryState.REFUSED, JobState.FAILED),
        (0xC000, DeliveryState.REFUSED, JobState.FAILED),
    ],
)
def test_the_status_on_the_wire_decides_the_delivery_and_the_job(node, status, state, job_state):
    with fault_pacs.answering(status) as port:
        sender = node(destination(port))
        sender.make_result()
        assert sender.deliverer.step() == 1
    delivery = sender.deliveries()["archive"]
    assert (delivery.state, delivery.last_status, delivery.attempts) == (state, status, 1)
    assert f"0x{status:04X}" in delivery.reason
    assert sender.job().state is job_state
    assert (delivery.stored_at is not None) == (state is DeliveryState.STORED)


FAULTS = {
    "abort": (fault_pacs.aborting, DeliveryState.PENDING, "no valid answer"),
    "line cut": (fault_pacs.dropping, DeliveryState.PENDING, "no valid answer"),
    "silence": (fault_pacs.silent_after_association, DeliveryState.PENDING, "no valid answer"),
    "absent": (fault_pacs.closed_port, DeliveryState.PENDING, "Connection refused"),
    "black hole": (fault_pacs.black_hole, DeliveryState.PENDING, "did not answer"),
    "busy": (lambda: fault_pacs.rejecting(2, 3, 1), DeliveryState.PENDING, "is congested"),
    "unknown to it": (lambda: fault_pacs.rejecting(1, 1, 3), DeliveryState.REFUSED, "calling AE title"),
    "no RT-STRUCT": (fault_pacs.without_rt_structure_sets, DeliveryState.REFUSED, "RT Structure Set Storage"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_leaves_the_delivery_in_its_state_with_its_reason(node, fault):
    archive, state, words = FAULTS[fault]
    with archive() as port:
        sender = node(destination(port))
        sender.make_result()
        sender.deliverer.step()
    delivery = sender.deliveries()["archive"]
    assert (delivery.state, delivery.last_status, delivery.attempts) == (state, None, 1)
    assert words in delivery.reason
    assert delivery.stored_at is None
    assert sender.job().state is (JobState.FAILED if state is DeliveryState.REFUSED else JobState.READY)


def test_one_that_refuses_fails_the_job_while_the_other_still_gets_it(node):
    with fault_pacs.answering(0xC000) as strict, fault_pacs.answering(0xA700, 0x0000) as slow:
        sender = node(destination(strict, "strict"), destination(slow, "slow"))
        sender.make_result()
        sender.deliverer.step()
        assert sender.job().state is JobState.FAILED
        sender.pass_to_next_attempt("slow")
        sender.deliverer.step()
    assert sender.deliveries()["slow"].state is DeliveryState.STORED


def test_a_folder_is_a_destination_like_the_others_away_full_and_back(node, tmp_path, monkeypatch):
    share = tmp_path / "share"
    sender = node(FolderDestination(name="share", kind="folder", folder=share))
    sender.make_result()
    sender.deliverer.step()
    assert sender.deliveries()["share"].state is DeliveryState.PENDING
    assert "is the share mounted?" in sender.deliveries()["share"].reason
    share.mkdir()
    sender.pass_to_next_attempt("share")
    sender.deliverer.step()
    assert (share / "2.25.1.dcm").read_bytes() == sender.file().read_bytes()
    assert (sender.deliveries()["share"].state, sender.job().state) == (DeliveryState.STORED, JobState.SENT)


def test_a_dicomweb_service_is_a_destination_like_the_others_away_and_refusing(node):
    port = free_port()
    url = f"http://127.0.0.1:{port}/dicom-web"
    sender = node(WebDestination(name="web", kind="dicomweb", url=url, response_timeout_s=2.0))
    sender.make_result()
    sender.deliverer.step()
    assert sender.deliveries()["web"].state is DeliveryState.PENDING
    assert "does not take connections" in sender.deliveries()["web"].reason
    not_taken = web_service.Answer(409, web_service.module(stow.FAILED, "2.25.1", t00081197=0x0122))
    with web_service.serving(not_taken, port):
        sender.pass_to_next_attempt("web")
        sender.deliverer.step()
    refused = sender.deliveries()["web"]
    assert (refused.state, refused.last_status) == (DeliveryState.REFUSED, 0x0122)
    with web_service.serving(web_service.Answer(200, web_service.module(stow.REFERENCED, "2.25.1")), port):
        sender.retry()
        sender.deliverer.step()
    assert (sender.deliveries()["web"].state, sender.job().state) == (DeliveryState.STORED, JobState.SENT)


# --- retries -----------------------------------------------------------------------------------


def test_eight_hours_of_refusal_are_bridged_with_the_same_bytes_and_an_alert_after_one(node):
    received = fault_pacs.Received()
    busy_for = 60
    with fault_pacs.answering(*[0xA700] * busy_for, 0x0000, received=received) as port:
        sender = node(destination(port))
        sender.make_result()
        began, alerts, gaps = sender.clock(), [], []
        while sender.deliveries()["archive"].state is DeliveryState.PENDING:
            assert sender.deliverer.step() == 1
            assert sender.deliverer.step() == 0, "it is not due again at once"
            with reading(sender.engine) as session:
                (figures,) = read_figures(session, ["archive"], sender.config.retry, sender.clock())
            alerts.append((sender.clock() - began, figures.needs_a_person))
            gaps.append(sender.deliveries()["archive"].next_attempt_at - sender.clock())
            sender.pass_to_next_attempt()
    assert sender.clock() - began > 8 * HOUR_S
    assert max(gaps) <= sender.config.retry.max_delay_s
    assert all(alert == (waited_s >= HOUR_S) for waited_s, alert in alerts[:-1])
    assert not alerts[-1][1], "no alert once it is stored"
    assert len(received.instances) == busy_for + 1
    assert set(received.instances) == {("2.25.1", data_set_bytes(sender.file()))}
    assert sender.job().state is JobState.SENT


def test_what_waited_for_an_absent_archive_goes_out_as_soon_as_it_is_back(node):
    port = free_port()
    sender = node(destination(port))
    for number in (1, 2, 3):
        sender.make_result(number)
    for _ in range(20):
        sender.deliverer.step()
        sender.clock.now += 400.0
    with fault_pacs.answering(0x0000, port=port):
        while sender.deliverer.step() == 0:
            sender.clock.now += 1.0
        sender.deliverer.step()
    states = {number: sender.deliveries(number)["archive"].state for number in (1, 2, 3)}
    assert set(states.values()) == {DeliveryState.STORED}


def test_a_clock_that_is_put_back_by_years_delays_nothing_by_years(node):
    with fault_pacs.answering(0x0000) as port:
        sender = node(destination(port))
        sender.make_result()
        sender.clock.now -= 10_000 * HOUR_S
        assert sender.deliverer.step() == 1
    assert sender.deliveries()["archive"].state is DeliveryState.STORED


def test_an_object_on_which_the_archive_always_fails_starves_no_other(node):
    def on_store(event):
        return 0x0110 if event.request.AffectedSOPInstanceUID == "2.25.1" else 0x0000

    with fault_pacs.serving(on_store) as port:
        sender = node(destination(port))
        sender.make_result(1)
        sender.make_result(2)
        sender.deliverer.step()
    assert sender.deliveries(1)["archive"].state is DeliveryState.PENDING
    assert sender.deliveries(2)["archive"].state is DeliveryState.STORED


def test_a_destination_that_swallows_everything_holds_up_no_other(node, tmp_path):
    with StandInPacs(tmp_path / "archive") as archive, fault_pacs.black_hole() as hole:
        slow = destination(hole, "slow", response_timeout_s=5.0)
        sender = node(slow, destination(archive.port, "quick"))
        for number in (1, 2, 3):
            sender.make_result(number)
        began = time.monotonic()
        sender.deliverer.start()
        try:
            wait_until(lambda: len(archive.instances()) == 3, 4.0, "three objects in the quick archive")
            took_s = time.monotonic() - began
            sender.make_result(4)
            sender.deliverer.wake()
            wait_until(lambda: len(archive.instances()) == 4, 4.0, "the fourth")
        finally:
            sender.deliverer.stop(grace_s=0.0)
    assert took_s < 5.0, "the quick one did not wait for the slow one's timeout"
    assert sender.deliveries(1)["slow"].state is DeliveryState.PENDING


# --- the bytes ---------------------------------------------------------------------------------


def test_a_result_that_changed_on_the_disk_is_not_sent_and_a_retry_contours_again(node, tmp_path):
    with StandInPacs(tmp_path / "archive") as archive:
        sender = node(destination(archive.port))
        sender.make_result()
        sender.file().write_bytes(sender.file().read_bytes()[:-2] + b"\0\0")
        sender.deliverer.step()
        assert archive.instances() == ()
    delivery = sender.deliveries()["archive"]
    assert (delivery.state, sender.job().state) == (DeliveryState.REFUSED, JobState.FAILED)
    assert "changed on the disk" in delivery.reason
    sender.retry()
    assert sender.job().state is JobState.QUEUED


def test_a_result_that_is_missing_is_refused_with_that_reason(node):
    with fault_pacs.answering(0x0000) as port:
        sender = node(destination(port, "one"), destination(port, "two"))
        sender.make_result()
        sender.file().unlink()
        sender.deliverer.step()
    assert {d.state for d in sender.deliveries().values()} == {DeliveryState.REFUSED}
    assert all("gone from the results folder" in d.reason for d in sender.deliveries().values())


def test_a_delivery_whose_destination_was_taken_from_the_configuration_ends_with_that_reason(node):
    sender = node(destination(1, "former"))
    sender.make_result()
    later = node(destination(1, "present"))
    later.deliverer.step()
    former = later.deliveries()["former"]
    assert former.state is DeliveryState.REFUSED
    assert "no destination former" in former.reason
    assert later.job().state is JobState.FAILED


def test_a_delivery_that_is_cancelled_while_it_is_on_its_way_stays_cancelled_and_says_so(node, tmp_path):
    sender = node(destination(1))
    sender.make_result()

    @contextmanager
    def cancelled_meanwhile(target, calling, file):
        with transaction(sender.engine) as session:
            jobs.cancel(session, session.get_one(Job, 1), sender.clock())
        yield StoreOutcome(StoreKind.STORED, 0x0000, "stored")

    Deliverer(sender.config, sender.engine, sender.clock, store=cancelled_meanwhile).step()
    delivery = sender.deliveries()["archive"]
    assert (delivery.state, delivery.last_status) == (DeliveryState.CANCELLED, 0x0000)
    assert delivery.reason.endswith("meanwhile it was on its way: stored")


def test_a_bug_while_sending_fails_the_job_at_once_with_its_traceback(node):
    sender = node(destination(1))
    sender.make_result()

    def broken(target, calling, file):
        raise KeyError("PatientName^Doe")

    Deliverer(sender.config, sender.engine, sender.clock, store=broken).step()
    job = sender.job()
    assert job.state is JobState.FAILED
    assert "KeyError" in job.traceback
    assert "Doe" not in job.traceback + sender.deliveries()["archive"].reason


KILLED_AFTER_SUCCESS = """
import os, signal, sys
from pathlib import Path
from dicom_node import scu
from dicom_node.config import Config
from dicom_node.database import open_engine
from dicom_node.deliverer import Deliverer

def store(target, calling, file):
    with scu.storing(target, calling, file) as outcome:
        assert outcome.status == 0x0000
        os.kill(os.getpid(), signal.SIGKILL)

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
Deliverer(config, open_engine(config.storage.database), lambda: 1_000_001.0, store=store).step()
"""


def test_kill_9_between_success_and_commit_makes_a_harmless_resend(node, tmp_path):
    with StandInPacs(tmp_path / "archive") as archive:
        sender = node(destination(archive.port))
        sender.make_result()
        config = tmp_path / "config.json"
        config.write_text(sender.config.model_dump_json())
        command = [sys.executable, "-c", KILLED_AFTER_SUCCESS, str(config)]
        killed = subprocess.run(command, cwd=ROOT, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(archive.instances()) == 1
        assert sender.deliveries()["archive"].state is DeliveryState.PENDING
        sender.clock.now += 2.0
        sender.deliverer.step()
        (kept,) = archive.instances()
    assert archive.duplicates == 1
    assert data_set_bytes(kept.file) == data_set_bytes(sender.file())
    assert sender.deliveries()["archive"].state is DeliveryState.STORED
    assert sender.job().state is JobState.SENT


# --- figures -----------------------------------------------------------------------------------


def test_the_figures_of_a_destination_are_read_from_the_rows(node):
    with fault_pacs.answering(0x0000, 0xA700) as port:
        sender = node(destination(port))
        sender.make_result(1)
        sender.make_result(2)
        stored_at = sender.clock()
        sender.deliverer.step()
        for _ in range(2):
            sender.clock.now += 100.0
            sender.deliverer.step()
    with reading(sender.engine) as session:
        (figures,) = read_figures(session, ["archive"], sender.config.retry, sender.clock())
    assert (figures.pending, figures.refused, figures.consecutive_failures) == (1, 0, 3)
    assert (figures.oldest_pending_s, figures.last_success_at) == (200.0, stored_at)


def test_a_destination_without_deliveries_has_quiet_figures(node):
    sender = node(destination(1))
    with reading(sender.engine) as session:
        (figures,) = read_figures(session, ["archive"], sender.config.retry, sender.clock())
    assert (figures.pending, figures.oldest_pending_s, figures.last_success_at) == (0, 0.0, None)
    assert not figures.needs_a_person


# --- real archives -----------------------------------------------------------------------------


def orthanc(folder: Path) -> tuple[Sequence[str | Path], int, int]:
    """The command that starts an Orthanc on two free ports of loopback: command, DICOM port, HTTP port."""
    dicom_port, http_port = free_port(), free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": "ARCHIVE",
        "DicomCheckCalledAet": True,
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "Plugins": [],
    }
    folder.mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))
    return ["Orthanc", folder / "orthanc.json"], dicom_port, http_port


def ask(http_port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}{path}", timeout=10) as answer:
        return answer.read()


@needs("Orthanc")
def test_orthanc_keeps_exactly_one_instance_of_the_very_bytes_however_often_it_is_sent(node, tmp_path):
    command, dicom_port, http_port = orthanc(tmp_path / "orthanc")
    with running(command, tmp_path / "log", http_port):
        sender = node(destination(dicom_port, response_timeout_s=10.0))
        sender.make_result()
        sender.deliverer.step()
        assert sender.job().state is JobState.SENT
        with transaction(sender.engine) as session:
            jobs.deliver_again(session, session.get_one(Series, 1), "pushed again", sender.clock())
        sender.deliverer.step()
        assert sender.job().state is JobState.SENT
        (instance,) = json.loads(ask(http_port, "/instances"))
        kept = tmp_path / "kept.dcm"
        kept.write_bytes(ask(http_port, f"/instances/{instance}/file"))
        count = scu.count_instances(sender.config.destinations[0], "NODE", "2.25.1", "2.25.2")
    assert data_set_bytes(kept) == data_set_bytes(sender.file())
    assert count == 1
