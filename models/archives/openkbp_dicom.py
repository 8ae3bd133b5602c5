"""A patient of the OpenKBP archive as a DICOM CT series: evaluation goes through the front door.

Owns the encoding of an archive's CT as CT Image Storage, on its own grid or on a scanner's matrix.
Speaks HU (slices, rows, columns), LPS millimetres and DICOM files.
Never holds a name: the archive has none, and the series gets the file's stem as its patient ID.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

AIR_HU = -1000
_SCAN_VOXELS = 128
"""How wide and high the whole scan is in the archive's voxels; `offset_voxels` is counted in it."""


@dataclass(frozen=True)
class Grid:
    """A CT on an axis-parallel grid, head first supine.

    The centre of the native voxel (s, r, c) lies at x = c, y = r, z = s times the native spacing, whatever
    the matrix: the first native voxel is the coordinate origin, so masks of the archive need no shift.

    Attributes:
        hu: int16 (slices, rows, columns).
        spacing_mm: (slice, row, column) distances.
        origin_mm: LPS x, y, z of the first voxel's centre.
    """

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]


def read_grid(npz: Path, matrix: int | None = None) -> Grid:
    """A patient's CT.

    Args:
        npz: the archive's file.
        matrix: None for the archive's own grid; else square slices of so many pixels, interpolated linearly
            in-plane, over the field of view of the scan that the archive was cut from; the rest is air.
            512 is that scan's own matrix, with pixels of 1 to 1.4 mm.
    """
    with np.load(npz) as archive:
        hu = archive["ct_hu"].astype(np.int16)
        slice_mm, row_mm, column_mm = (float(round(mm, 6)) for mm in archive["spacing_mm"].tolist())
        _, first_row, first_column = archive["offset_voxels"].tolist()
    if matrix is None:
        return Grid(hu, (slice_mm, row_mm, column_mm), (0.0, 0.0, 0.0))
    step_mm = round(_SCAN_VOXELS * max(row_mm, column_mm) / matrix, 6)
    y_mm, x_mm = (
        step_mm / 2 - (first + 0.5) * native_mm
        for first, native_mm in ((first_row, row_mm), (first_column, column_mm))
    )
    steps_mm = np.arange(matrix) * step_mm
    image = interpolated(hu.astype(np.float32), (y_mm + steps_mm) / row_mm, axis=1)
    image = interpolated(image, (x_mm + steps_mm) / column_mm, axis=2)
    return Grid(np.rint(image).astype(np.int16), (slice_mm, step_mm, step_mm), (x_mm, y_mm, 0.0))


def write_series(grid: Grid, name: str, folder: Path) -> None:
    """Write a CT as one file a slice, signed 16 bit, Explicit VR Little Endian.

    Args:
        grid: other voxels are another series.
        name: the patient's number in the archive.
        folder: made where it is not there; the files are named by the slices' order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = _uid(name, "series", hashlib.sha256(grid.hu.tobytes()).hexdigest())
    for index in range(len(grid.hu)):
        dataset = _slice(grid, index, name, series)
        dataset.save_as(folder / f"CT{index:04d}.dcm", enforce_file_format=True)


def interpolated(values: NDArray[np.float32], at: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Linear interpolation along one axis at fractional indices; air beyond the outer voxels' borders."""
    last = values.shape[axis] - 1
    shape = [-1 if axis == number else 1 for number in range(values.ndim)]
    inside = np.clip(at, 0, last)
    lower = np.floor(inside).astype(np.intp)
    upper = np.minimum(lower + 1, last)
    share = (inside - lower).astype(np.float32).reshape(shape)
    mixed = values.take(lower, axis) * (1 - share) + values.take(upper, axis) * share
    outside = ((at < -0.5) | (at > last + 0.5)).reshape(shape)
    return np.where(outside, np.float32(AIR_HU), mixed)


def _slice(grid: Grid, index: int, name: str, series: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Patient, Study, Series, Frame of Reference and Equipment modules
    dataset.PatientName, dataset.PatientID = name, name
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = _uid(name, "study")
    dataset.SeriesInstanceUID = series
    dataset.FrameOfReferenceUID = _uid(name, "frame of reference")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20200101"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "120000"
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.SeriesNumber, dataset.Manufacturer = "CT", 1, ""
    dataset.PatientPosition, dataset.PositionReferenceIndicator = "HFS", ""
    # Image Plane module
    slice_mm, row_mm, column_mm = grid.spacing_mm
    x_mm, y_mm, z_mm = grid.origin_mm
    dataset.ImagePositionPatient = [_ds(x_mm), _ds(y_mm), _ds(z_mm + index * slice_mm)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [_ds(row_mm), _ds(column_mm)], _ds(slice_mm)
    # CT Image and Image Pixel modules
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber, dataset.AcquisitionNumber, dataset.KVP = index + 1, 1, ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = grid.hu.shape[1:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "HU"
    dataset.PixelData = grid.hu[index].astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    # SOP Common module
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = _uid(dataset.SeriesInstanceUID, str(index))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _uid(*parts: str) -> str:
    """The same UID for the same parts (PS3.5 B.2)."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _ds(millimetres: float) -> str:
    """A decimal string of at most 16 characters, exact to a ten-thousandth of a micrometre."""
    return f"{round(millimetres, 7):.10g}"
