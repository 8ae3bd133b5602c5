"""Evaluation's own reader: it must not need the product's, and must not agree with it by construction.

Owns the rules of the independent RT-STRUCT reader.
Speaks RT-STRUCTs made by hand.
Never runs the product.
"""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from models.archives.openkbp_dicom import Grid
from models.evaluation.contour_reader import read_masks

GRID = Grid(np.zeros((3, 20, 24), np.int16), (3.0, 2.0, 1.0), (10.0, -5.0, 100.0))


def _rt_struct(*polygons: list[tuple[float, float, float]]) -> Dataset:
    rt_struct, roi, contours = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, contours.ReferencedROINumber = 1, "Brainstem", 1
    contours.ContourSequence = []
    for polygon in polygons:
        contour = Dataset()
        contour.ContourData = [f"{value:.4f}" for point in polygon for value in point]
        contours.ContourSequence.append(contour)
    rt_struct.StructureSetROISequence, rt_struct.ROIContourSequence = [roi], [contours]
    return rt_struct


def _rectangle(
    rows: tuple[float, float], columns: tuple[float, float], index: int
) -> list[tuple[float, float, float]]:
    (top, bottom), (left, right) = rows, columns
    corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
    return [(10 + column, -5 + 2 * row, 100 + 3 * index) for row, column in corners]


def test_a_voxel_belongs_where_its_centre_lies_inside() -> None:
    mask = read_masks(_rt_struct(_rectangle((3.5, 7.5), (2.5, 12.5), 1)), GRID)["Brainstem"]
    expected = np.zeros(GRID.hu.shape, bool)
    expected[1, 4:8, 3:13] = True
    assert np.array_equal(mask, expected)


def test_what_reaches_beyond_the_grid_is_cut_there() -> None:
    mask = read_masks(_rt_struct(_rectangle((-9, 7.5), (-4, 99), 2)), GRID)["Brainstem"]
    expected = np.zeros(GRID.hu.shape, bool)
    expected[2, :8] = True
    assert np.array_equal(mask, expected)


def test_a_slanted_edge_parts_the_voxels_by_their_centres() -> None:
    corners = [(0.0, 0.0), (0.0, 10.0), (10.0, 0.0)]
    points = [(10 + column, -5 + 2 * row, 100.0) for row, column in corners]
    mask = read_masks(_rt_struct(points), GRID)["Brainstem"]
    rows, columns = np.indices(GRID.hu.shape[1:])
    assert np.array_equal(mask[0], rows + columns < 10)


def test_a_contour_inside_another_is_a_hole() -> None:
    outer, inner = _rectangle((1.5, 9.5), (1.5, 9.5), 0), _rectangle((3.5, 5.5), (3.5, 5.5), 0)
    mask = read_masks(_rt_struct(outer, inner), GRID)["Brainstem"]
    assert mask.sum() == 64 - 4


@pytest.mark.parametrize(
    ("above_mm", "complaint"), [(0.5, "between two slices"), (9, "above or below"), (-6, "above or below")]
)
def test_a_contour_in_no_slice_is_refused(above_mm: float, complaint: str) -> None:
    lifted = [(x, y, z + above_mm) for x, y, z in _rectangle((1, 5), (1, 5), 1)]
    with pytest.raises(ValueError, match=complaint):
        read_masks(_rt_struct(lifted), GRID)
