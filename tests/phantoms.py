"""CT series made from geometry: for tests, in every shape that scanners and senders give them.

Owns the builder of CT data sets; a phantom is a head-like ellipsoid in air whose HU are known per voxel.
Speaks LPS millimetres, HU int16 (slices, rows, columns) and pydicom data sets.
Never reads a patient, except `from_openkbp`, which takes the reader's own archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from models.archives.openkbp_dicom import read_grid

ROOT = "1.2.826.0.1.3680043.8.498.7"

ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "HFS": (1, 0, 0, 0, 1, 0),
    "HFP": (-1, 0, 0, 0, -1, 0),
    "FFS": (-1, 0, 0, 0, 1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
    "HFDR": (0, 1, 0, -1, 0, 0),
    "HFDL": (0, -1, 0, 1, 0, 0),
    "FFDR": (0, 1, 0, 1, 0, 0),
    "FFDL": (0, -1, 0, -1, 0, 0),
}
"""ImageOrientationPatient of an untilted axial slice in each patient position (PS3.3 C.7.3.1.1.2)."""


@dataclass(frozen=True)
class Phantom:
    """What a series is made of; every field may be replaced.

    Attributes:
        offsets_mm: where each slice lies along `step_direction`, from `origin_mm`; any order, any gaps.
        step_direction: from slice to slice; None is the planes' normal, another one tilts the gantry.
        hu: int16 (slices, rows, columns), or None for the ellipsoid.
        overrides: DICOM keywords and values set (None deletes them) in every slice.
    """

    offsets_mm: tuple[float, ...] = tuple(3.0 * index for index in range(24))
    rows: int = 64
    columns: int = 64
    pixel_spacing: tuple[float, float] = (4.0, 4.0)
    orientation: tuple[float, ...] = ORIENTATIONS["HFS"]
    origin_mm: tuple[float, float, float] = (-120.0, -130.5, -300.25)
    step_direction: tuple[float, float, float] | None = None
    bits_stored: int = 12
    signed: bool = False
    slope: float = 1.0
    intercept: float = -1024.0
    padding: int | None = None
    transfer_syntax: str = ExplicitVRLittleEndian
    series: str = "1"
    study: str = "1"
    hu: NDArray[np.int16] | None = field(default=None, repr=False)
    overrides: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Phantom:
        """This phantom with some fields replaced."""
        return replace(self, **changes)

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """(slices, 3) ImagePositionPatient in the order of `offsets_mm`, as DS can carry it."""
        directions = np.array(self.orientation, float)
        normal = np.cross(directions[:3], directions[3:])
        step = normal if self.step_direction is None else np.array(self.step_direction)
        exact = np.array(self.origin_mm) + np.outer(self.offsets_mm, step)
        return np.array([[float(_ds(value)) for value in position] for position in exact])

    @property
    def voxels(self) -> NDArray[np.int16]:
        """HU (slices, rows, columns) in the order of `offsets_mm`."""
        return ellipsoid(self) if self.hu is None else self.hu


def ellipsoid(phantom: Phantom) -> NDArray[np.int16]:
    """A head in air: skin to skin 70 % of the field of view, bone inside; each slice differs."""
    count, rows, columns = len(phantom.offsets_mm), phantom.rows, phantom.columns
    offsets = np.array(phantom.offsets_mm)
    middle, reach = (offsets.max() + offsets.min()) / 2, max(np.ptp(offsets), 1.0)
    height = ((offsets - middle) / reach)[:, None, None]
    down = np.linspace(-1, 1, rows)[:, None]
    across = np.linspace(-1, 1, columns)[None, :]
    radius = np.sqrt((down / 0.75) ** 2 + (across / 0.65) ** 2 + height**2)
    hu = np.full((count, rows, columns), -1000, np.int16)
    hu[radius < 1] = 40
    hu[(radius > 0.8) & (radius < 0.9)] = 900
    ramp = np.linspace(0, 60, columns).astype(np.int16)
    return np.where(radius < 0.8, hu + ramp, hu).astype(np.int16)


def slices(phantom: Phantom) -> list[Dataset]:
    """The data sets, in the order of `offsets_mm`, with file meta: ready for `encode` or C-STORE."""
    voxels = phantom.voxels
    return [
        _slice(phantom, index, position, hu)
        for index, (position, hu) in enumerate(zip(phantom.positions_mm, voxels, strict=True))
    ]


def encode(dataset: Dataset) -> bytes:
    """The bytes of a DICOM file (PS3.10)."""
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def write(phantom: Phantom, folder: Path) -> list[Path]:
    """One file a slice; the file names say nothing of the order along the patient."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, dataset in enumerate(slices(phantom)):
        path = folder / f"{(index * 7919) % 10007:05d}-{phantom.series}.dcm"
        path.write_bytes(encode(dataset))
        paths.append(path)
    return paths


