"""What rules ask for becomes jobs, of the series that came, by the configuration that runs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread
from sqlalchemy import select

from dicom_node import contouring, jobs, story
from dicom_node.config import Config
from dicom_node.database import reading, transaction
from dicom_node.errors import ConfigurationError
from dicom_node.replay import replay
from dicom_node.schema import Job, Transition
from dicom_node.states import JobState
from dicom_node.worker import Worker
from tests.node_fixtures import BoxSegmenter
from tests.worker_node import PHANTOM, Node, make_node

__all__ = ["make_node"]  # a fixture

PEERS = [{"ae_title": "SCANNER", "addresses": ["127.0.0.1"]}]
SECRET = "Doe^Jane from the third floor"
BONE = PHANTOM.but(series="2", study="2", overrides={"SeriesDescription": f"BONE {SECRET}"})
IGNORE_BONE = {"name": "bone", "when": {"series_description": "*bone*"}, "ignore": "for radiologists"}


def destination(name: str) -> dict[str, Any]:
    return {"name": name, "host": "127.0.0.1", "port": 1, "ae_title": "X"}


DESTINATIONS = [destination("pacs"), destination("tps")]


def template(folder: Path, name: str) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"structures": {"Brainstem": {"name": name}}}))
    return str(file)


def second_package(folder: Path) -> str:
    """Another network beside the first; its sha256."""
    copy = folder / "packages" / "other-model"
    shutil.copytree(folder / "packages" / "test-model", copy)
    (copy / "model.onnx").write_bytes(b"another network")
    card = yaml.safe_load((copy / "model.yaml").read_text())
    card |= {"name": "other-model", "sha256": hashlib.sha256(b"another network").hexdigest()}
    (copy / "model.yaml").write_text(yaml.safe_dump(card))
    return str(card["sha256"])


def routed(make_node: Callable[..., Node], *rules: dict[str, Any], **more: Any) -> Node:
    return make_node(peers=PEERS, destinations=DESTINATIONS, routing=list(rules), **more)


def to_the_end(node: Node, worker: Worker, steps: int = 6) -> None:
    node.now += 40.0
    for _ in range(steps):
        node.step(worker)


def reconfigured(node: Node, **changes: Any) -> None:
    node.config = Config.model_validate({**node.config.model_dump(), **changes})


def test_two_results_are_two_jobs_with_objects_of_their_own_each_for_its_destination(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    results = [
        {"template": template(tmp_path, "Stem_A"), "destinations": ["pacs"]},
        {"template": template(tmp_path, "Stem_B"), "destinations": ["tps"]},
    ]
    node = routed(make_node, {"name": "both", "results": results})
    node.receive()
    to_the_end(node, node.worker())

    assert [(job.state, job.rule) for job in node.jobs()] == [(JobState.READY, "both")] * 2
    sent = {one.destination: str(one.rt_struct_file) for one in node.deliveries()}
    objects = {name: dcmread(node.config.storage.results / file) for name, file in sent.items()}
    names = {name: one.StructureSetROISequence[0].ROIName for name, one in objects.items()}
    assert names == {"pacs": "Stem_A", "tps": "Stem_B"}
    assert objects["pacs"].SOPInstanceUID != objects["tps"].SOPInstanceUID
    assert node.segmenters[0].runs == 1, "two results by one network need its forward pass once"
    assert "Rule both asked for test-model with the template" in story.show(node.engine, 1).in_words()
    stages = [(job.report or {})["seconds"].keys() for job in node.jobs()]
    assert ["forward" in one for one in stages] == [True, False]


def test_a_replay_of_a_routed_result_gives_the_very_same_bytes(
    make_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contouring, "segmenter_of", lambda package, _settings: BoxSegmenter(package))
    results = [{"template": template(tmp_path, name)} for name in ("Stem_A", "Stem_B")]
    node = routed(make_node, {"name": "both", "results": results})
    node.receive()
    to_the_end(node, node.worker())

    assert [
        replay(node.engine, number, tmp_path / "r.dcm", node.config).is_the_same for number in (1, 2)
    ] == [
        True,
        True,
    ]


def test_a_series_that_a_rule_ignores_ends_so_with_its_words_and_without_the_descriptions(
    make_node: Callable[..., Node], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    node = routed(make_node, IGNORE_BONE, {"name": "rest"})
    worker = node.worker()
    node.receive(BONE)
    node.receive()
    to_the_end(node, worker)

    states = {job.rule: (job.state, job.reason_code) for job in node.jobs()}
    assert states == {"bone": (JobState.IGNORED, "routing_rule"), "rest": (JobState.READY, None)}
    assert {str(job.reason) for job in node.jobs() if job.rule == "bone"} == {"rule bone: for radiologists"}
    database = node.config.storage.database
    kept = b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
    assert SECRET.encode() not in kept
    assert SECRET not in caplog.text + capsys.readouterr().err


def test_a_person_may_ask_for_a_series_that_a_rule_ignores(make_node: Callable[..., Node]) -> None:
    node = routed(make_node, IGNORE_BONE, {"name": "rest"})
    worker = node.worker()
    node.receive(BONE)
    to_the_end(node, worker)
    with transaction(node.engine) as session:
        jobs.retry(session, session.get_one(Job, node.job().id), node.now)
    to_the_end(node, worker)

    assert node.job().state is JobState.READY
    assert [one.destination for one in node.deliveries()] == ["pacs", "tps"]


def test_of_those_that_wait_the_higher_priority_runs_first_and_else_the_older(
    make_node: Callable[..., Node],
) -> None:
    urgent = {"name": "urgent", "when": {"protocol_name": "stat"}, "priority": 5}
    node = routed(make_node, urgent, {"name": "rest"})
    worker = node.worker()
    for number, protocol in enumerate(("routine", "routine", "STAT"), start=1):
        node.receive(PHANTOM.but(series=str(number), study=str(number), overrides={"ProtocolName": protocol}))
        node.now += 1.0
    to_the_end(node, worker)

    with reading(node.engine) as session:
        began = select(Job.series_id).join(Transition, Transition.subject_id == Job.id)
        began = began.where(Transition.subject == "job", Transition.to_state == JobState.RUNNING)
        assert session.scalars(began.order_by(Transition.id)).all() == [3, 1, 2]


def test_late_slices_make_all_results_anew_once_one_of_them_is_there(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    results = [{"template": template(tmp_path, name)} for name in ("Stem_A", "Stem_B")]
    node = routed(make_node, {"name": "both", "results": results})
    worker = node.worker()
    node.receive(which=range(20))
    node.now += 40.0
    node.step(worker)  # the first is READY, the second waits
    node.receive(which=range(20, 24))
    to_the_end(node, worker)

    assert [(job.revision, job.state) for job in node.jobs()] == [
        (1, JobState.READY),
        (1, JobState.CANCELLED),
        (2, JobState.READY),
        (2, JobState.READY),
    ]
    first, _, again, other = node.jobs()
    assert (again.template, again.predecessor_sop_instance_uid) == (first.template, first.sop_instance_uid)
    assert other.predecessor_sop_instance_uid is None


def test_pushed_again_every_result_goes_out_again(make_node: Callable[..., Node], tmp_path: Path) -> None:
    results = [{"template": template(tmp_path, name)} for name in ("Stem_A", "Stem_B")]
    node = routed(make_node, {"name": "both", "results": results})
    worker = node.worker()
    node.receive()
    to_the_end(node, worker)
    node.store_all()
    assert [job.state for job in node.jobs()] == [JobState.SENT] * 2
    node.receive()
    to_the_end(node, worker)

    assert [job.state for job in node.jobs()] == [JobState.READY] * 2
    assert len(node.deliveries()) == 4


def test_what_waits_when_the_rules_change_follows_the_new_ones(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    before = {"name": "old", "results": [{"template": template(tmp_path, "Stem_A")}]}
    node = routed(make_node, before)
    worker = node.worker()
    node.receive()
    node.now += 40.0
    worker._assembler.step()
    worker.close()
    reconfigured(node, routing=[{"name": "new", "results": [{"destinations": ["tps"]}]}])
    to_the_end(node, node.worker())

    assert [(job.rule, job.state, job.reason_code) for job in node.jobs()] == [
        ("old", JobState.CANCELLED, "routing_changed"),
        ("new", JobState.READY, None),
    ]
    assert [one.destination for one in node.deliveries()] == ["tps"]


def test_each_model_sends_only_what_is_approved_of_it(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = routed(make_node, {"name": "both", "results": [{}, {"model": "other-model"}]})
    sha256 = second_package(tmp_path)
    worker = node.worker()
    node.receive()
    to_the_end(node, worker)
    states = {job.model_name: (job.state, job.reason_code) for job in node.jobs()}
    assert states == {
        "test-model": (JobState.READY, None),
        "other-model": (JobState.HELD, "model_not_approved"),
    }
    assert len(node.segmenters) == 1, "a network that may not send is not loaded"

    by_package = {"test-model": node.config.model.approved_sha256, "other-model": sha256}
    reconfigured(node, model={**node.config.model.model_dump(), "approved_sha256": by_package})
    restarted = node.worker()
    with transaction(node.engine) as session:
        jobs.release(session, session.get_one(Job, 2), node.now)
    to_the_end(node, restarted)

    assert [job.state for job in node.jobs()] == [JobState.READY] * 2
    assert node.segmenters[-1].runs == 1, "it is loaded when it is first needed"


def test_a_rule_that_names_what_is_not_there_ends_the_start_with_its_path(
    make_node: Callable[..., Node],
) -> None:
    results = [{"template": "nowhere.yaml"}, {"model": "nobodys-model"}]
    node = routed(make_node, {"name": "all", "results": results})

    with pytest.raises(ConfigurationError) as refused:
        node.worker()

    told = "\n".join(refused.value.problems)
    assert "routing[0].results[0].template: nowhere.yaml" in told
    assert "nobodys-model" in told
