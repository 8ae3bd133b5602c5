"""An upgrade from the first released schema finishes what was under way, and loses nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from alembic import command

from dicom_node import migrate
from dicom_node.database import open_engine
from dicom_node.states import DeliveryState, JobState
from tests.worker_node import PHANTOM, Node, make_node

__all__ = ["make_node"]  # a fixture

FIRST = "0001"


def _put_back_to_the_first_schema(database: Path) -> None:
    """The same rows, as far as the first schema had a place for them."""
    old = database.with_name("old.sqlite")
    engine = open_engine(old)
    with engine.begin() as connection:
        command.upgrade(migrate._alembic(connection), FIRST)
    engine.dispose()
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("ATTACH DATABASE ? AS present", (str(database),))
        tables = connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            if table == "alembic_version":
                continue
            kept = [row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")]
            present = {row[1] for row in connection.execute(f"PRAGMA present.table_info({table})")}
            names = ", ".join(name for name in kept if name in present)
            connection.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM present.{table}")
        connection.commit()
    for companion in database.parent.glob(f"{database.name}-*"):
        companion.unlink()
    old.replace(database)


def test_a_queue_in_flight_is_finished_after_the_upgrade(make_node: Callable[..., Node]) -> None:
    node = make_node()
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)  # READY, its delivery PENDING
    stored = node.result()
    node.receive(PHANTOM.but(series="2", study="2"))
    node.now += 2.0
    worker.step()  # RUNNING, and the program ends under it
    node.receive(PHANTOM.but(series="3", study="3"), which=range(20), outcome=None)  # RECEIVING
    worker.close()
    assert [job.state for job in node.jobs()] == [JobState.READY, JobState.RUNNING]

    database = node.config.storage.database
    node.engine.dispose()
    _put_back_to_the_first_schema(database)
    migrate.upgrade(database)
    node.engine = open_engine(database)
    later = node.worker()
    later.recover()
    node.receive(PHANTOM.but(series="3", study="3"), which=range(20, 24))
    node.now += 40.0
    for _ in range(4):
        node.step(later)
    node.store_all()

    assert [job.state for job in node.jobs()] == [JobState.SENT] * 3
    assert [one.state for one in node.deliveries()] == [DeliveryState.STORED] * 3
    assert (node.config.storage.results / str(node.jobs()[0].rt_struct_file)).read_bytes() == stored
    assert node.deliveries()[0].rt_struct_sha256 == node.jobs()[0].rt_struct_sha256
