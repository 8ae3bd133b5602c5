"""Somebody sets the clock by two hours: nothing comes early that would do harm, and nothing waits so long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dicom_node import http_status, storage_commitment
from dicom_node.committer import Committer
from dicom_node.config import Destination
from dicom_node.deliverer import Deliverer
from dicom_node.errors import TransientError
from dicom_node.retention import Retention
from dicom_node.scu import SUCCESS, StoreOutcome
from dicom_node.states import DeliveryState, JobState
from dicom_node.steady import SteadyAges
from dicom_node.store_status import StoreKind
from dicom_node.worker import Worker
from dicom_node.worker_figures import JOB_LIMIT_S, LOOP_LIMIT_S, Heartbeat
from tests.worker_node import Node, make_node

__all__ = ["make_node"]  # a fixture

HOURS = 7200.0
STEPS = (HOURS, -HOURS)
ASKING = {
    "name": "pacs",
    "host": "127.0.0.1",
    "port": 1,
    "ae_title": "PACS",
    "storage_commitment": {"enabled": True, "wait_s": 0, "report_within_s": 600},
}


@dataclass
class Rig:
    """A worker and what sends beside it, all by the clock that the test sets.

    Attributes:
        is_away: whether the archive answers.
        sent, asked: how often it was tried to send, and asked to commit itself.
    """

    node: Node
    worker: Worker
    is_away: bool = False
    sent: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        node = self.node
        self._deliverer = Deliverer(node.config, node.engine, node.clock, self._store)
        self._committer = Committer(node.config, node.engine, node.clock)

    def work(self) -> None:
        self.node.step(self.worker)
        self._deliverer.step()
        self._committer.step()

    @contextmanager
    def _store(self, _destination: Destination, _calling: str, _file: Path) -> Iterator[StoreOutcome]:
        self.sent.append(self.node.now)
        kind = StoreKind.TRANSIENT if self.is_away else StoreKind.STORED
        yield StoreOutcome(kind, 0xA700 if self.is_away else SUCCESS, "said the archive")

    def ask(self, *_arguments: object) -> int:
        self.asked.append(self.node.now)
        return SUCCESS


def _one_association(rig: Rig) -> None:
    rig.node.receive()


def _broken_association(rig: Rig) -> None:
    rig.node.receive(outcome="aborted")


def _still_sending(rig: Rig) -> None:
    rig.node.receive(outcome=None)


def _postponed(rig: Rig) -> None:
    rig.node.problem = TransientError("the device is busy")
    rig.worker = rig.node.worker()
    _to_its_end(rig)
    rig.node.segmenters[-1].problem = None


def _failing_archive(rig: Rig) -> None:
    rig.is_away = True
    _to_its_end(rig)


def _pushed_again(rig: Rig) -> None:
    _to_its_end(rig)
    rig.node.store_all()
    rig.node.now += 100.0
    rig.node.receive()


def _held(rig: Rig) -> None:
    rig.node.segmenters[-1].flags = ("in_pieces",)
    _to_its_end(rig)


def _to_its_end(rig: Rig) -> None:
    rig.node.receive()
    rig.node.now += 2.0
    rig.work()


@dataclass(frozen=True)
class Case:
    """What is waited for, from the moment on at which the clock is set.

    Attributes:
        within_s: then it has come, whatever the clock says.
        may_be_early: whether it does no harm before that, such as one more try.
    """

    begin: Callable[[Rig], None]
    has_come: Callable[[Rig], bool]
    within_s: float
    may_be_early: bool = False


CASES = {
    "RECEIVING, one association released": Case(_one_association, lambda rig: bool(rig.node.jobs()), 2.0),
    "RECEIVING, an association broken": Case(_broken_association, lambda rig: bool(rig.node.jobs()), 30.0),
    "RECEIVING, an association open": Case(_still_sending, lambda rig: bool(rig.node.jobs()), 30.0),
    "QUEUED, to be tried again": Case(
        _postponed, lambda rig: rig.node.job().state is JobState.SENT, 5.0, may_be_early=True
    ),
    "PENDING, to be tried again": Case(
        _failing_archive, lambda rig: len(rig.sent) > 1, 5.0, may_be_early=True
    ),
    "STORED, to be asked about again": Case(
        _to_its_end, lambda rig: len(rig.asked) > 1, 600.0, may_be_early=True
    ),
    "COMPLETE, pushed again": Case(_pushed_again, lambda rig: len(rig.sent) > 1, 2.0),
}


@pytest.fixture
def make_rig(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    def make(commitment: bool = False, **changes: object) -> Rig:
        if commitment:
            changes["destinations"] = [ASKING]
        node = make_node(**changes)
        rig = Rig(node, node.worker())
        monkeypatch.setattr(storage_commitment, "ask", rig.ask)
        return rig

    return make


@pytest.mark.parametrize("step_s", STEPS)
@pytest.mark.parametrize("name", CASES)
def test_in_every_state_what_is_waited_for_comes_at_its_time(
    make_rig: Callable[..., Rig], name: str, step_s: float
) -> None:
    case = CASES[name]
    rig = make_rig(commitment=name.startswith("STORED"))
    rig.work()
    case.begin(rig)
    rig.work()
    assert not case.has_come(rig)
    rig.node.set_by_s = step_s
    rig.work()
    rig.node.now += case.within_s - 0.5
    rig.work()
    assert case.may_be_early or not case.has_come(rig)
    rig.node.now += 0.5
    rig.work()
    assert case.has_come(rig)


@pytest.mark.parametrize("step_s", STEPS)
def test_a_step_between_the_last_slice_and_the_next_look_makes_no_series_complete(
    make_rig: Callable[..., Rig], step_s: float
) -> None:
    rig = make_rig()
    rig.node.receive(which=range(12), outcome=None)
    rig.work()
    rig.node.receive(which=range(12, 14), outcome=None)
    rig.node.set_by_s = step_s
    rig.work()
    assert rig.node.jobs() == []


@pytest.mark.parametrize("step_s", STEPS)
def test_late_slices_after_the_step_are_seen_and_make_a_revision(
    make_rig: Callable[..., Rig], step_s: float
) -> None:
    rig = make_rig()
    rig.node.receive(which=range(20))
    rig.node.now += 2.0
    rig.work()
    rig.node.set_by_s = step_s
    rig.node.now += 100.0
    rig.node.receive(which=range(20, 24))
    rig.work()
    rig.node.now += 30.0
    rig.work()
    assert [(job.revision, job.state) for job in rig.node.jobs()] == [(1, JobState.SENT), (2, JobState.SENT)]


@pytest.mark.parametrize("step_s", STEPS)
def test_what_is_held_stays_so(make_rig: Callable[..., Rig], step_s: float) -> None:
    rig = make_rig(review={"hold": ["in_pieces"]})
    _held(rig)
    rig.node.set_by_s = step_s
    rig.node.now += 60.0
    rig.work()
    assert (rig.node.job().state, rig.sent) == (JobState.HELD, [])


@pytest.mark.parametrize("step_s", STEPS)
def test_a_running_job_hangs_by_the_time_that_passed_and_not_by_the_clock(
    make_rig: Callable[..., Rig], step_s: float
) -> None:
    rig = make_rig()
    node, figures, beats = rig.node, rig.worker._figures, []
    heart = Heartbeat(node.engine, figures, node.clock, lambda: beats.append(node.now))
    figures.job_begins(1)
    node.set_by_s = step_s
    heart.beat()
    node.now += JOB_LIMIT_S - 1.0
    figures.progress()
    heart.beat()
    assert len(beats) == 2
    node.now += 1.0
    figures.progress()
    heart.beat()
    assert len(beats) == 2, "the job hangs"
    figures.job_ends()
    node.now += LOOP_LIMIT_S
    heart.beat()
    assert len(beats) == 2, "the worker hangs"


@pytest.mark.parametrize("step_s", STEPS)
def test_a_worker_that_died_before_the_step_is_not_ready(make_rig: Callable[..., Rig], step_s: float) -> None:
    node = make_rig().node
    Heartbeat(node.engine, node.workers[0]._figures, node.clock, lambda: None).beat()

    def is_ready() -> bool:
        return http_status.readiness(node.engine, node.config, lambda: True, node.clock)["worker"].ok

    assert is_ready()
    node.set_by_s = step_s
    assert not is_ready()


def test_retention_looks_again_although_the_clock_was_set_back(make_rig: Callable[..., Rig]) -> None:
    node, looks = make_rig().node, []

    def free(_folder: Path) -> int:
        looks.append(node.now)
        return 1 << 50

    retention = Retention(node.config, node.engine, node.clock, free)
    for _ in range(2):
        retention.step()
    assert len(looks) == 1
    node.set_by_s = -HOURS
    retention.step()
    assert len(looks) == 2


def test_ages_are_those_of_the_rows_at_first_and_of_this_process_from_then_on() -> None:
    clock, steady = [5000.0], [0.0]
    ages = SteadyAges(lambda: clock[0], lambda: steady[0])
    assert ages.now("a", 4990.0, 1) == 5000.0
    ages.end_look(0.0, {"a"})
    clock[0], steady[0] = 90_000.0, 3.0
    assert ages.now("a", 4990.0, 1) == 5003.0
    assert ages.now("b", 4990.0, 1) == 4993.0, "it had not happened 3 s ago"
    clock[0] = 10.0
    assert ages.now("c", 4990.0, 1) == 4990.0, "nothing is younger than now"
    ages.end_look(3.0, {"a"})
    steady[0] = 4.0
    assert ages.now("a", 4990.0, 2) == 4990.0, "changed since"


def test_a_held_delivery_has_no_time(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(destinations=[{**ASKING, "storage_commitment": {}, "hold": ["in_pieces"]}])
    _held(rig)
    for rig.node.set_by_s in STEPS:
        rig.node.now += 60.0
        rig.work()
    assert [one.state for one in rig.node.deliveries()] == [DeliveryState.HELD]
    assert rig.sent == []
