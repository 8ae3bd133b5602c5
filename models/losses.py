"""Soft Dice plus focal loss for patients of whom only some structures were drawn.

Owns the training objective (Zhu et al. 2019, section 2.3: Dice + focal, both masked per structure).
Speaks logits (batch, classes, slices, rows, columns), labels of the same grid, and annotation flags.
Never punishes the background where a structure that nobody drew may be.
"""

from __future__ import annotations

import torch
from torch import Tensor

FOCAL_GAMMA = 2.0
_EPSILON = 1e-5


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


def focal_loss(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean of -w (1 - p)^2 log p with p the (marginal) probability of the true class."""
    true_class = probabilities.gather(1, labels[:, None].long())[:, 0].clamp_min(_EPSILON)
    return (-weights[labels.long()] * (1 - true_class).pow(FOCAL_GAMMA) * true_class.log()).mean()


def anatomy_loss(
    logits: Tensor, labels: Tensor, annotated: Tensor, weights: Tensor, focal_weight: float
) -> Tensor:
    """The training objective: Dice + focal_weight * focal on marginal probabilities.

    Args:
        logits: float (batch, classes, slices, rows, columns).
        labels: integer (batch, slices, rows, columns), 0 background.
        annotated: bool (batch, classes), whether a person drew the class in this patient.
        weights: float (classes,), the importance of each class.
        focal_weight: lambda of the paper's equation 4.
    """
    probabilities = marginal_probabilities(logits, annotated)
    one_hot = torch.zeros_like(probabilities).scatter_(1, labels[:, None].long(), 1.0)
    dice = dice_loss(probabilities, one_hot, annotated, weights)
    return dice + focal_weight * focal_loss(probabilities, labels, weights)
