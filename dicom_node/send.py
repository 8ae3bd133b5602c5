"""Pushes a folder of DICOM files, as a scanner would.

Owns one association for all of them, and the summary of what the receiver said to each.
Speaks Part 10 files in their own transfer syntaxes, byte for byte.
Never counts a file as sent that the receiver did not say to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import MediaStorageDirectoryStorage

from dicom_node import scu
from dicom_node.config import Destination
from dicom_node.errors import PermanentError
from dicom_node.scu import FileIdentity
from dicom_node.store_status import KEPT, StoreKind, StoreOutcome

MAX_MESSAGE_ID = 65_535
"""A message ID has 16 bits (PS3.7 9.3.1)."""


class NothingToSendError(PermanentError):
    """The folder holds no DICOM instance."""


@dataclass(frozen=True)
class Failure:
    """A file that the receiver does not keep, or keeps from elsewhere under the same UID."""

    file: Path
    status: int | None
    reason: str


@dataclass(frozen=True)
class Summary:
    """What became of a folder.

    Attributes:
        sent: files that the receiver stored, with or without a warning.
        warned: how many of them with a warning.
        failed: the others.
        ignored: files of the folder that are no DICOM instances, such as a DICOMDIR or a text.
    """

    sent: int
    warned: int
    failed: tuple[Failure, ...]
    ignored: int

    def in_words(self) -> str:
        """One sentence, and one for each status that files failed with."""
        lines = [f"sent {self.sent}, of them with a warning {self.warned}; failed {len(self.failed)}"]
        if self.ignored:
            lines[0] += f"; not DICOM {self.ignored}"
        for reason in dict.fromkeys(failure.reason for failure in self.failed):
            files = [failure.file.name for failure in self.failed if failure.reason == reason]
            lines.append(f"  {len(files)} failed, the first is {files[0]}: {reason}")
        return "\n".join(lines)


def send_folder(
    folder: Path,
    destination: Destination,
    calling: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Send every DICOM instance below `folder`, in the order of the files' names, on one association.

    Args:
        folder: searched with all that is below it.
        destination: whom to call; its AE title is named in the association request.
        calling: our AE title.
        on_progress: called after each file with how many are done, and how many there are.

    Raises:
        NothingToSendError: there is no instance in it.
        UnreadableFileError: one of its files cannot be read; nothing was sent.
        UnreachableError, AssociationRefusedError: nothing was sent.
    """
    files, ignored = _instances(folder)
    if not files:
        raise NothingToSendError(f"{folder} holds no DICOM instance")
    outcomes: list[StoreOutcome] = []
    with scu.association(destination, calling, scu.contexts_for(files)) as peer:
        for number, file in enumerate(files):
            outcomes.append(scu.send(peer, file, number % MAX_MESSAGE_ID + 1))
            on_progress(number + 1, len(files))
    return _summary(files, outcomes, ignored)


def _instances(folder: Path) -> tuple[list[FileIdentity], int]:
    """The instances below `folder`, and how many files are none."""
    instances, ignored = [], 0
    for file in _files(folder):
        try:
            identity = scu.identify(file)
        except scu.NotDicomError:
            ignored += 1
            continue
        if identity.sop_class_uid == MediaStorageDirectoryStorage:
            ignored += 1
        else:
            instances.append(identity)
    return instances, ignored


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _summary(files: Sequence[FileIdentity], outcomes: Sequence[StoreOutcome], ignored: int) -> Summary:
    kinds = [outcome.kind for outcome in outcomes]
    return Summary(
        sent=sum(kind in KEPT for kind in kinds),
        warned=kinds.count(StoreKind.WARNING),
        failed=tuple(
            Failure(file.file, outcome.status, outcome.reason)
            for file, outcome in zip(files, outcomes, strict=True)
            if outcome.kind not in KEPT
        ),
        ignored=ignored,
    )
