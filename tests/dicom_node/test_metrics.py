"""The figures: what Prometheus scrapes is clean, true, bounded, and says nothing of a patient."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from werkzeug import Response

from dicom_node import http_status, jobs, metrics, migrate
from dicom_node.config import Config, Destination, Http, Listener, Storage
from dicom_node.database import open_engine, transaction
from dicom_node.errors import ConfigurationError
from dicom_node.http_port import HttpPort
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.schema import Constancy, Contact, Delivery, Discarded, Job, Series, WorkerStatus
from tests.recorded_jobs import NOW, SECRET, add_job, contour, deliver
from tests.tools import answers, free_port, needs

TO_PACS = 'destination="pacs",model="anatomynet-hn"'
BEFORE = 'destination="",model="anatomynet-hn"'
LARYNX = 'model="anatomynet-hn",structure="Larynx"'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    pacs = Destination(name="pacs", host="127.0.0.1", port=11113, ae_title="PACS")
    return Config(
        listener=Listener(discard_sop_classes=("1.2.840.10008.5.1.4.1.1.481.3",)),
        storage=Storage(folder=tmp_path, reserve_mib=1),
        peers=(),
        destinations=(pacs,),
    )


@pytest.fixture
def engine(config: Config) -> Iterator[Engine]:
    migrate.upgrade(config.storage.database)
    engine = open_engine(config.storage.database)
    yield engine
    engine.dispose()


def bucket(bound: str) -> str:
    labels = f'destination="pacs",le="{bound}",model="anatomynet-hn",since="last_slice"'
    return f"anatomynode_turnaround_seconds_bucket{{{labels}}}"


def figures(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as the text format has them."""
    samples = re.findall(r"^(anatomynode_\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in samples}


def busy_node(engine: Engine, config: Config) -> metrics.NodeCollector:
    deliver(engine, contour(engine, add_job(engine, 1)), NOW + 6)
    add_job(engine, 2)
    contour(engine, add_job(engine, 3))
    with transaction(engine) as session:
        session.add(Discarded(sop_class_uid="1.2.840.10008.5.1.4.1.1.481.3", instances=4, size_bytes=9))
        model = {"name": "anatomynet-hn", "version": "1\n" + SECRET, "sha256": "ab", "approved": True}
        told = {"device": "cpu", "model": model, "peak_memory_bytes": 1e9, "running_job": 2, SECRET: 1}
        session.add(Contact(destination="pacs", tried_at=NOW + 9, reached_at=NOW + 6, is_reached=False))
        session.add(Constancy(id=1, made_at=NOW, failed_points=2, drifts=3))
        session.add(WorkerStatus(id=1, pid=1, heartbeat_at=NOW + 7, figures=told))
    reception = ReceptionFigures()
    reception.instance_stored(500)
    reception.instance_refused(0xA700)
    reception.association_refused("calling_ae_title")
    return metrics.NodeCollector(engine, config, reception, clock=lambda: NOW + 10)


def test_the_figures_say_what_the_database_holds(engine: Engine, config: Config) -> None:
    found = figures(metrics.exposition(busy_node(engine, config))().decode())

    expected = {
        'anatomynode_jobs{state="SENT"}': 1,
        'anatomynode_jobs{state="QUEUED"}': 1,
        'anatomynode_jobs{state="READY"}': 1,
        'anatomynode_jobs{state="FAILED"}': 0,
        'anatomynode_job_transitions_total{state="READY"}': 2,
        'anatomynode_deliveries{destination="pacs",state="STORED"}': 1,
        'anatomynode_deliveries{destination="pacs",state="PENDING"}': 1,
        'anatomynode_delivery_pending_age_seconds{destination="pacs"}': 4.5,
        'anatomynode_delivery_overdue{destination="pacs"}': 0,
        "anatomynode_queue_age_seconds": 8,
        "anatomynode_worker_heartbeat_age_seconds": 3,
        "anatomynode_worker_peak_memory_bytes": 1e9,
        'anatomynode_worker_info{device="cpu",model="anatomynet-hn",sha256="ab",version="other"}': 1,
        "anatomynode_worker_model_approved": 1,
        "anatomynode_worker_busy": 1,
        "anatomynode_constancy_last_run_timestamp_seconds": NOW,
        "anatomynode_constancy_failed_points": 2,
        "anatomynode_constancy_drifts": 3,
        'anatomynode_instances_discarded_total{sop_class_uid="1.2.840.10008.5.1.4.1.1.481.3"}': 4,
        "anatomynode_instances_received_total": 1,
        'anatomynode_instances_refused_total{status="0xA700"}': 1,
        'anatomynode_associations_refused_total{reason="calling_ae_title"}': 1,
        "anatomynode_worker_gpu_used": 0,
        "anatomynode_worker_gpu_wanted": 1,
        'anatomynode_destination_reachable{destination="pacs"}': 0,
        'anatomynode_destination_last_reached_timestamp_seconds{destination="pacs"}': NOW + 6,
        f'anatomynode_turnaround_seconds_sum{{{TO_PACS},since="first_slice"}}': 16,
        f'anatomynode_turnaround_seconds_sum{{{TO_PACS},since="last_slice"}}': 6,
        bucket("5.0"): 0,
        bucket("10.0"): 1,
        f'anatomynode_stage_seconds_sum{{{BEFORE},stage="receiving"}}': 20,
        f'anatomynode_stage_seconds_sum{{{BEFORE},stage="waiting"}}': 5,
        f'anatomynode_stage_seconds_sum{{{BEFORE},stage="inference"}}': 4.4,
        f'anatomynode_stage_seconds_sum{{{BEFORE},stage="keeping"}}': 1,
        f'anatomynode_stage_seconds_sum{{{TO_PACS},stage="sending"}}': 0.5,
        'anatomynode_step_seconds_sum{model="anatomynet-hn",step="forward"}': 4,
        'anatomynode_step_seconds_sum{model="anatomynet-hn",step="queue"}': 1,
        'anatomynode_structure_volume_cm3_sum{model="anatomynet-hn",structure="Brainstem"}': 50,
        'anatomynode_structure_confidence_count{model="anatomynet-hn",structure="Brainstem"}': 2,
        'anatomynode_structures_total{model="anatomynet-hn",structure="Larynx"}': 2,
        f'anatomynode_structure_flags_total{{flag="not_found",{LARYNX}}}': 2,
        f'anatomynode_structure_flags_total{{flag="in_pieces",{LARYNX}}}': 0,
    }
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)
    assert 'anatomynode_structure_volume_cm3_sum{model="anatomynet-hn",structure="Larynx"}' not in found


