"""How a network draws patients that it was not taught on, on the model's grid.

Owns the comparison after the product's own postprocessing, at several thresholds, and its table.
Speaks Dice, and what the network itself says of how sure it is.
Never stands for the evaluation: that goes through the whole product, and measures in millimetres.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.postprocessing import propose
from models.anatomy import ANATOMY
from models.archives.patients import Patient
from models.training.anatomynet import AnatomyNet
from models.training.crops import View, whole_patient

Mask = NDArray[np.bool_]

THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
USUAL_THRESHOLD = 0.5


@dataclass(frozen=True)
class Judged:
    """What came out at one threshold.

    Attributes:
        dice: on the model's grid, 0 to 1.
        sureness: see `inference.confidence.sureness`; 0 where nothing was found.
    """

    dice: float
    sureness: float


@dataclass(frozen=True)
class HeldOutScore:
    """One drawn structure of one patient.

    Attributes:
        at: by the probability from which on a voxel belongs to it.
    """

    patient: str
    structure: str
    at: Mapping[float, Judged]

    @property
    def dice(self) -> float:
        """At the usual threshold."""
        return self.at[USUAL_THRESHOLD].dice


@torch.no_grad()
def probabilities_of(network: AnatomyNet, image: torch.Tensor) -> NDArray[np.float32]:
    """(classes, slices, rows, columns) of an image (1, slices, rows, columns); `network` is in eval mode."""
    device = next(network.parameters()).device
    logits: torch.Tensor = network(image[None].to(device))
    return logits.float().softmax(dim=1)[0].cpu().numpy()


def judge(
    network: AnatomyNet,
    view: View,
    multiple_of: int,
    patients: Iterable[Patient],
    thresholds: tuple[float, ...] = (USUAL_THRESHOLD,),
) -> Iterator[HeldOutScore]:
    """A score for each structure that was drawn, patient by patient."""
    for patient in patients:
        whole = whole_patient(patient, view, multiple_of)
        probabilities = probabilities_of(network, whole.image)
        labels = whole.labels.numpy()
        for channel in np.flatnonzero(patient.annotated[1:]) + 1:
            name = view.structures[channel - 1]
            drawn = labels == channel
            judged = {each: _judged(probabilities[channel], drawn, name, each, view) for each in thresholds}
            yield HeldOutScore(patient.name, name, judged)


def _judged(probability: NDArray[np.float32], drawn: Mask, name: str, threshold: float, view: View) -> Judged:
    rule = ANATOMY[name].postprocessing.model_copy(update={"threshold": threshold})
    candidate = propose(probability, rule, view.spacing_mm)
    mask = np.zeros(probability.shape, bool)
    mask[candidate.box] = candidate.probability >= threshold
    return Judged(dice(mask, drawn), candidate.sureness or 0.0)


def dice(first: Mask, second: Mask) -> float:
    """Twice the common volume by the sum of both; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def means(scores: Iterable[HeldOutScore]) -> dict[str, float]:
    """Mean Dice by structure, at the usual threshold."""
    by_structure: dict[str, list[float]] = {}
    for score in scores:
        by_structure.setdefault(score.structure, []).append(score.dice)
    return {name: float(np.mean(values)) for name, values in by_structure.items()}


def write_scores(path: Path, scores: Iterable[HeldOutScore]) -> None:
    """A row a structure of a patient and a threshold."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("patient", "structure", "threshold", "dice", "sureness"))
        for one in scores:
            for threshold, judged in one.at.items():
                cells = (f"{threshold:g}", f"{judged.dice:.4f}", f"{judged.sureness:.4f}")
                writer.writerow((one.patient, one.structure, *cells))


def read_scores(path: Path) -> list[HeldOutScore]:
    """What `write_scores` wrote."""
    found: dict[tuple[str, str], dict[float, Judged]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at = found.setdefault((row["patient"], row["structure"]), {})
            at[float(row["threshold"])] = Judged(float(row["dice"]), float(row["sureness"]))
    return [HeldOutScore(patient, structure, at) for (patient, structure), at in found.items()]
