"""Received instances on disk, such that a power cut loses nothing that was acknowledged.

Owns the spool folder: names, permissions, the order of fsyncs, and what a crash leaves behind.
Speaks DICOM files (PS3.10): a preamble and meta group of ours, then the data set's bytes as received.
Never uses a UID in a name, never decodes pixels, and never returns before the bytes are durable.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dicom_node.durable import DRAFT, sync_folder, synced_draft, write_durably
from dicom_node.errors import PermanentError, TransientError
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

FOLDER_MODE = 0o700
REMEMBERED_FOLDERS = 4096
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class OutOfSpaceError(TransientError):
    """There is no room, or not enough beyond the reserve; the sender may try again later.

    Attributes:
        free_bytes: what the disk has left, as far as it is known.
    """

    def __init__(self, reason: str, free_bytes: int | None) -> None:
        super().__init__(reason)
        self.free_bytes = free_bytes


class SpoolError(PermanentError):
    """The spool folder cannot be used as it is."""


@dataclass(frozen=True)
class Received:
    """A data set as it came over the network.

    Attributes:
        data: the data set's bytes, exactly as received, in the encoding of `transfer_syntax_uid`.
        sha256: of `data`, in hexadecimal digits.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    data: bytes
    sha256: str


def receive(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, series_instance_uid: str, data: bytes
) -> Received:
    """The data set with its hash."""
    return Received(
        sop_class_uid,
        sop_instance_uid,
        transfer_syntax_uid,
        series_instance_uid,
        data,
        hashlib.sha256(data).hexdigest(),
    )


class Spool:
    """The folder of received instances: `AA/HASH-OF-SERIES/HASH-OF-DATA-SET.dcm`.

    All slices of a series share a folder, so that a series costs two new folders and not two a slice.
    Several threads may write at once.
    """

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self.folder = folder
        self._reserve_bytes = reserve_bytes
        self._durable_folders: set[Path] = set()
        self._folders_lock = threading.Lock()

    def open(self) -> int:
        """Make the folder where it is missing and sweep what a crash left half written.

        Whole files without a row need no sweeping: their sender was never told that they are here,
        sends them again, and they get the same name.

        Returns:
            how many half-written files were removed.

        Raises:
            SpoolError: the folder cannot be made or written.
        """
        try:
            self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
            leftovers = [*self.folder.glob(f"*/*/*{DRAFT}")]
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
            with synced_draft(self.folder / "probe"):
                pass
        except OSError as problem:
            raise SpoolError(f"the spool {self.folder} cannot be used: {problem.strerror}") from problem
        return len(leftovers)

    def path(self, file: str) -> Path:
        """The absolute path of a name that `write` returned."""
        return self.folder / file

    def has(self, file: str) -> bool:
        """Whether a file is there."""
        return self.path(file).is_file()

    def check_reserve(self) -> None:
        """Raise OutOfSpaceError when less than the reserve is free."""
        free = shutil.disk_usage(self.folder).free
        if free < self._reserve_bytes:
            raise OutOfSpaceError(
                f"only {free >> 20} MiB are free; {self._reserve_bytes >> 20} MiB are kept in reserve", free
            )

    def write(self, received: Received) -> str:
        """Store a data set; when this returns, a power cut cannot take it away.

        Order: bytes to a temporary name, fsync(file), rename, fsync(folder). The same bytes again give
        the same name and the same file.

        Returns:
            the file's name relative to the spool folder.

        Raises:
            OutOfSpaceError: below the reserve, or the disk or quota is full; nothing is left behind.
            OSError: any other failure of the disk.
        """
        self.check_reserve()
        file = file_name(received)
        target = self.folder / file
        with _out_of_space():
            self._ensure_folder(target.parent)
            write_durably(target, file_head(received), received.data)
        return file

    def _ensure_folder(self, folder: Path) -> None:
        """Make the folder of a series durable before anything in it is acknowledged.

        A folder that is there need not be durable: another thread, or a process that crashed, may have
        made it a moment ago. So each is synced once by this process, whoever made it.
        """
        with self._folders_lock:
            if folder in self._durable_folders:
                return
            if len(self._durable_folders) >= REMEMBERED_FOLDERS:
                self._durable_folders.clear()
            _make_folder(folder.parent)
            _make_folder(folder)
            self._durable_folders.add(folder)

    def remove(self, file: str) -> None:
        """Forget a file that no row names."""
        self.path(file).unlink(missing_ok=True)


def file_name(received: Received) -> str:
    """The name in the spool: hashes only, so that no UID of a peer ever becomes a path."""
    series = hashlib.sha256(received.series_instance_uid.encode()).hexdigest()[:32]
    return f"{series[:2]}/{series}/{received.sha256}.dcm"


def file_head(received: Received) -> bytes:
    """Preamble, prefix and group 0002 in Explicit VR Little Endian (PS3.10 7.1)."""
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", _uid(received.sop_class_uid)),
            _element(0x0003, b"UI", _uid(received.sop_instance_uid)),
            _element(0x0010, b"UI", _uid(received.transfer_syntax_uid)),
            _element(0x0012, b"UI", _uid(IMPLEMENTATION_CLASS_UID)),
            _element(0x0013, b"SH", _even(IMPLEMENTATION_VERSION_NAME.encode(), b" ")),
        )
    )
    length = _element(0x0000, b"UL", len(elements).to_bytes(4, "little"))
    return bytes(128) + b"DICM" + length + elements


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """One element of group 0002; only OB has the long form here (PS3.5 7.1.2)."""
    tag = (0x0002).to_bytes(2, "little") + number.to_bytes(2, "little")
    if vr == b"OB":
        return tag + vr + b"\0\0" + len(value).to_bytes(4, "little") + value
    return tag + vr + len(value).to_bytes(2, "little") + value


def _uid(uid: str) -> bytes:
    return _even(uid.encode("ascii"), b"\0")


def _even(value: bytes, padding: bytes) -> bytes:
    return value + padding * (len(value) % 2)


@contextmanager
def _out_of_space() -> Iterator[None]:
    """A full disk or quota as OutOfSpaceError."""
    try:
        yield
    except OSError as problem:
        if problem.errno in FULL:
            raise OutOfSpaceError(f"the spool has no room: {problem.strerror}", None) from problem
        raise


def _make_folder(folder: Path) -> None:
    """Make a folder where it is missing; its entry in the folder above is durable afterwards."""
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    sync_folder(folder.parent)
