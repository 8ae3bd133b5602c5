"""The layout of PDDCA (MICCAI 2015 challenge), the paper's data: a folder a patient, NRRD images.

Owns the names of its files; the door to SimpleITK.
Speaks `Patient`, whatever orientation the image has: it is turned to LPS with z to the head.
Never resamples: images are only flipped, exchanged along axes, and thinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from models.archives.patients import ArchiveError, Patient, labelled, thinned

IMAGE = "img.nrrd"
_FILES = {
    "Brainstem": "BrainStem",
    "Bone_Mandible": "Mandible",
    "OpticNrv_L": "OpticNerve_L",
    "OpticNrv_R": "OpticNerve_R",
    "Parotid_L": "Parotid_L",
    "Parotid_R": "Parotid_R",
    "Glnd_Submand_L": "Submandibular_L",
    "Glnd_Submand_R": "Submandibular_R",
}


class Pddca:
    """A folder of folders, each with `img.nrrd` and `structures/NAME.nrrd`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Every patient, in a fixed order."""
        return sorted(image.parent.name for image in self._folder.glob(f"*/{IMAGE}"))

    def read(self, name: str, structures: Sequence[str]) -> Patient:
        """One patient; see `Archive.read`."""
        folder = self._folder / name
        hu, spacing_mm = _read(folder / IMAGE)
        drawn = {}
        for organ in structures:
            file = folder / "structures" / f"{_FILES.get(organ)}.nrrd"
            if file.exists():
                mask, _ = _read(file)
                if mask.shape != hu.shape:
                    raise ArchiveError(f"{file} has {mask.shape} voxels, its image {hu.shape}")
                drawn[organ] = mask > 0
        return thinned(labelled(name, hu, spacing_mm, drawn, structures))


def _read(file: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Voxels (slices, rows, columns) as LPS, and their spacing in the same order."""
    try:
        image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(file), "LPS")
    except RuntimeError as problem:
        raise ArchiveError(f"{file} cannot be read: {problem}") from problem
    voxels = SimpleITK.GetArrayFromImage(image)
    return voxels.astype(np.int16), np.array(image.GetSpacing()[::-1], np.float64)
