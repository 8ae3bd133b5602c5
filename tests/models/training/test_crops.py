"""Crops show the patient as he is, on the model's grid, and sides stay sides."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from models.archives.patients import Patient  # noqa: E402
from models.card import Window  # noqa: E402
from models.training.augmentation import Augmentation  # noqa: E402
from models.training.crops import Sampler, View, sample_crop, whole_patient  # noqa: E402

WINDOW = Window(lower_hu=-200, upper_hu=800)
SPACING_MM = (3.0, 4.0, 4.0)
VIEW = View(("Brainstem", "Parotid_L", "Parotid_R"), SPACING_MM, WINDOW)


def patient() -> Patient:
    """A soft body; left parotid at high columns (LPS), brighter than the right one."""
    hu = np.full((30, 40, 50), 0, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    for label, columns, value in ((2, slice(32, 40), 600), (3, slice(10, 18), 300)):
        hu[10:20, 15:25, columns] = value
        labels[10:20, 15:25, columns] = label
    return Patient("one", hu, labels, np.array([True, False, True, True]), np.array(SPACING_MM))


def crop_of(augmentation: Augmentation, seed: int, shape: tuple[int, int, int] = (30, 40, 64)) -> object:
    return sample_crop(Sampler([patient()], 0.0), VIEW, shape, augmentation, np.random.default_rng(seed))


def test_on_its_own_spacing_a_patient_is_sampled_as_it_is() -> None:
    whole = whole_patient(patient(), VIEW, 2)
    np.testing.assert_allclose(whole.image[0].numpy(), (patient().hu + 200) / 1000, atol=1e-4)
    assert (whole.labels.numpy() == patient().labels).all()


def test_extents_are_filled_up_behind_with_air_and_background() -> None:
    whole = whole_patient(patient(), VIEW, 16)
    assert whole.image.shape == (1, 32, 48, 64)
    np.testing.assert_allclose(whole.image[0, :30, :40, :50].numpy(), (patient().hu + 200) / 1000, atol=1e-4)
    assert whole.image[0, 30:].max() < 1e-5
    assert whole.labels[:, 40:].max() == 0


def test_a_label_covers_the_same_millimetres_on_a_finer_grid() -> None:
    view = View(VIEW.structures, (1.0, 4 / 3, 4 / 3), WINDOW)
    voxels = int((whole_patient(patient(), view, 2).labels == 2).sum())
    assert voxels == pytest.approx(27 * (patient().labels == 2).sum(), rel=0.1)


def test_a_mirrored_crop_has_its_sides_exchanged() -> None:
    """The brighter gland changes its place and its name; what lies at high columns is always the left one."""
    seen = set()
    for seed in range(8):
        crop = crop_of(Augmentation(mirror=True), seed)
        columns = [np.nonzero((crop.labels == label).numpy())[2].mean() for label in (2, 3)]
        assert columns[0] > columns[1]
        assert crop.annotated.tolist() == [True, False, True, True]
        seen.add(bool(crop.image[0][crop.labels == 2].mean() > crop.image[0][crop.labels == 3].mean()))
    assert seen == {True, False}


STRONG = Augmentation(
    rotation_deg=10,
    scale=0.1,
    elastic_mm=4,
    mirror=True,
    nearest_probability=0.5,
    blur=0.6,
    gain=0.1,
    shift_hu=50,
    noise_hu=30,
    cut=0.5,
    clutter=0.5,
    streaks=0.5,
)


def test_the_same_seed_gives_the_same_crop_however_much_is_disturbed() -> None:
    for seed in range(6):
        first, second = crop_of(STRONG, seed), crop_of(STRONG, seed)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.labels, second.labels)
        assert first.image.min() >= 0
        assert first.image.max() <= 1


def test_where_the_scan_is_cut_there_is_neither_image_nor_label() -> None:
    for seed in range(12):
        crop = crop_of(Augmentation(cut=1.0), seed, (10, 32, 40))
        empty = (crop.image[0] == 0).flatten(1).all(dim=1)
        assert (crop.labels[empty] == 0).all()
        assert empty[0] != empty[-1]


def test_organs_that_few_patients_have_come_up_more_often_than_their_patients_would_bring_them() -> None:
    common = patient()
    rare_labels = np.where(common.labels == 2, 1, 0).astype(np.uint8)
    rare = Patient("rare", common.hu, rare_labels, np.array([True, True, False, False]), common.spacing_mm)
    sampler = Sampler([common] * 15 + [rare], 1.0)
    rng = np.random.default_rng(1)
    share = np.mean([sampler.choose(rng)[0].name == "rare" for _ in range(600)])
    assert 1 / 16 < 0.08 < share < 0.18  # the square root of 1 against those of 15 and 15
