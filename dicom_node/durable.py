"""Files that survive a power cut.

Owns the order of write, fsync and rename that the promises rest on.
Speaks paths and bytes.
Never shows a half-written file under its final name.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` such that it is there, whole, after this returns, whatever happens then.

    Measured by cutting the power: a file that was not fsynced, or whose folder was not, is lost.

    Raises:
        OSError: the disk is full or broken; nothing stands under `path` that did not before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
