"""A CT volume and where each of its voxels lies.

Owns the stack of planes: any orientation, tilted or not, evenly spaced or not.
Speaks HU arrays (slices, rows, columns) and LPS millimetres (DICOM PS3.3 C.7.6.2.1.1).
Never changes a position: each plane keeps the ImagePositionPatient of its own slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class PlaneStack:
    """Parallel planes of equal matrix, orientation and pixel spacing, sorted along the normal.

    Index (slice, row, column) counts from 0 at voxel centres. The centre of voxel (s, r, c) is
    `origins_mm[s] + r * row_step_mm + c * column_step_mm`.

    Attributes:
        origins_mm: (slices, 3) LPS, the ImagePositionPatient of each slice: the centre of the first voxel.
        row_direction: unit vector along which the *column* index grows (first triple of
            ImageOrientationPatient).
        column_direction: unit vector along which the *row* index grows (second triple).
        row_spacing_mm: distance between the centres of adjacent rows (first value of PixelSpacing).
        column_spacing_mm: distance between the centres of adjacent columns (second value).
        rows, columns: the matrix.
    """

    origins_mm: Vector
    row_direction: Vector
    column_direction: Vector
    row_spacing_mm: float
    column_spacing_mm: float
    rows: int
    columns: int

    def __post_init__(self) -> None:
        """Refuse what is no stack of planes.

        Raises:
            ValueError: directions that are not orthonormal, spacings that are not positive, or
                origins that do not strictly advance along the normal.
        """
        directions = np.stack((self.row_direction, self.column_direction))
        if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-3):
            raise ValueError("row and column directions must be orthogonal unit vectors")
        if min(self.row_spacing_mm, self.column_spacing_mm) <= 0 or min(self.rows, self.columns) < 1:
            raise ValueError("spacings and matrix must be positive")
        if self.origins_mm.ndim != 2 or self.origins_mm.shape[1] != 3:
            raise ValueError("origins must be (slices, 3)")
        if np.any(np.diff(self.offsets_mm) <= 0):
            raise ValueError("origins must advance along the normal")

    @cached_property
    def normal(self) -> Vector:
        """Unit vector along which the slice index grows: row direction x column direction."""
        return np.cross(self.row_direction, self.column_direction)

    @cached_property
    def offsets_mm(self) -> Vector:
        """(slices,) the distance of each plane from the coordinate origin along the normal."""
        offsets: Vector = self.origins_mm @ self.normal
        return offsets

    @property
    def tilt_deg(self) -> float:
        """The angle between the normal and the way from the first slice to the last: the gantry's tilt.

        Planes that are oblique but stacked along their normal have none.
        """
        way = self.origins_mm[-1] - self.origins_mm[0]
        along = float(way @ self.normal)
        return float(np.degrees(np.arctan2(np.linalg.norm(way - along * self.normal), along)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return len(self.origins_mm), self.rows, self.columns

    @property
    def row_step_mm(self) -> Vector:
        """LPS displacement from one row to the next."""
        return self.column_direction * self.row_spacing_mm

    @property
    def column_step_mm(self) -> Vector:
        """LPS displacement from one column to the next."""
        return self.row_direction * self.column_spacing_mm

    @cached_property
    def slice_thickness_mm(self) -> Vector:
        """(slices,) the thickness that each plane stands for: half the way to each neighbour."""
        offsets = self.offsets_mm
        if len(offsets) == 1:
            return np.ones(1)
        edges = np.concatenate(
            (
                [offsets[0] - (offsets[1] - offsets[0]) / 2],
                (offsets[1:] + offsets[:-1]) / 2,
                [offsets[-1] + (offsets[-1] - offsets[-2]) / 2],
            )
        )
        return np.diff(edges)

    def plane_points_mm(self, slice_index: int | NDArray[np.intp], points: Vector) -> Vector:
        """LPS millimetres of points (n, 2) given as (row, column) index coordinates in one plane.

        Points of several planes come with an array (n,) of their slices.

        This is the one place where (row, column) becomes (x, y, z).
        """
        return np.asarray(
            self.origins_mm[slice_index]
            + points[:, :1] * self.row_step_mm
            + points[:, 1:] * self.column_step_mm
        )


@dataclass(frozen=True)
class Volume:
    """A CT volume.

    Attributes:
        hu: int16 (slices, rows, columns), Hounsfield units; padding is -1024 or below.
        planes: where the voxels lie.
    """

    hu: NDArray[np.int16]
    planes: PlaneStack

    def __post_init__(self) -> None:
        """Refuse an array that does not fit its planes."""
        if self.hu.shape != self.planes.shape:
            raise ValueError(f"HU array is {self.hu.shape}, planes are {self.planes.shape}")
