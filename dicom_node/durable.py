"""Files that survive a power cut.

Owns the order of write, fsync and rename that the promises rest on.
Speaks paths and bytes.
Never shows a half-written file under its final name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFT = ".part"
"""How the name of a file ends that is not whole yet; after a crash it may be removed."""
PRIVATE = 0o600
"""Only the account that the node runs under may read it."""


def write_durably(path: Path, *parts: bytes, mode: int = PRIVATE) -> None:
    """Write a file, in a folder that is there, such that it is there, whole, after this returns.

    Measured by cutting the power: a file that was not fsynced, or whose folder was not, is lost.
    Several threads and processes may write the same path at once; the last one's bytes stand.

    Raises:
        OSError: the disk is full or broken; nothing stands under `path` that did not before.
    """
    with synced_draft(path, *parts, mode=mode) as draft:
        draft.rename(path)
    sync_folder(path.parent)


@contextmanager
def synced_draft(path: Path, *parts: bytes, mode: int = PRIVATE) -> Iterator[Path]:
    """A file beside `path` with these bytes on the disk, to be given its name; removed if it is not."""
    draft = path.with_name(f".{secrets.token_hex(8)}{DRAFT}")
    try:
        _write(draft, parts, mode)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, parts: tuple[bytes, ...], mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