def test_no_label_carries_a_uid_of_a_series_or_a_word_of_a_report(engine: Engine, config: Config) -> None:
    text = metrics.exposition(busy_node(engine, config))().decode()

    assert SECRET not in text
    assert "PATIENT" not in text


def test_a_result_that_is_sent_again_is_no_new_turnaround(engine: Engine, config: Config) -> None:
    expose = metrics.exposition(busy_node(engine, config))
    before = figures(expose().decode())
    with transaction(engine) as session:
        jobs.deliver_again(session, session.get_one(Series, 1), "pushed again", NOW + 100)
    deliver(engine, 1, NOW + 101)

    after = figures(expose().decode())

    measured = [name for name in before if "turnaround_seconds" in name or "stage_seconds" in name]
    assert len(measured) > 100
    assert {name: after[name] for name in measured} == {name: before[name] for name in measured}
    assert after['anatomynode_job_transitions_total{state="SENT"}'] == 2


def test_a_restart_of_the_listener_lets_no_histogram_fall(engine: Engine, config: Config) -> None:
    collector = busy_node(engine, config)
    metrics.exposition(collector)()
    deliver(engine, 2, NOW + 8)
    lived_on = figures(metrics.exposition(collector)().decode())
    restarted = figures(
        metrics.exposition(
            metrics.NodeCollector(engine, config, ReceptionFigures(), lambda: NOW + 10)
        )().decode()
    )

    for name in lived_on:
        if "_seconds_" in name and "listener" not in name:
            assert restarted[name] == pytest.approx(lived_on[name]), name
    assert lived_on[f'anatomynode_turnaround_seconds_count{{{TO_PACS},since="last_slice"}}'] == 2


