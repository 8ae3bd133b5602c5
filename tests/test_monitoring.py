"""What people watch the node by: alerts fire when they should, expressions find something on a real node.

Owns a real node under load with several ends and faults, a Prometheus that scrapes it, and a browser.
Speaks promtool, Prometheus' HTTP API, Chromium's screenshots, and DICOM where the node is loaded.
Never looks into the node for what it should show.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from sqlalchemy.orm import Session

from dicom_node import metrics, migrate, scu
from dicom_node.config import Config, Destination, Tls
from dicom_node.database import open_engine, transaction
from dicom_node.phantom import write_phantom
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.rehearsal import NODE, SCANNER, Rehearsal
from dicom_node.schema import Constancy, Contact, Duration, Finding, Job, Series, ShadowRun, WorkerStatus
from dicom_node.send import Summary, send_folder
from dicom_node.timings import Stage, Step, Turnaround
from monitoring import dashboard
from tests import certificates, fault_pacs
from tests.fault_pacs import CommittingArchive
from tests.tools import ROOT, free_port, needs, run, running, wait_until

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


# --- a real node under load, scraped by a real Prometheus ------------------------------------------

VARIABLES = {"$instance": ".*", "$window": "10m", "$__rate_interval": "1m"}
FIRE_HERE = {
    "AnatomyNodeInstancesRefused",
    "AnatomyNodePeersRefused",
    "AnatomyNodeDestinationOverdue",
    "AnatomyNodeJobsFailed",
    "AnatomyNodeDestinationUnreachable",
    "AnatomyNodeCertificateExpires",
    "AnatomyNodeConstancyFailed",
    "AnatomyNodeConstancyOld",
}
"""With the faults that this node meets; those with a `for` are pending."""


def test_the_dashboard_that_is_committed_is_the_one_that_the_code_writes() -> None:
    assert (ROOT / "monitoring" / "dashboard.json").read_text() == dashboard.text()


def test_panels_lie_beside_each_other_and_every_expression_obeys_the_chosen_node() -> None:
    panels = dashboard.dashboard()["panels"]
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < dashboard.COLUMNS
    for expr in dashboard.expressions():
        named = re.findall(r"(?:anatomynode_\w+|\bup)\b(.{0,60})", expr)
        assert named
        assert all("instance=~" in after for after in named), expr


@dataclass(frozen=True)
class Watched:
    """A node that has met what nodes meet, and a Prometheus that saw it."""

    node: Rehearsal
    prometheus: int

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """What an instant query finds, without what is not a number."""
        found = [float(one["value"][1]) for one in self.ask("query", query=expr)["result"]]
        return [value for value in found if not math.isnan(value)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    archive, tls = CommittingArchive(), certificates.make(folder / "tls")
    archive.at_once = {}
    with ExitStack() as running_now:
        pacs = running_now.enter_context(archive.serving())
        planning = ExitStack()
        tps = planning.enter_context(fault_pacs.answering(0x0000, tls=tls))
        running_now.callback(planning.close)
        node = Rehearsal(folder / "node", ("ARCHIVE", pacs), _overrides(pacs, tps, tls))
        running_now.enter_context(node)
        prometheus = running_now.enter_context(_prometheus(folder, node.http_port))
        watched = Watched(node, prometheus)
        wait_until(lambda: watched.values("anatomynode_build_info") == [1.0], 30, "the first scrape")
        _load(folder, node, archive, planning)
        yield watched


def _overrides(pacs: int, tps: int, tls: Tls) -> dict[str, Any]:
    common = {"host": "127.0.0.1", "ae_title": "ARCHIVE", "connect_timeout_s": 2.0}
    return {
        "series": {"grace_s": 0.3},
        "retry": {"first_delay_s": 0.5, "alert_after_s": 0.5},
        "inference": {"device": "cpu", "allow_cpu": True},
        "listener": {"discard_sop_classes": ["1.2.840.10008.5.1.4.1.1.481.3"]},
        "destinations": [
            {"name": "pacs", "port": pacs, "storage_commitment": {"enabled": True}, **common},
            {"name": "tps", "port": tps, "tls": tls.model_dump(mode="json"), **common},
        ],
    }


@contextmanager
def _prometheus(folder: Path, http_port: int) -> Iterator[int]:
    port = free_port()
    scrape = {"job_name": "anatomynode", "static_configs": [{"targets": [f"127.0.0.1:{http_port}"]}]}
    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    settings = {"global": often, "scrape_configs": [scrape], "rule_files": [str(ALERTS)]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with running(command, folder / "prometheus.log", port=port):
        wait_until(lambda: _is_ready(port), 30, "Prometheus")
        yield port


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
            return True
    except urllib.error.HTTPError:
        return False


def _load(folder: Path, node: Rehearsal, archive: CommittingArchive, planning: ExitStack) -> None:
    """One series SENT, one FAILED, one READY whose second destination is gone, one REJECTED; strangers."""
    _send(node, write_series(folder, seed=0))
    node.wait(lambda: _states(node) == ["SENT"], 120, "no series was sent")
    archive.stored_as = 0xC000
    _send(node, write_series(folder, seed=1))
    node.wait(lambda: _states(node)[1:] == ["FAILED"], 120, "no series failed")
    archive.stored_as = 0x0000
    planning.close()
    _send(node, write_series(folder, seed=2))
    reformat = write_series(folder, seed=3)
    for file in reformat.iterdir():
        _change(file, ImageType=["DERIVED", "SECONDARY", "MPR"])
    _send(node, reformat)
    node.wait(lambda: _states(node)[2:] == ["READY", "REJECTED"], 120, "no series was rejected")
    for file in sorted(reformat.iterdir())[1:]:
        file.unlink()
    _change(next(reformat.iterdir()), SliceLocation=0.5)
    assert [failure.status for failure in _send(node, reformat).failed] == [0x0111]
    for _ in range(6):
        with pytest.raises(scu.AssociationRefusedError):
            _send(node, reformat, calling="STRANGER")
    with socket.create_connection(("127.0.0.1", node.port)) as nonsense:
        nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
        nonsense.recv(1)
    engine = open_engine(node.database)
    with transaction(engine) as session:
        session.add(Constancy(id=1, made_at=time.time() - 9 * 86400, failed_points=1, drifts=0))
        session.add_all(_shadow_run(job, failure) for job, failure in ((1, None), (2, "no such device")))
    engine.dispose()


def _shadow_run(job: int, failure: str | None) -> ShadowRun:
    agreements = [{"name": "Larynx", "dice": 0.9}] if failure is None else None
    candidate = {"model_name": "candidate", "model_version": "2", "model_sha256": "ab" * 32}
    return ShadowRun(job_id=job, at=time.time(), failure=failure, agreements=agreements, **candidate)


def write_series(folder: Path, seed: int) -> Path:
    write_phantom(folder / f"ct-{seed}", slices=40, matrix=128, spacing_mm=(4.0, 4.0, 4.0), seed=seed)
    return folder / f"ct-{seed}"


def _change(file: Path, **elements: object) -> None:
    dataset = dcmread(file)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


def _send(node: Rehearsal, series: Path, calling: str = SCANNER) -> Summary:
    target = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=NODE)
    return send_folder(series, target, calling)


def _states(node: Rehearsal) -> list[str]:
    return [str(job.state) for job in node.jobs()]


def _chosen(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


@needs("prometheus")
def test_every_expression_of_the_dashboard_finds_something_on_a_node_under_load(watched: Watched) -> None:
    left = {_chosen(expr) for expr in dashboard.expressions()}

    def all_found() -> bool:
        left.difference_update([expr for expr in left if watched.values(expr)])
        return not left

    try:
        wait_until(all_found, 20)
    finally:
        assert left == set(), "these find nothing"


@needs("prometheus")
def test_every_alert_finds_what_it_judges_and_those_fire_whose_faults_are_here(watched: Watched) -> None:
    wait_until(lambda: _alerting(watched) == FIRE_HERE, 20, f"{FIRE_HERE} alone")
    for rule in _rules():
        # A comparison that keeps nothing where it does not hold says 0 or 1 instead.
        judged = re.sub(r"(==|[<>]=?) (?=[\da-z])", r"\1 bool ", rule["expr"])
        assert watched.values(judged), rule["alert"]


def _alerting(watched: Watched) -> set[str]:
    return {alert["labels"]["alertname"] for alert in watched.ask("alerts")["alerts"]}


# --- the page, in a browser --------------------------------------------------------------------------

PAGE_CSS = ROOT / "dicom_node" / "templates" / "page.css"
ON = {
    "ink": ("ground", "card", "plain-ground"),
    "quiet": ("ground", "card"),
    "accent": ("ground", "card"),
    "good": ("good-ground",),
    "bad": ("bad-ground",),
    "warning": ("warning-ground", "card"),
}
"""Which colour of the page stands on which."""
LIGHT, DARK, WIDE, NARROW = 1, 0, 1280, 500
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--enable-logging=stderr", "--force-device-scale-factor=1"),
)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_words_stand_out_from_their_ground(scheme: int) -> None:
    """By at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    light, dark = re.findall(r":root \{(.*?)\}", PAGE_CSS.read_text(), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w+)", light if scheme == LIGHT else dark))
    for ink, grounds in ON.items():
        for ground in grounds:
            darker, lighter = sorted((_luminance(colors[ink]), _luminance(colors[ground])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)


def _luminance(color: str) -> float:
    """Relative luminance, as WCAG defines it."""
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@needs("prometheus", "chromium")
@pytest.mark.parametrize(
    ("path", "scheme", "width"), [("/", LIGHT, WIDE), ("/jobs/2", DARK, NARROW), ("/jobs/4", LIGHT, NARROW)]
)
def test_a_browser_shows_the_page_and_finds_nothing_to_refuse(
    watched: Watched, tmp_path: Path, path: str, scheme: int, width: int
) -> None:
    picture = _screenshot(watched, path, scheme, width, tmp_path)
    ground = picture[4, 4].mean()
    assert ground > 230 if scheme == LIGHT else ground < 40
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, "words and states in their colours"


@needs("prometheus", "chromium")
def test_a_browser_shows_the_ct_and_the_contours_of_the_slice_that_it_is_sent_to(
    watched: Watched, tmp_path: Path
) -> None:
    text = _fetched(watched, "/jobs/1/preview")
    found = re.search(r'fill="(#\w+)"/></svg>Bone_Mandible</label>.*?href="(#slice-\d+)"', text, re.DOTALL)
    assert found is not None
    color, place = found.groups()
    picture = _screenshot(watched, f"/jobs/1/preview{place}", DARK, WIDE, tmp_path).astype(int)
    slice_shown = picture[:, :820]
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    assert (np.abs(slice_shown - wanted).max(axis=2) < 40).sum() > 100, "its outline"
    grey = np.ptp(slice_shown, axis=2) < 6
    assert (grey & (slice_shown.mean(axis=2) > 90)).sum() > 10_000, "the CT"


def _fetched(watched: Watched, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{watched.node.http_port}{path}", timeout=60) as answer:
        return str(answer.read().decode())


def _screenshot(watched: Watched, path: str, scheme: int, width: int, folder: Path) -> NDArray[np.uint8]:
    """(rows, columns, RGB) of what Chromium shows; it must have nothing to say of what it loaded."""
    file = folder / "page.png"
    done = run(
        [
            *CHROMIUM,
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},1000",
            f"--screenshot={file}",
            f"http://127.0.0.1:{watched.node.http_port}{path}",
        ],
        timeout_s=120,
    )
    said = [line for line in done.stdout.splitlines() if "CONSOLE" in line and "favicon" not in line]
    assert (done.returncode, said) == (0, [])
    return np.asarray(Image.open(file).convert("RGB"))
