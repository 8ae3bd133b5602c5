"""Planes through the patient as pictures of square pixels: where each pixel lies, and what lies there.

Owns axial, coronal and sagittal views of a CT in any orientation, tilted or not, evenly spaced or not.
Speaks LPS millimetres and picture coordinates (x, y), pixel centres at integers, y downwards.
Never draws: what a view is coloured with is for others to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from dicom_node.received import ReceivedRoi
from inference.volume import PlaneStack, Volume

AIR_HU = -1024.0
_LEAST_COMPONENT = 0.25
"""A direction is named after each patient axis along which it goes at least this far."""

Floats = NDArray[np.float64]
Lines = tuple[Floats, ...]
"""Closed lines, each (n, 2) of picture coordinates (x, y)."""


@dataclass(frozen=True)
class View:
    """One plane through the patient, seen by a viewer who stands at the feet, in front, or at the left.

    Attributes:
        name: Axial, Coronal or Sagittal.
        corner_mm: LPS, the centre of the first pixel.
        across, down: unit vectors along which x and y grow.
        size: width and height in pixels.
        planes: those of the CT.
        through_mm: LPS, a point that it shares with its two companions.
        slice_index: of an axial view, which slice it shows; it lies in that slice's own plane.
    """

    name: str
    corner_mm: Floats
    across: Floats
    down: Floats
    pixel_mm: float
    size: tuple[int, int]
    planes: PlaneStack
    through_mm: Floats
    slice_index: int | None = None

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """What lies to the left, to the right, at the top and at the bottom, as in PS3.3 C.7.6.1.1.1."""
        return _letters(-self.across), _letters(self.across), _letters(-self.down), _letters(self.down)

    @property
    def place(self) -> str:
        """Where the plane lies, in words."""
        if self.slice_index is not None:
            z_mm = self.planes.origins_mm[self.slice_index][2]
            return f"slice {self.slice_index + 1} of {self.planes.shape[0]}, z {z_mm:.1f} mm"
        axis = "y" if self.name == "Coronal" else "x"
        return f"{axis} {self.corner_mm['xyz'.index(axis)]:.1f} mm"

    @property
    def scale_mm(self) -> int:
        """A round length that fits well into the picture."""
        return 50 if self.size[0] * self.pixel_mm >= 180 else 20

    def hu(self, volume: Volume) -> NDArray[np.float32]:
        """HU (height, width), interpolated linearly; air outside the scan."""
        slices, rows, columns = self._indices
        sampled = map_coordinates(
            volume.hu, (slices, rows, columns), np.float32, order=1, mode="constant", cval=AIR_HU
        )
        return np.where(self._is_scanned, sampled, np.float32(AIR_HU))

    def share(self, roi: ReceivedRoi) -> NDArray[np.float32]:
        """How much of each pixel (height, width) lies inside the contours, from 0 to 1.

        A contour stands for a slab: half the way to each neighbouring slice. Nothing is written between
        two slices, and so nothing is drawn there that would look smoother than what is written.
        """
        share = np.zeros(self.size[::-1], np.float32)
        first, box = roi.start, roi.shares.shape
        slices, rows, columns = (
            index - start for index, start in zip(self._slab_indices, first, strict=True)
        )
        near = self._is_scanned & (slices >= 0) & (slices < box[0])
        near &= (rows > -1) & (rows < box[1]) & (columns > -1) & (columns < box[2])
        share[near] = map_coordinates(roi.shares, (slices[near], rows[near], columns[near]), order=1)
        return share

    def outlines(self, roi: ReceivedRoi) -> Lines:
        """Where the ROI's border crosses the plane: in an axial view the contours as they are written."""
        if self.slice_index is not None:
            rings = roi.rings.get(self.slice_index, ())
            return tuple(self.pixels(self.planes.plane_points_mm(self.slice_index, ring)) for ring in rings)
        share = np.pad(self.share(roi), 1)
        lines = contour_generator(z=share).lines(0.5) if share.any() else []
        return tuple(np.asarray(line, np.float64) - 1 for line in lines)

    def pixels(self, points_mm: Floats) -> Floats:
        """Picture coordinates (n, 2) of LPS points (n, 3), seen along the view's normal."""
        offsets = points_mm - self.corner_mm
        return np.stack((offsets @ self.across, offsets @ self.down), axis=1) / self.pixel_mm

    @cached_property
    def _offsets_mm(self) -> Floats:
        """(height, width) distance along the slices' normal."""
        return self._along(self.planes.normal)

    @cached_property
    def _is_scanned(self) -> NDArray[np.bool_]:
        """(height, width): whether a pixel lies between the first and the last slice, half a slice more."""
        at, half = self.planes.offsets_mm, self.planes.slice_thickness_mm / 2
        inside = (self._offsets_mm >= at[0] - half[0]) & (self._offsets_mm <= at[-1] + half[-1])
        return np.asarray(inside, np.bool_)

    @cached_property
    def _indices(self) -> tuple[Floats, Floats, Floats]:
        """Fractional (slice, row, column) of each pixel; between slices along the line of their origins."""
        at = self.planes.offsets_mm
        slices = np.interp(self._offsets_mm, at, np.arange(len(at)))
        return slices, *self._in_plane(lambda origins: np.interp(self._offsets_mm, at, origins))

    @cached_property
    def _slab_indices(self) -> tuple[Floats, Floats, Floats]:
        """The slice in whose slab each pixel lies, and its fractional row and column in that slice."""
        at = self.planes.offsets_mm
        nearest = np.searchsorted((at[1:] + at[:-1]) / 2, self._offsets_mm)
        return nearest.astype(np.float64), *self._in_plane(lambda origins: origins[nearest])

    def _in_plane(self, at_pixels: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        """Fractional row and column; `at_pixels` takes a value for each slice to one for each pixel."""
        planes = self.planes
        down, across = planes.column_direction, planes.row_direction
        return (
            (self._along(down) - at_pixels(planes.origins_mm @ down)) / planes.row_spacing_mm,
            (self._along(across) - at_pixels(planes.origins_mm @ across)) / planes.column_spacing_mm,
        )

    def _along(self, direction: Floats) -> Floats:
        """(height, width) LPS coordinate of each pixel's centre along a unit vector."""
        x, y = (np.arange(extent) * self.pixel_mm for extent in self.size)
        start = self.corner_mm @ direction
        return np.asarray(start + y[:, None] * (self.down @ direction) + x * (self.across @ direction))


def three_views(
    planes: PlaneStack, at_mm: Floats, middle_mm: Floats, width_mm: float, size: tuple[int, int]
) -> tuple[View, View, View]:
    """Axial, coronal and sagittal through a point.

    Patients are shown as radiologists see them, in whatever position they were scanned: the axial slice
    from the feet with anterior at the top, the others with the head at the top.

    Args:
        planes: the CT's.
        at_mm: LPS, through which the planes go; the axial view takes the nearest slice.
        middle_mm: LPS, what is in the middle of each picture, seen along its normal.
        width_mm: how much of the patient lies across a view.
        size: width and height of each view in pixels.
    """
    pixel_mm = width_mm / size[0]
    x, y, z = np.eye(3)
    slice_index = int(np.abs(planes.offsets_mm - at_mm @ planes.normal).argmin())

    def view(name: str, across: Floats, down: Floats, index: int | None = None) -> View:
        normal = np.cross(across, down)
        on_plane = at_mm if index is None else planes.origins_mm[index]
        middle = middle_mm + ((on_plane - middle_mm) @ normal) * normal
        half = (size[0] - 1) / 2 * across + (size[1] - 1) / 2 * down
        return View(name, middle - pixel_mm * half, across, down, pixel_mm, size, planes, at_mm, index)

    return (
        view("Axial", *_axial_directions(planes), slice_index),
        view("Coronal", x, -z),
        view("Sagittal", y, -z),
    )


def _axial_directions(planes: PlaneStack) -> tuple[Floats, Floats]:
    """In the slice's plane towards the patient's left and back: along rows and columns, or the reverse."""
    left, back = planes.row_direction, planes.column_direction
    if abs(left[0]) < abs(back[0]):
        left, back = back, left
    return left * np.sign(left[0]), back * np.sign(back[1])


def _letters(direction: Floats) -> str:
    """Such as `A`, or `AF` for a direction that leans from anterior to the feet."""
    named = sorted(
        zip(np.abs(direction), ("RL", "AP", "FH"), direction, strict=True), key=lambda one: -one[0]
    )
    return "".join(pair[int(value > 0)] for size, pair, value in named if size >= _LEAST_COMPONENT)
