"""What is measured of a job: every second once, each result once, and nobody's patience but the node's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from dicom_node import jobs, timings
from dicom_node.database import reading, transaction
from dicom_node.schema import Contact, Delivery, Duration, Finding, Job
from dicom_node.store_status import StoreKind
from dicom_node.timings import Stage, Step, Turnaround
from inference.flags import LOW_CONFIDENCE
from inference.segmentation import Segmentation
from inference.volume import Volume
from tests.worker_node import Node, make_node

__all__ = ["make_node"]

BEFORE_THE_WORKER = {Stage.RECEIVING, Stage.WAITING, Step.COMPLETENESS, Step.QUEUE}


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


def measured(node: Node, job: int = 1) -> dict[str, tuple[float, float]]:
    """When each stage began, and its seconds, with its destination where it has one."""
    with reading(node.engine) as session:
        rows = session.scalars(select(Duration).where(Duration.job_id == job))
        return {f"{row.stage} {row.destination}".strip(): (row.began_at, row.seconds) for row in rows}


def test_the_stages_follow_each_other_without_a_gap_and_are_the_turnaround(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = node.worker()
    segment = node.segmenters[0].segment

    def slowly(volume: Volume) -> Segmentation:
        node.now += 60.0
        return segment(volume)

    monkeypatch.setattr(node.segmenters[0], "segment", slowly)
    node.receive(which=range(10), outcome=None)
    node.now += 7.0
    node.receive(which=range(10, 24))
    node.now += 30.0
    node.step(worker)
    node.now += 4.0
    node.store_all()
    found = measured(node)
    way = [stage for stage in Stage if stage not in (Stage.SENDING, Stage.COMMITTED)]
    at = 1000.0
    for stage in way:
        began_at, seconds = found[stage]
        assert began_at == pytest.approx(at)
        at += seconds
    assert found["sending pacs"][0] == pytest.approx(at)
    at += found["sending pacs"][1]
    assert found[f"{Turnaround.FIRST_SLICE} pacs"] == (1000.0, pytest.approx(at - 1000.0))
    assert found[f"{Turnaround.LAST_SLICE} pacs"] == (1007.0, pytest.approx(at - 1007.0))
    assert found[Stage.RECEIVING] == (1000.0, 7.0)
    assert sum(found[step][1] for step in (Step.COMPLETENESS, Step.QUEUE)) == found[Stage.WAITING][1]
    assert node.now == pytest.approx(at)


def test_a_later_revision_is_received_from_its_first_late_slice_and_changes_nothing_of_the_earlier(
    node: Node,
) -> None:
    worker = node.worker()
    node.receive(which=range(20))
    node.now += 2.0
    node.step(worker)
    node.store_all()
    before = measured(node)
    node.now += 500.0
    node.receive(which=range(20, 22))
    node.now += 3.0
    node.receive(which=range(22, 24))
    node.step(worker)
    node.now += 30.0
    node.step(worker)
    node.step(worker)
    assert [job.revision for job in node.jobs()] == [1, 2]
    assert measured(node) == before
    assert measured(node, 2)[Stage.RECEIVING] == (1502.0, 3.0)
    assert measured(node, 2)[Stage.WAITING] == (1505.0, 30.0)


def test_slices_that_come_late_to_a_waiting_job_count_in_its_receiving(node: Node) -> None:
    worker = node.worker()
    node.receive(which=range(20))
    node.now += 2.0
    worker._assembler.step()
    node.now += 5.0
    node.receive(which=range(20, 24))
    node.step(worker)
    node.now += 30.0
    node.step(worker)
    node.step(worker)
    (job,) = node.jobs()
    assert job.rt_struct_file is not None
    found = measured(node)
    assert found[Stage.RECEIVING] == (1000.0, 7.0)
    assert found[Stage.WAITING] == (1007.0, 30.0)


def test_what_waited_for_a_person_has_the_stages_of_the_worker_and_no_turnaround(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(review={"hold": [LOW_CONFIDENCE]})
    worker = node.worker()
    node.segmenters[0].flags = (LOW_CONFIDENCE,)
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert node.job().state == "HELD"
    assert measured(node) == {}, "nothing before there is a result"
    node.now += 5000.0
    with transaction(node.engine) as session:
        jobs.release(session, session.get_one(Job, 1), node.now)
    node.step(worker)
    node.store_all()
    found = measured(node)
    assert set(found) & BEFORE_THE_WORKER == set()
    assert not any("sending" in name or "since" in name for name in found)
    assert {Stage.INFERENCE, Stage.KEEPING} <= set(found)


def test_a_clock_that_is_set_back_makes_no_negative_duration(node: Node) -> None:
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    node.now -= 7200.0
    node.store_all()
    found = measured(node)
    assert found["sending pacs"][1] == 0.0
    assert all(seconds >= 0.0 for _, seconds in found.values())


def test_the_first_result_says_what_was_found_and_a_commitment_how_long_it_took(node: Node) -> None:
    contoured_once(node)
    with transaction(node.engine) as session:
        delivery = session.get_one(Delivery, 1)
        timings.committed(session, delivery, node.now + 5.0)
        timings.committed(session, delivery, node.now + 50.0)
    assert measured(node)["committed pacs"] == (node.now, 5.0)
    with reading(node.engine) as session:
        (finding,) = session.scalars(select(Finding))
    assert (finding.structure, finding.flags) == ("Brainstem", [])
    assert finding.volume_cm3 == pytest.approx(node.job().report["rois"][0]["volume_cm3"])  # type: ignore[index]


def contoured_once(node: Node) -> None:
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    node.store_all()


def test_a_contact_says_whether_the_last_try_reached_and_since_when_none_did(node: Node) -> None:
    tries = (
        (StoreKind.UNREACHABLE, None, 10.0, (10.0, None, False)),
        (StoreKind.STORED, 0x0000, 20.0, (20.0, 20.0, True)),
        (StoreKind.REFUSED, None, 30.0, (20.0, 20.0, True)),  # nothing was sent: the file was damaged
        (StoreKind.REFUSED, 0xC000, 40.0, (40.0, 40.0, True)),
        (StoreKind.UNREACHABLE, None, 50.0, (50.0, 40.0, False)),
        (StoreKind.TRANSIENT, 0xA700, 60.0, (60.0, 60.0, True)),
    )
    for kind, status, at, known in tries:
        with transaction(node.engine) as session:
            timings.answered(session, "pacs", kind, status, at)
        with reading(node.engine) as session:
            contact = session.get_one(Contact, "pacs")
            assert (contact.tried_at, contact.reached_at, contact.is_reached) == known
