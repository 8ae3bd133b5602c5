"""The schema that alembic builds is the schema that the program speaks, and it guards itself."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from dicom_node import migrate
from dicom_node.database import open_engine
from dicom_node.schema import Base


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
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0003"]
