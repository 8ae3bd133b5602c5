"""What a table of scores says: a structure, the best and the worst patients, two runs side by side.

Owns the statistics and which patients rank first and last.
Speaks `Score` in, plain numbers out; a spread is taken over patients.
Never leaves out a structure that was missed: its Dice and surface Dice are 0.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from models.anatomy import ANATOMY
from models.evaluation.references import Standing
from models.evaluation.scores import Score, counted


@dataclass(frozen=True)
class Spread:
    """Of one figure over patients; NaN where there are none.

    Attributes:
        sd: with n - 1; NaN for a single patient.
        low, high: the 5th and the 95th percentile, linear between patients.
    """

    mean: float
    sd: float
    median: float
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Summary:
    """One structure over patients.

    Attributes:
        scores: the worst Dice first.
        missed: how many were not found at all.
        hd95_mm, mean_distance_mm, dice_between_ends, above_mm, below_mm: over those that were found.
        drawn_cm3: what the people drew.
    """

    structure: str
    scores: tuple[Score, ...]
    missed: int
    dice: Spread
    surface_dice: Spread
    hd95_mm: Spread
    mean_distance_mm: Spread
    volume_error_percent: Spread
    dice_between_ends: Spread
    above_mm: Spread
    below_mm: Spread
    drawn_cm3: Spread

    @property
    def patients(self) -> int:
        """How many."""
        return len(self.scores)


@dataclass(frozen=True)
class Change:
    """Dice of one structure in two runs, over the patients that both have; the loss is there - here."""

    structure: str
    patients: int
    here: float
    there: float
    most_lost: float
    most_lost_patient: str

    @property
    def lost(self) -> float:
        """How much lower the mean is here; negative where it is higher."""
        return self.there - self.here


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """A summary a structure, in the order of `models.anatomy`."""
    groups = {name: [score for score in scores if score.structure == name] for name in ANATOMY}
    return [_summary(name, group) for name, group in groups.items() if group]


def _summary(structure: str, scores: Sequence[Score]) -> Summary:
    agreements = [score.agreement for score in scores]
    return Summary(
        structure=structure,
        scores=tuple(sorted(scores, key=lambda score: (score.agreement.dice, score.patient))),
        missed=sum(agreement.missed for agreement in agreements),
        dice=spread([agreement.dice for agreement in agreements]),
        surface_dice=spread([agreement.surface_dice for agreement in agreements]),
        hd95_mm=_spread_of_known([agreement.hd95_mm for agreement in agreements]),
        mean_distance_mm=_spread_of_known([agreement.mean_distance_mm for agreement in agreements]),
        volume_error_percent=spread([agreement.volume_error_percent for agreement in agreements]),
        dice_between_ends=_spread_of_known([agreement.dice_between_ends for agreement in agreements]),
        above_mm=_spread_of_known([agreement.above_mm for agreement in agreements]),
        below_mm=_spread_of_known([agreement.below_mm for agreement in agreements]),
        drawn_cm3=spread([score.drawn_cm3 for score in scores]),
    )


def _spread_of_known(values: Sequence[float | None]) -> Spread:
    return spread([value for value in values if value is not None])


def spread(values: Sequence[float]) -> Spread:
    """How a figure is spread over patients."""
    if not values:
        return Spread(*7 * (float("nan"),))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    low, median, high = np.percentile(values, (5, 50, 95)).tolist()
    return Spread(fmean(values), sd, median, low, high, min(values), max(values))


def best_and_worst(scores: Sequence[Score], most: int = 3) -> tuple[list[str], list[str]]:
    """The patients of the highest and the lowest mean Dice over their structures inside the slab.

    Only patients with at least half as many structures as the one with the most: a single parotid says
    little. No patient is in both lists.

    Returns:
        the best first; the worst first.
    """
    per_patient: dict[str, list[float]] = {}
    for score in counted(scores, Standing.INSIDE):
        per_patient.setdefault(score.patient, []).append(score.agreement.dice)
    enough = max((len(dices) for dices in per_patient.values()), default=0) / 2
    means = {patient: fmean(dices) for patient, dices in per_patient.items() if len(dices) >= enough}
    ranked = sorted(means, key=lambda patient: (-means[patient], patient))
    worst = ranked[max(len(ranked) - most, (len(ranked) + 1) // 2) :][::-1]
    return ranked[: min(most, len(ranked) - len(worst))], worst


def confidence_correlation(scores: Sequence[Score]) -> tuple[int, float]:
    """How many have a confidence, and Spearman's rank correlation with their Dice; NaN below three."""
    pairs = [(score.confidence, score.agreement.dice) for score in scores if score.confidence is not None]
    if len(pairs) < 3:
        return len(pairs), float("nan")
    confidences, dices = zip(*pairs, strict=True)
    if len(set(confidences)) < 2 or len(set(dices)) < 2:
        return len(pairs), float("nan")
    return len(pairs), float(spearmanr(confidences, dices).statistic)


def compare_runs(here: Sequence[Score], there: Sequence[Score]) -> list[Change]:
    """What became of each structure inside the slab, patient by patient."""
    before = {
        (score.patient, score.structure): score.agreement.dice for score in counted(there, Standing.INSIDE)
    }
    changes = []
    for name in ANATOMY:
        pairs = {
            score.patient: (score.agreement.dice, before[score.patient, name])
            for score in counted(here, Standing.INSIDE)
            if score.structure == name and (score.patient, name) in before
        }
        if pairs:
            changes.append(_change(name, pairs))
    return changes


def _change(structure: str, pairs: Mapping[str, tuple[float, float]]) -> Change:
    losses = {patient: there - here for patient, (here, there) in pairs.items()}
    hardest_hit = max(losses, key=lambda patient: losses[patient])
    return Change(
        structure=structure,
        patients=len(pairs),
        here=fmean(here for here, _ in pairs.values()),
        there=fmean(there for _, there in pairs.values()),
        most_lost=losses[hardest_hit],
        most_lost_patient=hardest_hit,
    )


def write_summary(path: Path, scores: Sequence[Score]) -> None:
    """Both sets as CSV: a row a set and structure, a column a figure."""
    sets = {"inside": counted(scores, Standing.INSIDE), "plausible": plausible(scores)}
    names = tuple(field.name for field in fields(Summary) if field.type in (Spread, "Spread"))
    parts = tuple(field.name for field in fields(Spread))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            (
                "set",
                "structure",
                "patients",
                "missed",
                *(f"{name}_{part}" for name in names for part in parts),
            )
        )
        for label, chosen in sets.items():
            for summary in summarise(chosen):
                spreads = [getattr(summary, name) for name in names]
                cells = [f"{getattr(one, part):.6f}" for one in spreads for part in parts]
                writer.writerow((label, summary.structure, summary.patients, summary.missed, *cells))


def plausible(scores: Sequence[Score]) -> list[Score]:
    """Inside the slab or cut by it."""
    return counted(scores, Standing.INSIDE, Standing.CUT)
