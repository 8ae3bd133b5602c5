"""How a network draws patients that it was not taught on, on the model's grid.

Owns the comparison after the product's own postprocessing: the same components and threshold.
Speaks Dice, and the network's own confidence beside it.
Never stands for the evaluation: that goes through the whole product, and measures in millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from inference.postprocessing import propose
from models.anatomy import ANATOMY
from models.archives.patients import Patient
from models.training.anatomynet import AnatomyNet
from models.training.crops import View, whole_patient

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOutScore:
    """One drawn structure of one patient.

    Attributes:
        dice: 0 to 1, on the model's grid.
        confidence: of the network itself, 0 to 1; 0 where it found nothing.
    """

    patient: str
    structure: str
    dice: float
    confidence: float


@torch.no_grad()
def probabilities_of(network: AnatomyNet, image: torch.Tensor) -> NDArray[np.float32]:
    """(classes, slices, rows, columns) of an image (1, slices, rows, columns); `network` is in eval mode."""
    device = next(network.parameters()).device
    logits: torch.Tensor = network(image[None].to(device))
    return logits.float().softmax(dim=1)[0].cpu().numpy()


def judge(
    network: AnatomyNet, view: View, multiple_of: int, patients: Iterable[Patient]
) -> Iterator[HeldOutScore]:
    """A score for each structure that was drawn, patient by patient."""
    for patient in patients:
        whole = whole_patient(patient, view, multiple_of)
        probabilities = probabilities_of(network, whole.image)
        labels = whole.labels.numpy()
        for channel in np.flatnonzero(patient.annotated[1:]) + 1:
            name = view.structures[channel - 1]
            rule = ANATOMY[name].postprocessing
            found = propose(probabilities[channel], rule, view.spacing_mm)
            mask = np.zeros(labels.shape, bool)
            box = tuple(
                slice(start, start + extent) for start, extent in zip(found.start, found.shape, strict=True)
            )
            mask[box] = found.probability >= rule.threshold
            yield HeldOutScore(patient.name, name, dice(mask, labels == channel), found.confidence or 0.0)


def dice(first: Mask, second: Mask) -> float:
    """Twice the common volume by the sum of both; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def means(scores: Iterable[HeldOutScore]) -> dict[str, float]:
    """Mean Dice by structure."""
    by_structure: dict[str, list[float]] = {}
    for score in scores:
        by_structure.setdefault(score.structure, []).append(score.dice)
    return {name: float(np.mean(values)) for name, values in by_structure.items()}
