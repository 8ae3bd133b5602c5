"""Every patient judged by a network that was not taught on him: what is honest to select and calibrate by.

Owns the trainings of all folds, and the table of their held-out scores.
Speaks a configuration and an archive in; `cross_validation.csv` and `CROSS_VALIDATION.md` out.
Never looks at validation patients.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from models.export import load_average
from models.training.config import Folds, TrainingConfig
from models.training.held_out import HeldOutScore, judge
from models.training.trainer import read_patients, train

_COLUMNS = ("patient", "structure", "dice", "confidence")


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
        checkpoint = train(one, data, output / f"fold_{fold}", start_from, report)
        network = load_average(checkpoint, one)
        watched = read_patients(one, data).watched
        scores += judge(network, one.view, one.network.multiple_of, watched)
        write_scores(output / "cross_validation.csv", scores)
        (output / "CROSS_VALIDATION.md").write_text(table(one.structures, scores), encoding="utf-8")
    return output / "cross_validation.csv"


def table(structures: Sequence[str], scores: Sequence[HeldOutScore]) -> str:
    """Dice by structure, and how well the network's own confidence ranks it, as Markdown."""
    lines = [
        "# Cross-validation",
        "",
        "Each patient by a network that was not taught on him. Dice on the model's grid, after the product's",
        "postprocessing; rank correlation (Spearman) of the network's own confidence with it.",
        "",
        "| structure | patients | Dice mean | sd | median | lowest | rank correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in structures:
        mine = [score for score in scores if score.structure == name]
        if mine:
            dice = np.array([score.dice for score in mine])
            lines.append(
                f"| {name} | {len(mine)} | {dice.mean():.3f} | {dice.std():.3f} | {np.median(dice):.3f} "
                f"| {dice.min():.3f} | {rank_correlation(mine):.2f} |"
            )
    lines += ["", f"All structures together: rank correlation {rank_correlation(scores):.2f}."]
    return "\n".join(lines) + "\n"


def rank_correlation(scores: Sequence[HeldOutScore]) -> float:
    """Spearman's, of confidence and Dice; NaN for fewer than three, or where one of them never changes."""
    confidence, dice = [one.confidence for one in scores], [one.dice for one in scores]
    if len(scores) < 3 or len(set(confidence)) == 1 or len(set(dice)) == 1:
        return float("nan")
    return float(spearmanr(confidence, dice).statistic)


def write_scores(path: Path, scores: Iterable[HeldOutScore]) -> None:
    """A row a structure of a patient."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for one in scores:
            writer.writerow((one.patient, one.structure, f"{one.dice:.4f}", f"{one.confidence:.4f}"))


def read_scores(path: Path) -> list[HeldOutScore]:
    """What `write_scores` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            HeldOutScore(row["patient"], row["structure"], float(row["dice"]), float(row["confidence"]))
            for row in csv.DictReader(file)
        ]
