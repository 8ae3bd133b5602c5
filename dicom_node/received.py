"""An RT Structure Set as a receiver sees it: its contours laid on the CT that it references.

Owns the way from Contour Data back to a `Segmentation`, for the demo's picture and figures.
Speaks a data set and its `CtSeries` in, the share of each voxel that the contours surround out.
Never judges an object that is about to leave: that is `rt_struct_check.py`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

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

Polygons = dict[int, list[NDArray[np.float64]]]


def on_ct(rt_struct: Dataset, series: CtSeries, structures: Sequence[Structure], device: str) -> Segmentation:
    """The ROIs as structures on the CT's grid; one that is not in the object has an empty box.

    A structure's `probability` is the share of the voxel inside its contours, by even-odd fill of a
    four times finer grid, so that its 0.5 line is the contour again.

    Raises:
        KeyError: a contour references a slice that is not in the series.
    """
    names = {roi.ROINumber: str(roi.ROIName) for roi in rt_struct.StructureSetROISequence}
    drawn = {names[roi.ReferencedROINumber]: _polygons(roi, series) for roi in rt_struct.ROIContourSequence}
    maps = tuple(_map(one, drawn.get(one.name, {}), series.volume.planes) for one in structures)
    return Segmentation(maps, device, {})


def _polygons(roi: Dataset, series: CtSeries) -> Polygons:
    """(row, column) index coordinates of an ROI's contours, by slice index."""
    slices = {header.sop_instance_uid: index for index, header in enumerate(series.headers)}
    planes = series.volume.planes
    polygons: Polygons = defaultdict(list)
    for contour in roi.get("ContourSequence", ()):
        index = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        offsets = np.array(contour.ContourData, np.float64).reshape(-1, 3) - planes.origins_mm[index]
        rows = offsets @ planes.column_direction / planes.row_spacing_mm
        columns = offsets @ planes.row_direction / planes.column_spacing_mm
        polygons[index].append(np.stack((rows, columns), axis=1))
    return polygons


def _map(structure: Structure, polygons: Polygons, planes: PlaneStack) -> StructureMap:
    if not polygons:
        return StructureMap(structure, (0, 0, 0), np.zeros((0, 0, 0), np.float32), 0.5, None, ("not_found",))
    points = np.concatenate([polygon for slice_ in polygons.values() for polygon in slice_])
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - _MARGIN, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + _MARGIN + 1, (planes.rows, planes.columns))
    first, last = max(min(polygons) - 1, 0), min(max(polygons) + 2, planes.shape[0])
    rows, columns = (int(extent) for extent in high - low)
    shares = np.zeros((last - first, rows, columns), np.float32)
    for index, outlines in polygons.items():
        # The centre of subpixel k of a voxel lies at (k + 0.5) / n - 0.5 from the voxel's own centre.
        finer = [(outline - low + 0.5) * _SUBPIXELS - 0.5 for outline in outlines]
        inside = fill(finer, rows * _SUBPIXELS, columns * _SUBPIXELS)
        shares[index - first] = inside.reshape(rows, _SUBPIXELS, columns, _SUBPIXELS).mean(axis=(1, 3))
    return StructureMap(structure, (first, int(low[0]), int(low[1])), shares, 0.5, None, ())
