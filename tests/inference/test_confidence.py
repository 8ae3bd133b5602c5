"""Confidence is the Dice to be expected: by the network's own word, or calibrated on the unseen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.confidence import confidences, sureness
from models.card import Calibration


def test_where_the_network_is_certain_it_expects_a_perfect_dice() -> None:
    probability = np.zeros((6, 6, 6), np.float32)
    probability[2:4, 2:4, 2:4] = 1
    assert sureness(probability, probability >= 0.5) == 1.0


@given(st.integers(0, 2**32 - 1), st.sampled_from((0.05, 0.2, 0.5)))
def test_sureness_is_about_the_dice_when_the_truth_is_drawn_from_the_probabilities(
    seed: int, vagueness: float
) -> None:
    rng = np.random.default_rng(seed)
    sharp = np.zeros((20, 20, 20))
    sharp[5:15, 5:15, 5:15] = 1
    probability = np.abs(sharp - vagueness * rng.random(sharp.shape)).astype(np.float32)
    mask = probability >= 0.5
    truths = [rng.random(sharp.shape) < probability for _ in range(20)]
    dice = np.mean([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for truth in truths])
    assert sureness(probability, mask) == pytest.approx(dice, abs=0.02)


def calibration(own: float, others: float) -> Calibration:
    return Calibration(sureness_mean=0.9, sureness_sd=0.02, dice_mean=0.8, own=own, others=others)


def test_without_a_calibration_the_networks_own_word_stands() -> None:
    assert confidences({"Brainstem": 0.87654}, {}) == {"Brainstem": 0.877}


def test_a_calibrated_structure_gets_the_dice_of_its_like_moved_by_its_own_and_the_others_sureness() -> None:
    calibrations = {name: calibration(own=0.05, others=0.1) for name in "ABC"}
    assert confidences({"A": 0.92}, calibrations) == {"A": 0.85}
    found = confidences({"A": 0.92, "B": 0.88, "C": 0.86}, calibrations)
    assert found["A"] == pytest.approx(0.8 + 0.05 * 1 + 0.1 * (-1 - 2) / 2)
    assert found["C"] == pytest.approx(0.8 + 0.05 * -2 + 0.1 * (1 - 1) / 2)


def test_a_confidence_stays_between_nought_and_one() -> None:
    steep = {"A": calibration(own=5.0, others=0.0)}
    assert confidences({"A": 1.0}, steep) == {"A": 1.0}
    assert confidences({"A": 0.1}, steep) == {"A": 0.0}


def test_one_organ_of_which_a_corner_is_in_the_scan_does_not_change_how_far_the_others_are_trusted() -> None:
    calibrations = {name: calibration(own=0.05, others=0.1) for name in "ABCD"}
    whole = confidences({"A": 0.92, "B": 0.9, "C": 0.9, "D": 0.9}, calibrations)
    cornered = confidences({"A": 0.92, "B": 0.9, "C": 0.9, "D": 0.1}, calibrations)
    assert cornered["A"] == whole["A"]
