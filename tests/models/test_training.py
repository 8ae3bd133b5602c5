"""Training: resumable, reproducible, and able to learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train` (torch)")

from models.card import Window  # noqa: E402
from models.datasets import Augmentation  # noqa: E402
from models.training import Phase, TrainingConfig, train  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny volumes gain nothing from threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CONFIG = TrainingConfig(
    structures=("Brainstem", "Bone_Mandible"),
    mirror_pairs=(),
    spacing_mm=(3.0, 4.0, 4.0),
    window=Window(lower_hu=-200, upper_hu=800),
    seed=7,
    held_out=1,
    focal_weight=0.5,
    class_weights=(1.0, 1.0, 1.0),
    weight_decay=0.0,
    ema_decay=0.9,
    phases=(
        Phase(steps=3, batch=2, shape=(16, 16, 16), rates=(5e-3, 2e-3)),
        Phase(steps=3, batch=1, shape=(20, 16, 18), rates=(4e-3, 0.0)),
    ),
    augmentation=Augmentation(rotation_deg=5, scale=0.1, noise_hu=10),
)


def _write_patients(folder: Path, count: int) -> None:
    """Water cubes with a dense ball (mandible) and a softer one (brainstem), as the archive holds them."""
    axes = np.ogrid[:24, :20, :24]
    for number in range(count):
        hu = np.full((24, 20, 24), -1000, np.int16)
        hu[2:-2, 2:-2, 2:-2] = 0
        masks = {}
        for name, centre, value in (("Brainstem", (16, 12, 12), 40), ("Bone_Mandible", (8, 7, 12), 700)):
            squared = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
            masks[f"clinical/{name}"] = squared <= (4.4 + 0.1 * number) ** 2
            hu[masks[f"clinical/{name}"]] = value
        np.savez(folder / f"pt_{number}.npz", ct_hu=hu, spacing_mm=np.array([3.0, 4.0, 4.0]), **masks)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    folder = tmp_path / "patients"
    folder.mkdir()
    _write_patients(folder, 3)
    return folder


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["average"]


def test_a_training_cut_off_and_resumed_gives_the_weights_of_an_uninterrupted_one(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(CONFIG, patients, tmp_path / "whole", report=lambda _: None)

    monkeypatch.setattr("models.training.CHECKPOINT_EVERY", 2)
    calls = 0

    def stop_after_four(message: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, patients, tmp_path / "resumed", report=stop_after_four)
    resumed = train(CONFIG, patients, tmp_path / "resumed", report=lambda _: None)

    for name, tensor in _weights(whole).items():
        torch.testing.assert_close(_weights(resumed)[name], tensor, msg=name)


def test_training_finds_the_structures_of_a_phantom_that_it_was_never_shown(
    patients: Path, tmp_path: Path
) -> None:
    config = replace(
        CONFIG,
        phases=(Phase(steps=40, batch=1, shape=(24, 20, 24), rates=(5e-3, 0.0), centre_on_structure=0.0),),
    )
    train(config, patients, tmp_path / "run", report=lambda _: None)
    header, *rows = (tmp_path / "run" / "watch.csv").read_text().splitlines()
    dice = dict(zip(header.split(","), map(float, rows[-1].split(",")), strict=True))
    assert dice["Bone_Mandible"] > 0.6
    assert len((tmp_path / "run" / "loss.csv").read_text().splitlines()) == 41
