"""The worker brings every received series to its end, once, whatever happens in between."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from dicom_node import jobs, rt_struct
from dicom_node import worker as worker_module
from dicom_node.config import Config
from dicom_node.contouring import ForwardPassError
from dicom_node.database import reading, transaction
from dicom_node.errors import PermanentError, TransientError
from dicom_node.jobs import Model, Order
from dicom_node.metrics import NodeCollector, exposition
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.results import Results
from dicom_node.schema import Delivery, Job, Series, WorkerStatus
from dicom_node.states import DeliveryState, JobState, SeriesState
from dicom_node.worker_figures import Heartbeat
from inference.errors import DeviceLostError, InferenceFailedError
from inference.postprocessing import absent
from tests.small_device import exhausted
from tests.worker_node import PHANTOM, Node, make_node

SECRET = "Doe^Jane"

__all__ = ["make_node"]  # a fixture


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


def test_a_released_series_is_contoured_after_its_grace_and_its_result_is_there_to_be_sent(
    node: Node,
) -> None:
    worker = node.worker()
    node.receive()
    assert node.step(worker) == pytest.approx(1002.0)
    assert node.jobs() == []
    node.now = 1002.0
    node.step(worker)
    job, series, (delivery,) = node.job(), node.series(), node.deliveries()
    assert (job.state, job.created_at, series.state) == (JobState.READY, 1002.0, SeriesState.COMPLETE)
    assert (series.evidence or {})["kind"] == "association"
    assert (delivery.destination, delivery.state) == ("pacs", DeliveryState.PENDING)
    assert node.result()[128:132] == b"DICM"
    assert (job.report or {})["rois"][0]["name"] == "Brainstem"
    assert {"decode", "forward", "rt_struct", "check"} <= (job.report or {})["seconds"].keys()


def test_slices_are_decoded_while_they_arrive(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = node.worker()
    for index in range(24):
        node.receive(which=[index], outcome=None)
        node.step(worker)
    read: list[Path] = []
    monkeypatch.setattr("dicom_node.decoding.read_slice", read.append)
    node.now += 31.0
    node.step(worker)
    assert node.job().state is JobState.READY
    assert read == []


def test_the_same_job_gives_the_same_bytes_after_a_crash_between_result_and_commit(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PulledPlugError(BaseException):
        pass

    def pull(*_: Any) -> None:
        raise PulledPlugError

    node.receive()
    node.now += 2.0
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finish", pull)
        with pytest.raises(PulledPlugError):
            node.step(node.worker())
    assert node.job().state is JobState.RUNNING
    (before,) = node.config.storage.results.iterdir()
    node.now += 100.0
    restarted = node.worker()
    restarted.recover()
    assert node.job().state is JobState.QUEUED
    node.step(restarted)
    assert (node.job().state, node.job().attempts) == (JobState.READY, 2)
    (after,) = node.config.storage.results.iterdir()
    assert after == before


def test_at_the_start_results_that_no_job_names_are_removed_and_nothing_else(node: Node) -> None:
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    folder, named = node.config.storage.results, str(node.job().rt_struct_file)
    for name in (f"{'0' * 64}.dcm", ".0123456789abcdef.part", "notes.txt"):
        (folder / name).write_bytes(b"left")
    node.worker().recover()
    assert {path.name for path in folder.iterdir()} == {named, "notes.txt"}


@pytest.mark.parametrize(
    ("problem", "state", "code"),
    [
        (TransientError("the device is busy"), JobState.QUEUED, "transient"),
        (PermanentError("never"), JobState.FAILED, "permanent"),
        (ValueError(SECRET), JobState.FAILED, "bug"),
        (MemoryError(), JobState.FAILED, "out_of_memory"),
        (InferenceFailedError("an illegal memory access"), JobState.QUEUED, "forward_pass"),
    ],
)
def test_the_class_of_an_error_decides_the_fate_of_the_job(
    node: Node, problem: Exception, state: JobState, code: str
) -> None:
    node.problem = problem
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    job = node.job()
    assert (job.state, job.reason_code) == (state, code)
    assert SECRET not in f"{job.reason}{job.traceback}"
    if state is JobState.FAILED:
        assert "segment" in (job.traceback or "")


def test_a_transient_failure_is_tried_again_after_its_delay(node: Node) -> None:
    node.problem = TransientError("the device is busy")
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert node.step(worker) == pytest.approx(1007.0)
    assert node.job().attempts == 1
    node.segmenters[0].problem = None
    node.now = 1007.0
    node.step(worker)
    assert node.job().state is JobState.READY


def test_a_network_that_keeps_failing_fails_the_job_with_what_to_do_and_a_retry_counts_anew(
    node: Node,
) -> None:
    node.problem = exhausted()
    worker = node.worker()
    node.receive()
    ends = []
    for _ in range(worker_module.MAX_FORWARD_PASSES):
        node.now += 600.0
        node.step(worker)
        ends.append((node.job().state, node.job().reason_code))
    assert ends == [(JobState.QUEUED, "device_memory")] * 7 + [(JobState.FAILED, "device_memory")]
    assert node.deliveries() == []
    figures = exposition(NodeCollector(node.engine, node.config, ReceptionFigures(), node.clock))()
    assert b'jobs_by_reason{reason="device_memory",state="FAILED"} 1.0' in figures
    job = node.job()
    assert "failed on cpu for want of memory" in (job.reason or "")
    assert "(8 times): see that nothing else uses the device" in (job.reason or "")
    assert f"jobs retry {job.id}" in (job.reason or "")
    with transaction(node.engine) as session:
        jobs.retry(session, session.get_one(Job, job.id), node.now)
    node.step(worker)
    assert node.job().state is JobState.QUEUED


def test_a_device_that_is_lost_to_the_process_ends_it_and_a_new_one_contours_the_job(node: Node) -> None:
    node.problem = DeviceLostError("CUDA failure 700: an illegal memory access")
    worker = node.worker()
    node.receive()
    node.now += 2.0
    with pytest.raises(ForwardPassError, match="illegal memory access"):
        node.step(worker)
    assert (node.job().state, node.job().reason_code) == (JobState.QUEUED, "device_lost")
    node.problem = None
    node.now += 5.0
    again = node.worker()
    again.recover()
    node.step(again)
    assert node.job().state is JobState.READY


def test_a_full_disk_postpones_the_job(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    worker = node.worker()
    node.receive()
    node.now += 2.0
    with monkeypatch.context() as patch:
        patch.setattr(Results, "keep", full)
        node.step(worker)
    assert node.job().state is JobState.QUEUED
    assert "No space left" in (node.job().reason or "")
    node.now += 5.0
    node.step(worker)
    assert node.job().state is JobState.READY


def test_a_series_that_is_not_ours_to_contour_is_rejected_with_its_reason(node: Node) -> None:
    worker = node.worker()
    node.receive(which=[*range(9), *range(10, 24)])
    node.now += 31.0
    node.step(worker)
    job = node.job()
    assert (job.state, job.reason_code) == (JobState.REJECTED, "missing_slice")
    assert node.segmenters[0].runs == 0


def test_two_patients_under_one_series_uid_are_rejected_by_what_differs_and_nothing_is_sent(
    node: Node,
) -> None:
    worker = node.worker()
    node.receive(which=range(12))
    node.receive(PHANTOM.but(overrides={"PatientID": SECRET}), which=range(12, 24))
    node.now += 31.0
    node.step(worker)
    job = node.job()
    assert (job.state, job.reason_code) == (JobState.REJECTED, "mixed_series")
    assert "2 different values of PatientID" in (job.reason or "")
    assert SECRET not in (job.reason or "")
    assert (node.deliveries(), node.segmenters[0].runs) == ([], 0)
    figures = exposition(NodeCollector(node.engine, node.config, ReceptionFigures(), node.clock))()
    assert b'jobs_by_reason{reason="mixed_series",state="REJECTED"} 1.0' in figures


def test_an_unapproved_model_sends_nothing_and_says_what_to_do(make_node: Callable[..., Node]) -> None:
    node = make_node(approved=False)
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    job = node.job()
    assert (job.state, job.reason_code) == (JobState.HELD, "model_not_approved")
    assert job.model_sha256 in (job.reason or "")
    assert f"jobs release {job.id}" in (job.reason or "")
    assert (node.segmenters[0].runs, node.deliveries()) == (0, [])
    with transaction(node.engine) as session:
        jobs.release(session, session.get_one(Job, job.id), node.now)
    approved = {**node.config.model.model_dump(), "approved_sha256": job.model_sha256}
    node.config = Config.model_validate({**node.config.model_dump(), "model": approved})
    node.step(node.worker())
    assert node.job().state is JobState.READY


def test_what_review_holds_waits_with_its_reason_and_goes_out_once_it_is_released(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(review={"hold": ["out_of_place"]})
    worker = node.worker()
    node.segmenters[0].flags = ("in_pieces", "out_of_place")
    node.receive()
    node.now += 2.0
    node.step(worker)
    job = node.job()
    assert (job.state, job.reason_code) == (JobState.HELD, "held_for_review")
    assert "Brainstem: out of place;" in (job.reason or "")
    assert f"jobs release {job.id}" in (job.reason or "")
    assert (job.report or {})["rois"][0]["flags"] == ["in_pieces", "out_of_place"]
    assert (node.deliveries(), list(node.config.storage.results.iterdir())) == ([], [])
    with transaction(node.engine) as session:
        jobs.release(session, session.get_one(Job, job.id), node.now)
    node.step(worker)
    assert node.job().state is JobState.READY
    assert [delivery.state for delivery in node.deliveries()] == [DeliveryState.PENDING]


def test_a_destination_holds_for_itself_what_the_node_does_not_hold_for_all(
    make_node: Callable[..., Node],
) -> None:
    pacs = {"name": "pacs", "host": "127.0.0.1", "port": 9, "ae_title": "ARCHIVE"}
    tps = {**pacs, "name": "tps", "hold": ["in_pieces", "out_of_place"]}
    node = make_node(review={"hold": ["in_pieces"]}, destinations=[pacs, tps])
    worker = node.worker()
    node.segmenters[0].flags = ("in_pieces",)
    node.receive()
    node.now += 2.0
    node.step(worker)
    with transaction(node.engine) as session:
        jobs.release(session, session.get_one(Job, 1), node.now)
    node.segmenters[0].flags = ("in_pieces", "out_of_place")
    node.step(worker)
    assert [(one.destination, one.state) for one in node.deliveries()] == [
        ("pacs", DeliveryState.PENDING),
        ("tps", DeliveryState.HELD),
    ]
    assert "Brainstem: out of place;" in (node.deliveries()[1].reason or "")
    worker = node.worker()  # the first one died
    worker.recover()
    node.step(worker)
    held = node.deliveries()[1]
    assert (held.state, node.job().attempts) == (DeliveryState.HELD, 2)
    assert (node.config.storage.results / str(held.rt_struct_file)).exists()


def test_what_review_does_not_name_goes_out_with_its_flags(make_node: Callable[..., Node]) -> None:
    node = make_node(review={"hold": ["low_confidence"], "leave_out": ["unequal_sides"]})
    worker = node.worker()
    node.segmenters[0].flags = ("out_of_place",)
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert node.job().state is JobState.READY
    written = dcmread(node.config.storage.results / str(node.job().rt_struct_file))
    assert "out_of_place" in written.RTROIObservationsSequence[0].ROIObservationDescription


def test_a_series_of_which_review_leaves_nothing_is_rejected(make_node: Callable[..., Node]) -> None:
    node = make_node(review={"leave_out": ["out_of_place"]})
    worker = node.worker()
    node.segmenters[0].flags = ("out_of_place",)
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert (node.job().state, node.job().reason_code) == (JobState.REJECTED, "nothing_found")
    assert "Brainstem: out_of_place" in (node.job().reason or "")


def test_late_slices_during_the_run_drop_its_outcome_and_all_are_contoured(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = node.worker()
    node.receive(which=range(20))
    node.now += 2.0
    segment = worker_module.contouring.segment

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        node.receive(which=range(20, 24))
        return segment(*arguments)

    monkeypatch.setattr(worker_module.contouring, "segment", meanwhile)
    node.step(worker)
    assert (node.job().state, node.series().state) == (JobState.QUEUED, SeriesState.RECEIVING)
    assert node.deliveries() == []
    node.now += 30.0
    node.step(worker)
    assert (node.job().state, node.job().revision) == (JobState.READY, 1)
    assert (node.series().evidence or {})["instances"] == 24


@dataclass
class Gate:
    """Holds contouring up until it is opened, and knows how often something came to it."""

    opened: threading.Event = field(default_factory=threading.Event)
    reached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait(self) -> None:
        self.reached.release()
        assert self.opened.wait(30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, segment = Gate(), worker_module.contouring.segment

    def held_up(*arguments: Any) -> Any:
        gate.wait()
        return segment(*arguments)

    monkeypatch.setattr(worker_module.contouring, "segment", held_up)
    yield gate
    gate.opened.set()


def test_while_a_job_runs_other_series_are_decoded_and_queued_and_none_runs_beside_it(
    node: Node, gate: Gate
) -> None:
    worker = node.worker()
    node.receive()
    node.now += 2.0
    worker.step()
    assert gate.reached.acquire(timeout=30)
    node.receive(PHANTOM.but(series="2", study="2"), which=range(23), outcome=None)
    worker.step()
    assert (worker._decoder.open_series, len(node.jobs())) == (1, 1)
    node.receive(PHANTOM.but(series="2", study="2"), which=[23])
    node.now += 30.0
    worker.step()
    worker.step()
    assert [job.state for job in node.jobs()] == [JobState.RUNNING, JobState.QUEUED]
    gate.opened.set()
    worker.finish()
    node.step(worker)
    assert [(job.state, job.attempts) for job in node.jobs()] == [(JobState.READY, 1)] * 2
    assert node.segmenters[0].runs == 2


def test_late_slices_overtake_the_running_job_at_once_and_it_runs_again_only_after_its_end(
    node: Node, gate: Gate
) -> None:
    worker = node.worker()
    node.receive(which=range(20))
    node.now += 2.0
    worker.step()
    assert gate.reached.acquire(timeout=30)
    node.receive(which=range(20, 24))
    worker.step()
    assert (node.job().state, node.series().state) == (JobState.QUEUED, SeriesState.RECEIVING)
    node.now += 30.0
    worker.step()
    worker.step()
    assert (node.job().state, node.series().state) == (JobState.QUEUED, SeriesState.COMPLETE)
    assert not gate.reached.acquire(blocking=False)
    gate.opened.set()
    worker.finish()
    assert (node.job().state, node.deliveries()) == (JobState.QUEUED, [])
    assert not [*node.config.storage.results.iterdir()]  # nor does the dropped outcome stay
    node.step(worker)
    assert (node.job().state, node.job().attempts) == (JobState.READY, 2)
    assert (node.series().evidence or {})["instances"] == 24


def test_an_outcome_that_the_database_cannot_take_now_is_recorded_later(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OperationalError("COMMIT", None, Exception("database or disk is full"))

    worker = node.worker()
    node.receive()
    node.now += 2.0
    worker.step()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finish", full)
        with pytest.raises(OperationalError):
            worker.finish()
    assert node.job().state is JobState.RUNNING
    worker.finish()
    assert (node.job().state, node.segmenters[0].runs) == (JobState.READY, 1)


def test_late_slices_after_the_end_make_a_revision_that_names_its_predecessor(node: Node) -> None:
    worker = node.worker()
    node.receive(which=range(20))
    node.now += 2.0
    node.step(worker)
    node.store_all()
    node.receive(which=range(20, 24))
    node.step(worker)
    assert node.series().revision == 2
    node.now += 30.0
    node.step(worker)
    first, second = node.jobs()
    assert (first.state, second.state) == (JobState.SENT, JobState.READY)
    assert second.predecessor_sop_instance_uid == first.sop_instance_uid != second.sop_instance_uid


def test_the_same_slices_pushed_again_send_the_stored_result_once(node: Node) -> None:
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    node.store_all()
    before = node.result()
    node.now += 100.0
    node.receive()
    node.step(worker)
    assert node.job().state is JobState.SENT
    node.now += 2.0
    node.step(worker)
    node.step(worker)
    assert node.job().state is JobState.READY
    assert [delivery.state for delivery in node.deliveries()] == [DeliveryState.PENDING]
    node.store_all()
    node.step(worker)
    assert node.job().state is JobState.SENT
    assert (node.result(), node.segmenters[0].runs) == (before, 1)


def test_of_two_reconstructions_of_one_scan_only_the_better_is_contoured(node: Node) -> None:
    worker = node.worker()
    sharp = PHANTOM.but(series="2", overrides={"ConvolutionKernel": "B70f", "SeriesDescription": "Bone 3.0"})
    node.receive(sharp)
    node.receive(outcome=None)  # still on its way
    node.now += 2.0
    node.step(worker)
    assert [job.state for job in node.jobs()] == [JobState.QUEUED]  # waits for the sibling
    node.now += 28.0
    node.step(worker)
    node.step(worker)
    by_state = {job.state: job for job in node.jobs()}
    assert by_state.keys() == {JobState.IGNORED, JobState.READY}
    assert "soft-tissue kernel" in (by_state[JobState.IGNORED].reason or "")
    with transaction(node.engine) as session:
        jobs.retry(session, session.get_one(Job, by_state[JobState.IGNORED].id), node.now)
    node.step(worker)
    assert [job.state for job in node.jobs()] == [JobState.READY, JobState.READY]  # a person's word counts


def test_a_localizer_beside_the_series_is_not_waited_for(node: Node) -> None:
    worker = node.worker()
    node.receive(PHANTOM.but(series="9", offsets_mm=(0.0, 3.0)))
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert [job.state for job in node.jobs()] == [JobState.READY]


def test_a_spool_file_that_somebody_removed_fails_the_job(node: Node) -> None:
    worker = node.worker()
    node.receive()
    next(node.config.storage.spool.iterdir()).unlink()
    node.now += 2.0
    node.step(worker)
    assert node.job().state is JobState.FAILED
    assert "not in the spool" in (node.job().reason or "")


def test_the_source_is_asked_how_many_there_are(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.scu.count_instances", lambda *_: 24)
    node = make_node(series={"min_slices": 10, "query_source": "pacs"})
    worker = node.worker()
    node.receive(outcome="aborted")
    node.now += 2.0
    for _ in range(200):
        node.now += 0.01
        node.step(worker)
        if node.jobs():
            break
    assert (node.series().evidence or {})["kind"] == "query"


def test_a_job_of_another_model_gives_way_to_one_of_this(node: Node) -> None:
    node.receive()
    node.now += 2.0
    worker = node.worker()
    with transaction(node.engine) as session:
        series = session.scalars(select(Series)).one()
        evidence = {"kind": "quiet", "instances": 24}
        jobs.complete(session, series, evidence, "quiet", [Order(Model("old", "f" * 64))], node.now)
    node.step(worker)
    node.step(worker)
    assert [job.state for job in node.jobs()] == [JobState.CANCELLED, JobState.READY]


def test_the_heartbeat_tells_the_figures_and_stops_when_the_worker_hangs(node: Node) -> None:
    worker = node.worker()
    node.step(worker)
    beats: list[float] = []
    heart = Heartbeat(node.engine, worker._figures, node.clock, lambda: beats.append(node.now))
    heart.beat()
    with reading(node.engine) as session:
        status = session.get_one(WorkerStatus, 1)
    assert status.heartbeat_at == node.now
    assert status.figures["device"] == "cpu"
    assert status.figures["model"]["approved"] is True
    assert status.figures["peak_memory_bytes"] > 10_000_000
    node.now += 61.0
    heart.beat()
    assert beats == [1000.0]
    worker._figures.job_begins(1)
    for now in (node.now, node.now + 1799.0, node.now + 1800.0):  # the loop goes on, the job does not
        node.now = now
        worker._figures.progress()
        heart.beat()
    assert beats == [1000.0, 1061.0, 2860.0]


def test_the_running_worker_sees_what_is_committed_and_ends_when_told(make_node: Callable[..., Node]) -> None:
    node = make_node(series={"min_slices": 10, "grace_s": 0.0})
    worker, stop, ready = node.worker(), threading.Event(), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop, ready.set))
    thread.start()
    assert ready.wait(10)
    node.receive()
    until = time.monotonic() + 20
    while not node.deliveries() and time.monotonic() < until:
        time.sleep(0.05)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert node.job().state is JobState.READY


PLAIN = {"name": "pacs", "host": "127.0.0.1", "port": 1, "ae_title": "PACS"}


def test_two_destinations_that_want_different_objects_get_an_edition_each_and_the_same_one_every_time(
    make_node: Callable[..., Node],
) -> None:
    tps = {**PLAIN, "name": "tps", "rt_struct": {"name_case": "upper", "transfer_syntax": "explicit"}}
    same = {**PLAIN, "name": "backup"}
    node = make_node(destinations=[PLAIN, tps, same])
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    pacs, other, backup = node.deliveries()
    assert (pacs.rt_struct_file, pacs.sop_instance_uid) == (backup.rt_struct_file, backup.sop_instance_uid)
    assert node.job().sop_instance_uid == pacs.sop_instance_uid != other.sop_instance_uid
    written = {
        delivery.destination: dcmread(node.config.storage.results / str(delivery.rt_struct_file))
        for delivery in (pacs, other)
    }
    for delivery in (pacs, other):
        assert written[delivery.destination].SOPInstanceUID == delivery.sop_instance_uid
    assert [str(one.StructureSetROISequence[0].ROIName) for one in written.values()] == [
        "Brainstem",
        "BRAINSTEM",
    ]
    before = {path.name for path in node.config.storage.results.iterdir()}
    node.worker().recover()
    assert {path.name for path in node.config.storage.results.iterdir()} == before
    with transaction(node.engine) as session:
        jobs.delivery_refused(session, session.get_one(Delivery, other.id), 0xA900, "no", node.now)
        for path in node.config.storage.results.iterdir():
            path.unlink()
        job = session.get_one(Job, node.job().id)
        job.rt_struct_file = None
        jobs.retry(session, job, node.now)
    node.step(worker)
    assert {path.name for path in node.config.storage.results.iterdir()} == before


def test_each_edition_names_what_its_destination_has_of_the_earlier_revision(
    make_node: Callable[..., Node],
) -> None:
    tps = {**PLAIN, "name": "tps", "rt_struct": {"name_prefix": "AN_"}}
    node = make_node(destinations=[PLAIN, tps])
    worker = node.worker()
    node.receive(which=range(23))
    node.now += 2.0
    node.step(worker)
    first = node.deliveries()
    node.receive(which=[23])
    node.now += 31.0
    node.step(worker)
    node.now += 31.0
    node.step(worker)
    later = node.deliveries()[2:]
    assert [delivery.destination for delivery in later] == ["pacs", "tps"]
    for before, after in zip(first, later, strict=True):
        written = dcmread(node.config.storage.results / str(after.rt_struct_file))
        (named,) = written.PredecessorStructureSetSequence
        assert named.ReferencedSOPInstanceUID == before.sop_instance_uid


def test_a_destination_that_takes_only_complete_sets_gets_nothing_and_the_others_go_on(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {**PLAIN, "name": "strict", "rt_struct": {"empty_structures": "refuse"}}
    node = make_node(destinations=[strict, PLAIN])
    worker = node.worker()
    build = rt_struct.build

    def with_one_more(series: Any, segmentation: Any, options: Any) -> Any:
        cord = absent(segmentation.structures[0].structure.model_copy(update={"name": "SpinalCord"}))
        return build(series, replace(segmentation, structures=(*segmentation.structures, cord)), options)

    monkeypatch.setattr(rt_struct, "build", with_one_more)
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert [(one.destination, one.state) for one in node.deliveries()] == [
        ("strict", DeliveryState.REFUSED),
        ("pacs", DeliveryState.PENDING),
    ]
    job, (refused, _) = node.job(), node.deliveries()
    assert (job.state, job.reason) == (JobState.FAILED, "refused by strict")
    assert "SpinalCord: not found or left out" in str(refused.reason)
    assert refused.rt_struct_file is None
    with transaction(node.engine) as session:
        jobs.retry(session, session.get_one(Job, job.id), node.now)
    assert node.job().state is JobState.QUEUED


def test_an_object_that_fails_its_check_stops_the_job_and_is_kept_apart(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = rt_struct.build

    def damaged(*given: Any) -> rt_struct.RtStruct:
        made = build(*given)
        return replace(made, data=made.data.replace(b"UNAPPROVED", b"APPROVED  "))

    monkeypatch.setattr(rt_struct, "build", damaged)
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    job = node.job()
    assert job.state is JobState.FAILED
    assert "only a person approves" in str(job.reason)
    (kept,) = (node.config.storage.results / "quarantine").iterdir()
    assert str(kept) in str(job.reason)
    assert b"APPROVED  " in kept.read_bytes()
    assert kept.name.startswith(f"job-{job.id}-")
    assert node.deliveries() == []
    node.worker().recover()
    assert kept.exists()
