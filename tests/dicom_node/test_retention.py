"""What is old is removed in the end, what is unfinished never, and nothing that is pushed again is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from dicom_node import jobs, story
from dicom_node.database import reading, transaction
from dicom_node.retention import Retention
from dicom_node.schema import Arrival, Delivery, Instance, Job, Removal
from dicom_node.states import DeliveryState, JobState
from dicom_node.worker import Worker
from tests.worker_node import PHANTOM, Node, make_node

__all__ = ["make_node"]  # a fixture

DAY_S = 86_400.0
SLICES = len(PHANTOM.offsets_mm)
RULES = {"slices_days": 30, "results_days": 365, "room_mib": 1}


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node(retention=RULES)


def _slices(node: Node) -> list[Path]:
    return sorted(node.config.storage.spool.rglob("*.dcm"))


def _results(node: Node) -> list[Path]:
    return sorted(node.config.storage.results.glob("*.dcm"))


def _removals(node: Node) -> list[tuple[str, str, int]]:
    with reading(node.engine) as session:
        return [
            (one.what, one.cause, one.files) for one in session.scalars(select(Removal).order_by(Removal.id))
        ]


def _contoured(node: Node, worker: Worker) -> None:
    node.receive()
    node.now += 2.0
    node.step(worker)


def _sent(node: Node, worker: Worker) -> None:
    _contoured(node, worker)
    node.store_all()


def _removes(node: Node, free_bytes: int = 1 << 50) -> int:
    """How many steps of a retention of its own removed something."""
    before = len(_removals(node))
    retention = Retention(node.config, node.engine, node.clock, lambda _folder: free_bytes)
    while retention.step() <= node.now:
        pass
    return len(_removals(node)) - before


def test_slices_of_a_finished_series_go_when_they_are_of_age_and_the_worker_sees_to_it(node: Node) -> None:
    worker = node.worker()
    _sent(node, worker)
    node.now += 29.9 * DAY_S
    node.step(worker)
    assert len(_slices(node)) == SLICES
    node.now += 0.2 * DAY_S
    node.step(worker)
    assert _slices(node) == []
    assert len(_results(node)) == 1
    assert _removals(node) == [("slices", "age", SLICES)]
    told = story.show(node.engine, node.job().id).in_words()
    assert f"{SLICES} file(s) of its slices were removed" in told


@pytest.mark.parametrize(
    "state",
    ["receiving", "queued", "ready", "held", "held for a destination", "pushed again", "not committed"],
)
def test_what_is_unfinished_is_never_removed(node: Node, state: str) -> None:
    worker = node.worker()
    if state == "receiving":
        node.receive(outcome=None)
    elif state == "ready":
        _contoured(node, worker)
    elif state == "held for a destination":
        _contoured(node, worker)
        with transaction(node.engine) as session:
            (delivery,) = session.scalars(select(Delivery))
            jobs.move(session, delivery, DeliveryState.HELD, node.now, "a person should look")
    elif state == "not committed":
        _contoured(node, worker)
        _store_without_commitment_and_refuse_elsewhere(node)
    elif state == "pushed again":
        _sent(node, worker)
        node.now += 400 * DAY_S
        node.receive(which=range(3), outcome=None)
    else:
        node.receive()
        with transaction(node.engine) as session:
            series = session.get_one(jobs.Series, 1)
            evidence = {"kind": "quiet", "instances": SLICES}
            order = jobs.Order(jobs.Model("m", "0" * 64))
            (job,) = jobs.complete(session, series, evidence, "quiet", [order], node.now)
            if state == "held":
                jobs.move(session, job, JobState.HELD, node.now, "a person should look")
    if state != "pushed again":
        node.now += 400 * DAY_S
    assert _removes(node, free_bytes=0) == 0
    assert len(_slices(node)) == SLICES


def _store_without_commitment_and_refuse_elsewhere(node: Node) -> None:
    """One destination fails the job, the other has stored it and owes its commitment."""
    with transaction(node.engine) as session:
        (owing,) = session.scalars(select(Delivery))
        refusing = Delivery(job_id=owing.job_id, destination="tps", created_at=0.0, next_attempt_at=0.0)
        jobs.begin(session, refusing, node.now, "it is to go there too")
        jobs.delivery_refused(session, refusing, 0xA900, "never", node.now)
        jobs.delivery_stored(session, owing, 0x0000, "stored", node.now, asks_commitment=True)
    assert node.job().state is JobState.FAILED


def test_pushed_again_after_its_slices_were_removed_the_very_stored_result_goes_out_again(node: Node) -> None:
    worker = node.worker()
    _sent(node, worker)
    before = node.result()
    node.now += 31 * DAY_S
    assert _removes(node) == 1
    node.receive()
    assert len(_slices(node)) == SLICES
    node.now += 2.0
    node.step(worker)
    node.step(worker)
    assert [one.state for one in node.deliveries()] == [DeliveryState.PENDING]
    node.store_all()
    assert (node.job().state, node.result(), node.segmenters[0].runs) == (JobState.SENT, before, 1)
    node.now += 29 * DAY_S
    assert _removes(node) == 0  # counted from the last push on
    node.now += 2 * DAY_S
    assert _removes(node) == 1


def test_a_job_whose_slices_were_removed_says_what_to_do_and_can_be_done_again_after_that(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(retention=RULES, series={"min_slices": 1000})
    worker = node.worker()
    node.receive()
    node.now += 40.0
    node.step(worker)
    assert node.job().state is JobState.REJECTED
    node.now += 31 * DAY_S
    assert _removes(node) == 1
    _retry(node)
    node.step(worker)
    assert node.job().state is JobState.REJECTED
    assert node.job().reason_code == "slices_removed"
    assert f"push the whole series again, then run `anatomynode jobs retry {node.job().id}`" in str(
        node.job().reason
    )
    node.receive()
    node.now += 40.0
    node.step(worker)
    _retry(node)
    node.step(worker)
    assert node.job().reason_code == "too_few_slices"


def _retry(node: Node) -> None:
    with transaction(node.engine) as session:
        jobs.retry(session, session.get_one(Job, node.job().id), node.now)


def test_where_space_is_wanted_the_oldest_finished_series_goes_first_but_none_of_the_last_day_and_no_failure(
    node: Node,
) -> None:
    worker = node.worker()
    _sent(node, worker)
    node.now += 0.5 * DAY_S
    assert _removes(node, free_bytes=0) == 0
    assert _removes(node) == 0
    node.now += 0.6 * DAY_S
    assert _removes(node, free_bytes=0) == 1
    assert _removals(node) == [("slices", "space", SLICES)]


def test_a_failed_series_stays_until_it_is_of_age_however_little_space_there_is(node: Node) -> None:
    node.problem = RuntimeError("a bug")
    _contoured(node, node.worker())
    assert node.job().state is JobState.FAILED
    node.now += 2 * DAY_S
    assert _removes(node, free_bytes=0) == 0
    node.now += 29 * DAY_S
    assert _removes(node, free_bytes=0) == 1


def test_results_and_the_rows_of_slices_go_later_and_the_story_stays(node: Node) -> None:
    worker = node.worker()
    _sent(node, worker)
    first = node.job()
    node.now += 366 * DAY_S
    assert _removes(node) == 2
    assert (_slices(node), _results(node)) == ([], [])
    with reading(node.engine) as session:
        left = [session.scalar(select(func.count()).select_from(table)) for table in (Instance, Arrival)]
    assert left == [0, 0]
    told = story.show(node.engine, first.id)
    assert told.job["sop_instance_uid"] == first.sop_instance_uid
    assert any(change["to"] == "SENT" for change in told.transitions)

    node.receive()
    node.step(worker)
    node.now += 2.0
    node.step(worker)
    old, new = node.jobs()
    assert (old.id, old.state) == (first.id, JobState.SENT)
    assert (new.revision, new.state) == (2, JobState.READY)
    assert new.predecessor_sop_instance_uid == first.sop_instance_uid != new.sop_instance_uid


def test_a_crash_between_removing_and_committing_is_made_good_by_the_next_step(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sent(node, node.worker())
    node.now += 31 * DAY_S
    with monkeypatch.context() as crash:
        crash.setattr("dicom_node.retention._keep", _power_cut)
        with pytest.raises(PowerCutError):
            _removes(node)
    assert (_slices(node), _removals(node)) == ([], [])
    assert _removes(node) == 1
    assert node.series().slices_removed_at == node.now


class PowerCutError(Exception):
    pass


def _power_cut(*_arguments: object) -> None:
    raise PowerCutError


def test_a_disk_that_does_not_let_go_stops_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = node.worker()
    _sent(node, worker)
    node.now += 31 * DAY_S

    def refuse(_path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refuse)
        node.step(worker)
    assert _removals(node) == []
    node.now += 61.0
    node.step(worker)
    assert len(_removals(node)) == 1
