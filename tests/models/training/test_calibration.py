"""Thresholds and trust are chosen on patients whom the network did not see; few choose nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from models.training.calibration import best_threshold, calibrate, rank_correlation  # noqa: E402
from models.training.held_out import (  # noqa: E402
    THRESHOLDS,
    HeldOutScore,
    Judged,
    read_scores,
    write_scores,
)


def score(patient: int, structure: str, dice: float, sureness: float, low: float = 0.0) -> HeldOutScore:
    """Dice at the usual threshold, and `low` more of it at 0.4."""
    at = {
        each: Judged(dice + (low if each == 0.4 else -0.05 * (each != 0.5)), sureness) for each in THRESHOLDS
    }
    return HeldOutScore(f"pt_{patient}", structure, at)


def hard_and_easy_patients(count: int = 60) -> list[HeldOutScore]:
    """Two organs whose Dice follows how hard the patient is; the network's sureness sees it dimly."""
    rng = np.random.default_rng(5)
    scores = []
    for patient in range(count):
        ease = rng.normal()
        for structure, usual in (("Brainstem", 0.8), ("Esophagus", 0.5)):
            dice = usual + 0.05 * ease + 0.02 * rng.normal()
            scores.append(score(patient, structure, dice, 0.9 + 0.02 * ease + 0.02 * rng.normal()))
    return scores


def test_another_threshold_is_taken_where_enough_patients_gain_enough_by_it() -> None:
    many = [score(patient, "Larynx", 0.7, 0.9, low=0.02) for patient in range(10)]
    assert best_threshold(many) == 0.4
    assert best_threshold(many[:9]) == 0.5
    assert best_threshold([score(patient, "Larynx", 0.7, 0.9, low=0.002) for patient in range(20)]) == 0.5


def test_the_stated_confidence_ranks_structures_as_their_dice_does() -> None:
    scores = hard_and_easy_patients()
    trusts = calibrate(scores)
    assert rank_correlation(scores, trusts) > 0.8
    for name, usual in (("Brainstem", 0.8), ("Esophagus", 0.5)):
        assert trusts[name].calibration.dice_mean == pytest.approx(usual, abs=0.03)
        assert trusts[name].calibration.own > 0
        assert trusts[name].calibration.others > 0


def test_one_in_ten_is_sent_to_a_person() -> None:
    scores = hard_and_easy_patients(200)
    trusts = calibrate(scores)
    least = trusts["Brainstem"].least_confidence
    assert 0.7 < least < trusts["Brainstem"].calibration.dice_mean


def test_what_was_not_found_does_not_change_how_far_what_was_found_is_trusted() -> None:
    found = hard_and_easy_patients()
    missed = [score(100 + number, "Brainstem", 0.0, 0.0) for number in range(3)]
    assert calibrate([*found, *missed])["Brainstem"] == calibrate(found)["Brainstem"]


def test_a_handful_of_patients_says_of_no_confidence_that_it_is_low() -> None:
    lungs = [score(patient, "Lung_L", 0.95 + patient / 1000, 0.97 + patient / 1000) for patient in range(5)]
    trusts = calibrate([*hard_and_easy_patients(), *lungs])
    assert trusts["Lung_L"].least_confidence == 0.0
    assert trusts["Brainstem"].least_confidence > 0.0


def test_a_single_patient_calibrates_nothing() -> None:
    assert calibrate([score(1, "Eye_L", 0.8, 0.9), *hard_and_easy_patients(3)]).keys() == {
        "Brainstem",
        "Esophagus",
    }


def test_scores_come_back_from_their_table(tmp_path: Path) -> None:
    scores = [score(1, "Brainstem", 0.75, 0.875), score(2, "Eye_L", 0.5, 0.25)]
    write_scores(tmp_path / "scores.csv", scores)
    read = read_scores(tmp_path / "scores.csv")
    assert [(one.patient, one.structure) for one in read] == [("pt_1", "Brainstem"), ("pt_2", "Eye_L")]
    assert [one.dice for one in read] == [0.75, 0.5]
    assert read[0].at[0.4] == Judged(0.75, 0.875)
