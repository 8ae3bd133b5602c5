"""What a failing machine does to the node: each fault with its end, its words, its figure, and its recovery.

Owns the faults of the database and its disk; those of peers and networks are with the rooms that meet them.
Speaks a real listener and SQLite's own ways of being locked, full and damaged.
Never waits longer than a shortened busy timeout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from dicom_node import daemon, database, jobs
from dicom_node.database import DatabaseUnavailableError, open_engine, reading, transaction
from dicom_node.errors import ConfigurationError
from dicom_node.jobs import Model
from dicom_node.listener import Listener
from dicom_node.metrics import NodeCollector, exposition
from dicom_node.migrate import upgrade
from dicom_node.schema import Job, Series
from dicom_node.states import JobState
from tests.dicom_node.reception_rig import associated, configuration, ct_slice, rows

STORED, OUT_OF_RESOURCES = 0x0000, 0xA700


@contextmanager
def listening(folder: Path, engine_of: Any = open_engine) -> Iterator[tuple[Listener, Any, Engine]]:
    """A listener, its configuration, and the engine that it writes with."""
    config = configuration(folder)
    config.storage.folder.mkdir(exist_ok=True)
    upgrade(config.storage.database)
    engine = engine_of(config.storage.database)
    listener = Listener(config, engine)
    listener.start()
    try:
        yield listener, config, engine
    finally:
        listener.stop(1)
        engine.dispose()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else writes, such as a backup that was begun and forgotten."""
    engine = open_engine(path)
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE series SET flag = flag")
        yield
        connection.rollback()
    engine.dispose()


def test_a_database_that_is_locked_for_too_long_is_answered_a700_and_for_less_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 300)
    with listening(tmp_path) as (listener, config, _), associated(listener.port) as sender:
        assert sender.send_c_store(ct_slice(1)).Status == STORED
        with locked(config.storage.database):
            assert sender.send_c_store(ct_slice(2)).Status == OUT_OF_RESOURCES
        assert sender.send_c_store(ct_slice(2)).Status == STORED
        assert listener.figures.snapshot().instances_refused == {"0xA700": 1}
        assert rows(config, "SELECT count(*) FROM instances") == [(2,)]


def test_a_full_disk_under_the_database_loses_nothing_and_is_recovered_from_without_a_restart(
    tmp_path: Path,
) -> None:
    room: dict[str, int | None] = {"pages": None}

    def engine_of(path: Path) -> Engine:
        engine = open_engine(path)

        @event.listens_for(engine, "begin")
        def within(connection: Any) -> None:
            pages = room["pages"] or 1_000_000
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        return engine

    with listening(tmp_path, engine_of) as (listener, config, engine), associated(listener.port) as sender:
        assert sender.send_c_store(ct_slice(1)).Status == STORED
        ((room["pages"],),) = rows(config, "PRAGMA page_count")
        statuses = [sender.send_c_store(ct_slice(number)).Status for number in range(2, 40)]
        assert set(statuses) == {STORED, OUT_OF_RESOURCES}
        refused = [number for number, status in enumerate(statuses, 2) if status == OUT_OF_RESOURCES]
        known = rows(config, "SELECT count(*) FROM instances")
        assert known == [(39 - len(refused),)], "exactly what was acknowledged has its row"
        assert 'instances_refused_total{status="0xA700"}' in shown(engine, config, listener)
        room["pages"] = None
        assert {sender.send_c_store(ct_slice(number)).Status for number in refused} == {STORED}
        assert rows(config, "SELECT count(*) FROM instances") == [(39,)]


@pytest.mark.parametrize("damage", ["no database", "a page overwritten", "cut off"])
def test_a_damaged_database_ends_the_start_with_what_to_do_and_is_left_as_it_is(
    tmp_path: Path, damage: str
) -> None:
    config = configuration(tmp_path)
    path = config.storage.database
    with daemon._database(config) as engine, transaction(engine) as session:
        for number in range(200):
            session.add(a_series(number))
    content = bytearray(path.read_bytes())
    if damage == "no database":
        content[:] = b"\x00\xff" * 4096
    elif damage == "a page overwritten":
        for page in range(4, len(content) // 4096):
            content[page * 4096 : page * 4096 + 2048] = b"\xa5" * 2048
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with (
        pytest.raises(ConfigurationError, match=r"is damaged .*restore the last backup"),
        daemon._database(config),
    ):
        pass
    assert path.read_bytes() == content


def test_a_database_that_somebody_holds_ends_the_start_so_that_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 100)
    config = configuration(tmp_path)
    with daemon._database(config):
        pass
    with (
        locked(config.storage.database),
        pytest.raises(DatabaseUnavailableError, match="cannot be used now: database is locked"),
        daemon._database(config),
    ):
        pass


def test_a_worker_that_is_killed_while_500_jobs_wait_leaves_each_of_them_once(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    upgrade(config.storage.database)
    engine, model = open_engine(config.storage.database), Model("model", "a" * 64)
    with transaction(engine) as session:
        for number in range(500):
            series = a_series(number)
            jobs.begin(session, series, 1.0, "the first slice came")
            evidence = {"kind": "query", "instances": 1}
            jobs.complete(session, series, evidence, "all here", [jobs.Order(model)], 2.0)
        jobs.start(session, session.get_one(Job, 7), 3.0, "begun")
    with transaction(engine) as session:
        assert [job.id for job in jobs.recover(session, 5, 4.0)] == [7]
    with reading(engine) as session:
        assert set(session.scalars(select(Job.state))) == {JobState.QUEUED}
        assert len(set(session.scalars(select(Job.series_id)))) == 500
    engine.dispose()


def a_series(number: int) -> Series:
    return Series(
        series_instance_uid=f"1.2.{number}",
        study_instance_uid="1.2",
        patient_key="p",
        accession_key="a",
        revision=1,
        first_instance_at=1.0,
        last_instance_at=1.0,
    )


def shown(engine: Engine, config: Any, listener: Listener) -> str:
    return exposition(NodeCollector(engine, config, listener.figures))().decode()
