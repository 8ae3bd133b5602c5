"""Soft Dice plus focal loss for patients of whom only some structures were drawn.

Owns the training objectives of Zhu et al. 2019, sections II.C and II.D, and of its ablations.
Speaks logits (batch, classes, slices, rows, columns), labels of the same grid, and annotation flags.
Never punishes the background where a structure that nobody drew may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FOCAL_GAMMA = 2.0
_EPSILON = 1e-5

VoxelTerm = Literal["none", "cross_entropy", "focal"]


@dataclass(frozen=True)
class Objective:
    """What training minimises: soft Dice, and beside it a term that looks at each voxel.

    Attributes:
        voxel_term: `none` is the paper's "Dice", the others "Dice + cross-entropy" and "Dice + focal".
        voxel_weight: of that term; the paper's lambda, for a Dice that is a mean over the classes.
        background_weight: of the background class, 2.22 in the paper's code.
        largest_weight: a structure that few patients have weighs more than one that all have, by the
            inverse of its share (section II.D), but never more than this.
    """

    voxel_term: VoxelTerm = "focal"
    voxel_weight: float = 1.0
    background_weight: float = 2.22
    largest_weight: float = 3.0

    def class_weights(self, drawn: Sequence[int]) -> list[float]:
        """Weights of the background and each structure, given how many patients have each drawn."""
        most = max(drawn)
        return [self.background_weight, *(min(self.largest_weight, most / max(1, count)) for count in drawn)]


def marginal_probabilities(logits: Tensor, annotated: Tensor) -> Tensor:
    """Softmax in which the structures that were not drawn count as background.

    A structure without a mask is unknown, not absent: its voxels carry the label background.
    Adding its probability to the background's makes every distribution between the two free.

    Args:
        logits: (batch, classes, ...); channel 0 is the background.
        annotated: bool (batch, classes); entry 0 is always true.
    """
    probabilities = logits.softmax(dim=1)
    known = annotated.to(probabilities.dtype)[:, :, None, None, None]
    unknown_mass = (probabilities * (1 - known)).sum(dim=1, keepdim=True)
    known_probabilities = probabilities * known
    return torch.cat((known_probabilities[:, :1] + unknown_mass, known_probabilities[:, 1:]), dim=1)


def dice_loss(probabilities: Tensor, one_hot: Tensor, annotated: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of 1 - soft Dice over the structures drawn in at least one of the batch.

    Sums run over the annotated part of the batch, so an empty crop of an annotated patient
    counts false positives and is not a division by zero.
    """
    known = annotated.to(probabilities.dtype)[:, :, None, None, None]
    axes = (0, 2, 3, 4)
    overlap = (probabilities * one_hot * known).sum(dim=axes)
    total = ((probabilities + one_hot) * known).sum(dim=axes)
    present = (one_hot * known).sum(dim=axes) > 0
    per_class = 1 - (2 * overlap + _EPSILON) / (total + _EPSILON)
    counted = weights * present
    return (per_class * counted).sum() / counted.sum().clamp_min(_EPSILON)


def voxel_loss(probabilities: Tensor, labels: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Mean of -w (1 - p)^gamma log p with p the (marginal) probability of the true class.

    With `gamma` 0 it is the cross-entropy, with 2 the focal loss.
    """
    true_class = probabilities.gather(1, labels[:, None].long())[:, 0].clamp_min(_EPSILON)
    return (-weights[labels.long()] * (1 - true_class).pow(gamma) * true_class.log()).mean()


def anatomy_loss(
    logits: Tensor, labels: Tensor, annotated: Tensor, weights: Tensor, objective: Objective
) -> Tensor:
    """The training objective on marginal probabilities.

    Args:
        logits: float (batch, classes, slices, rows, columns).
        labels: integer (batch, slices, rows, columns), 0 background.
        annotated: bool (batch, classes), whether a person drew the class in this patient.
        weights: float (classes,), the importance of each class.
        objective: which terms, and how much each counts.
    """
    probabilities = marginal_probabilities(logits, annotated)
    one_hot = torch.zeros_like(probabilities).scatter_(1, labels[:, None].long(), 1.0)
    loss = dice_loss(probabilities, one_hot, annotated, weights)
    match objective.voxel_term:
        case "none":
            return loss
        case "cross_entropy":
            gamma = 0.0
        case "focal":
            gamma = FOCAL_GAMMA
    return loss + objective.voxel_weight * voxel_loss(probabilities, labels, weights, gamma)
