"""The schema that alembic builds is the schema that the program speaks, and it guards itself."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text

from dicom_node import migrate
from dicom_node.database import open_engine, reading
from dicom_node.schema import Base, Delivery


def _sql(connection: Connection) -> dict[str, str | None]:
    rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index')"))
    return {row.name: row.sql for row in rows}


def _words(sql: str | None) -> list[str]:
    return sorted(re.split(r"[\s,()]+", sql or ""))


def test_an_empty_file_becomes_exactly_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.sqlite"
    migrate.upgrade(path)
    with open_engine(path).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        written = _sql(connection)
    fresh = open_engine(tmp_path / "metadata.sqlite")
    Base.metadata.create_all(fresh)
    with fresh.connect() as connection:
        wanted = _sql(connection)
    # autogenerate compares no CHECK constraints and no partial indexes: their SQL must be the same too.
    for name in wanted:
        assert _words(written.get(name)) == _words(wanted[name]), name
    assert written.keys() - wanted.keys() == {"alembic_version", "sqlite_autoindex_alembic_version_1"}


def test_upgrading_again_changes_nothing_and_many_may_do_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate.upgrade, path) for _ in range(4)]:
            done.result()
    with open_engine(path).connect() as connection:
        triggers = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
        assert set(triggers) == {
            "series_state_follows_the_table",
            "jobs_state_follows_the_table",
            "deliveries_state_follows_the_table",
            "companions_state_follows_the_table",
            "transitions_are_history",
        }
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        assert version == [max(path.name[1:5] for path in (migrate.SCRIPTS / "versions").glob("v*.py"))]


def test_deliveries_of_the_first_version_keep_the_one_file_that_their_job_had(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    engine = open_engine(path)
    with engine.begin() as connection:
        command.upgrade(migrate._alembic(connection), "0001")
        connection.execute(
            text(
                "INSERT INTO series (id, series_instance_uid, study_instance_uid, patient_key, "
                "accession_key, state, revision, first_instance_at, last_instance_at) "
                "VALUES (1, '1.2', '1', 'p', 'a', 'COMPLETE', 1, 0, 0)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, series_id, revision, model_name, model_sha256, template, state, "
                "created_at, attempts, rt_struct_file, rt_struct_sha256, sop_instance_uid) "
                "VALUES (1, 1, 1, 'm', 'aa', 'default', 'READY', 0, 1, 'r.dcm', 'cc', '2.25.1')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO deliveries (id, job_id, destination, state, attempts, created_at, "
                "next_attempt_at) "
                "VALUES (1, 1, 'pacs', 'PENDING', 0, 0, 0)"
            )
        )
    migrate.upgrade(path)
    with reading(engine) as session:
        (delivery,) = session.scalars(select(Delivery))
    assert (delivery.rt_struct_file, delivery.rt_struct_sha256) == ("r.dcm", "cc")
    assert delivery.sop_instance_uid == "2.25.1"
    engine.dispose()
