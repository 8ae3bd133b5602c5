"""The phantom: built from geometry alone, the same every time, with each organ where it says.

Owns the rules that the demo's patient follows.
Speaks small grids, so that painting takes a moment.
Never asks what a network thinks of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.phantom import STRUCTURES, Grid, Phantom, build, write_phantom

GRID = Grid(75, 128, (4.0, 3.9, 3.9))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return build(GRID)


def test_the_same_seed_gives_the_same_voxels_and_another_seed_only_other_noise(phantom: Phantom) -> None:
    assert np.array_equal(build(GRID).hu, phantom.hu)
    difference = build(GRID, seed=1).hu.astype(float) - phantom.hu
    assert 5 < difference[phantom.structures["Brainstem"]].std() < 30
    assert abs(difference.mean()) < 1


@pytest.mark.parametrize(
    ("name", "volume_cm3", "mean_hu", "left_mm"),
    [
        ("Brainstem", (15, 30), (15, 45), (-2, 2)),
        ("SpinalCord", (15, 30), (15, 60), (-2, 2)),
        ("Parotid_L", (15, 30), (-45, 20), (50, 65)),
        ("Parotid_R", (15, 30), (-45, 20), (-65, -50)),
        ("Bone_Mandible", (50, 90), (500, 1200), (-2, 2)),
    ],
)
def test_each_organ_has_an_adult_s_size_density_and_side(
    phantom: Phantom,
    name: str,
    volume_cm3: tuple[float, float],
    mean_hu: tuple[float, float],
    left_mm: tuple[float, float],
) -> None:
    mask = phantom.structures[name]
    x_mm = GRID.first_mm[0] + np.nonzero(mask)[2] * GRID.spacing_mm[2]
    assert volume_cm3[0] < mask.sum() * np.prod(GRID.spacing_mm) / 1000 < volume_cm3[1]
    assert mean_hu[0] < phantom.hu[mask].mean() < mean_hu[1]
    assert left_mm[0] < x_mm.mean() < left_mm[1]


def test_no_voxel_belongs_to_two_organs(phantom: Phantom) -> None:
    assert np.sum([phantom.structures[name] for name in STRUCTURES], axis=0).max() == 1


def test_the_files_hold_the_voxels_where_the_grid_says(tmp_path: Path) -> None:
    written = write_phantom(tmp_path, slices=3, matrix=32, spacing_mm=(4.0, 15.6, 15.6))
    slices = [dcmread(file) for file in sorted(tmp_path.iterdir())]
    for index, one in enumerate(slices):
        hu = one.pixel_array * one.RescaleSlope + one.RescaleIntercept
        assert np.array_equal(hu, written.hu[index])
        x, y, z = written.grid.first_mm
        assert np.allclose(one.ImagePositionPatient, (x, y, z + 4.0 * index), atol=1e-3)


def test_writing_it_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("once", "again"):
        write_phantom(tmp_path / folder, slices=2, matrix=32, spacing_mm=(4.0, 15.6, 15.6))
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
