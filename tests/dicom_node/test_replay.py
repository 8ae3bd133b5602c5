"""A replay shows what would change, structure by structure, and changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dicom_node import contouring, retention
from dicom_node.database import reading
from dicom_node.errors import SeriesRejectedError
from dicom_node.replay import CannotReplayError, as_now, replay
from dicom_node.states import JobState
from tests.node_fixtures import BoxSegmenter, write_package
from tests.worker_node import Node, make_node

__all__ = ["make_node"]  # a fixture


class OneSliceHigher(BoxSegmenter):
    shift = (1, 0, 0)


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """One whose job is READY."""
    node = make_node()
    node.receive()
    node.now += 2.0
    node.step(node.worker())
    assert node.job().state is JobState.READY
    return node


@pytest.fixture(autouse=True)
def _box(monkeypatch: pytest.MonkeyPatch) -> None:
    _segments_by(monkeypatch, BoxSegmenter)


def _segments_by(monkeypatch: pytest.MonkeyPatch, segmenter: type[BoxSegmenter]) -> None:
    monkeypatch.setattr(contouring, "segmenter_of", lambda package, _settings: segmenter(package))


def _everything(node: Node) -> dict[str, Any]:
    """Each row of each table, and each file with its bytes."""
    with reading(node.engine) as session:
        tables = session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'")).all()
        rows = {one: session.execute(text(f"SELECT * FROM {one}")).all() for one in tables}
    folders = node.config.storage.spool, node.config.storage.results
    files = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    return {**rows, **{str(path): hashlib.sha256(data).hexdigest() for path, data in files.items()}}


def test_with_nothing_changed_it_gives_the_very_same_bytes_and_changes_nothing(
    node: Node, tmp_path: Path
) -> None:
    before = _everything(node)
    done = replay(node.engine, 1, tmp_path / "again.dcm", node.config)
    assert (tmp_path / "again.dcm").read_bytes() == node.result()
    assert _everything(node) == before
    assert done.is_the_same
    (one,) = done.agreements
    assert (one.name, one.dice, one.hd95_mm, one.furthest_mm) == ("Brainstem", 1.0, 0.0, 0.0)
    assert one.before_cm3 == one.after_cm3
    assert "the very same bytes" in done.in_words()


def test_what_another_model_would_change_is_measured_in_millimetres_and_cm3(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _segments_by(monkeypatch, OneSliceHigher)
    done = replay(node.engine, 1, tmp_path / "again.dcm", node.config)
    (one,) = done.agreements
    # Six slices of 3 mm, of which five are shared.
    assert (one.dice, one.hd95_mm, one.furthest_mm) == pytest.approx((5 / 6, 3.0, 3.0))
    assert one.before_cm3 == pytest.approx(one.after_cm3)
    assert done.as_json()["agreements"][0]["dice"] == one.dice
    assert "another object; nothing of it was sent" in done.in_words()


def test_without_another_model_it_is_the_package_that_made_the_job_or_the_one_in_its_place(
    node: Node, tmp_path: Path
) -> None:
    folder = node.config.model.folder
    assert folder is not None
    write_package(folder, "other-model", "SpinalCord")
    other = node.config.model.model_copy(update={"package": "other-model"})
    for settings, package in (
        (node.config, "test-model"),
        (node.config.model_copy(update={"model": other}), "other-model"),
    ):
        assert as_now(node.engine, 1, settings).model.package == package


def test_structures_that_would_come_and_go_are_named(node: Node, tmp_path: Path) -> None:
    folder = node.config.model.folder
    assert folder is not None
    write_package(folder, "other-model", "SpinalCord")
    other = node.config.model.model_copy(update={"package": "other-model"})
    settings = node.config.model_copy(update={"model": other})
    done = replay(node.engine, 1, tmp_path / "again.dcm", settings)
    assert [(one.name, one.before_cm3 is None, one.after_cm3 is None) for one in done.agreements] == [
        ("Brainstem", False, True),
        ("SpinalCord", True, False),
    ]
    assert "gone, was" in done.in_words()
    assert "Now, by other-model 1" in done.in_words()


def test_it_takes_the_slices_that_the_job_had_although_more_have_come_since(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    worker = node.worker()
    for which in (range(20), range(20, 24)):
        node.receive(which=which)
        node.now += 40.0
        node.step(worker)
        node.store_all()
    assert [job.revision for job in node.jobs()] == [1, 2]
    for job in node.jobs():
        assert replay(node.engine, job.id, tmp_path / "again.dcm", node.config).is_the_same


def test_slices_that_retention_removed_are_named_as_the_reason(node: Node, tmp_path: Path) -> None:
    node.store_all()
    node.now += 31 * 86_400.0
    retention.Retention(node.config, node.engine, node.clock).step()
    with pytest.raises(CannotReplayError, match="were removed on 1970-02-01, as retention says: push"):
        replay(node.engine, 1, tmp_path / "again.dcm", node.config)
    assert not (tmp_path / "again.dcm").exists()


def test_a_rejected_series_shows_whether_it_would_still_be_rejected(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node(series={"min_slices": 100})
    node.receive()
    node.now += 40.0
    node.step(node.worker())
    assert node.job().state is JobState.REJECTED
    with pytest.raises(SeriesRejectedError, match="100"):
        replay(node.engine, 1, tmp_path / "again.dcm", node.config)
    slices = list(node.config.storage.spool.rglob("*.dcm"))
    content = slices[0].read_bytes()
    slices[0].unlink()
    with pytest.raises(CannotReplayError, match="a slice of job 1 cannot be read: No such file"):
        replay(node.engine, 1, tmp_path / "again.dcm", node.config)
    slices[0].write_bytes(content)
    rules = node.config.series.model_copy(update={"min_slices": 10})
    done = replay(node.engine, 1, tmp_path / "again.dcm", node.config.model_copy(update={"series": rules}))
    assert (done.is_the_same, done.agreements) == (None, ())
    assert "job 1 is REJECTED" in done.in_words()
    assert "There is no RT-STRUCT of it to compare with." in done.in_words()
