"""The examples of each training step, made ahead by processes of their own.

Owns that step N's batch is the same whenever and however often it is made.
Speaks `Batch` values on the CPU.
Never shares a random state between steps: each has its own, from the seed and its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.archives.patients import Patient
from models.training.config import TrainingConfig
from models.training.crops import Sampler, sample_crop


@dataclass(frozen=True)
class Batch:
    """Image (batch, 1, *shape), labels uint8 (batch, *shape), annotated bool (batch, classes)."""

    image: Tensor
    labels: Tensor
    annotated: Tensor


class _Steps(Dataset[Batch]):
    def __init__(self, config: TrainingConfig, patients: Sequence[Patient]) -> None:
        self._config = config
        self._patients = patients

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._config.seed, step))
        phase, _ = self._config.phase_at(step)
        sampler = Sampler(self._patients, phase.centred)
        crops = [
            sample_crop(sampler, self._config.view, phase.shape, self._config.augmentation, rng)
            for _ in range(phase.batch)
        ]
        return Batch(
            torch.stack([crop.image for crop in crops]),
            torch.stack([crop.labels for crop in crops]),
            torch.stack([crop.annotated for crop in crops]),
        )


def batches(
    config: TrainingConfig, patients: Sequence[Patient], first_step: int, workers: int
) -> Iterator[Batch]:
    """The batches from `first_step` to the end of the configuration's phases, in order."""
    return iter(
        DataLoader(
            _Steps(config, patients),
            batch_size=None,
            sampler=range(first_step, config.total_steps),
            num_workers=workers,
            prefetch_factor=3 if workers else None,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(_worker: int) -> None:
    """The cores belong to the network."""
    torch.set_num_threads(1)
