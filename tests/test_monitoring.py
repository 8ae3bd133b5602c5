"""The alerts fire when they should, speak of metrics that exist, and each has its page in the runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.orm import Session

from dicom_node import metrics, migrate
from dicom_node.config import Config
from dicom_node.database import open_engine, transaction
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.schema import Constancy, Contact, Duration, Finding, Job, Series, WorkerStatus
from dicom_node.timings import Stage, Step, Turnaround
from tests import certificates
from tests.tools import ROOT, needs, run

ALERTS = ROOT / "monitoring" / "alerts.yaml"
TESTS = sorted((ROOT / "monitoring").glob("alerts_*test.yaml"))
RUNBOOK = ROOT / "docs" / "RUNBOOK.md"


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def _names() -> set[str]:
    return {rule["alert"] for rule in _rules()}


@needs("promtool")
def test_prometheus_reads_the_rules_and_each_fires_when_it_should_and_not_before() -> None:
    for command in (["check", "rules", ALERTS], ["test", "rules", *TESTS]):
        done = run(["promtool", *command])
        assert done.returncode == 0, done.stdout


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    tests = [
        one
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for one in test.get("alert_rule_test", ())
    ]
    fires = {one["alertname"] for one in tests if one["exp_alerts"]}
    rests = {one["alertname"] for one in tests if not one["exp_alerts"]}
    assert fires == rests == _names()


def test_each_alert_has_its_page_in_the_runbook_and_no_page_is_without_an_alert() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(_names())
    for rule in _rules():
        assert rule["annotations"]["runbook"] == f"docs/RUNBOOK.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.fixture
def exposed(tmp_path: Path) -> str:
    """What a node shows that has every part in use."""
    tls = certificates.make(tmp_path / "tls").model_dump(mode="json")
    config = Config.model_validate(
        {
            "peers": [],
            "listener": {"tls": tls},
            "storage": {"folder": tmp_path},
            "destinations": [
                {
                    **{"name": "pacs", "host": "127.0.0.1", "port": 1, "ae_title": "PACS"},
                    "storage_commitment": {"enabled": True},
                }
            ],
        }
    )
    migrate.upgrade(config.storage.database)
    engine, figures = open_engine(config.storage.database), ReceptionFigures()
    figures.instance_refused(0xA700)
    figures.association_refused("peer_address")
    with transaction(engine) as session:
        _has_run(session)
    text = metrics.exposition(metrics.NodeCollector(engine, config, figures))().decode()
    engine.dispose()
    return text


def _has_run(session: Session) -> None:
    session.add(WorkerStatus(id=1, pid=1, heartbeat_at=1.0, figures={}))
    session.add(Constancy(id=1, made_at=1.0, failed_points=0, drifts=0))
    session.add(Contact(destination="pacs", tried_at=1.0, is_reached=False))
    keys = {"patient_key": "p", "accession_key": "a", "study_instance_uid": "1.2"}
    series = Series(series_instance_uid="1.2.3", first_instance_at=0.0, last_instance_at=0.0, **keys)
    session.add(series)
    session.flush()
    job = Job(series_id=series.id, revision=1, model_name="m", model_sha256="aa", created_at=0.0)
    session.add(job)
    session.flush()
    for stage in (*Stage, *Step, *Turnaround):
        session.add(Duration(job_id=job.id, stage=stage, destination="pacs", began_at=0.0, seconds=1.0))
    session.add(Finding(job_id=job.id, structure="Larynx", volume_cm3=9.0, confidence=0.5, flags=[]))


def test_the_alerts_speak_of_metrics_and_labels_that_exist(exposed: str) -> None:
    for rule in _rules():
        for name in re.findall(r"anatomynode_\w+", rule["expr"]):
            assert re.search(rf"^{name}(\{{| )", exposed, re.MULTILINE), f"{rule['alert']}: no metric {name}"
        for name, label in re.findall(r'(anatomynode_\w+)\{(\w+)="\w+"\}', rule["expr"]):
            assert re.search(rf'^{name}\{{[^}}]*{label}="', exposed, re.MULTILINE), f"{name} has no {label}"
