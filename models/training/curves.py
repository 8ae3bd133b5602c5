"""The curves of a training: two tables and a picture beside the checkpoint.

Owns `loss.csv`, `watch.csv` and `curves.png`; the door to matplotlib for training.
Speaks steps, learning rates, losses, and Dice by structure.
Never keeps a row that the checkpoint does not know: what was trained after it is trained again.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_SMOOTHED_STEPS = 100


class Curves:
    """The tables in a folder, begun or continued.

    Args:
        folder: where they lie.
        structures: the columns of `watch.csv`.
        step: rows after this one are dropped, for the training goes on from there.
    """

    def __init__(self, folder: Path, structures: Sequence[str], step: int) -> None:
        self._folder = folder
        self._losses = folder / "loss.csv"
        self._scores = folder / "watch.csv"
        self._structures = tuple(structures)
        _kept_up_to(self._losses, ("step", "rate", "loss"), step)
        _kept_up_to(self._scores, ("step", *self._structures), step)

    def add_loss(self, step: int, rate: float, loss: float) -> None:
        """One step's loss."""
        _append(self._losses, (step, f"{rate:.6g}", f"{loss:.6g}"))

    def add_scores(self, step: int, dice: Mapping[str, float]) -> None:
        """Dice of the held-out patients; empty for a structure that none of them has."""
        _append(
            self._scores, (step, *(f"{dice[name]:.4f}" if name in dice else "" for name in self._structures))
        )

    def draw(self) -> None:
        """Write `curves.png`."""
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        steps, losses = _columns(self._losses, 0, 2)
        left.plot(steps, _running_mean(losses), linewidth=1)
        left.set(xlabel="step", ylabel=f"loss (mean of {_SMOOTHED_STEPS} steps)")
        for column, name in enumerate(self._structures, start=1):
            steps, dice = _columns(self._scores, 0, column)
            if np.isfinite(dice).any():
                right.plot(steps, dice, linewidth=1, label=name)
        right.set(xlabel="step", ylabel="Dice, held-out training patients", ylim=(0, 1))
        if right.lines:
            right.legend(fontsize="x-small", ncols=2, loc="lower right")
        for axes in (left, right):
            axes.grid(alpha=0.3)
        figure.savefig(self._folder / "curves.png", dpi=100)


def _kept_up_to(path: Path, header: Sequence[str], step: int) -> None:
    rows = [header]
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows += [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _append(path: Path, row: Sequence[object]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(row)


def _columns(path: Path, *columns: int) -> list[list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [[float(row[column] or "nan") for row in rows] for column in columns]


def _running_mean(values: Sequence[float]) -> list[float]:
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    firsts = np.maximum(0, ends - _SMOOTHED_STEPS)
    means: list[float] = ((sums[ends] - sums[firsts]) / (ends - firsts)).tolist()
    return means