def series(phantom: Phantom | None = None, min_slices: int = 2) -> CtSeries:
    """The phantom as the node would hold it."""
    datasets = slices(phantom or Phantom())
    return assemble((read_slice(BytesIO(encode(one))) for one in datasets), min_slices)


def from_openkbp(path: Path, matrix: int | None = None) -> Phantom:
    """A patient of the reader's own OpenKBP archive as a phantom.

    Args:
        matrix: see `models.archives.openkbp_dicom.read_grid`.
    """
    grid = read_grid(path, matrix)
    return Phantom(
        offsets_mm=tuple((np.arange(len(grid.hu)) * grid.spacing_mm[0]).round(6).tolist()),
        rows=grid.hu.shape[1],
        columns=grid.hu.shape[2],
        pixel_spacing=grid.spacing_mm[1:],
        origin_mm=grid.origin_mm,
        bits_stored=16,
        signed=True,
        intercept=0.0,
        series=path.stem.removeprefix("pt_"),
        hu=grid.hu,
    )


def _slice(phantom: Phantom, index: int, position: Sequence[float], hu: NDArray[np.int16]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    _describe(dataset, phantom, index)
    dataset.ImagePositionPatient = [_ds(value) for value in position]
    dataset.ImageOrientationPatient = [_ds(value) for value in phantom.orientation]
    dataset.PixelSpacing = [_ds(value) for value in phantom.pixel_spacing]
    _put_pixels(dataset, phantom, hu)
    for keyword, value in phantom.overrides.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", f"{ROOT}.0")
    _set_transfer_syntax(dataset, UID(phantom.transfer_syntax))
    return dataset


def _describe(dataset: Dataset, phantom: Phantom, index: int) -> None:
    """Patient, study, series, frame of reference, equipment: all Type 1 and 2 attributes of a CT Image."""
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{ROOT}.{phantom.study}.{phantom.series}.{index + 1}"
    dataset.StudyInstanceUID = f"{ROOT}.{phantom.study}"
    dataset.SeriesInstanceUID = f"{ROOT}.{phantom.study}.{phantom.series}"
    dataset.FrameOfReferenceUID = f"{ROOT}.{phantom.study}.0.1"
    dataset.PatientName, dataset.PatientID = "Phantom^Test", "PHANTOM-1"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.StudyDate, dataset.StudyTime = "20240102", "101112"
    dataset.SeriesDate, dataset.SeriesTime = "20240102", "101500"
    dataset.ContentDate, dataset.ContentTime = "20240102", "101530"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "ACC1", ""
    dataset.StudyDescription, dataset.SeriesDescription = "Planning", "Head and neck 3.0"
    dataset.Modality, dataset.Manufacturer = "CT", "Phantom maker"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 2, index + 1, 1
    dataset.PositionReferenceIndicator, dataset.PatientPosition = "", _patient_position(phantom.orientation)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.KVP, dataset.SliceThickness, dataset.ConvolutionKernel = "120", "3", "B30f"


def _patient_position(orientation: tuple[float, ...]) -> str:
    return next((name for name, cosines in ORIENTATIONS.items() if cosines == orientation), "HFS")


def _put_pixels(dataset: Dataset, phantom: Phantom, hu: NDArray[np.int16]) -> None:
    """Stored values such that slope and intercept give back the HU (rounded, if the slope is fractional)."""
    lowest = -(1 << phantom.bits_stored - 1) if phantom.signed else 0
    stored = np.rint((hu.astype(float) - phantom.intercept) / phantom.slope)
    stored = np.clip(stored, lowest, lowest + (1 << phantom.bits_stored) - 1).astype(np.int64)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        16,
        phantom.bits_stored,
        phantom.bits_stored - 1,
    )
    dataset.PixelRepresentation = int(phantom.signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = _ds(phantom.slope), _ds(phantom.intercept)
    dataset.RescaleType = "HU"
    if phantom.padding is not None:
        dataset.add_new("PixelPaddingValue", "SS" if phantom.signed else "US", phantom.padding)
    dataset.PixelData = stored.astype("<i2" if phantom.signed else "<u2").tobytes()


def _set_transfer_syntax(dataset: Dataset, syntax: UID) -> None:
    """Encode the pixels: native at once, RLE, JPEG-LS and JPEG 2000 by pydicom's encoders."""
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    if syntax.is_compressed:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    elif "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = syntax


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    for digits in range(14, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} does not fit DS")