def test_late_slices_a_rerun_and_retention_let_no_count_fall(engine: Engine, config: Config) -> None:
    before = kept_counts(busy_node(engine, config))
    with transaction(engine) as session:
        series = session.get_one(Series, 1)
        series.revision, series.last_instance_at = 2, NOW + 50
        series.completed_at = series.results_removed_at = NOW + 60
        # Job 3 is refused, retried by a person and contoured again, with another outcome.
        job, delivery = session.get_one(Job, 3), session.get_one(Delivery, 2)
        jobs.delivery_refused(session, delivery, 0xC000, "refused", NOW + 51)
        job.rt_struct_file = None
        jobs.retry(session, job, NOW + 52)
        jobs.start(session, job, NOW + 5000, "again")
        rois = [{"name": "Brainstem", "volume_cm3": 70.0, "contours": 9, "confidence": 0.1, "flags": []}]
        kept = jobs.Kept("again.dcm", "dd", SECRET)
        result = jobs.Result(kept, {"seconds": {"forward": 9.0}, "rois": rois}, "checked")
        jobs.finish(session, job, result, ["pacs"], NOW + 5010)
        jobs.delivery_stored(session, delivery, 0x0000, "stored", NOW + 5011)

    after = kept_counts(metrics.NodeCollector(engine, config, ReceptionFigures()))

    assert after == before, "the first time counts, and a person's time is not the node's"


def kept_counts(collector: metrics.NodeCollector) -> dict[str, float]:
    found = figures(metrics.exposition(collector)().decode())
    parts = ("turnaround_seconds", "stage_seconds", "step_seconds", "structure")
    return {name: value for name, value in found.items() if any(part in name for part in parts)}


@needs("promtool")
def test_promtool_finds_nothing_to_complain_of(engine: Engine, config: Config) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=metrics.exposition(busy_node(engine, config))(),
        capture_output=True,
        check=False,
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_http_port_answers_its_three_paths_until_it_stops_and_changes_nothing(
    engine: Engine, config: Config
) -> None:
    collector = busy_node(engine, config)
    listens = [True]

    def ready() -> http_status.Checks:
        return http_status.readiness(engine, config, lambda: listens[0], lambda: NOW + 10)

    server = HttpPort(settings := Http(port=free_port()), metrics.exposition(collector), ready)
    server.start()
    try:
        assert get(settings, "/healthz") == (200, '{"alive": true}\n')
        assert get(settings, "/metrics")[0] == 200
        assert get(settings, "/readyz")[0] == 200
        assert get(settings, "/jobs")[0] == 404
        assert get(settings, "/metrics", "POST")[0] == 405
        with pytest.raises(ConfigurationError, match=r"http: 127\.0\.0\.1:\d+ cannot be bound"):
            HttpPort(settings, metrics.exposition(collector), ready)
        listens[0] = False
        status, body = get(settings, "/readyz")
    finally:
        server.stop()

    assert not answers(settings.port)
    checks = json.loads(body)["checks"]
    assert status == 503
    assert [name for name, check in checks.items() if not check["ok"]] == ["listener"]


def test_a_dead_worker_a_full_disk_and_a_lost_database_show_in_readyz(engine: Engine, config: Config) -> None:
    busy_node(engine, config)
    full = config.model_copy(update={"storage": Storage(folder=config.storage.folder, reserve_mib=1 << 40)})
    engine_on_nothing = open_engine(config.storage.folder / "no" / "such.sqlite")

    late = http_status.readiness(engine, full, lambda: True, lambda: NOW + 100)
    lost = http_status.readiness(engine_on_nothing, config, lambda: True)

    assert [name for name, check in late.items() if not check.ok] == ["disk", "worker"]
    assert [name for name, check in lost.items() if not check.ok] == ["database", "worker"]


def test_a_page_answers_every_other_path_and_its_fault_is_told_to_nobody(
    engine: Engine, config: Config
) -> None:
    def page(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/fault":
            raise ValueError(SECRET)
        return Response(f"page {environ['PATH_INFO']}")(environ, start_response)

    server = HttpPort(settings := Http(port=free_port()), lambda: b"figures", dict, page)
    server.start()
    try:
        assert get(settings, "/metrics") == (200, "figures")
        assert get(settings, "/jobs/1") == (200, "page /jobs/1")
        status, body = get(settings, "/fault")
    finally:
        server.stop()
    assert status == 500
    assert SECRET not in body


def get(settings: Http, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{settings.host}:{settings.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()
