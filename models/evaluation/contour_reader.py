"""An RT Structure Set as masks, read by nobody who wrote it.

Owns filling contours anew: even-odd, a voxel belongs where its centre lies inside.
Speaks pydicom data sets and axis-parallel grids; masks bool (slices, rows, columns), LPS millimetres.
Never imports the product that it helps to judge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from models.archives.openkbp_dicom import Grid

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
_IN_PLANE_MM = 0.01


def read_masks(rt_struct: Dataset, grid: Grid) -> dict[str, Mask]:
    """The ROIs of an RT Structure Set on a grid, by name.

    In-plane the grid may be another one than the contoured CT's; its planes must be that CT's.

    Raises:
        ValueError: a contour that lies in none of the grid's planes.
    """
    names = {roi.ROINumber: str(roi.ROIName) for roi in rt_struct.StructureSetROISequence}
    _, row_mm, column_mm = grid.spacing_mm
    x_mm, y_mm, _ = grid.origin_mm
    masks: dict[str, Mask] = {}
    for roi in rt_struct.ROIContourSequence:
        name = names[roi.ReferencedROINumber]
        mask = np.zeros(grid.hu.shape, bool)
        for contour in roi.get("ContourSequence", []):
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
            rows, columns = (points[:, 1] - y_mm) / row_mm, (points[:, 0] - x_mm) / column_mm
            mask[_plane(points[:, 2], grid, name)] ^= _inside(rows, columns, mask.shape[1:])
        masks[name] = mask
    return masks


def _plane(z_mm: Floats, grid: Grid, name: str) -> int:
    """Index of the slice in whose plane all points lie."""
    above_mm = z_mm - grid.origin_mm[2]
    index = round(float(above_mm[0]) / grid.spacing_mm[0])
    if np.abs(above_mm - index * grid.spacing_mm[0]).max() > _IN_PLANE_MM:
        raise ValueError(f"a contour of {name} lies between two slices")
    if not 0 <= index < len(grid.hu):
        raise ValueError(f"a contour of {name} lies above or below all slices")
    return index


def _inside(rows: Floats, columns: Floats, shape: tuple[int, ...]) -> Mask:
    """Which voxel centres a closed polygon surrounds: those with an odd number of edges to their right."""
    lines = np.arange(shape[0])
    below = rows[:, None] <= lines
    edge, line = np.nonzero(below != np.roll(below, -1, axis=0))
    end = (edge + 1) % len(rows)
    share = (line - rows[edge]) / (rows[end] - rows[edge])
    crossing = columns[edge] + share * (columns[end] - columns[edge])
    first_outside = np.clip(np.ceil(crossing), 0, shape[1]).astype(np.intp)
    crossings = np.zeros((shape[0], shape[1] + 1), np.intp)
    np.add.at(crossings, (line, first_outside), 1)
    to_the_right = crossings[:, ::-1].cumsum(axis=1)[:, ::-1]
    return np.asarray(to_the_right[:, 1:] % 2 == 1)
