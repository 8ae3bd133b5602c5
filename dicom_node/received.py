"""An RT Structure Set as a receiver sees it: its contours laid on the CT that it references.

Owns the way from Contour Data back to the CT's grid, for pictures and the demo's figures.
Speaks a data set and its `CtSeries` in, `ReceivedRoi` or a `Segmentation` out.
Never judges an object that is about to leave: that is `rt_struct_check.py`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_node.ct_series import CtSeries
from inference.rasterising import fill
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack
from models.card import Structure

_SUBPIXELS = 4
_MARGIN = 2

Ring = NDArray[np.float64]
"""(n, 2) of (row, column) index coordinates, voxel centres at integers; closed from the last to the first."""


@dataclass(frozen=True)
class ReceivedRoi:
    """One ROI of a structure set, as it stands there.

    Attributes:
        number, name, color: ROI Number, ROI Name and ROI Display Color (red, green, blue).
        volume_cm3: ROI Volume, which is optional.
        rings: its contours by slice index; at least one.
        planes: those of the CT.
    """

    number: int
    name: str
    color: tuple[int, int, int]
    volume_cm3: float | None
    rings: Mapping[int, tuple[Ring, ...]]
    planes: PlaneStack

    @cached_property
    def start(self) -> tuple[int, int, int]:
        """CT index (slice, row, column) of the first voxel of `shares`."""
        low, _ = self._extent
        return max(min(self.rings) - 1, 0), int(low[0]), int(low[1])

    @cached_property
    def shares(self) -> NDArray[np.float32]:
        """(slices, rows, columns): how much of each voxel lies inside the contours, from 0 to 1.

        By even-odd fill of a four times finer grid, so that the 0.5 line is the contour again.
        """
        low, high = self._extent
        first, last = self.start[0], min(max(self.rings) + 2, self.planes.shape[0])
        rows, columns = (int(extent) for extent in high - low)
        shares = np.zeros((last - first, rows, columns), np.float32)
        for index, rings in self.rings.items():
            # The centre of subpixel k of a voxel lies at (k + 0.5) / n - 0.5 from the voxel's own centre.
            finer = [(ring - low + 0.5) * _SUBPIXELS - 0.5 for ring in rings]
            inside = fill(finer, rows * _SUBPIXELS, columns * _SUBPIXELS)
            shares[index - first] = inside.reshape(rows, _SUBPIXELS, columns, _SUBPIXELS).mean(axis=(1, 3))
        return shares

    @cached_property
    def voxels_mm(self) -> NDArray[np.float64]:
        """(n, 3) LPS centres of the voxels that lie inside by half; of the fullest, if none does."""
        inside = np.argwhere(self.shares >= min(0.5, self.shares.max())) + self.start
        return self.planes.plane_points_mm(inside[:, 0], inside[:, 1:].astype(np.float64))

    @cached_property
    def _extent(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The first (row, column) of the box, and one beyond the last."""
        points = np.concatenate([ring for rings in self.rings.values() for ring in rings])
        matrix = (self.planes.rows, self.planes.columns)
        low = np.maximum(np.floor(points.min(axis=0)).astype(np.intp) - _MARGIN, 0)
        return low, np.minimum(np.ceil(points.max(axis=0)).astype(np.intp) + _MARGIN + 1, matrix)


def read_rois(rt_struct: Dataset, series: CtSeries) -> tuple[ReceivedRoi, ...]:
    """The ROIs that have contours, in the object's order.

    Raises:
        KeyError: a contour references a slice that is not in the series.
    """
    named = {int(roi.ROINumber): roi for roi in rt_struct.StructureSetROISequence}
    slices = {header.sop_instance_uid: index for index, header in enumerate(series.headers)}
    rois = []
    for item in rt_struct.ROIContourSequence:
        rings = _rings(item, slices, series.volume.planes)
        if rings:
            red, green, blue = (int(value) for value in item.ROIDisplayColor)
            number = int(item.ReferencedROINumber)
            name, volume = str(named[number].ROIName), named[number].get("ROIVolume")
            volume_cm3 = None if volume is None else float(volume)
            rois.append(
                ReceivedRoi(number, name, (red, green, blue), volume_cm3, rings, series.volume.planes)
            )
    return tuple(rois)


def on_ct(rt_struct: Dataset, series: CtSeries, structures: Sequence[Structure], device: str) -> Segmentation:
    """The ROIs as structures on the CT's grid; one that is not in the object has an empty box.

    A structure's `probability` is `ReceivedRoi.shares`.

    Raises:
        KeyError: a contour references a slice that is not in the series.
    """
    drawn = {roi.name: roi for roi in read_rois(rt_struct, series)}
    return Segmentation(tuple(_map(one, drawn.get(one.name)) for one in structures), device, {})


def _rings(roi: Dataset, slices: Mapping[str, int], planes: PlaneStack) -> dict[int, tuple[Ring, ...]]:
    rings: defaultdict[int, list[Ring]] = defaultdict(list)
    for contour in roi.get("ContourSequence", ()):
        index = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        offsets = np.array(contour.ContourData, np.float64).reshape(-1, 3) - planes.origins_mm[index]
        rows = offsets @ planes.column_direction / planes.row_spacing_mm
        columns = offsets @ planes.row_direction / planes.column_spacing_mm
        rings[index].append(np.stack((rows, columns), axis=1))
    return {index: tuple(some) for index, some in rings.items()}


def _map(structure: Structure, roi: ReceivedRoi | None) -> StructureMap:
    if roi is None:
        return StructureMap(structure, (0, 0, 0), np.zeros((0, 0, 0), np.float32), 0.5, None, ("not_found",))
    return StructureMap(structure, roi.start, roi.shares, 0.5, None, ())
