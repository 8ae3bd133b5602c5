"""What the contours are meant to reach, and what others reached elsewhere.

Owns one table: TG-263 name, goal, and the figures that are shown beside it.
Speaks mean Dice against clinical contours, over structures inside the slab.
Never holds a figure of this program's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """Mean Dice of one structure.

    Attributes:
        dice: what the shipped model is to reach; None where no goal was set.
        paper: AnatomyNet's own, on other data: PDDCA, MICCAI 2015 (Zhu et al., Medical Physics 46:576, 2019).
        observers: two radiographers of the same scans, their masks brought onto this archive's grid
            (masks of Nikolov et al., arXiv:1809.04430).
    """

    dice: float | None = None
    paper: float | None = None
    observers: float | None = None


GOALS: Mapping[str, Goal] = {
    "Brainstem": Goal(0.84, 0.867, 0.89),
    "SpinalCord": Goal(0.75),
    "Parotid_L": Goal(0.80, 0.881, 0.85),
    "Parotid_R": Goal(0.80, 0.874, 0.86),
    "Bone_Mandible": Goal(0.86, 0.925, 0.94),
    "Larynx": Goal(0.70),
    "Esophagus": Goal(0.60),
    "Glnd_Submand_L": Goal(0.65, 0.814, 0.86),
    "Glnd_Submand_R": Goal(0.65, 0.813, 0.85),
    "OpticNrv_L": Goal(None, 0.721, 0.81),
    "OpticNrv_R": Goal(None, 0.706, 0.78),
}
SOURCES = (
    "Paper: AnatomyNet's own figures, on PDDCA at full resolution (Zhu et al., Medical Physics 46:576-589, "
    "2019). Two observers: two radiographers' masks of the same scans (Nikolov et al., arXiv:1809.04430), "
    "sampled onto this archive's grid."
)


def verdict(structure: str, mean_dice: float) -> str:
    """Whether a mean, rounded as it is shown, reaches the goal, and by how much."""
    goal = GOALS.get(structure, Goal()).dice
    if goal is None:
        return "–"
    ahead = round(mean_dice, 3) - goal
    return f"{goal:.2f}: met (+{ahead:.3f})" if ahead >= -1e-9 else f"{goal:.2f}: **missed by {-ahead:.3f}**"
