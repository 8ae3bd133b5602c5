"""What an archive holds becomes labels without an invented annotation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.archives.openkbp import OpenKbp
from models.archives.patients import ArchiveError, labelled, split_in_folds, thinned, windowed
from models.card import Window

SPACING_MM = np.array([3.0, 4.0, 4.0])
NAMES = ("Brainstem", "Parotid_L", "Brain", "Glnd_Submand_L")


def box(*sides: slice) -> NDArray[np.bool_]:
    mask = np.zeros((20, 40, 40), bool)
    mask[sides] = True
    return mask


GLAND = box(slice(5, 10), slice(28, 36), slice(28, 36))
BRAIN = box(slice(2, 18), slice(5, 25), slice(5, 25))
BRAINSTEM = box(slice(4, 14), slice(11, 19), slice(11, 19))


def head() -> NDArray[np.int16]:
    return np.full((20, 40, 40), 40, np.int16)


def test_a_missing_or_implausible_drawing_is_unknown_and_the_refusal_is_told() -> None:
    hu = head()
    hu[BRAINSTEM] = 900  # a "brainstem" of bone
    patient = labelled("one", hu, SPACING_MM, {"Brainstem": BRAINSTEM, "Parotid_L": GLAND}, NAMES)
    assert patient.annotated.tolist() == [True, False, True, False, False]
    assert patient.refused == ("Brainstem",)
    assert (patient.labels == 2 * GLAND).all()


def test_an_organ_that_was_cut_free_from_its_body_is_unknown() -> None:
    hu = np.where(BRAIN, 40, -1000).astype(np.int16)
    assert labelled("one", hu, SPACING_MM, {"Brain": BRAIN}, NAMES).refused == ("Brain",)
    assert labelled("one", head(), SPACING_MM, {"Brain": BRAIN}, NAMES).refused == ()


def test_a_drawing_of_a_part_is_unknown_unless_it_is_the_scan_that_cuts_it() -> None:
    part = box(slice(4, 9), slice(11, 19), slice(11, 19))
    cut = box(slice(0, 5), slice(11, 19), slice(11, 19))
    assert labelled("one", head(), SPACING_MM, {"Brainstem": part}, NAMES).refused == ("Brainstem",)
    for drawn in (BRAINSTEM, cut):
        assert labelled("one", head(), SPACING_MM, {"Brainstem": drawn}, NAMES).refused == ()


def test_a_voxel_of_two_drawings_belongs_to_the_smaller_one() -> None:
    for drawn in ({"Brain": BRAIN, "Brainstem": BRAINSTEM}, {"Brainstem": BRAINSTEM, "Brain": BRAIN}):
        labels = labelled("one", head(), SPACING_MM, drawn, NAMES).labels
        assert (labels[BRAINSTEM] == 1).all()
        assert (labels[BRAIN & ~BRAINSTEM] == 3).all()


def test_the_clinics_drawing_of_an_organ_counts_more_than_the_radiographers(tmp_path: Path) -> None:
    masks = {
        "clinical/Parotid_L": GLAND,
        "radiographer/Parotid_L": box(slice(5, 10), slice(2, 10), slice(2, 10)),
        "radiographer/Glnd_Submand_L": box(slice(12, 16), slice(30, 35), slice(30, 35)),
    }
    np.savez(tmp_path / "p.npz", ct_hu=head(), spacing_mm=SPACING_MM, **masks)
    patient = OpenKbp(tmp_path).read("p", NAMES)
    assert ((patient.labels == 2) == GLAND).all()
    assert patient.annotated.tolist() == [True, False, True, False, True]


def test_each_fold_gets_its_share_of_the_patients_with_rare_organs(tmp_path: Path) -> None:
    for number in range(12):
        extra = {"radiographer/Brain": BRAIN} if number % 3 == 0 else {}
        np.savez(tmp_path / f"pt_{number}.npz", ct_hu=head(), spacing_mm=SPACING_MM, **extra)
    names = OpenKbp(tmp_path).names()
    assert names[:4] == ["pt_0", "pt_3", "pt_6", "pt_9"]
    folds = split_in_folds(names, 4)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    assert [sum(name in names[:4] for name in fold) for fold in folds] == [1, 1, 1, 1]


def test_what_is_no_archive_of_the_kind_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", something=np.zeros(3))
    with pytest.raises(ArchiveError, match=r"p\.npz.*ct_hu"):
        OpenKbp(tmp_path).read("p", NAMES)


def test_fine_pixels_are_thinned_to_about_four_millimetres_and_coarse_ones_stay() -> None:
    fine = thinned(labelled("one", head(), np.array([2.5, 1.0, 1.0]), {}, NAMES))
    assert fine.hu.shape == (20, 10, 10)
    assert fine.spacing_mm.tolist() == [2.5, 4.0, 4.0]
    assert thinned(labelled("one", head(), SPACING_MM, {}, NAMES)).hu.shape == (20, 40, 40)


def test_the_window_makes_air_nought_and_bone_one() -> None:
    hu = np.array([-1000, -200, 300, 800, 3000], np.int16)
    assert windowed(hu, Window(lower_hu=-200, upper_hu=800)).tolist() == [0, 0, 0.5, 1, 1]
