"""Which adapter reads a folder of patients.

Owns the choice, by what lies in the folder.
Speaks `Archive`.
Never mixes two layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.archives.dicom_archive import DicomArchive
from models.archives.openkbp import OpenKbp
from models.archives.patients import Archive, ArchiveError
from models.archives.pddca import IMAGE, Pddca


def open_archive(folder: Path, roi_names: Mapping[str, tuple[str, ...]]) -> Archive:
    """The adapter for a folder.

    Raises:
        ArchiveError: nothing in it is known.
    """
    if any(folder.glob("*.npz")):
        return OpenKbp(folder)
    if any(folder.glob(f"*/{IMAGE}")):
        return Pddca(folder)
    if any(entry.is_dir() for entry in folder.iterdir()):
        return DicomArchive(folder, roi_names)
    raise ArchiveError(
        f"{folder} holds no patients: known are OpenKBP's .npz files, PDDCA's folders with {IMAGE}, "
        "and a folder of DICOM files for each patient"
    )
