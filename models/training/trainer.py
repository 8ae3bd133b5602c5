"""Training: from a folder of patients and a configuration to weights, resumable at any step.

Owns the optimisation loop and the checkpoints.
Speaks file paths in, `checkpoint.pt` and the curves out; everything random comes from the seed and the step.
Never touches validation patients: a fold of the training patients watches the progress.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.archives.layouts import open_archive
from models.archives.patients import Patient, count_drawn, split_in_folds
from models.training.anatomynet import AnatomyNet
from models.training.batches import Batch, batches
from models.training.config import TrainingConfig, as_json, prolongs
from models.training.curves import Curves
from models.training.held_out import THRESHOLDS, judge, means, write_scores
from models.training.losses import anatomy_loss

CHECKPOINT_EVERY = 100
WATCH_EVERY = 1000

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


class ResumeError(Exception):
    """A checkpoint that another training left, or one that is missing; the message says what to do."""


@dataclass(frozen=True)
class Parts:
    """The patients of an archive, by what they are for."""

    taught: list[Patient]
    watched: list[Patient]


def read_patients(config: TrainingConfig, data: Path) -> Parts:
    """All patients of a folder with at least one believable structure; the held-out fold apart."""
    archive = open_archive(data, config.roi_names)
    names = archive.names()
    held_out = config.folds.held_out
    watched = [] if held_out is None else split_in_folds(names, config.folds.count)[held_out]
    parts = Parts([], [])
    for name in names:
        patient = archive.read(name, config.structures)
        if patient.annotated[1:].any():
            (parts.watched if name in watched else parts.taught).append(patient)
    return parts


@torch.no_grad()
def _follow(average: AnatomyNet, network: AnatomyNet, decay: float) -> None:
    """Move the averaged weights towards the trained ones; running statistics are copied along."""
    for kept, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)


@dataclass
class _Run:
    """What a checkpoint holds, and nothing else."""

    network: AnatomyNet
    average: AnatomyNet
    optimizer: torch.optim.Optimizer
    config: str
    step: int = 0

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": self.config,
            "step": self.step,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=next(self.network.parameters()).device)
        if not prolongs(self.config, state["config"]):
            raise ResumeError(
                f"{path} was trained by another configuration: "
                "restore that one (further phases at its end are welcome), or choose another output folder"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def start_from(self, path: Path) -> None:
        """Take over another training's averaged weights, as far as the layers are there and wide enough."""
        theirs = torch.load(path, weights_only=True, map_location="cpu")["average"]
        mine = self.network.state_dict()
        taken = {key: _widened(value, mine[key]) for key, value in theirs.items() if key in mine}
        for network in (self.network, self.average):
            network.load_state_dict(mine | taken)


def _widened(theirs: Tensor, mine: Tensor) -> Tensor:
    """A layer's weights with another's in its first channels, which then answer as they did.

    What is new feeds the old channels with zeros, at first; `mine` stays where it is narrower than `theirs`.
    """
    if theirs.dim() != mine.dim() or any(a > b for a, b in zip(theirs.shape, mine.shape, strict=True)):
        return mine
    if theirs.shape == mine.shape:
        return theirs
    result = mine.clone()
    result[: theirs.shape[0]] = 0
    result[tuple(slice(0, extent) for extent in theirs.shape)] = theirs
    return result


def _keep_freed_memory() -> None:
    """Let the C library keep what tensors give back, instead of asking Linux for the same pages each step.

    A step on two cores takes 0.85 s instead of 1.1 s so.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _placed(network: AnatomyNet, device: torch.device) -> AnatomyNet:
    """On its device, in the memory order that makes the CPU's steps a third faster."""
    for parameter in network.to(device).parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def _begin(config: TrainingConfig, device: torch.device) -> _Run:
    torch.manual_seed(config.seed)
    classes = len(config.structures) + 1
    network = _placed(AnatomyNet(classes, config.network), device)
    average = _placed(AnatomyNet(classes, config.network), device)
    average.load_state_dict(network.state_dict())
    average.eval()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    return _Run(network, average, optimizer, as_json(config))


def _mixed_precision(config: TrainingConfig, device: torch.device) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"
    )
    return context


def _set_mode(network: nn.Module, frozen_norm: bool) -> None:
    network.train()
    if frozen_norm:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()


