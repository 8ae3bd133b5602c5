"""Evaluation's own reader: it must not need the product's, and must not agree with it by construction.

Owns the rules of the independent RT-STRUCT reader and of the summary.
Speaks RT-STRUCTs made by hand.
Never runs the product: tests/test_node.py and the evaluation itself do.
"""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

pytest.importorskip("torch", reason="the extra [train] is not installed")

from models.evaluation import Case, Score, dice, read_masks, summary
from models.openkbp_dicom import Grid

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


def test_a_contour_inside_another_is_a_hole() -> None:
    outer, inner = _rectangle((1.5, 9.5), (1.5, 9.5), 0), _rectangle((3.5, 5.5), (3.5, 5.5), 0)
    mask = read_masks(_rt_struct(outer, inner), GRID)["Brainstem"]
    assert mask.sum() == 64 - 4


def test_a_contour_between_two_slices_is_refused() -> None:
    lifted = [(x, y, z + 0.5) for x, y, z in _rectangle((1, 5), (1, 5), 1)]
    with pytest.raises(ValueError, match="between two slices"):
        read_masks(_rt_struct(lifted), GRID)


def test_dice_of_half_overlapping_equal_volumes_is_a_half() -> None:
    first, second = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    first[0, :2], second[0, 1:3] = True, True
    assert dice(first, second) == 0.5


def test_the_summary_names_each_structure_the_worst_case_and_each_refusal() -> None:
    good, bad = (Score("pt_1", "Brainstem", 0.9, 25, 24), Score("pt_2", "Brainstem", 0.3, 60, 24))
    text = summary(
        [Case("pt_1", (good,), None, 1), Case("pt_2", (bad,), None, 1), Case("pt_3", (), "no tissue", 0)]
    )
    assert "| Brainstem | 2 | 0.600 |" in text
    assert text.index("pt_2") < text.index("pt_1")
    assert "pt_3: no tissue" in text
