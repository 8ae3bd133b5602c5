"""Patients become training examples without an invented annotation, and sides stay sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from models.card import Window  # noqa: E402
from models.datasets import Augmentation, Patient, read_openkbp, resample, sample_crop, whole_patient  # noqa: E402

NAMES = ("Brainstem", "Parotid_L", "Parotid_R")
PAIRS = (("Parotid_L", "Parotid_R"),)
WINDOW = Window(lower_hu=-200, upper_hu=800)
SPACING_MM = (3.0, 4.0, 4.0)


def patient() -> Patient:
    """A soft body; left parotid at high columns (LPS), brighter than the right one."""
    hu = np.full((30, 40, 50), 0, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    for label, columns, value in ((2, slice(32, 40), 600), (3, slice(10, 18), 300)):
        hu[10:20, 15:25, columns] = value
        labels[10:20, 15:25, columns] = label
    return Patient("one", hu, labels, np.array([True, False, True, True]), np.array([3.0, 4.0, 4.0]))


def test_a_missing_or_implausible_mask_is_unknown(tmp_path: Path) -> None:
    hu = np.full((20, 40, 40), 40, np.int16)
    large = np.zeros(hu.shape, bool)
    large[5:15, 10:25, 10:25] = True
    hu[large] = 900  # a "brainstem" of bone
    gland = np.zeros(hu.shape, bool)
    gland[5:10, 28:36, 28:36] = True
    masks = {"clinical/Brainstem": large, "clinical/Parotid_L": gland}
    np.savez(tmp_path / "p.npz", ct_hu=hu, spacing_mm=np.array([3.0, 4.0, 4.0]), **masks)
    read = read_openkbp(tmp_path / "p.npz", NAMES)
    assert read.annotated.tolist() == [True, False, True, False]
    assert (read.labels == 2 * gland).all()


def test_on_its_own_spacing_a_patient_is_sampled_as_it_is() -> None:
    image, labels = whole_patient(patient(), SPACING_MM, WINDOW)
    np.testing.assert_allclose(image[0].numpy(), (patient().hu + 200) / 1000, atol=1e-4)
    assert (labels.numpy() == patient().labels).all()


def test_outside_the_volume_is_air_and_background() -> None:
    centre = np.array([15.0, 20.0, 25.0])
    image, labels = resample(patient(), np.eye(3), centre, (60, 8, 8), SPACING_MM, WINDOW)
    assert (image[0, :14] == 0).all()
    assert (labels[:14] == 0).all()


def test_a_mirrored_crop_has_its_sides_exchanged() -> None:
    """The brighter gland changes its place and its name; what lies at high columns is always the left one."""
    seen = set()
    for seed in range(8):
        crop = sample_crop(
            patient(),
            NAMES,
            (30, 40, 64),
            SPACING_MM,
            WINDOW,
            Augmentation(mirror_pairs=PAIRS, centre_on_structure=0.0),
            np.random.default_rng(seed),
        )
        columns = [np.nonzero((crop.labels == label).numpy())[2].mean() for label in (2, 3)]
        assert columns[0] > columns[1]
        assert crop.annotated.tolist() == [True, False, True, True]
        seen.add(bool(crop.image[0][crop.labels == 2].mean() > crop.image[0][crop.labels == 3].mean()))
    assert seen == {True, False}


def test_the_same_seed_gives_the_same_crop_and_air_stays_air() -> None:
    strong = Augmentation(rotation_deg=10, scale=0.1, shift_hu=50, noise_hu=30, gain=0.1, mirror_pairs=PAIRS)
    first, second = (
        sample_crop(patient(), NAMES, (40, 48, 64), SPACING_MM, WINDOW, strong, np.random.default_rng(7))
        for _ in range(2)
    )
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.labels, second.labels)
    assert first.image.min() == 0
    assert first.image.max() <= 1
