"""Couch, head rest and mask: around the patient, never in him.

Owns the rules of `models.evaluation.dressing` and of the scanner's matrix.
Speaks the phantom as an archive.
Never runs the product.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models.archives.openkbp_dicom import Grid, read_grid
from models.evaluation.dressing import AIR_BELOW_HU, dress
from tests.models.openkbp_patients import FIRST_COLUMN, FIRST_ROW, body_of, write_phantom_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_archive(tmp_path_factory.mktemp("archive") / "pt_1.npz")


@pytest.fixture(scope="module")
def bare(archive: Path) -> Grid:
    return read_grid(archive, 512)


@pytest.fixture(scope="module")
def dressed(bare: Grid) -> Grid:
    return dress(bare, "pt_1")


def test_the_scanners_matrix_has_the_archives_voxels_where_they_were(archive: Path, bare: Grid) -> None:
    native = read_grid(archive)
    assert bare.spacing_mm == (3.0, 1.0, 1.0)
    # A native centre lies half-way between the second and the third of its four pixels.
    row, column = 4 * (FIRST_ROW + 30) + 1, 4 * (FIRST_COLUMN + 50) + 1
    assert bare.origin_mm[1] + (row + 0.5) * 1.0 == 30 * 4.0
    assert bare.origin_mm[0] + (column + 0.5) * 1.0 == 50 * 4.0
    around = bare.hu[:, row : row + 2, column : column + 2].mean(axis=(1, 2))
    neighbours = native.hu[:, 29:32, 49:52].reshape(len(native.hu), -1)
    assert ((neighbours.min(axis=1) <= around) & (around <= neighbours.max(axis=1))).all()


def test_the_patient_stays_as_he_is_and_only_air_around_him_is_filled(bare: Grid, dressed: Grid) -> None:
    changed = bare.hu != dressed.hu
    assert changed.any()
    assert bare.hu[changed].max() < AIR_BELOW_HU
    assert not (changed & body_of(bare.hu)).any()
    assert (dressed.hu >= bare.hu).all()


def test_a_patient_is_always_dressed_alike_and_no_two_are(bare: Grid, dressed: Grid) -> None:
    assert np.array_equal(dress(bare, "pt_1").hu, dressed.hu)
    assert not np.array_equal(dress(bare, "pt_2").hu, dressed.hu)


def test_the_couch_lies_below_the_patient_in_every_slice(bare: Grid, dressed: Grid) -> None:
    back = np.flatnonzero((bare.hu > -300).any(axis=(0, 2))).max()
    shells = (dressed.hu[:, back + 1 :] > -500) & (dressed.hu[:, back + 1 :] < 0)
    assert (shells.sum(axis=(1, 2)) > 2 * 400).all()


def test_the_mask_is_a_thin_sheet_close_to_the_face_with_holes(bare: Grid, dressed: Grid) -> None:
    index = 28  # through the jaw
    air = bare.hu[index] < AIR_BELOW_HU
    distance_mm = ndimage.distance_transform_edt(air)
    front = np.argwhere(~air).mean(axis=0)[0]
    sheet = (dressed.hu[index] > -500) & air & (np.arange(512)[:, None] < front)
    assert distance_mm[sheet].min() > 0
    assert np.percentile(distance_mm[sheet], 90) < 4 + 2.5 + 1
    # About as wide as it is thick: its area is that of the outline times 2.5 mm, less its holes.
    outline_mm = (np.abs(distance_mm - 5) < 0.5)[: int(front)].sum()
    assert 0.5 * 2.5 * outline_mm < sheet.sum() < 1.2 * 2.5 * outline_mm
    _, pieces = ndimage.label(sheet, np.ones((3, 3)))
    assert pieces > 1
