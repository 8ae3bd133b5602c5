"""The OpenKBP archive: one `.npz` a patient, planning CT with clinical and radiographers' contours.

Owns the archive's keys, and whose drawing of an organ is taken.
Speaks `Patient`; the arrays are (slices, rows, columns), LPS with z to the head already.
Never takes a radiographer's drawing where a clinician drew the organ: clinical contours are the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.archives.patients import ArchiveError, Patient, labelled

_SOURCES = ("clinical", "radiographer")


class OpenKbp:
    """A folder of `.npz` archives.

    Patients with radiographers' contours come first, so that the folds of a cross-validation share
    them out evenly: only eleven of two hundred have any.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Every patient, in a fixed order."""
        ranked = []
        for file in sorted(self._folder.glob("*.npz")):
            with np.load(file) as archive:
                has_radiographers = any(key.startswith("radiographer/") for key in archive.files)
            ranked.append((not has_radiographers, file.stem))
        return [name for _, name in sorted(ranked)]

    def read(self, name: str, structures: Sequence[str]) -> Patient:
        """One patient; see `Archive.read`."""
        file = self._folder / f"{name}.npz"
        try:
            with np.load(file) as archive:
                keys = set(archive.files)
                drawn = {}
                for organ in structures:
                    found = [f"{source}/{organ}" for source in _SOURCES if f"{source}/{organ}" in keys]
                    if found:
                        drawn[organ] = archive[found[0]]
                hu, spacing_mm = archive["ct_hu"], archive["spacing_mm"].astype(np.float64)
        except (OSError, KeyError, ValueError) as problem:
            raise ArchiveError(f"{file}: no patient of the OpenKBP archive: {problem}") from problem
        return labelled(name, hu, spacing_mm, drawn, structures)
