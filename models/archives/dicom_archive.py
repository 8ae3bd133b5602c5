"""A hospital's own archive: a folder a patient, with one CT series and the RT Structure Set drawn on it.

Owns how the two are found and joined: by the series that the structure set references.
Speaks `Patient`; masks are filled even-odd by voxel centre.
Never repairs a series: uneven or tilted ones are refused, since labels would lie beside their organs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import RTStructureSetStorage

from inference.rasterising import fill
from models.anatomy import ANATOMY
from models.archives.patients import ArchiveError, Patient, labelled, thinned

_AXIAL = (1, 0, 0, 0, 1, 0)
_SAME_MM = 0.01


class DicomArchive:
    """A folder of patients' folders; what lies how deep in one does not matter.

    Args:
        roi_names: for each TG-263 name the other names under which the clinic drew the organ; case and
            spaces around do not count.
    """

    def __init__(self, folder: Path, roi_names: Mapping[str, Sequence[str]]) -> None:
        self._folder = folder
        self._organ_of = {name.casefold(): name for name in ANATOMY}
        for organ, names in roi_names.items():
            self._organ_of |= {spelled.strip().casefold(): organ for spelled in names}

    def names(self) -> list[str]:
        """Every patient, in a fixed order."""
        return sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir())

    def read(self, name: str, structures: Sequence[str]) -> Patient:
        """One patient; see `Archive.read`."""
        folder = self._folder / name
        headers = list(_headers(folder))
        sets = [file for file, header in headers if header.get("SOPClassUID") == RTStructureSetStorage]
        if len(sets) != 1:
            raise ArchiveError(f"{folder} holds {len(sets)} RT Structure Sets; leave the one to learn from")
        structure_set = dcmread(sets[0])
        slices = _slices(folder, headers, _referenced_series(sets[0], structure_set))
        hu, spacing_mm = _volume(folder, slices)
        drawn = self._masks(structure_set, slices, spacing_mm, structures)
        return thinned(labelled(name, hu, spacing_mm, drawn, structures))

    def _masks(
        self,
        structure_set: Dataset,
        slices: Sequence[Dataset],
        spacing_mm: NDArray[np.float64],
        structures: Sequence[str],
    ) -> dict[str, NDArray[np.bool_]]:
        """The organs that are wanted, each as a mask on the CT's grid."""
        names = {int(roi.ROINumber): str(roi.ROIName) for roi in structure_set.StructureSetROISequence}
        masks: dict[str, NDArray[np.bool_]] = {}
        for item in structure_set.ROIContourSequence:
            organ = self._organ_of.get(names[int(item.ReferencedROINumber)].strip().casefold(), "")
            if organ in structures and "ContourSequence" in item:
                masks[organ] = _filled(item.ContourSequence, slices, spacing_mm)
        return masks


def _headers(folder: Path) -> Iterator[tuple[Path, Dataset]]:
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        try:
            yield file, dcmread(file, stop_before_pixels=True)
        except InvalidDicomError:
            continue


def _referenced_series(file: Path, structure_set: Dataset) -> str:
    try:
        study = structure_set.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        return str(study.RTReferencedSeriesSequence[0].SeriesInstanceUID)
    except (AttributeError, IndexError) as missing:
        raise ArchiveError(f"{file} does not say which series it was drawn on") from missing


def _slices(folder: Path, headers: Sequence[tuple[Path, Dataset]], series: str) -> list[Dataset]:
    """The CT slices of a series with their pixels, from the feet to the head.

    Raises:
        ArchiveError: they are no stack of equal, equally spaced axial planes.
    """
    slices: list[Dataset] = [
        dcmread(file) for file, header in headers if header.get("SeriesInstanceUID") == series
    ]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    if len(slices) < 2:
        raise ArchiveError(f"{folder} holds {len(slices)} slices of the series that was drawn on")
    shapes = {(one.Rows, one.Columns, *map(float, one.PixelSpacing)) for one in slices}
    tilted = [one for one in slices if not np.allclose(one.ImageOrientationPatient, _AXIAL, atol=1e-4)]
    origins = np.array([one.ImagePositionPatient for one in slices], np.float64)
    gaps = np.diff(origins[:, 2])
    drift = np.ptp(origins[:, :2], axis=0).max()
    if len(shapes) > 1 or tilted or drift > _SAME_MM or np.ptp(gaps) > _SAME_MM:
        raise ArchiveError(
            f"{folder}: its slices are no even stack of axial planes (head first, supine): "
            f"{len(shapes)} matrices or pixel spacings, {len(tilted)} slices turned, "
            f"gaps of {gaps.min():.2f} to {gaps.max():.2f} mm"
        )
    return slices


def _volume(folder: Path, slices: Sequence[Dataset]) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    try:
        hu = [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    except (AttributeError, ValueError, NotImplementedError) as problem:
        raise ArchiveError(f"{folder}: the pixels of a slice cannot be read: {problem}") from problem
    gap = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    return np.rint(np.stack(hu)).astype(np.int16), np.array((gap, *map(float, slices[0].PixelSpacing)))


def _filled(
    contours: Sequence[Dataset], slices: Sequence[Dataset], spacing_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Even-odd over the contours of each plane; contours between two planes belong to the nearer one."""
    x_mm, y_mm, z_mm = (float(value) for value in slices[0].ImagePositionPatient)
    polygons: dict[int, list[NDArray[np.float64]]] = {}
    for contour in contours:
        points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
        index = round((float(points[:, 2].mean()) - z_mm) / spacing_mm[0])
        plane = (points[:, 1::-1] - (y_mm, x_mm)) / spacing_mm[1:]
        polygons.setdefault(index, []).append(plane)
    rows, columns = slices[0].Rows, slices[0].Columns
    mask = np.zeros((len(slices), rows, columns), bool)
    for index, rings in polygons.items():
        if 0 <= index < len(slices):
            mask[index] = fill(rings, rows, columns)
    return mask
