"""What the database holds after each thing that a sender can do with an instance."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.database import open_engine, reading
from dicom_node.intake import AssociationEnd, Intake, Outcome, Registry
from dicom_node.migrate import upgrade
from dicom_node.schema import Arrival, Association, Discarded, Instance, Series


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _is_spooled(_file: str) -> bool:
    return True


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    upgrade(tmp_path / "node.sqlite")
    engine = open_engine(tmp_path / "node.sqlite")
    yield engine
    engine.dispose()


def intake(association_id: int, number: int = 1, sha256: str = "a") -> Intake:
    return Intake(
        association_id=association_id,
        sop_instance_uid=f"2.25.7.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid="2.25.7",
        study_instance_uid="2.25.6",
        patient_key="p",
        accession_key="a",
        sha256=sha256,
        file=f"{number}-{sha256}",
        size_bytes=10,
        geometry={"Rows": 32},
    )


def count(engine: Engine, table: type) -> int:
    with reading(engine) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def only_series(engine: Engine) -> Series:
    with reading(engine) as session:
        return session.scalars(select(Series)).one()


def test_new_again_and_other_bytes_each_leave_the_rows_that_tell_them_apart(engine: Engine) -> None:
    clock = Clock()
    registry = Registry(engine, clock, _is_spooled)
    peer = registry.association_opened("CT1", "NODE", "127.0.0.1")

    assert registry.take(intake(peer)) is Outcome.NEW
    clock.now = 1010.0
    assert registry.take(intake(peer)) is Outcome.AGAIN
    series = only_series(engine)
    assert (series.last_instance_at, series.pushed_again_at, series.flag) == (1000.0, 1010.0, None)

    clock.now = 1020.0
    assert registry.take(intake(peer, sha256="b")) is Outcome.OTHER_BYTES
    series = only_series(engine)
    assert (series.last_instance_at, series.pushed_again_at) == (1000.0, 1010.0)
    assert series.flag is not None
    assert "0x0111" in series.flag
    assert (count(engine, Instance), count(engine, Arrival)) == (1, 2)


def test_a_slice_whose_file_was_removed_with_its_series_is_not_taken_until_it_is_written_again(
    engine: Engine,
) -> None:
    spool = {intake(1).file}
    registry = Registry(engine, Clock(), spool.__contains__)
    peer = registry.association_opened("CT1", "NODE", "127.0.0.1")
    assert registry.take(intake(peer)) is Outcome.NEW
    spool.clear()
    assert registry.take(intake(peer)) is Outcome.FILE_GONE
    assert count(engine, Arrival) == 1
    spool.add(intake(peer).file)
    assert registry.take(intake(peer)) is Outcome.AGAIN


def test_a_clock_set_back_makes_no_series_older(engine: Engine) -> None:
    clock = Clock()
    registry = Registry(engine, clock, _is_spooled)
    peer = registry.association_opened("CT1", "NODE", "127.0.0.1")
    registry.take(intake(peer, 1))
    clock.now = 10.0
    registry.take(intake(peer, 2))
    assert only_series(engine).last_instance_at == 1000.0


def test_many_threads_lose_and_double_nothing(engine: Engine) -> None:
    registry = Registry(engine, Clock(), _is_spooled)
    peer = registry.association_opened("CT1", "NODE", "127.0.0.1")
    outcomes: list[Outcome] = []

    def send() -> None:
        outcomes.extend(registry.take(intake(peer, number)) for number in range(20))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(Outcome.NEW) == 20
    assert (count(engine, Instance), count(engine, Arrival), count(engine, Series)) == (20, 120, 1)


def test_a_failed_commit_is_told_to_everyone_who_shared_it(engine: Engine) -> None:
    registry = Registry(engine, Clock(), _is_spooled)
    peer = registry.association_opened("CT1", "NODE", "127.0.0.1")
    with pytest.raises(SQLAlchemyError):
        registry.take(replace(intake(peer), association_id=99))  # no such association
    assert (count(engine, Instance), count(engine, Series)) == (0, 0)
    assert registry.take(intake(peer)) is Outcome.NEW


def test_the_first_end_of_an_association_counts_and_a_crash_loses_the_open_ones(engine: Engine) -> None:
    registry = Registry(engine, Clock(), _is_spooled)
    released = registry.association_opened("CT1", "NODE", "127.0.0.1")
    registry.association_opened("CT1", "NODE", "127.0.0.1")
    registry.association_ended(released, AssociationEnd.RELEASED)
    registry.association_ended(released, AssociationEnd.LOST)
    assert Registry(engine, Clock(), _is_spooled).close_lost_associations() == 1
    with reading(engine) as session:
        assert session.scalars(select(Association.outcome).order_by(Association.id)).all() == [
            "released",
            "lost",
        ]


def test_discarded_instances_are_added_up_by_class(engine: Engine) -> None:
    registry = Registry(engine, Clock(), _is_spooled)
    registry.discarded("1.2.3", 5)
    registry.discarded("1.2.3", 7)
    with reading(engine) as session:
        row = session.scalars(select(Discarded)).one()
    assert (row.instances, row.size_bytes) == (2, 12)
