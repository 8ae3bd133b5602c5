"""The schema that alembic builds is the schema that the program speaks, and it guards itself."""

import re
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text

from dicom_node import migrate
from dicom_node.database import open_engine, reading
from dicom_node.errors import ConfigurationError
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


NEWER = """
from alembic import op
import sqlalchemy as sa
revision, down_revision, branch_labels, depends_on = "{number}", "{before}", None, None
def upgrade():
    op.add_column("jobs", sa.Column("mood", sa.String(), nullable=False, server_default="calm"))
    op.create_table("moods", sa.Column("id", sa.Integer(), primary_key=True))
"""
UNDONE = """
def downgrade():
    op.drop_table("moods")
    op.drop_column("jobs", "mood")
"""


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes this the program of the next version, with one migration more."""

    def become(step: str) -> str:
        before = migrate.newest()
        number = f"{int(before) + 1:04d}"
        scripts = tmp_path / "migrations"
        shutil.copytree(migrate.SCRIPTS, scripts)
        (scripts / "versions" / f"v{number}_mood.py").write_text(step.format(number=number, before=before))
        monkeypatch.setattr(migrate, "SCRIPTS", scripts)
        return before

    return become


def _rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables}


def test_a_newer_schema_is_refused_in_words_and_left_as_it_is(
    tmp_path: Path, newer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.sqlite"
    newer(NEWER)
    migrate.upgrade(path)
    later = migrate.newest()
    monkeypatch.undo()  # this program again
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match=f"has schema {later}, made by a newer version"):
        migrate.upgrade(path)

    assert path.read_bytes() == before
    assert migrate.revision(path) == later


def test_the_way_back_keeps_every_row_that_the_earlier_schema_has_a_place_for(
    tmp_path: Path, newer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.sqlite"
    migrate.upgrade(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO discarded VALUES ('1.2', 3, 4)")
        connection.execute(
            "INSERT INTO series (id, series_instance_uid, study_instance_uid, patient_key, accession_key, "
            "state, revision, first_instance_at, last_instance_at) "
            "VALUES (1, '1.2', '1', 'p', 'a', 'COMPLETE', 1, 0, 0)"
        )
        connection.commit()
    rows = _rows(path)
    before = newer(NEWER + UNDONE)
    migrate.upgrade(path)
    migrate.take_back(path, before)
    monkeypatch.undo()  # the earlier program again

    migrate.upgrade(path)

    assert _rows(path) == rows
    with open_engine(path).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


@pytest.mark.parametrize(
    ("step", "target", "told"),
    [
        (NEWER, None, "cannot be undone"),
        (NEWER + UNDONE, "0001", "step 0007 cannot be undone"),
        (NEWER + UNDONE, "9999", "it cannot go back to '9999'"),
        (NEWER + UNDONE, "", "it cannot go back to ''"),
    ],
)
def test_a_way_back_that_is_not_there_changes_nothing(
    tmp_path: Path, newer: Callable[[str], str], step: str, target: str | None, told: str
) -> None:
    path = tmp_path / "node.sqlite"
    before = newer(step)
    migrate.upgrade(path)
    rows = _rows(path)

    with pytest.raises(ConfigurationError, match=told):
        migrate.take_back(path, before if target is None else target)

    assert _rows(path) == rows
    migrate.upgrade(path)
    assert migrate.revision(path) == migrate.newest()


BEFORE_BUNDLES = "0007"
"""The newest schema from which no installed version has to go back."""


def test_each_step_since_there_are_bundles_can_be_undone() -> None:
    steps = migrate._scripts().iterate_revisions("head", BEFORE_BUNDLES)

    assert [step.revision for step in steps if not hasattr(step.module, "downgrade")] == []
