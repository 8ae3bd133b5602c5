"""Training: from a folder of patients and a configuration to weights, resumable at any step.

Owns the optimisation loop, the checkpoints and the curves (CSV).
Speaks file paths and the configuration's keys; everything random comes from the seed and the step.
Never touches validation patients: a few held-out training patients watch the progress.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from models.anatomynet import AnatomyNet
from models.card import Window
from models.datasets import Augmentation, Patient, read_openkbp, sample_crop, whole_patient
from models.losses import anatomy_loss

CHECKPOINT_EVERY = 50
WATCH_EVERY = 200


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one crop shape (slices, rows, columns) and batch size.

    The learning rate falls in a straight line from the first of `rates` to the second. A phase that
    begins with a higher rate than the last one ended with is a warm restart.
    """

    steps: int
    batch: int
    shape: tuple[int, int, int]
    rates: tuple[float, float]
    centre_on_structure: float = 0.75


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the weights, besides the data."""

    structures: tuple[str, ...]
    mirror_pairs: tuple[tuple[str, str], ...]
    spacing_mm: tuple[float, float, float]
    window: Window
    seed: int
    held_out: int
    focal_weight: float
    class_weights: tuple[float, ...]
    weight_decay: float
    ema_decay: float
    phases: tuple[Phase, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def total_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, float]:
        """The phase that a step belongs to, and its learning rate.

        Raises:
            ValueError: the step is not below `total_steps`.
        """
        for phase in self.phases:
            if step < phase.steps:
                first, last = phase.rates
                return phase, first + (last - first) * step / phase.steps
            step -= phase.steps
        raise ValueError(f"the phases end {step} steps before this one")


def read_config(path: Path) -> TrainingConfig:
    """Read a training configuration; the keys are the fields of `TrainingConfig`."""
    raw: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    pairs = tuple((left, right) for left, right in raw["mirror_pairs"])
    spacing = raw["spacing_mm"]
    return TrainingConfig(
        structures=tuple(raw["structures"]),
        mirror_pairs=pairs,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        window=Window(lower_hu=raw["window_hu"][0], upper_hu=raw["window_hu"][1]),
        seed=raw["seed"],
        held_out=raw["held_out"],
        focal_weight=raw["focal_weight"],
        class_weights=tuple(raw["class_weights"]),
        weight_decay=raw["weight_decay"],
        ema_decay=raw["ema_decay"],
        phases=tuple(
            Phase(**{**phase, "shape": tuple(phase["shape"]), "rates": tuple(phase["rates"])})
            for phase in raw["phases"]
        ),
        augmentation=Augmentation(**raw["augmentation"], mirror_pairs=pairs),
    )


def load_patients(folder: Path, structures: tuple[str, ...]) -> list[Patient]:
    """All patients of an OpenKBP folder, in a fixed order, with at least one structure drawn."""
    patients = [read_openkbp(path, structures) for path in sorted(folder.glob("*.npz"))]
    return [patient for patient in patients if patient.annotated[1:].any()]


def _batch(
    config: TrainingConfig, patients: list[Patient], step: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng((config.seed, step))
    phase, _ = config.phase_at(step)
    augmentation = replace(config.augmentation, centre_on_structure=phase.centre_on_structure)
    crops = [
        sample_crop(
            patients[rng.integers(len(patients))],
            config.structures,
            phase.shape,
            config.spacing_mm,
            config.window,
            augmentation,
            rng,
        )
        for _ in range(phase.batch)
    ]
    image = torch.stack([crop.image for crop in crops]).to(device, memory_format=torch.channels_last_3d)
    labels = torch.stack([crop.labels for crop in crops]).to(device)
    return image, labels, torch.stack([crop.annotated for crop in crops]).to(device)


@torch.no_grad()
def _follow(average: AnatomyNet, network: AnatomyNet, decay: float) -> None:
    """Move the averaged weights towards the trained ones; running statistics are copied along."""
    for kept, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)


@torch.no_grad()
def watch(network: AnatomyNet, config: TrainingConfig, patients: list[Patient]) -> dict[str, float]:
    """Mean Dice per structure over whole patients on the model's grid; `network` is in eval mode."""
    device = next(network.parameters()).device
    scores: dict[str, list[float]] = {name: [] for name in config.structures}
    for patient in patients:
        image, labels = whole_patient(patient, config.spacing_mm, config.window)
        predicted = network(image[None].to(device)).argmax(dim=1)[0].cpu()
        for index, name in enumerate(config.structures, start=1):
            if patient.annotated[index]:
                mine, theirs = predicted == index, labels == index
                total = int(mine.sum() + theirs.sum())
                scores[name].append(2 * int((mine & theirs).sum()) / total if total else 1.0)
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


@dataclass
class _Run:
    """What a checkpoint holds, and nothing else."""

    network: AnatomyNet
    average: AnatomyNet
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _placed(network: AnatomyNet, device: torch.device) -> AnatomyNet:
    """On its device, in the memory order that makes the CPU's steps a third faster."""
    for parameter in network.to(device).parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def _start(config: TrainingConfig, device: torch.device) -> _Run:
    torch.manual_seed(config.seed)
    network = _placed(AnatomyNet(len(config.structures) + 1), device)
    average = _placed(AnatomyNet(len(config.structures) + 1), device)
    average.load_state_dict(network.state_dict())
    average.eval()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    return _Run(network, average, optimizer)


def _append(path: Path, row: Mapping[str, float | int | str]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def train(config: TrainingConfig, data: Path, output: Path, report: Callable[[str], None] = print) -> Path:
    """Train to the end of the configuration's phases; resume from `output` where it holds a checkpoint.

    Writes `checkpoint.pt`, `loss.csv` and `watch.csv` (Dice of the averaged weights on the held-out
    training patients) into `output`. Returns the checkpoint's path.
    """
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.pt"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    patients = load_patients(data, config.structures)
    watched, taught = patients[: config.held_out], patients[config.held_out :]
    run = _start(config, device)
    if checkpoint.exists():
        run.load(checkpoint)
        report(f"resumed at step {run.step}")
    weights = torch.tensor(config.class_weights, device=device)
    began, first = time.monotonic(), run.step
    while run.step < config.total_steps:
        _, rate = config.phase_at(run.step)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        image, labels, annotated = _batch(config, taught, run.step, device)
        loss = anatomy_loss(run.network(image), labels, annotated, weights, config.focal_weight)
        run.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 5.0)
        run.optimizer.step()
        # A short memory at first, or the random start would linger in the average.
        _follow(run.average, run.network, min(config.ema_decay, (1 + run.step) / (10 + run.step)))
        run.step += 1
        _append(output / "loss.csv", {"step": run.step, "rate": rate, "loss": float(loss.detach())})
        if run.step % CHECKPOINT_EVERY == 0 or run.step == config.total_steps:
            run.save(checkpoint)
            per_step = (time.monotonic() - began) / (run.step - first)
            left_min = per_step * (config.total_steps - run.step) / 60
            report(f"step {run.step}/{config.total_steps}, {per_step:.2f} s a step, {left_min:.0f} min left")
        if run.step % WATCH_EVERY == 0 or run.step == config.total_steps:
            scores = watch(run.average, config, watched)
            row = {name: scores.get(name, float("nan")) for name in config.structures}
            _append(output / "watch.csv", {"step": run.step, **row})
            report("held-out Dice " + ", ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
    return checkpoint
