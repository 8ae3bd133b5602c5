"""Delivers into a folder: a file is there whole, or not at all.

Owns the names of delivered files, and what each error of a disk means for a delivery.
Speaks `FolderDestination` and files in, `StoreOutcome` out.
Never makes the folder (a share that is not mounted gets nothing), and never changes a file that is there.
"""

from __future__ import annotations

import errno
import tempfile
from contextlib import suppress
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from dicom_node.config import FILE_NAME_FIELDS, FolderDestination
from dicom_node.durable import PRIVATE, sync_folder, synced_draft
from dicom_node.errors import PermanentError, TransientError
from dicom_node.store_status import StoreKind, StoreOutcome

FOR_THE_GROUP = 0o640

_KEYWORDS = dict(
    zip(
        FILE_NAME_FIELDS,
        ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality"),
        strict=True,
    )
)

_UNREACHABLE = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENOTCONN}
)
"""The folder is not there now: mostly a share that is away."""
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG})
"""A person has to change a right or the configuration. Every other error, such as a full disk, may pass."""


def store(destination: FolderDestination, file: Path) -> StoreOutcome:
    """Write a copy under its final name: temporary name, fsync, rename, fsync of the folder.

    A crash leaves no more than a hidden `*.part`, and the next try writes the same bytes anew. A file of that
    name, which its UID is part of, stays as it is.
    """
    data = file.read_bytes()
    try:
        name = _name(destination, file)
        if Path(name).name != name:
            return StoreOutcome(StoreKind.REFUSED, None, "what the object says of itself makes no file name")
        path = destination.folder / name
        if path.exists():
            return _there_already(path, data)
        _write(destination, path, data)
    except InvalidDicomError:
        return StoreOutcome(StoreKind.REFUSED, None, "the stored object is no DICOM file")
    except OSError as problem:
        return _failed(destination, problem)
    return StoreOutcome(StoreKind.STORED, None, f"written to {destination.folder}")


def look(destination: FolderDestination) -> str:
    """Whether files can be made there; in words.

    Raises:
        TransientError: not now.
        PermanentError: a person has to change something.
    """
    try:
        with tempfile.TemporaryFile(dir=destination.folder):
            pass
    except OSError as problem:
        failed = _failed(destination, problem)
        problem_of = PermanentError if failed.kind is StoreKind.REFUSED else TransientError
        raise problem_of(failed.reason) from problem
    return f"{destination.folder} is writable"


def _name(destination: FolderDestination, file: Path) -> str:
    """The pattern with what the object says of itself.

    Raises:
        InvalidDicomError: it is no DICOM file.
    """
    stated = pydicom.dcmread(file, specific_tags=list(_KEYWORDS.values()), stop_before_pixels=True)
    values = {field: str(stated.get(keyword, "")) for field, keyword in _KEYWORDS.items()}
    return destination.file_name.format_map(values)


def _write(destination: FolderDestination, path: Path, data: bytes) -> None:
    mode = FOR_THE_GROUP if destination.group_may_read else PRIVATE
    with synced_draft(path, data, mode=mode) as draft:
        draft.chmod(mode)  # whatever the umask says: the service's own is stricter
        draft.rename(path)
    try:
        sync_folder(path.parent)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # Windows shares cannot fsync a folder
            raise


def _there_already(path: Path, data: bytes) -> StoreOutcome:
    if path.read_bytes() == data:
        with suppress(OSError):
            sync_folder(path.parent)  # it may be from a try that a crash ended before this
        return StoreOutcome(StoreKind.STORED, None, "the file is there, from an earlier try")
    reason = "a file of this name is there with other bytes; it was left as it is"
    return StoreOutcome(StoreKind.DUPLICATE, None, reason)


def _failed(destination: FolderDestination, problem: OSError) -> StoreOutcome:
    if problem.errno in _REFUSED:
        advice, kind = "give this service's account the right to write there, then retry", StoreKind.REFUSED
    elif problem.errno in _UNREACHABLE:
        advice, kind = "is the share mounted? tried again", StoreKind.UNREACHABLE
    else:
        advice, kind = "tried again", StoreKind.TRANSIENT
    said = problem.strerror or type(problem).__name__
    return StoreOutcome(kind, None, f"{destination.folder} cannot be written: {said}; {advice}")
