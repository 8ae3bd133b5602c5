"""Slices are decoded while they arrive, so that only the last ones are left when the series is complete.

Owns the open builders of series that are still being received, and their bounds.
Speaks spool files in, `SeriesBuilder` out.
Never keeps more than its bounds: what was given up is decoded when its job runs, from the spool.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node import logs
from dicom_node.ct_series import SeriesBuilder
from dicom_node.ct_slice import SliceRejectedError, read_slice
from dicom_node.errors import PermanentError, TransientError
from dicom_node.refusals import Refusal

MAX_OPEN = 4
MAX_BYTES = 1 << 30
THREADS = 2

log = logs.get(__name__)


class SpoolFileLostError(PermanentError):
    """A file that was received and fsynced is gone, or no DICOM file any more."""


class SpoolUnreadableError(TransientError):
    """The disk did not give a received file back this time."""


@dataclass(frozen=True)
class Spooled:
    """A received instance: its row's number, which grows with each one, and its file."""

    id: int
    file: Path


@dataclass
class Begun:
    """A series that is decoded in part.

    Attributes:
        decoded_to: the number of the last instance in `builder`.
        size_bytes: of the HU in `builder`.
    """

    builder: SeriesBuilder = field(default_factory=SeriesBuilder)
    decoded_to: int = 0
    size_bytes: int = 0


class Decoder:
    """The builders of the series that arrive now.

    One thread calls it, all but `whole`; it decodes in several. Series are named by their row's number.
    """

    def __init__(self, max_open: int = MAX_OPEN, max_bytes: int = MAX_BYTES) -> None:
        self._max_open = max_open
        self._max_bytes = max_bytes
        self._open: dict[int, Begun] = {}
        self._given_up: set[int] = set()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    @property
    def size_bytes(self) -> int:
        """HU held by open builders."""
        return sum(one.size_bytes for one in self._open.values())

    @property
    def open_series(self) -> int:
        """How many builders are open."""
        return len(self._open)

    def decoded_to(self, series: int) -> int | None:
        """The number of the last instance that was decoded ahead; None where the series was given up."""
        if series in self._given_up:
            return None
        return self._open[series].decoded_to if series in self._open else 0

    def ahead(self, series: int, instances: Sequence[Spooled]) -> None:
        """Decode what has arrived. What goes wrong here is found again, and told, when the job runs."""
        try:
            begun = self._open.pop(series, None) or Begun()
            self._open[series] = begun  # the last touched is the last to be given up
            self._decode(begun, instances)
        except Exception as problem:
            log.warning("a series is not decoded ahead", series=series, exc_info=problem)
            self._give_up(series)
        self._keep_within_bounds(series)

    def take(self, series: int) -> Begun:
        """What is decoded so far, which is the caller's from now on; slices that still come begin anew."""
        self._given_up.discard(series)
        return self._open.pop(series, None) or Begun()

    def whole(self, begun: Begun, instances: Sequence[Spooled]) -> SeriesBuilder:
        """The builder with all of the series in it; only what was not decoded ahead is left to do.

        Any thread may call this with what was taken.

        Raises:
            SpoolFileLostError, SpoolUnreadableError: a file is not there, or cannot be read now.
        """
        try:
            self._decode(begun, [instance for instance in instances if instance.id > begun.decoded_to])
        except FileNotFoundError as problem:
            reason = "a received slice is not in the spool any more; push the whole series again, then retry"
            raise SpoolFileLostError(reason) from problem
        except OSError as problem:
            raise SpoolUnreadableError(f"the spool cannot be read: {problem.strerror}") from problem
        return begun.builder

    def _decode(self, begun: Begun, instances: Sequence[Spooled]) -> None:
        for size in self._pool.map(lambda instance: _place(begun.builder, instance.file), instances):
            begun.size_bytes += size
        begun.decoded_to = max([begun.decoded_to, *(instance.id for instance in instances)])

    def _keep_within_bounds(self, current: int) -> None:
        while len(self._open) > self._max_open or self.size_bytes > self._max_bytes:
            others = [series for series in self._open if series != current]
            self._give_up(others[0] if others else current)

    def _give_up(self, series: int) -> None:
        self._open.pop(series, None)
        self._given_up.add(series)


def _place(builder: SeriesBuilder, file: Path) -> int:
    """Decode one file into the builder; the bytes of its HU."""
    try:
        piece = read_slice(file)
    except SliceRejectedError as refusal:
        if refusal.code == Refusal.NOT_DICOM:  # it was one when it was received
            reason = "a received slice is damaged in the spool: check the disk, and push to a new spool"
            raise SpoolFileLostError(reason) from refusal
        builder.refuse(refusal)
        return 0
    builder.add(piece)
    return piece.hu.nbytes
