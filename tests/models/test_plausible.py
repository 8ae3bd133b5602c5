"""Volumes and places are measured on the patients, whole organs first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.plausible import measure
from models.training.config import TrainingConfig, parse_config

pytest.importorskip("torch", reason="needs the extra [train]")

SPACING_MM = np.array([2.0, 3.0, 3.0])


def config(*structures: str) -> TrainingConfig:
    content = {
        "structures": structures,
        "spacing_mm": [2.5, 4.0, 4.0],
        "window": {"lower_hu": -200, "upper_hu": 400},
        "seed": 1,
        "phases": [{"steps": 1, "batch": 1, "shape": [16, 16, 16], "rates": [0.1, 0.1]}],
    }
    return parse_config(content, Path("config.yaml"))


def block(first: int, slices: int, row: int, column: int) -> NDArray[np.bool_]:
    """`slices` x 10 x 10 voxels."""
    mask = np.zeros((30, 40, 40), bool)
    mask[first : first + slices, row : row + 10, column : column + 10] = True
    return mask


def write(folder: Path, name: str, **masks: NDArray[np.bool_]) -> None:
    drawn = {f"clinical/{organ}": mask for organ, mask in masks.items()}
    np.savez(
        folder / f"{name}.npz", ct_hu=np.full((30, 40, 40), 40, np.int16), spacing_mm=SPACING_MM, **drawn
    )


def test_volumes_are_measured_on_the_patients_whose_organ_is_whole(tmp_path: Path) -> None:
    for index, slices in enumerate((10, 11, 12, 11, 10)):
        write(tmp_path, f"whole{index}", Parotid_L=block(5, slices, 5, 5))
    for index, slices in enumerate((3, 4)):
        write(tmp_path, f"cut{index}", Parotid_L=block(0, slices, 5, 5))
    low, high = measure(config("Parotid_L"), tmp_path)["Parotid_L"].volume_cm3
    assert low == pytest.approx(0.75 * 18.0, abs=0.2)  # 1000 voxels of 18 mm3, less a quarter
    assert high == pytest.approx(1.25 * 21.6, abs=0.2)


def test_a_neighbour_lies_where_it_lies_in_the_patients_in_lps_millimetres(tmp_path: Path) -> None:
    for index, shift in enumerate((-2, -1, 0, 1, 2)):
        left, right = block(10, 10, 12, 28), block(10 + shift, 10, 12, 4)
        write(tmp_path, f"p{index}", Parotid_L=left, Parotid_R=right)
    found = measure(config("Parotid_L", "Parotid_R"), tmp_path)
    (near,) = found["Parotid_L"].neighbours
    assert near.name == "Parotid_R"
    assert near.offset_mm == pytest.approx((-72.0, 0.0, 0.0), abs=0.1)  # 24 columns of 3 mm to the right
    assert near.tolerance_mm == pytest.approx((8.0, 8.0, 8.0 + 1.5 * 4.0), abs=0.3)
    (back,) = found["Parotid_R"].neighbours
    assert back.offset_mm == pytest.approx((72.0, 0.0, 0.0), abs=0.1)


def test_what_few_patients_have_together_says_nothing_of_a_place(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path, f"p{index}", Parotid_L=block(10, 10, 12, 28), Parotid_R=block(10, 10, 12, 4))
    assert measure(config("Parotid_L", "Parotid_R"), tmp_path)["Parotid_L"].neighbours == ()


def test_without_data_the_bounds_of_training_stand(tmp_path: Path) -> None:
    assert measure(config("Parotid_L"), None)["Parotid_L"].volume_cm3 == (4.0, 90.0)
