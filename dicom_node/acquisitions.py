"""CT series of every kind of geometry with a ball whose surface is known in millimetres.

Owns the table of acquisitions that the commissioning goes through, and their data sets.
Speaks DICOM bytes of CT slices, LPS millimetres, and the ball as the network would have drawn it.
Never shares code with what it puts to the test: positions and the ball come from formulas alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian

from dicom_node.uids import derive_uid

Vector = NDArray[np.float64]

_MATRIX = 96
_HU = (60, 0, -1000)
"""Of the ball, of the water round it, and of the air outside."""
_WATER_MM = 12.0
"""How thick the water is."""


@dataclass(frozen=True)
class Ball:
    """A ball in LPS millimetres."""

    centre_mm: tuple[float, float, float]
    radius_mm: float

    @property
    def volume_cm3(self) -> float:
        """By the formula."""
        return 4 / 3 * np.pi * self.radius_mm**3 / 1000

    def distances_mm(self, points_mm: Vector) -> Vector:
        """(n,) from the surface, positive outside, of points (n, 3)."""
        distances: Vector = np.linalg.norm(points_mm - self.centre_mm, axis=-1) - self.radius_mm
        return distances


BALL = Ball((11.3, -17.7, -250.4), 24.0)


@dataclass(frozen=True)
class Acquisition:
    """How a series was taken.

    Attributes:
        orientation: ImageOrientationPatient (PS3.3 C.7.6.2.1.1).
        gaps_mm: from slice to slice.
        pixel_spacing_mm: row, column.
        tilt_deg: how far the way from slice to slice leaves the planes' normal.
        patient_position: PS3.3 C.7.3.1.1.2.
    """

    name: str
    orientation: tuple[float, float, float, float, float, float] = (1, 0, 0, 0, 1, 0)
    gaps_mm: tuple[float, ...] = 26 * (3.0,)
    pixel_spacing_mm: tuple[float, float] = (1.2, 1.2)
    tilt_deg: float = 0.0
    patient_position: str = "HFS"

    @property
    def directions(self) -> tuple[Vector, Vector, Vector]:
        """Unit vectors: along a row, along a column, and from slice to slice where nothing is tilted."""
        across, down = np.array(self.orientation[:3], float), np.array(self.orientation[3:], float)
        return across, down, np.cross(across, down)

    def positions_mm(self) -> Vector:
        """(slices, 3) ImagePositionPatient; the ball lies off the middle of the stack."""
        across, down, normal = self.directions
        way = normal - np.tan(np.radians(self.tilt_deg)) * down
        along = np.concatenate(([0.0], np.cumsum(self.gaps_mm)))
        row, column = self.pixel_spacing_mm
        corner = np.array(BALL.centre_mm) - across * column * _MATRIX * 0.45 - down * row * _MATRIX * 0.53
        return np.array([corner + (offset - along[-1] * 0.48) * way for offset in along])

    def slices(self) -> Iterator[bytes]:
        """The series' DICOM files."""
        for index, (position, away) in enumerate(zip(self.positions_mm(), self._distances_mm(), strict=True)):
            yield _slice(self, index, position, np.select([away <= 0, away <= _WATER_MM], _HU[:2], _HU[2]))

    def probability(self) -> NDArray[np.float32]:
        """(slices, rows, columns) of the ball as a network would give it: 0.5 on its surface."""
        edge_mm = 2 * max(self.pixel_spacing_mm)
        return np.stack(
            [np.clip(0.5 - away / edge_mm, 0, 1) for away in self._distances_mm()], dtype=np.float32
        )

    def _distances_mm(self) -> Iterator[Vector]:
        """(rows, columns) of each slice: how far each pixel's centre is from the ball's surface."""
        across, down, _ = self.directions
        row, column = self.pixel_spacing_mm
        steps = np.arange(_MATRIX, dtype=float)[:, None]
        plane = (steps * row * down)[:, None, :] + (steps * column * across)[None, :, :]
        for position in self.positions_mm():
            yield BALL.distances_mm(plane + position)


OBLIQUE = Acquisition("oblique", (0.9961947, 0.0871557, 0.0, -0.0858317, 0.9810603, 0.1736482))

ACQUISITIONS = (
    Acquisition("head first, supine"),
    Acquisition("head first, prone", (-1, 0, 0, 0, -1, 0), patient_position="HFP"),
    Acquisition("feet first, supine", (-1, 0, 0, 0, 1, 0), patient_position="FFS"),
    Acquisition("feet first, prone", (1, 0, 0, 0, -1, 0), patient_position="FFP"),
    Acquisition("head first, on the right side", (0, 1, 0, -1, 0, 0), patient_position="HFDR"),
    Acquisition("head first, on the left side", (0, -1, 0, 1, 0, 0), patient_position="HFDL"),
    Acquisition("feet first, on the right side", (0, 1, 0, 1, 0, 0), patient_position="FFDR"),
    Acquisition("feet first, on the left side", (0, -1, 0, -1, 0, 0), patient_position="FFDL"),
    OBLIQUE,
    Acquisition("gantry tilted by 15 degrees", (1, 0, 0, 0, 0.9659258, -0.2588190), tilt_deg=15.0),
    Acquisition("3 mm, then 6 mm between slices", gaps_mm=(*14 * (3.0,), *8 * (6.0,))),
    Acquisition("pixels of 1.5 x 0.9 mm", pixel_spacing_mm=(1.5, 0.9)),
    Acquisition("thin slices of 1 mm", gaps_mm=70 * (1.0,)),
)
"""Every way in which a series may lie that the product contours."""


def _slice(acquisition: Acquisition, index: int, position: Vector, hu: NDArray[np.int_]) -> bytes:
    """One CT Image (PS3.3 A.3)."""
    made_of = ("acquisition", acquisition.name)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "PHANTOM^BALL", "PHANTOM-BALL", "", "O"
    ds.StudyInstanceUID, ds.StudyID, ds.AccessionNumber = derive_uid(*made_of, "study"), "1", ""
    ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20260101", "120000", ""
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "CT", derive_uid(*made_of, "series"), 1
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derive_uid(*made_of, "frame"), ""
    ds.PatientPosition, ds.ImageType = acquisition.patient_position, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber, ds.AcquisitionNumber = index + 1, 1
    ds.ContentDate, ds.ContentTime = "20260101", "120000"
    ds.PixelSpacing = [f"{value:.7g}" for value in acquisition.pixel_spacing_mm]
    ds.ImageOrientationPatient = [f"{value:.7g}" for value in acquisition.orientation]
    ds.ImagePositionPatient = [f"{value:.9g}" for value in position]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", _MATRIX, _MATRIX
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.PixelData = (hu + 1024 + index % 2).astype("<u2").tobytes()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, derive_uid(*made_of, str(index))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
