"""Every patient judged by a network that was not taught on him: what is honest to select and calibrate by.

Owns the trainings of all folds, and the table of their held-out scores.
Speaks a configuration and an archive in; `cross_validation.csv` and `CROSS_VALIDATION.md` out.
Never looks at validation patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.training.calibration import calibrate, rank_correlation
from models.training.config import Folds, TrainingConfig
from models.training.held_out import THRESHOLDS, HeldOutScore, read_scores, write_scores
from models.training.trainer import train


def cross_validate(
    config: TrainingConfig,
    data: Path,
    output: Path,
    start_from: Path | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train each fold and judge its held-out patients; the path of `cross_validation.csv`.

    A fold that was cut off goes on where its checkpoint stands; one that is done is only judged again.

    Args:
        config: `folds.count` says how many; each is held out once.
        start_from: a checkpoint to begin each fold with. It must not have been taught on what the folds
            are to be judged by.
    """
    scores: list[HeldOutScore] = []
    for fold in range(config.folds.count):
        report(f"fold {fold + 1} of {config.folds.count}")
        one = replace(config, folds=Folds(config.folds.count, fold))
        train(one, data, output / f"fold_{fold}", start_from, report, judge_taught=False)
        scores += read_scores(output / f"fold_{fold}" / "held_out.csv")
        write_scores(output / "cross_validation.csv", scores)
        (output / "CROSS_VALIDATION.md").write_text(table(one.structures, scores), encoding="utf-8")
    return output / "cross_validation.csv"


def table(structures: Sequence[str], scores: Sequence[HeldOutScore]) -> str:
    """Dice by structure, at the usual threshold and at the best one, as Markdown."""
    lines = [
        "# Cross-validation",
        "",
        "Each patient by a network that was not taught on him. Dice on the model's grid, after the product's",
        "postprocessing.",
        "",
        "| structure | patients | Dice mean | sd | median | lowest | best threshold | Dice there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in structures:
        mine = [score for score in scores if score.structure == name]
        if mine:
            dice = np.array([score.dice for score in mine])
            best = {each: float(np.mean([score.at[each].dice for score in mine])) for each in THRESHOLDS}
            threshold = max(best, key=lambda each: best[each])
            lines.append(
                f"| {name} | {len(mine)} | {dice.mean():.3f} | {dice.std():.3f} | {np.median(dice):.3f} "
                f"| {dice.min():.3f} | {threshold:g} | {best[threshold]:.3f} |"
            )
    correlation = rank_correlation(scores, calibrate(scores))
    lines += [
        "",
        f"Rank correlation (Spearman) of the confidence calibrated on them with Dice: {correlation:.2f}.",
    ]
    return "\n".join(lines) + "\n"
