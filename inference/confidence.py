"""How far a structure can be trusted: the Dice that may be expected of it.

Owns what the network's own probabilities say, and the calibration that makes a Dice of it.
Speaks probabilities on the model's grid, and numbers of 0 to 1.
Never knows the truth: it is calibrated on patients whom the network did not see, and holds for their like.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.card import Calibration


def sureness(probability: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """The Dice that a mask would have, were the probabilities true: 2 sum(p within) / (sum(p) + voxels).

    Args:
        probability: a box around the mask.
        mask: same shape, not empty.
    """
    within = float(probability[mask].sum(dtype=np.float64))
    whole = float(probability.sum(dtype=np.float64))
    return 2 * within / (whole + np.count_nonzero(mask))


def confidences(found: Mapping[str, float], calibrations: Mapping[str, Calibration]) -> dict[str, float]:
    """The confidence of each structure of one patient that was found, by name.

    What the patient's other structures say counts too: a CT that is hard for one is often hard for all. A
    structure without a calibration keeps the network's own sureness.

    Args:
        found: `sureness` by name.
        calibrations: by name; not necessarily of all.
    """
    scores = {
        name: (value - calibrations[name].sureness_mean) / calibrations[name].sureness_sd
        for name, value in found.items()
        if name in calibrations
    }
    result = {}
    for name, value in found.items():
        if name in scores:
            calibration, others = calibrations[name], middle_of_others(name, scores)
            value = calibration.dice_mean + calibration.own * scores[name] + calibration.others * others
        result[name] = round(min(1.0, max(0.0, value)), 3)
    return result


def middle_of_others(name: str, scores: Mapping[str, float]) -> float:
    """The median over the patient's other structures; 0, the usual, where there is none.

    A lung or a brain of which the scan holds a corner is unsure beyond all measure: a mean would follow it.
    """
    others = [score for other, score in scores.items() if other != name]
    return float(np.median(others)) if others else 0.0
