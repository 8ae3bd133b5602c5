"""The results folder: RT-STRUCTs, named by the hash of their bytes.

Owns which files are there: each that a job names, none else past the next start; and the quarantine.
Speaks bytes in, names relative to the folder out.
Never removes a file that a job names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from dicom_node.durable import DRAFT, write_durably

OURS = re.compile(rf"[0-9a-f]{{64}}\.dcm|\..*{re.escape(DRAFT)}")
"""Results and drafts; what a person puts beside them is not ours to remove."""


class Results:
    """What was contoured, as files. Which of them a job names, the caller asks the database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, data: bytes) -> tuple[str, str]:
        """The file's name and the sha256 of its bytes, which are fsynced; the same bytes have the same name.

        Raises:
            OSError: the disk is full or broken.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        file = f"{sha256}.dcm"
        write_durably(self._folder / file, data)
        return file, sha256

    def quarantine(self, job_id: int, data: bytes) -> Path:
        """Keep an object that failed its own check, apart, where nothing sends or sweeps it; the file.

        Raises:
            OSError: the disk is full or broken.
        """
        folder = self._folder / "quarantine"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"job-{job_id}-{hashlib.sha256(data).hexdigest()[:16]}.dcm"
        write_durably(path, data)
        return path

    def discard(self, file: str) -> None:
        """Remove a result that no job names: its run was overtaken."""
        (self._folder / file).unlink(missing_ok=True)

    def sweep(self, named: Collection[str]) -> int:
        """Remove files that no job names, such as those of a run under which the node ended; how many."""
        orphans = [
            path for path in self._folder.iterdir() if OURS.fullmatch(path.name) and path.name not in named
        ]
        for orphan in orphans:
            orphan.unlink(missing_ok=True)
        return len(orphans)
