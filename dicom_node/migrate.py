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
from sqlalchemy import Connection, text

from dicom_node.database import open_engine
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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = open_engine(path)
    try:
        with engine.begin() as connection:
            command.upgrade(_alembic(connection), "head")
            install_triggers(connection)
    finally:
        engine.dispose()


def _alembic(connection: Connection) -> AlembicConfig:
    settings = AlembicConfig(attributes={"connection": connection})
    settings.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return settings


def install_triggers(connection: Connection) -> None:
    """Make the triggers anew at each upgrade, so that they always say what `states.py` says."""
    for table, transitions in GUARDED_TABLES.items():
        name = f"{table}_state_follows_the_table"
        connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        connection.execute(text(_state_trigger(name, table, transitions)))
    connection.execute(text("DROP TRIGGER IF EXISTS transitions_are_history"))
    connection.execute(
        text(
            "CREATE TRIGGER transitions_are_history BEFORE UPDATE ON transitions "
            "BEGIN SELECT RAISE(ABORT, 'a transition is history and cannot change'); END"
        )
    )


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
