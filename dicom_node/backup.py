"""A copy of the database, made while the node runs.

Owns the copy: of one moment, whole, checked, and on the disk.
Speaks paths of SQLite files.
Never copies received slices or results: those are files that any backup program can copy.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from dicom_node.durable import sync_folder, synced_draft
from dicom_node.errors import PermanentError


class BackupError(PermanentError):
    """There is no copy; the message says why."""


def copy_database(database: Path, target: Path) -> int:
    """Copy a database that others may be writing to; the copy's size in bytes.

    By SQLite's own online backup: nobody waits for it longer than for any other reader. A file that is
    at `target` already is replaced once the copy is whole.

    Raises:
        BackupError: the database is not there or damaged, or the copy cannot be written.
    """
    if not database.is_file():
        raise BackupError(f"there is no database {database}; has this node run with this configuration?")
    try:
        with synced_draft(target) as draft:
            _copy(database, draft)
            draft.rename(target)
        sync_folder(target.parent)
        return target.stat().st_size
    except OSError as problem:
        raise BackupError(f"{target} cannot be written: {problem.strerror}") from problem
    except sqlite3.Error as problem:
        raise BackupError(f"{database} cannot be copied: {problem}") from problem


def _copy(database: Path, draft: Path) -> None:
    with (
        closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(draft)) as copy,
    ):
        source.backup(copy)
        # One file without companions, which any program may take away.
        copy.execute("PRAGMA journal_mode=DELETE")
        (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise BackupError(f"{database} is damaged: {verdict}")
    with draft.open("rb") as file:
        os.fsync(file.fileno())
