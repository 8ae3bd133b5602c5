"""A delivery is COMMITTED when its destination says so, and only then, whatever crashes in between.

Owns the rules of storage commitment, from the stored object to the report's consequence.
Speaks a real listener, a real database and archives on loopback, Orthanc among them; the clock is injected.
Never waits for a clock: what is due is stepped by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from sqlalchemy import Engine, select

from dicom_node import check, committer, metrics, migrate, storage_commitment, story
from dicom_node.commitment_status import ACTION_STATUSES, FAILURE_REASONS, Fate, of_action, of_failure
from dicom_node.committer import Committer
from dicom_node.config import Config
from dicom_node.config import Listener as ListenerConfig
from dicom_node.database import open_engine, reading, transaction
from dicom_node.deliverer import Deliverer
from dicom_node.listener import Listener
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.schema import Commitment, Delivery, Job
from dicom_node.states import DeliveryState, JobState
from tests import fault_pacs
from tests.dicom_node.test_deliverer import FakeClock, Node
from tests.fault_pacs import CommittingArchive, destination
from tests.tools import free_port, needs, wait_until

UID = "2.25.1"
COMMITTED, INVALID_ARGUMENT = 0x0000, 0x0115


@dataclass
class Asking(Node):
    """A node that stores, asks and listens for reports; `step` does all that is due now."""

    listener: Listener

    def step(self) -> None:
        """As after a restart: nothing is kept in memory from one step to the next."""
        self.deliverer.step()
        Committer(self.config, self.engine, self.clock, Random(1)).step()

    def delivery(self) -> Delivery:
        return self.deliveries()["archive"]

    def requests(self) -> list[Commitment]:
        with reading(self.engine) as session:
            return list(session.scalars(select(Commitment).order_by(Commitment.id)))

    def pass_to_commitment(self) -> None:
        due_at = self.delivery().commitment_due_at
        assert due_at is not None
        self.clock.now = max(self.clock.now, due_at)

    def state(self) -> tuple[JobState, DeliveryState]:
        return self.job().state, self.delivery().state


@contextmanager
def asking(
    folder: Path, port: int, commitment: dict[str, Any] | None = None, **more: Any
) -> Iterator[Asking]:
    settings = {"enabled": True, "wait_s": 0.0, **(commitment or {})}
    config = Config.model_validate(
        {
            "peers": [{"ae_title": "SCANNER", "addresses": ["127.0.0.1"]}],
            "listener": ListenerConfig(port=free_port()),
            "destinations": [destination(port, response_timeout_s=20.0, storage_commitment=settings)],
            "storage": {"folder": folder / "node", "reserve_mib": 1},
            **more,
        }
    )
    migrate.upgrade(config.storage.database)
    engine, clock = open_engine(config.storage.database), FakeClock()
    listener = Listener(config, engine, clock)
    listener.start()
    try:
        deliverer = Deliverer(config, engine, clock, rng=Random(1))
        yield Asking(config, engine, clock, deliverer, listener)
    finally:
        listener.stop(1)
        engine.dispose()


@pytest.fixture
def archive() -> CommittingArchive:
    return CommittingArchive()


@pytest.fixture
def node(tmp_path: Path, archive: CommittingArchive) -> Iterator[Asking]:
    with archive.serving() as port, asking(tmp_path, port) as node:
        node.make_result()
        yield node


# --- reports -----------------------------------------------------------------------------------


def test_a_stored_object_is_committed_only_by_a_report_which_may_come_on_a_new_association(
    node: Asking, archive: CommittingArchive
) -> None:
    node.step()
    ((transaction_uid, sop_instance_uid),) = archive.requests
    assert sop_instance_uid == node.delivery().sop_instance_uid == UID
    assert node.state() == (JobState.READY, DeliveryState.STORED)
    assert archive.report(node.listener.port) == COMMITTED
    assert archive.report(node.listener.port) == COMMITTED, "a report may come twice"
    node.step()
    assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)
    (request,) = node.requests()
    assert (request.transaction_uid, request.failure_reason) == (transaction_uid, None)
    node.step()
    assert len(archive.requests) == 1
    assert "COMMITTED after 1 attempt(s), asked 1 time(s)" in story.show(node.engine, 1).in_words()


def test_a_report_on_the_association_that_asked_commits_it_and_is_answered_before_the_release(
    tmp_path: Path, archive: CommittingArchive
) -> None:
    archive.at_once = {}
    with archive.serving() as port, asking(tmp_path, port, {"wait_s": 10.0}) as node:
        node.make_result()
        node.step()
        assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)
    assert archive.answered == [COMMITTED]


def test_what_the_archive_has_not_kept_is_stored_again_and_refused_after_the_third_time(
    node: Asking, archive: CommittingArchive
) -> None:
    for time in (1, 2, 3):
        node.step()
        assert len(archive.received.instances) == time
        assert archive.report(node.listener.port, {UID: 0x0112}) == COMMITTED
        node.step()
        assert node.delivery().commitment_failures == time
        if time < 3:
            assert node.state() == (JobState.READY, DeliveryState.PENDING)
            node.pass_to_next_attempt()
    assert node.state() == (JobState.FAILED, DeliveryState.REFUSED)
    assert "it does not have the object (0x0112); 3 time(s)" in (node.delivery().reason or "")
    assert len({data for _, data in archive.received.instances}) == 1, "the same bytes each time"
    node.retry()
    node.step()
    assert archive.report(node.listener.port) == COMMITTED
    node.step()
    assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)


def test_a_late_report_about_an_earlier_storing_changes_nothing(
    node: Asking, archive: CommittingArchive
) -> None:
    node.step()
    first = archive.requests[0]
    node.pass_to_commitment()
    node.step()
    assert archive.report(node.listener.port, {UID: 0x0112}) == COMMITTED
    node.step()
    node.pass_to_next_attempt()
    node.step()
    assert node.delivery().state is DeliveryState.STORED
    assert archive.report(node.listener.port, {UID: 0x0112}, request=first) == COMMITTED
    node.step()
    assert (node.delivery().state, node.delivery().commitment_failures) == (DeliveryState.STORED, 1)


@pytest.mark.parametrize(
    ("reason", "state", "stored", "asked"),
    [
        (0x0110, DeliveryState.STORED, 2, 2),  # processing failure: stored again
        (0x0131, DeliveryState.STORED, 1, 2),  # its transaction UID: only asked again, with another
        (0x0213, DeliveryState.STORED, 1, 2),  # its resources
        (0x0119, DeliveryState.REFUSED, 1, 1),  # another object has this UID
        (0x0122, DeliveryState.REFUSED, 1, 1),  # not for this class
        (0xABCD, DeliveryState.STORED, 2, 2),
    ],
)
def test_each_failure_reason_has_its_consequence(
    node: Asking, archive: CommittingArchive, reason: int, state: DeliveryState, stored: int, asked: int
) -> None:
    node.step()
    archive.report(node.listener.port, {UID: reason})
    node.step()
    node.clock.now += 30
    node.step()
    assert node.delivery().state is state
    assert (len(archive.received.instances), len({uid for uid, _ in archive.requests})) == (stored, asked)


def test_every_number_that_the_standard_names_has_a_fate_and_no_other_is_final() -> None:
    for status in range(0x10000):
        assert (of_action(status).fate is Fate.REFUSED) == (status in ACTION_STATUSES)
        if status not in FAILURE_REASONS:
            assert of_failure(status).fate is Fate.STORE_AGAIN
    assert of_action(None).fate is Fate.ASK_AGAIN


# --- no report ---------------------------------------------------------------------------------


def test_without_a_report_in_time_it_is_asked_again_and_any_report_counts(
    node: Asking, archive: CommittingArchive
) -> None:
    node.step()
    node.clock.now += 599
    node.step()
    assert len(archive.requests) == 1
    node.clock.now += 1
    node.step()
    assert len({transaction_uid for transaction_uid, _ in archive.requests}) == 2
    assert len(archive.received.instances) == 1, "nothing says that it is to be stored again"
    assert 'anatomynode_commitment_waiting_age_seconds{destination="archive"} 600.0' in exposed(node)
    node.clock.now += 3600
    assert 'anatomynode_delivery_overdue{destination="archive"} 1.0' in exposed(node)
    assert archive.report(node.listener.port, request=archive.requests[0]) == COMMITTED
    node.step()
    assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)
    assert 'anatomynode_commitment_requests_total{destination="archive"} 2.0' in exposed(node)
    assert 'anatomynode_delivery_overdue{destination="archive"} 0.0' in exposed(node)


@pytest.mark.parametrize(("answer", "state"), [(0x0110, "STORED"), (0x0211, "REFUSED"), (0x0124, "REFUSED")])
def test_an_archive_that_cannot_now_is_asked_again_and_one_that_never_will_is_told(
    node: Asking, archive: CommittingArchive, answer: int, state: str
) -> None:
    archive.answer = answer
    node.step()
    assert (node.delivery().state, f"0x{answer:04X}" in (node.delivery().reason or "")) == (state, True)
    archive.answer = COMMITTED
    node.clock.now += 30
    node.step()
    assert len(archive.requests) == (2 if state == "STORED" else 1)


def test_an_archive_without_storage_commitment_is_named_by_check_and_the_delivery_refused(
    tmp_path: Path,
) -> None:
    with fault_pacs.answering(0x0000) as port, asking(tmp_path, port) as node:
        node.make_result()
        node.step()
        assert node.state() == (JobState.FAILED, DeliveryState.REFUSED)
        assert "accepts no Storage Commitment Push Model" in (node.delivery().reason or "")
        finding = check._destination(node.config.destinations[0], node.config)
        assert "accepts no Storage Commitment Push Model" in (finding.problem or "")


def test_an_archive_that_is_away_after_it_has_stored_is_asked_when_it_is_back(
    tmp_path: Path, archive: CommittingArchive
) -> None:
    port = free_port()
    with asking(tmp_path, port) as node:
        node.make_result()
        with archive.serving(port):
            node.deliverer.step()
        node.step()
        assert node.state() == (JobState.READY, DeliveryState.STORED)
        assert "to be asked to commit itself" in (node.delivery().reason or "")
        with archive.serving(port):
            node.pass_to_commitment()
            node.step()
            assert archive.report(node.listener.port) == COMMITTED
        node.step()
        assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)


# --- who may report ----------------------------------------------------------------------------


def test_only_the_destination_that_was_asked_is_listened_to(node: Asking, archive: CommittingArchive) -> None:
    node.step()
    port = node.listener.port
    assert archive.report(port, calling="STRANGER") is None, "an AE title that nobody has"
    assert archive.report(port, calling="SCANNER") is None, "a peer that was asked nothing"
    assert archive.report(port, request=("2.25.99", UID)) == INVALID_ARGUMENT
    assert archive.report(port, request=(archive.requests[0][0], "2.25.99")) == INVALID_ARGUMENT
    node.step()
    assert node.delivery().state is DeliveryState.STORED


def test_a_report_from_another_address_than_the_destinations_is_rejected(
    tmp_path: Path, archive: CommittingArchive
) -> None:
    elsewhere = {"addresses": ["10.1.2.0/24"]}
    with archive.serving() as port, asking(tmp_path, port, elsewhere) as node:
        node.make_result()
        node.step()
        assert archive.report(node.listener.port) is None


def test_the_node_offers_no_commitment_for_what_it_receives_and_its_destination_may_not_send(
    node: Asking,
) -> None:
    def accepted(calling: str) -> set[str]:
        entity = AE(ae_title=calling)
        for wanted in (Verification, StorageCommitmentPushModel, "1.2.840.10008.5.1.4.1.1.2"):
            entity.add_requested_context(wanted)
        peer = entity.associate("127.0.0.1", node.listener.port, ae_title="ANATOMYNODE")
        if calling != "SCANNER":
            status, _ = peer.send_n_action(None, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
            assert status.Status == 0x0211
        peer.release()
        return {str(context.abstract_syntax) for context in peer.accepted_contexts}

    assert accepted("SCANNER") == {Verification, "1.2.840.10008.5.1.4.1.1.2"}
    assert accepted("ARCHIVE") == {Verification, StorageCommitmentPushModel}


# --- crashes and persons -----------------------------------------------------------------------


class Killed(BaseException):
    """In place of kill -9: nothing of the program catches it."""


def _killed(*_: Any) -> Any:
    raise Killed


def _only_then_killed(original: Callable[..., Any]) -> Callable[..., Any]:
    def doing(*arguments: Any) -> Any:
        original(*arguments)
        raise Killed

    return doing


@pytest.mark.parametrize(
    ("place", "name", "when", "asked"),
    [
        (committer.commitments, "begin", "before", 1),
        (storage_commitment, "ask", "before", 1),
        (storage_commitment, "ask", "after", 2),
        (committer.commitments, "taken", "after", 2),
    ],
)
def test_killed_at_every_point_it_is_asked_and_committed_all_the_same(
    node: Asking,
    archive: CommittingArchive,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    when: str,
    asked: int,
) -> None:
    original = getattr(place, name)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, _killed if when == "before" else _only_then_killed(original))
        with pytest.raises(Killed):
            node.step()
    node.step()
    assert len(archive.requests) == asked
    assert archive.report(node.listener.port) == COMMITTED
    for weigh in (_killed, _only_then_killed(committer.commitments.weigh)):
        with monkeypatch.context() as patch:
            patch.setattr(committer.commitments, "weigh", weigh)
            with pytest.raises(Killed):
                node.step()
        assert node.state() == (JobState.READY, DeliveryState.STORED)
    node.step()
    assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)


def test_what_the_configuration_no_longer_asks_for_is_sent_as_it_is(
    node: Asking, archive: CommittingArchive
) -> None:
    node.step()
    plain = node.config.model_copy(update={"destinations": (destination(node.config.destinations[0].port),)})
    Committer(plain, node.engine, node.clock).step()
    assert node.state() == (JobState.SENT, DeliveryState.STORED)
    assert "no longer asks" in (node.delivery().reason or "")


def test_a_person_may_end_the_wait_and_pushed_again_it_is_committed_anew(
    node: Asking, archive: CommittingArchive
) -> None:
    node.step()
    story.cancel(node.engine, 1, node.clock)
    assert node.state() == (JobState.SENT, DeliveryState.STORED)
    node.clock.now += 3600
    node.step()
    assert len(archive.requests) == 1
    _push_again(node.engine, node.clock.now)
    node.step()
    assert (len(archive.requests), node.state()) == (2, (JobState.READY, DeliveryState.STORED))
    archive.report(node.listener.port)
    node.step()
    assert node.state() == (JobState.SENT, DeliveryState.COMMITTED)


def _push_again(engine: Engine, at: float) -> None:
    from dicom_node import jobs
    from dicom_node.schema import Series

    with transaction(engine) as session:
        series = session.get_one(Series, session.get_one(Job, 1).series_id)
        assert jobs.deliver_again(session, series, "pushed again", at)


def exposed(node: Asking) -> str:
    collector = metrics.NodeCollector(node.engine, node.config, ReceptionFigures(), node.clock)
    return metrics.exposition(collector)().decode()


# --- a real archive ----------------------------------------------------------------------------


@needs("Orthanc")
def test_orthanc_commits_itself_to_what_it_has_and_reports_what_it_has_not(tmp_path: Path) -> None:
    from tests.test_node import Orthanc

    orthanc = Orthanc(tmp_path / "orthanc")
    with asking(tmp_path, orthanc.dicom_port) as node:
        changed = node.config.destinations[0].model_copy(update={"ae_title": "PACS"})
        node.listener.stop(1)
        node.config = node.config.model_copy(update={"destinations": (changed,)})
        node.deliverer = Deliverer(node.config, node.engine, node.clock, rng=Random(1))
        node.listener = Listener(node.config, node.engine, node.clock)
        node.listener.start()
        node.make_result()
        with orthanc.serving(node.listener.port, auto_route=False):
            node.deliverer.step()
            for instance in orthanc.get("/instances"):
                orthanc.delete(instance)
            for end in (DeliveryState.PENDING, DeliveryState.COMMITTED):
                node.pass_to_next_attempt()
                node.step()
                wait_until(lambda: node.requests()[-1].reported_at is not None, 20, "Orthanc's report")
                node.step()
                assert node.delivery().state is end
        assert [request.failure_reason for request in node.requests()] == [0x0112, None]
        assert node.job().state is JobState.SENT
