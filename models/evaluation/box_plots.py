"""Box plots of an evaluation.

Owns `boxes.png`, Dice and surface Dice of each structure inside the slab, and `ends.png`, how far the found
structure reaches beyond the drawn one above and below; a dot a patient.
Speaks `Summary` in, a PNG out; the same scores draw the same bytes.
Never hides a patient behind a box: those that were missed are dots at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.evaluation.goals import GOALS, Goal
from models.evaluation.metrics import TOLERANCE_MM
from models.evaluation.score_summary import Summary

# Okabe and Ito's colours, told apart by colour-blind readers too.
_BOX, _DOT, _GOAL = "#56B4E9", "#0072B2", "#D55E00"
_SPREAD = 0.26
"""How far dots are moved off the box's axis, so that they do not cover each other."""
_FARTHEST_MM = 60.0
"""What the plot of the ends shows; few are farther off."""


def draw_boxes(path: Path, title: str, summaries: Sequence[Summary]) -> None:
    """Draw both plots side by side, a row a structure, the first on top; nothing where there are none."""
    if not summaries:
        return
    figure, left, right = _side_by_side(summaries)
    _boxes(left, [[score.agreement.dice for score in summary.scores] for summary in summaries])
    _boxes(right, [[score.agreement.surface_dice for score in summary.scores] for summary in summaries])
    for axes in (left, right):
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks(np.linspace(0, 1, 11))
    for place, summary in enumerate(summaries):
        goal = GOALS.get(summary.structure, Goal()).dice
        if goal is not None:
            left.plot([goal, goal], [place - 0.38, place + 0.38], color=_GOAL, linewidth=2.5, zorder=4)
    left.set_xlabel("Dice; orange: goal for the mean")
    right.set_xlabel(f"surface Dice at {TOLERANCE_MM:g} mm")
    _save(figure, path, title)


def draw_ends(path: Path, title: str, summaries: Sequence[Summary]) -> None:
    """Draw how far the found structure reaches beyond the drawn one; those that were missed have no dot."""
    if not summaries:
        return
    figure, below, above = _side_by_side(summaries)
    agreements = [[score.agreement for score in summary.scores] for summary in summaries]
    _boxes(below, [[one.below_mm for one in group if one.below_mm is not None] for group in agreements])
    _boxes(above, [[one.above_mm for one in group if one.above_mm is not None] for group in agreements])
    for axes, which in ((below, "lower"), (above, "upper")):
        axes.axvline(0, color=_GOAL, linewidth=1.2)
        axes.set_xlim(-_FARTHEST_MM, _FARTHEST_MM)
        axes.set_xlabel(f"mm beyond the drawn {which} end (negative: short of it)")
    _save(figure, path, title)


def _side_by_side(summaries: Sequence[Summary]) -> tuple[Figure, Axes, Axes]:
    """Two empty plots, a row a structure, the first on top."""
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(summaries)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_yticks(range(len(summaries)), [f"{one.structure} ({one.patients})" for one in summaries])
    left.invert_yaxis()
    return figure, left, right


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _boxes(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    """Median, quartiles, whiskers of 1.5 times their distance, and every value as a dot."""
    axes.boxplot(
        [list(group) for group in values],
        positions=list(range(len(values))),
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": _BOX, "alpha": 0.35, "edgecolor": _DOT},
        medianprops={"color": "black", "linewidth": 1.6},
        manage_ticks=False,
    )
    for place, group in enumerate(values):
        # The golden ratio spreads neighbours in rank far apart, without chance.
        offsets = (np.arange(len(group)) * 0.618034 % 1 - 0.5) * 2 * _SPREAD
        axes.scatter(group, place + offsets, s=13, color=_DOT, alpha=0.75, linewidths=0, zorder=3)
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
