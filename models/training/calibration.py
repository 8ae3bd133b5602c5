"""What a cross-validation says of thresholds and trust, as a model package keeps it.

Owns the choice of each structure's threshold, and the fit of its confidence.
Speaks held-out scores in, `Trust` out.
Never fits what few patients have to themselves: the slopes are shared by all structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from inference.confidence import confidences, middle_of_others
from models.card import Calibration
from models.training.held_out import THRESHOLDS, USUAL_THRESHOLD, HeldOutScore, Judged

_ENOUGH = 10
"""Fewer patients than this choose no threshold of their own, and say of no confidence that it is low."""
_WORTH = 0.003
"""A threshold other than the usual one must bring at least so much Dice."""
_FLAGGED_PERCENT = 10.0
"""So many of the held-out drawings of a structure were below its `least_confidence`."""
_SMALLEST_SD = 1e-3


@dataclass(frozen=True)
class Trust:
    """Of one structure.

    Attributes:
        threshold: the probability from which on a voxel belongs to it.
        least_confidence: below it a person should look first; 0 where too few patients could tell.
    """

    threshold: float
    calibration: Calibration
    least_confidence: float


@dataclass(frozen=True)
class _Pair:
    """One structure of one patient at its structure's threshold."""

    patient: str
    structure: str
    judged: Judged


@dataclass(frozen=True)
class _Usual:
    """Mean and standard deviation of one structure's sureness and Dice."""

    sureness: tuple[float, float]
    dice: tuple[float, float]


def calibrate(scores: Sequence[HeldOutScore]) -> dict[str, Trust]:
    """By structure, for all that were found in at least two patients."""
    groups: dict[str, list[HeldOutScore]] = {}
    for one in scores:
        groups.setdefault(one.structure, []).append(one)
    thresholds = {name: best_threshold(group) for name, group in groups.items() if _found(group) > 1}
    pairs = _pairs(scores, thresholds)
    usual = {name: _usual([one.judged for one in pairs if one.structure == name]) for name in thresholds}
    own, others = _slopes(pairs, usual)
    calibrations = {
        name: Calibration(
            sureness_mean=round(one.sureness[0], 4),
            sureness_sd=round(one.sureness[1], 4),
            dice_mean=round(one.dice[0], 4),
            own=round(own * one.dice[1], 4),
            others=round(others * one.dice[1], 4),
        )
        for name, one in usual.items()
    }
    expected = _expected(pairs, calibrations)
    return {
        name: Trust(threshold, calibrations[name], _least(name, pairs, expected))
        for name, threshold in thresholds.items()
    }


def _found(group: Sequence[HeldOutScore]) -> int:
    return sum(all(judged.sureness > 0 for judged in score.at.values()) for score in group)


def rank_correlation(scores: Sequence[HeldOutScore], trusts: Mapping[str, Trust]) -> float:
    """Spearman's, of the confidence that the product would state and the Dice.

    NaN for fewer than three, or where one of them never changes.
    """
    pairs = _pairs(scores, {name: trust.threshold for name, trust in trusts.items()})
    expected = _expected(pairs, {name: trust.calibration for name, trust in trusts.items()})
    dice = [one.judged.dice for one in pairs]
    if len(dice) < 3 or len(set(expected)) == 1 or len(set(dice)) == 1:
        return float("nan")
    return float(spearmanr(expected, dice).statistic)


def best_threshold(group: Sequence[HeldOutScore]) -> float:
    """Of the highest mean Dice; the usual one where few patients, or too small a gain, speak for another."""
    means = {each: float(np.mean([score.at[each].dice for score in group])) for each in THRESHOLDS}
    best = max(means, key=lambda each: means[each])
    enough = len(group) >= _ENOUGH and means[best] >= means[USUAL_THRESHOLD] + _WORTH
    return best if enough else USUAL_THRESHOLD


def _pairs(scores: Sequence[HeldOutScore], thresholds: Mapping[str, float]) -> list[_Pair]:
    """What was found: of the rest no confidence is stated."""
    at_their_threshold = (
        _Pair(one.patient, one.structure, one.at[thresholds[one.structure]])
        for one in scores
        if one.structure in thresholds
    )
    return [one for one in at_their_threshold if one.judged.sureness > 0]


def _usual(group: Sequence[Judged]) -> _Usual:
    sureness, dice = [one.sureness for one in group], [one.dice for one in group]
    return _Usual(
        (float(np.mean(sureness)), max(_SMALLEST_SD, float(np.std(sureness, ddof=1)))),
        (float(np.mean(dice)), max(_SMALLEST_SD, float(np.std(dice, ddof=1)))),
    )


def _slopes(pairs: Sequence[_Pair], usual: Mapping[str, _Usual]) -> tuple[float, float]:
    """How many standard deviations of Dice one of the own sureness, and of the others', brings."""
    by_patient: dict[str, dict[str, float]] = {}
    for one in pairs:
        mean, sd = usual[one.structure].sureness
        by_patient.setdefault(one.patient, {})[one.structure] = (one.judged.sureness - mean) / sd
    seen, wanted = [], []
    for one in pairs:
        mine = by_patient[one.patient]
        mean, sd = usual[one.structure].dice
        seen.append((mine[one.structure], middle_of_others(one.structure, mine)))
        wanted.append((one.judged.dice - mean) / sd)
    if not seen:
        return 0.0, 0.0
    (own, others), *_ = np.linalg.lstsq(np.array(seen), np.array(wanted), rcond=None)
    return max(0.0, float(own)), max(0.0, float(others))


def _expected(pairs: Sequence[_Pair], calibrations: Mapping[str, Calibration]) -> list[float]:
    """The confidence of each, as the product would state it."""
    by_patient: dict[str, dict[str, float]] = {}
    for one in pairs:
        by_patient.setdefault(one.patient, {})[one.structure] = one.judged.sureness
    stated = {patient: confidences(found, calibrations) for patient, found in by_patient.items()}
    return [stated[one.patient][one.structure] for one in pairs]


def _least(name: str, pairs: Sequence[_Pair], expected: Sequence[float]) -> float:
    mine = [value for one, value in zip(pairs, expected, strict=True) if one.structure == name]
    if len(mine) < _ENOUGH:
        return 0.0
    return round(float(np.percentile(mine, _FLAGGED_PERCENT)), 3)
