"""The books of slices that somebody looks at: drawn one at a time, by another process, and kept for a while.

Owns that process, its limits, and the memory that finished books take.
Speaks job numbers in, `Book` out.
Never decodes a pixel here: whoever receives slices must answer while others look at pictures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from dicom_node import logs
from dicom_node.errors import PermanentError, TransientError

MOST_SECONDS = 90.0
WAIT_S = 2.0
"""For another job that is being drawn; then the browser is told to come again."""
MOST_BYTES = 96 << 20
"""Of all books that are kept together; a whole head and neck takes 5 to 10 MB."""
REFUSED = 3
"""See `slice_book.py`, which is not imported here: it brings what draws."""

log = logs.get(__name__)


class NoBookError(PermanentError):
    """There are no pictures of the job; the reason says why."""


class BusyError(TransientError):
    """Another job is being drawn: try again in a moment."""


@dataclass(frozen=True)
class Book:
    """One job's slices.

    Attributes:
        told: `book.json`, as `slice_book.py` writes it.
    """

    told: dict[str, Any]
    data: bytes

    def picture(self, number: int) -> bytes | None:
        """The JPEG of a slice, counted from 1."""
        with zipfile.ZipFile(BytesIO(self.data)) as packed:
            try:
                return packed.read(f"{number}.jpg")
            except KeyError:
                return None


class Shelf:
    """Any thread may ask. Books are named by job and result, so that a new result is drawn anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._books: OrderedDict[tuple[int, str], Book] = OrderedDict()
        self._lock = threading.Lock()
        self._drawing = threading.Lock()

    def book(self, job: int, rt_struct_sha256: str) -> Book:
        """The book of a job's result, drawn now where it is not here.

        Raises:
            NoBookError: it cannot be drawn.
            BusyError: another one is being drawn.
        """
        key = job, rt_struct_sha256
        found = self._kept(key)
        if found is not None:
            return found
        if not self._drawing.acquire(timeout=WAIT_S):
            raise BusyError("another job is being drawn; this one is next")
        try:
            return self._kept(key) or self._keep(key, _draw(self._folder, job))
        finally:
            self._drawing.release()

    def _kept(self, key: tuple[int, str]) -> Book | None:
        with self._lock:
            found = self._books.get(key)
            if found is not None:
                self._books.move_to_end(key)
            return found

    def _keep(self, key: tuple[int, str], book: Book) -> Book:
        with self._lock:
            self._books[key] = book
            while len(self._books) > 1 and sum(len(one.data) for one in self._books.values()) > MOST_BYTES:
                self._books.popitem(last=False)
        return book


def _draw(folder: Path, job: int) -> Book:
    command = [sys.executable, "-m", "dicom_node.slice_book", str(folder), str(job)]
    # It needs no secret, and what it draws on is one core's work.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANATOMYNODE_")}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MOST_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.warning("drawing took too long", job=job)
        raise NoBookError(
            f"drawing took more than {MOST_SECONDS:g} s; use `anatomynode jobs preview {job}`"
        ) from None
    if done.returncode == REFUSED:
        raise NoBookError(done.stderr.decode(errors="replace"))
    if done.returncode != 0:
        # Its words may quote a data set.
        log.error("drawing failed", job=job, exit_status=done.returncode)
        raise NoBookError(f"drawing failed; `anatomynode jobs preview {job}` shows how")
    with zipfile.ZipFile(BytesIO(done.stdout)) as packed:
        return Book(json.loads(packed.read("book.json")), done.stdout)
