"""Patients of a few thousand voxels and a training of a few seconds, for what only needs to run through."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.card import Window
from models.training.augmentation import Augmentation
from models.training.config import Folds, Phase, TrainingConfig

CONFIG = TrainingConfig(
    structures=("Brainstem", "Bone_Mandible"),
    spacing_mm=(3.0, 4.0, 4.0),
    window=Window(lower_hu=-200, upper_hu=800),
    seed=7,
    folds=Folds(count=3, held_out=0),
    weight_decay=0.0,
    ema_decay=0.9,
    phases=(
        Phase(steps=3, batch=2, shape=(16, 16, 16), rates=(5e-3, 2e-3)),
        Phase(steps=3, batch=1, shape=(20, 16, 18), rates=(4e-3, 0.0), frozen_norm=True),
    ),
    augmentation=Augmentation(rotation_deg=5, scale=0.1, noise_hu=10),
)


def write_patients(folder: Path, count: int) -> Path:
    """Water cubes with a dense ball (mandible) and a softer one (brainstem), as the archive holds them."""
    folder.mkdir()
    axes = np.ogrid[:24, :20, :24]
    for number in range(count):
        hu = np.full((24, 20, 24), -1000, np.int16)
        hu[2:-2, 2:-2, 2:-2] = 0
        masks = {}
        for name, centre, value in (("Brainstem", (16, 12, 12), 40), ("Bone_Mandible", (8, 7, 12), 700)):
            squared = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
            masks[f"clinical/{name}"] = squared <= (4.7 + 0.1 * number) ** 2
            hu[masks[f"clinical/{name}"]] = value
        np.savez(folder / f"pt_{number}.npz", ct_hu=hu, spacing_mm=np.array([3.0, 4.0, 4.0]), **masks)
    return folder
