"""A candidate is compared with the approved model, and a real job never notices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import select

from dicom_node import contouring, shadow, shadow_runner
from dicom_node.check import _shadow
from dicom_node.database import reading
from dicom_node.metrics import NodeCollector, exposition
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.schema import ShadowRun
from dicom_node.shadow_runs import next_job, report
from dicom_node.states import JobState
from dicom_node.worker import Worker
from inference.segmentation import Segmentation
from inference.volume import Volume
from tests.node_fixtures import BoxSegmenter, write_package
from tests.phantoms import Phantom
from tests.tools import ROOT, run, wait_until
from tests.worker_node import Node, make_node

__all__ = ["make_node"]  # a fixture

OTHER = Phantom(series="2", study="2")


class Candidate(BoxSegmenter):
    shift = (1, 0, 0)

    def segment(self, volume: Volume) -> Segmentation:
        if self._structure.name == "Larynx":
            raise ValueError("Doe^Jane")
        return super().segment(volume)


@pytest.fixture
def node(make_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """One with a candidate that draws the same box, one slice higher."""
    write_package(tmp_path / "packages", "candidate")
    monkeypatch.setattr(contouring, "segmenter_of", lambda package, _settings: Candidate(package))
    return _with_candidate(make_node(), "candidate")


def _with_candidate(node: Node, name: str) -> Node:
    model = node.config.model.model_validate({**node.config.model.model_dump(), "shadow": {"package": name}})
    node.config = node.config.model_copy(update={"model": model})
    return node


def _ready(node: Node, worker: Worker, phantom: Phantom) -> None:
    node.receive(phantom)
    node.now += 2.0
    node.step(worker)


def _runs(node: Node) -> list[ShadowRun]:
    with reading(node.engine) as session:
        return list(session.scalars(select(ShadowRun).order_by(ShadowRun.id)))


def _files(node: Node) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in node.config.storage.folder.rglob("*.dcm")}


def test_what_was_contoured_is_compared_the_newest_first_and_only_figures_are_kept(node: Node) -> None:
    worker = node.worker()
    for phantom in (Phantom(), OTHER):
        _ready(node, worker, phantom)
    before = [(job.state, job.report, job.rt_struct_sha256) for job in node.jobs()], _files(node)
    settings = shadow.candidate_of(node.config)
    assert settings is not None
    candidate = contouring.package_of(settings.model).description
    compared, approved = [], node.jobs()[0].model_sha256
    while True:
        with reading(node.engine) as session:
            job = next_job(session, candidate, approved)
        if job is None:
            break
        compared.append(job)
        shadow.compare(node.engine, node.config, job, node.clock)
    assert compared == [2, 1]
    assert ([(job.state, job.report, job.rt_struct_sha256) for job in node.jobs()], _files(node)) == before
    (table,) = report(node.engine).candidates
    (line,) = table.structures
    assert (table.model, table.compared, table.failures) == ("candidate", 2, ())
    assert (line.structure, line.series, line.only_approved, line.only_candidate) == ("Brainstem", 2, 0, 0)
    assert (line.mean_dice, line.lowest_dice, line.mean_hd95_mm) == pytest.approx((5 / 6, 5 / 6, 3.0))
    assert "Brainstem" in report(node.engine).in_words()
    figures = exposition(NodeCollector(node.engine, node.config, ReceptionFigures(), node.clock))().decode()
    dice = 'shadow_dice_bucket{le="%s",model="candidate",structure="Brainstem",version="1"} %.1f'
    assert dice % ("0.8", 0) in figures
    assert dice % ("0.85", 2) in figures
    assert 'shadow_compared_series{model="candidate",version="1"} 2.0' in figures


def test_a_structure_that_only_one_of_both_draws_counts_as_no_agreement(node: Node, tmp_path: Path) -> None:
    write_package(tmp_path / "packages", "cord", "SpinalCord")
    _ready(node, node.worker(), Phantom())
    shadow.compare(node.engine, _with_candidate(node, "cord").config, 1, node.clock)
    lines = {line.structure: line for line in report(node.engine).candidates[0].structures}
    assert (lines["Brainstem"].only_approved, lines["SpinalCord"].only_candidate) == (1, 1)
    assert [lines[name].mean_dice for name in ("Brainstem", "SpinalCord")] == [0.0, 0.0]


def test_a_candidate_that_fails_is_told_of_without_the_patient_and_not_asked_again(
    node: Node, tmp_path: Path
) -> None:
    write_package(tmp_path / "packages", "broken", "Larynx")
    _ready(node, node.worker(), Phantom())
    row = shadow.compare(node.engine, _with_candidate(node, "broken").config, 1, node.clock)
    assert row.failure == "an error of this program: ValueError; its traceback is in the log"
    settings = shadow.candidate_of(node.config)
    assert settings is not None
    with reading(node.engine) as session:
        candidate = contouring.package_of(settings.model).description
        assert next_job(session, candidate, node.job().model_sha256) is None
        assert next_job(session, candidate, "0" * 64) is None, "a job of another model"
    assert report(node.engine).candidates[0].failures == ((1, str(row.failure)),)


# --- the process -----------------------------------------------------------------------------


@pytest.fixture
def make_worker(node: Node) -> Iterator[Callable[[str], Worker]]:
    """A worker whose candidate's process runs the given program; the job's number is its argument."""

    def make(program: str) -> Worker:
        command: Sequence[str] = [sys.executable, "-c", program]
        worker = Worker(
            node.config, node.engine, BoxSegmenter, node.clock, node.monotonic, shadow_command=command
        )
        node.workers.append(worker)
        return worker

    return make


def _pid(worker: Worker) -> int | None:
    running: Any = worker._shadow and worker._shadow._running
    return None if running is None else int(running.process.pid)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


HANG = "import time; time.sleep(3600)"


def test_it_runs_at_the_lowest_priority_while_there_is_nothing_else_and_ends_as_soon_as_a_slice_comes(
    node: Node, make_worker: Callable[[str], Worker]
) -> None:
    worker = make_worker(HANG)
    _ready(node, worker, Phantom())
    assert _pid(worker) is None, "nothing beside a job"
    node.step(worker)
    pid = _pid(worker)
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) == shadow_runner.LOWEST_PRIORITY
    node.receive(OTHER, which=range(3), outcome=None)
    node.step(worker)
    assert (_pid(worker), _lives(pid)) == (None, False)
    node.receive(OTHER)
    node.now += 30.0
    node.step(worker)
    assert [job.state for job in node.jobs()] == [JobState.READY, JobState.READY]
    assert _runs(node) == [], "what gave way is no failure, and is compared another time"
    node.step(worker)
    assert _pid(worker) not in (None, pid)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with SIGSEGV"),
        ("raise SystemExit(3)", "its process ended with status 3; see the log"),
        (HANG, "it took longer than 7200 s and was ended"),
    ],
)
def test_one_that_crashes_or_hangs_costs_its_own_run_and_no_job(
    node: Node, make_worker: Callable[[str], Worker], program: str, why: str
) -> None:
    worker = make_worker(program)
    _ready(node, worker, Phantom())
    node.step(worker)
    if program == HANG:
        node.now += shadow_runner.LIMIT_S
    wait_until(lambda: bool(node.step(worker) and _runs(node)), what="the failure")
    assert [one.failure for one in _runs(node)] == [why]
    _ready(node, worker, OTHER)
    assert [job.state for job in node.jobs()] == [JobState.READY, JobState.READY]


def test_a_candidate_that_cannot_be_used_is_left_alone_and_named_by_check(
    node: Node, make_worker: Callable[[str], Worker]
) -> None:
    worker = make_worker("raise SystemExit(78)")
    _ready(node, worker, Phantom())
    running: Any = worker._shadow
    wait_until(lambda: bool(node.step(worker)) and not running._is_usable, what="giving up")
    node.step(worker)
    assert (_pid(worker), _runs(node)) == (None, [])
    approved = contouring.package_of(node.config.model).description
    assert [one.problem for one in _shadow(node.config, approved)] == [None]
    for name, problem in (("test-model", "the very model"), ("nowhere", "model.shadow: model: ")):
        (found,) = _shadow(_with_candidate(node, name).config, approved)
        assert problem in str(found.problem)
        assert not found.fatal


def test_the_command_that_the_worker_starts_compares_with_the_shipped_network_and_keeps_its_verdict(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    _ready(node, node.worker(), Phantom())
    packages = node.config.model.folder
    assert packages is not None
    (packages / "anatomynet-hn").symlink_to(ROOT / "models" / "packages" / "anatomynet-hn")
    file = tmp_path / "config.yaml"
    config = _with_candidate(node, "anatomynet-hn").config.model_dump(mode="json", exclude_none=True)
    file.write_text(yaml.safe_dump(config))
    done = run([sys.executable, "-m", "dicom_node", "shadow", "--config", file, "run", "1"])
    assert done.returncode == 0, done.stdout
    (only,) = _runs(node)
    assert str(only.failure).startswith("it rejects the series: "), "the phantom is an ellipsoid"
    assert only.model_name == "anatomynet-hn"
    told = run([sys.executable, "-m", "dicom_node", "shadow", "--config", file])
    assert "compared on 0 series, 1 failure(s)" in told.stdout
