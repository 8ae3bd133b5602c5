"""A worker whose clock the test sets, on a real database and spool.

Owns the questions that tests of the worker and of retention ask it.
Speaks the rows of the database.
Never decides anything that the product decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from dicom_node import jobs, migrate
from dicom_node.config import Config
from dicom_node.database import open_engine, reading, transaction
from dicom_node.schema import Delivery, Job, Series
from dicom_node.states import DeliveryState
from dicom_node.worker import Worker
from tests.node_fixtures import BoxSegmenter, configuration, receive, write_package
from tests.phantoms import Phantom

PHANTOM = Phantom()


@dataclass
class Node:
    """A worker on a real database, with a clock that the test sets."""

    config: Config
    engine: Engine
    now: float = 1000.0
    set_by_s: float = 0.0
    """By how much somebody has set the clock, while time went on."""
    problem: Exception | None = None
    segmenters: list[BoxSegmenter] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def clock(self) -> float:
        return self.now + self.set_by_s

    def monotonic(self) -> float:
        return self.now

    def worker(self) -> Worker:
        def make(package: Any) -> Any:
            self.segmenters.append(BoxSegmenter(package, self.problem))
            return self.segmenters[-1]

        self.workers.append(Worker(self.config, self.engine, make, self.clock, self.monotonic))
        return self.workers[-1]

    @staticmethod
    def step(worker: Worker) -> float:
        """A step, and the job that it began, to its end."""
        look_again_at = worker.step()
        worker.finish()
        return look_again_at

    def receive(self, phantom: Phantom = PHANTOM, **how: Any) -> None:
        receive(self.engine, self.config, phantom, self.clock(), **how)

    def jobs(self) -> list[Job]:
        with reading(self.engine) as session:
            return list(session.scalars(select(Job).order_by(Job.id)))

    def job(self) -> Job:
        (only,) = self.jobs()
        return only

    def series(self) -> Series:
        with reading(self.engine) as session:
            return session.scalars(select(Series).order_by(Series.id)).one()

    def deliveries(self) -> list[Delivery]:
        with reading(self.engine) as session:
            return list(session.scalars(select(Delivery).order_by(Delivery.id)))

    def result(self) -> bytes:
        return (self.config.storage.results / str(self.job().rt_struct_file)).read_bytes()

    def store_all(self) -> None:
        with transaction(self.engine) as session:
            pending = select(Delivery).where(Delivery.state == DeliveryState.PENDING)
            for delivery in session.scalars(pending):
                jobs.delivery_stored(session, delivery, 0x0000, "success", self.clock())


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(approved: bool = True, **changes: Any) -> Node:
        sha256 = write_package(tmp_path / "packages")
        config = configuration(tmp_path, sha256 if approved else None, **changes)
        migrate.upgrade(config.storage.database)
        nodes.append(Node(config, open_engine(config.storage.database)))
        return nodes[-1]

    yield make
    for node in nodes:
        for worker in node.workers:
            worker.close()
        node.engine.dispose()
