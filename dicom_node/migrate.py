"""Brings a database to the current schema, from nothing or from any earlier version.

Owns the run of alembic and the triggers that keep the state tables true in the database itself.
Speaks paths of SQLite files; the door to alembic, which needs no alembic.ini here.
Never loses a row, and never leaves a half-made schema: all of it is one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from dicom_node.database import open_engine, reading
from dicom_node.errors import ConfigurationError
from dicom_node.states import (
    COMPANION_TRANSITIONS,
    DELIVERY_TRANSITIONS,
    JOB_TRANSITIONS,
    SERIES_TRANSITIONS,
)

SCRIPTS = Path(__file__).parent / "migrations"

GUARDED_TABLES: Mapping[str, Mapping[Any, frozenset[Any]]] = {
    "series": SERIES_TRANSITIONS,
    "jobs": JOB_TRANSITIONS,
    "deliveries": DELIVERY_TRANSITIONS,
    "companions": COMPANION_TRANSITIONS,
}


def upgrade(path: Path) -> None:
    """Build or upgrade the database at `path`, and its folder if need be.

    Listener and worker may both call it at once: the second waits for the first and finds nothing to do.

    Raises:
        ConfigurationError: a newer version of the program has made it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = open_engine(path)
    try:
        with engine.begin() as connection:
            refuse_newer(path, _revision(connection))
            command.upgrade(_alembic(connection), "head")
            install_triggers(connection)
    finally:
        engine.dispose()


def newest() -> str:
    """The schema that this program makes, such as `0007`."""
    head = _scripts().get_current_head()
    assert head is not None
    return head


def revision(path: Path) -> str | None:
    """The schema of the database at `path`, be it newer than this program; None before it has any."""
    engine = open_engine(path)
    try:
        with reading(engine) as session:
            return _revision(session.connection())
    finally:
        engine.dispose()


def refuse_newer(path: Path, found: str | None) -> None:
    """Go on only with a schema that this program knows.

    Raises:
        ConfigurationError: with what to do.
    """
    if found is not None and found not in _known():
        raise ConfigurationError(
            (
                f"storage.folder: {path} has schema {found}, made by a newer version of this program; this "
                f"one knows {newest()}: start the newer version, or have it take the database back by "
                f"`anatomynode schema --back-to {newest()}`",
            )
        )


def take_back(path: Path, target: str) -> None:
    """Undo the newest steps until the schema is `target`, for the earlier program that makes that one.

    Every row stays that the earlier schema has a place for. The node must not run.

    Raises:
        ConfigurationError: it is no earlier schema of ours, or a step cannot be undone; nothing has changed.
    """
    engine = open_engine(path)
    try:
        with engine.begin() as connection:
            found = _revision(connection)
            refuse_newer(path, found)
            if found is None or target not in _known() or target > found:
                raise ConfigurationError((f"{path} has schema {found}: it cannot go back to {target!r}",))
            for script in _scripts().iterate_revisions(found, target):
                if not hasattr(script.module, "downgrade"):
                    raise ConfigurationError(
                        (f"{path} has schema {found}; step {script.revision} cannot be undone",)
                    )
            _drop_triggers(connection)
            command.downgrade(_alembic(connection), target)
    finally:
        engine.dispose()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(SCRIPTS))


def _alembic(connection: Connection) -> AlembicConfig:
    settings = AlembicConfig(attributes={"connection": connection})
    settings.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return settings


def install_triggers(connection: Connection) -> None:
    """Make the triggers anew at each upgrade, so that they always say what `states.py` says."""
    _drop_triggers(connection)
    for table, transitions in GUARDED_TABLES.items():
        connection.execute(text(_state_trigger(_trigger(table), table, transitions)))
    connection.execute(
        text(
            "CREATE TRIGGER transitions_are_history BEFORE UPDATE ON transitions "
            "BEGIN SELECT RAISE(ABORT, 'a transition is history and cannot change'); END"
        )
    )


def _drop_triggers(connection: Connection) -> None:
    """Whoever uses the database next makes its own."""
    for name in (*map(_trigger, GUARDED_TABLES), "transitions_are_history"):
        connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))


def _trigger(table: str) -> str:
    return f"{table}_state_follows_the_table"


def _state_trigger(name: str, table: str, transitions: Mapping[Any, frozenset[Any]]) -> str:
    """SQL that aborts each change of state that the table does not list; a state may stay as it is."""
    return (
        f"CREATE TRIGGER {name} BEFORE UPDATE OF state ON {table} "
        f"WHEN NOT ({' OR '.join(_legal(transitions))}) "
        f"BEGIN SELECT RAISE(ABORT, 'illegal change of state in {table}'); END"
    )


def _legal(transitions: Mapping[Any, frozenset[Any]]) -> Iterator[str]:
    yield "OLD.state = NEW.state"
    for state, followers in transitions.items():
        names = ", ".join(f"'{follower.value}'" for follower in sorted(followers))
        yield f"(OLD.state = '{state.value}' AND NEW.state IN ({names}))"
