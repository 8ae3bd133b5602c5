"""The paper's ablation on one's own data: several networks, one budget, the same patients held out.

Owns the file that names the variants, their trainings one after the other, and the table of their worth.
Speaks an ablation file and an archive in; `ablation.csv` (a row a structure) and `ABLATION.md` out.
Never compares means of different patients: differences are taken patient by patient.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.export import load_average
from models.training.anatomynet import AnatomyNet
from models.training.config import TrainingConfig, TrainingConfigError, parse_config, read_yaml
from models.training.held_out import HeldOutScore, judge
from models.training.trainer import read_patients, train

_SECTIONS = ("network", "objective")
_SAMPLES = 2000


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        note: what it shows, and where the paper has it.
    """

    name: str
    note: str
    config: TrainingConfig


@dataclass(frozen=True)
class Difference:
    """How much better (above 0) a variant draws than the reference, over the same patients and structures.

    Attributes:
        low, high: 95 % interval of the mean, by resampling patients.
    """

    mean: float
    low: float
    high: float


def read_ablation(path: Path) -> list[Variant]:
    """Read an ablation file: `training`, a whole configuration, and `variants`, each with what it changes.

    The first variant is the reference.

    Raises:
        TrainingConfigError: naming the file and the problem.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or {*content} != {"training", "variants"}:
        raise TrainingConfigError(
            f"{path}: an ablation file has the keys `training` and `variants`, no others"
        )
    return [
        _variant(path, name, content["training"], dict(changes))
        for name, changes in content["variants"].items()
    ]


def _variant(path: Path, name: str, common: Mapping[str, Any], changes: dict[str, Any]) -> Variant:
    note = str(changes.pop("note", ""))
    if strangers := [key for key in changes if key not in _SECTIONS]:
        raise TrainingConfigError(
            f"{path}: {name} changes {', '.join(strangers)}; only {_SECTIONS} may differ"
        )
    return Variant(name, note, parse_config({**common, **changes}, path))


def ablate(
    variants: Sequence[Variant], data: Path, output: Path, report: Callable[[str], None] = print
) -> None:
    """Train each variant, judge it on the held-out fold, and write the tables after each.

    A training that was cut off goes on where its checkpoint stands; one that is done is not done again.
    """
    scores: dict[str, list[HeldOutScore]] = {}
    for variant in variants:
        report(f"{variant.name}: {variant.note}")
        folder = output / _slug(variant.name)
        checkpoint = train(variant.config, data, folder, report=report, judge_taught=False)
        network = load_average(checkpoint, variant.config)
        watched = read_patients(variant.config, data).watched
        multiple_of = variant.config.network.multiple_of
        scores[variant.name] = list(judge(network, variant.config.view, multiple_of, watched))
        _write_csv(output / "ablation.csv", scores)
        (output / "ABLATION.md").write_text(table(variants, scores), encoding="utf-8")
    report(f"written: {output / 'ABLATION.md'} and {output / 'ablation.csv'}")


def table(variants: Sequence[Variant], scores: Mapping[str, Sequence[HeldOutScore]]) -> str:
    """The variants that were judged so far, as Markdown."""
    done = [variant for variant in variants if variant.name in scores]
    reference, config = done[0], done[0].config
    patients = {score.patient for score in scores[reference.name]}
    structures = [name for name in config.structures if _of(scores[reference.name], name)]
    method = (
        f"Each network was trained for {config.total_steps} steps with the same crops in the same order, and "
        f"judged on the {len(patients)} patients of a fold that none was taught on. Dice on the grid of the "
        f"model, after the product's postprocessing. The difference to {reference.name} is the mean over "
        "patients of the mean over their structures, with the 95 % interval that resampling the "
        "patients gives: one that holds 0 shows nothing. One training each: what another "
        "seed would change is not in the interval."
    )
    lines = [
        "# Ablation",
        "",
        *textwrap.wrap(method, 110),
        "",
        f"| network | weights | {' | '.join(structures)} | mean | difference |",
        f"|---|---|{'---|' * len(structures)}---|---|",
    ]
    for variant in done:
        means = [float(np.mean(_of(scores[variant.name], name))) for name in structures]
        told = "reference"
        if variant is not reference:
            found = difference(scores[variant.name], scores[reference.name])
            told = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        lines.append(
            f"| {variant.name} | {_weights(variant.config) / 1e6:.2f} M | "
            f"{' | '.join(f'{mean:.3f}' for mean in means)} | {np.mean(means):.3f} | {told} |"
        )
    notes = [f"- {variant.name}: {variant.note}" for variant in done if variant.note]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def difference(theirs: Sequence[HeldOutScore], reference: Sequence[HeldOutScore]) -> Difference:
    """Patient by patient, over the structures that both were judged on."""
    before = {(score.patient, score.structure): score.dice for score in reference}
    gained: dict[str, list[float]] = {}
    for score in theirs:
        gained.setdefault(score.patient, []).append(score.dice - before[score.patient, score.structure])
    values = np.array([np.mean(each) for each in gained.values()])
    rng = np.random.default_rng(0)
    resampled = values[rng.integers(len(values), size=(_SAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Difference(float(values.mean()), float(low), float(high))


def _of(scores: Sequence[HeldOutScore], structure: str) -> list[float]:
    return [score.dice for score in scores if score.structure == structure]


def _weights(config: TrainingConfig) -> int:
    network = AnatomyNet(len(config.structures) + 1, config.network)
    return sum(parameter.numel() for parameter in network.parameters())


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def _write_csv(path: Path, scores: Mapping[str, Sequence[HeldOutScore]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("network", "patient", "structure", "dice"))
        for name, each in scores.items():
            writer.writerows((name, one.patient, one.structure, f"{one.dice:.4f}") for one in each)