def _step(run: _Run, config: TrainingConfig, batch: Batch, weights: Tensor) -> float:
    """One step of the optimiser; the loss before it."""
    phase, rate = config.phase_at(run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    device = weights.device
    _set_mode(run.network, phase.frozen_norm)
    image = batch.image.to(device, memory_format=torch.channels_last_3d)
    with _mixed_precision(config, device):
        logits = run.network(image)
    loss = anatomy_loss(
        logits.float(), batch.labels.to(device), batch.annotated.to(device), weights, config.objective
    )
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), config.largest_gradient)
    run.optimizer.step()
    # A short memory at first, or the random start would linger in the average.
    _follow(run.average, run.network, min(config.ema_decay, (1 + run.step) / (10 + run.step)))
    run.step += 1
    return float(loss.detach())


def train(
    config: TrainingConfig,
    data: Path,
    output: Path,
    start_from: Path | None = None,
    report: Callable[[str], None] = print,
    judge_taught: bool = True,
) -> Path:
    """Train to the end of the configuration's phases; resume from `output` where it holds a checkpoint.

    A finished training is prolonged by further phases at the end of its configuration.

    Writes `checkpoint.pt`, `loss.csv`, `watch.csv` (Dice of the averaged weights on the held-out training
    patients) and `curves.png` into `output`, and at the end `held_out.csv`: what those patients say of each
    threshold, which the export selects and calibrates by; `taught.csv` is the same of the others. Returns
    the checkpoint's path.

    Args:
        data: an archive that `models.archives.layouts` knows.
        start_from: another training's checkpoint, whose averaged weights are the first ones here.
        judge_taught: whether `taught.csv` is written, which takes as long as many steps.

    Raises:
        ResumeError: `output` holds another configuration's checkpoint, or the one to start from is missing.
        ArchiveError: a patient cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.pt"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        _keep_freed_memory()
    run = _begin(config, device)
    if checkpoint.exists():
        run.load(checkpoint)
        report(f"resumed at step {run.step}")
    elif start_from is not None:
        run.start_from(start_from)
    elif config.begun_with is not None:
        raise ResumeError(
            f"this training goes on from the weights of {config.begun_with}: train that one first, "
            "and name its checkpoint.pt (--start-from)"
        )
    parts = read_patients(config, data)
    drawn = count_drawn(parts.taught).tolist()
    told = ", ".join(f"{name} {count}" for name, count in zip(config.structures, drawn, strict=True))
    report(f"{len(parts.taught)} patients taught, {len(parts.watched)} watched; drawn: {told}")
    weights = torch.tensor(config.objective.class_weights(drawn), device=device)
    curves = Curves(output, config.structures, run.step)
    _run_to_the_end(run, config, parts, weights, curves, checkpoint, report)
    tables = [("held_out.csv", parts.watched)]
    if judge_taught:
        tables.append(("taught.csv", parts.taught))
    for table, patients in tables:
        scores = judge(run.average, config.view, config.network.multiple_of, patients, THRESHOLDS)
        write_scores(output / table, scores)
    return checkpoint


def _run_to_the_end(
    run: _Run,
    config: TrainingConfig,
    parts: Parts,
    weights: Tensor,
    curves: Curves,
    checkpoint: Path,
    report: Callable[[str], None],
) -> None:
    began, first = time.monotonic(), run.step
    workers = 1 if weights.device.type == "cpu" else max(1, (os.cpu_count() or 2) - 2)
    for batch in batches(config, parts.taught, run.step, workers):
        loss = _step(run, config, batch, weights)
        curves.add_loss(run.step, config.phase_at(run.step - 1)[1], loss)
        last = run.step == config.total_steps
        if run.step % WATCH_EVERY == 0 or last:
            scores = means(judge(run.average, config.view, config.network.multiple_of, parts.watched))
            curves.add_scores(run.step, scores)
            report("held-out Dice " + ", ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
        if run.step % CHECKPOINT_EVERY == 0 or last:
            run.save(checkpoint)
            curves.draw()
            per_step = (time.monotonic() - began) / (run.step - first)
            left_min = per_step * (config.total_steps - run.step) / 60
            report(f"step {run.step}/{config.total_steps}, {per_step:.2f} s a step, {left_min:.0f} min left")
