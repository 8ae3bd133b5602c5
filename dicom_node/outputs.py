"""The way to a destination, whatever its kind.

Owns which door a file leaves by, and how `anatomynode check` asks whether it is open.
Speaks `AnyDestination` and files in, `StoreOutcome` out; one file a call.
Never tries again, and never decides what becomes of a delivery: `deliverer.py` does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node import folder_output, scu, storage_commitment, stow
from dicom_node.config import AnyDestination, Destination, FolderDestination
from dicom_node.store_status import StoreOutcome


def storing(
    destination: AnyDestination, own_ae_title: str, file: Path
) -> AbstractContextManager[StoreOutcome]:
    """Bring one Part 10 file there; its bytes go out as they are.

    Args:
        own_ae_title: the node's, where a DICOM destination is told no other.

    Returns:
        A block that knows the outcome as soon as there is one.
    """
    match destination:
        case Destination():
            return scu.storing(destination, destination.calling_ae_title or own_ae_title, file)
        case FolderDestination():
            return nullcontext(folder_output.store(destination, file))
        case _:
            return nullcontext(stow.store(destination, file))


def look(destination: AnyDestination, own_ae_title: str) -> str:
    """Ask whether it is there and takes what it is to get; in words.

    Raises:
        AnatomyNodeError: it is not, or does not.
    """
    match destination:
        case Destination():
            return _look_by_dicom(destination, destination.calling_ae_title or own_ae_title)
        case FolderDestination():
            return folder_output.look(destination)
        case _:
            return stow.look(destination)


def _look_by_dicom(destination: Destination, calling: str) -> str:
    scu.echo(destination, calling)
    answers = f"{scu.address_of(destination)} answers C-ECHO"
    if destination.preview:
        scu.accepts(destination, calling, SecondaryCaptureImageStorage)
        answers += ", takes pictures"
    if destination.storage_commitment.enabled:
        scu.accepts(destination, calling, storage_commitment.SOP_CLASS_UID)
        answers += ", offers storage commitment"
    return answers
