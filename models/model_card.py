"""MODEL_CARD.md: for whom a model is, what it was made of, how good it is, and where not to trust it.

Owns the page's words; every figure comes from the package and from its evaluation.
Speaks a package's folder in, Markdown out.
Never claims more than was measured: without an evaluation the card says that there is none.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.card import ModelDescription, Structure, read_package
from models.evaluation.goals import GOALS, Goal
from models.training.anatomynet import Architecture
from models.training.config import TrainingConfig

EVALUATION = "evaluation"
"""The folder beside `model.onnx` with what `anatomynode models evaluate` wrote."""
CLINICAL, RADIOGRAPHERS = "summary.csv", "radiographers.csv"
"""In it: the summary by the clinics' contours, and by those of `--reference radiographer`."""

_BY_RADIOGRAPHERS = "\N{DAGGER}"

_PAPERS_NINE = {
    "Brainstem": "Brainstem",
    "Optic chiasm": "Optic chiasm",
    "Mandible": "Bone_Mandible",
    "Optic nerve, left": "OpticNrv_L",
    "Optic nerve, right": "OpticNrv_R",
    "Parotid, left": "Parotid_L",
    "Parotid, right": "Parotid_R",
    "Submandibular gland, left": "Glnd_Submand_L",
    "Submandibular gland, right": "Glnd_Submand_R",
}


@dataclass(frozen=True)
class _Figures:
    """What `summary.csv` says of one structure inside the slab."""

    patients: int
    missed: int
    dice: float
    low: float
    surface_dice: float
    hd95_mm: float
    dice_between_ends: float
    above_sd_mm: float
    below_sd_mm: float
    mark: str = ""


def write_card(package: Path, training: TrainingConfig) -> Path:
    """Write `MODEL_CARD.md` into a package's folder, from what lies in it.

    Args:
        package: with `model.onnx`, `model.yaml` and, where it was evaluated, `evaluation/summary.csv`; for
            what only radiographers drew also `evaluation/radiographers.csv`.
        training: the configuration that the weights come from.

    Raises:
        ModelPackageError: the package is damaged.
    """
    described = read_package(package).description
    # The clinics' figures, where there are both.
    figures = {
        **_read_figures(package / EVALUATION / RADIOGRAPHERS, _BY_RADIOGRAPHERS),
        **_read_figures(package / EVALUATION / CLINICAL, ""),
    }
    path = package / "MODEL_CARD.md"
    path.write_text(card(described, training, figures), encoding="utf-8")
    return path


def card(described: ModelDescription, training: TrainingConfig, figures: Mapping[str, _Figures]) -> str:
    """The whole page."""
    parts = (
        _head(described),
        _use(described),
        _figures(described, figures),
        _papers_structures(described, training),
        _training(training),
        _limits(described, figures),
        ["## Attributions", "", *(f"- {attribution}." for attribution in described.attributions)],
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _read_figures(summary: Path, mark: str) -> dict[str, _Figures]:
    if not summary.exists():
        return {}
    with summary.open(newline="", encoding="utf-8") as file:
        return {
            row["structure"]: _Figures(
                int(row["patients"]),
                int(row["missed"]),
                float(row["dice_mean"]),
                float(row["dice_low"]),
                float(row["surface_dice_mean"]),
                float(row["hd95_mm_median"]),
                float(row["dice_between_ends_mean"]),
                float(row["above_mm_sd"]),
                float(row["below_mm_sd"]),
                mark,
            )
            for row in csv.DictReader(file)
            if row["set"] == "inside"
        }


def _head(described: ModelDescription) -> list[str]:
    return [
        f"# {described.name} {described.version}",
        "",
        f"{described.summary}.",
        "",
        *_wrapped(
            "**This is not a medical device.** Its contours are proposals: a clinic must commission the "
            "model on its own patients, and a qualified person must review and approve each contour before "
            "it is used."
        ),
    ]


def _use(described: ModelDescription) -> list[str]:
    model = described.input
    spacing, extent = (" x ".join(f"{mm:g}" for mm in mms) for mms in (model.spacing_mm, model.max_extent_mm))
    return [
        "## Use",
        "",
        *_bullets(
            "Made for: a first set of contours on adult head-and-neck radiotherapy planning CT, supine, head "
            "towards the gantry or away from it; kernel and contrast as in routine planning.",
            "Not made for: children, CT of other regions, cone-beam CT, MR, diagnosis, or any use without "
            "review.",
            f"Input: CT brought to {spacing} mm (slice, row, column), HU {model.window.lower_hu:g} to "
            f"{model.window.upper_hu:g} scaled to 0..1, everything outside the body air, at most {extent} mm "
            "from the top of the body downwards.",
            f"sha256 of `model.onnx`: `{described.sha256}`",
        ),
    ]


def _figures(described: ModelDescription, figures: Mapping[str, _Figures]) -> list[str]:
    lines = ["## What it draws, and how well", ""]
    if not figures:
        return [*lines, "It was not evaluated: `anatomynode models evaluate` is yet to be run."]
    rows = [_row(structure, figures.get(structure.name)) for structure in described.structures]
    return [
        *lines,
        *_wrapped(
            "Against the contours of patients that it was not trained on, through the whole product, over "
            "structures that lie inside the scan: see "
            f"[{EVALUATION}/EVALUATION.md]({EVALUATION}/EVALUATION.md) for spread, distances, every worst "
            "case and how it was measured."
        ),
        "",
        "| structure | SNOMED CT code | expected, cm3 | n | missed | Dice | 5th percentile "
        "| surface Dice 2 mm | HD95 median, mm | goal |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *_wrapped(f"{_BY_RADIOGRAPHERS} Against radiographers' contours, which the clinics did not draw."),
        "",
        f"![Dice and surface Dice of each structure, a dot a patient]({EVALUATION}/boxes.png)",
    ]


def _row(structure: Structure, figures: _Figures | None) -> str:
    low, high = structure.volume_cm3
    goal = GOALS.get(structure.name, Goal()).dice
    cells = [structure.name, f"{structure.code.value} {structure.code.meaning}", f"{low:g}-{high:g}"]
    if figures is None:
        cells += ["0", *5 * ["not judged"]]
    else:
        cells += [
            f"{figures.patients}{figures.mark}",
            str(figures.missed),
            f"{figures.dice:.3f}",
            f"{figures.low:.3f}",
            f"{figures.surface_dice:.3f}",
            f"{figures.hd95_mm:.1f}",
        ]
    return f"| {' | '.join([*cells, '-' if goal is None else f'{goal:.2f}'])} |"


def _papers_structures(described: ModelDescription, training: TrainingConfig) -> list[str]:
    """Which of the paper's nine are drawn, and why the others are not."""
    drawn = {structure.name for structure in described.structures}
    published = training.published
    reasons = {**published.never_trained, **published.kept_back}
    lines = [
        f"- {title}: {'drawn' if name in drawn else reasons.get(name, 'not trained')}"
        for title, name in _PAPERS_NINE.items()
    ]
    others = [name for name in published.kept_back if name not in _PAPERS_NINE.values()]
    lines += [f"- {name} was trained and is not drawn: {published.kept_back[name]}" for name in others]
    return ["## The nine structures of the paper", "", *lines]


def _training(training: TrainingConfig) -> list[str]:
    held_out = (
        "All training patients were taught"
        if training.folds.held_out is None
        else f"One of {training.folds.count} parts of the training patients was held out, to watch over it"
    )
    term = {
        "none": "soft Dice",
        "focal": "soft Dice and focal loss",
        "cross_entropy": "soft Dice and cross-entropy",
    }
    begun = "" if training.begun_with is None else f"begun with the weights of `{training.begun_with}`; "
    return [
        "## Training",
        "",
        *_bullets(
            f"{held_out}; thresholds and confidence come from training patients, the validation patients "
            "were used for reporting only.",
            "The contours are those of many clinics under no single protocol; those with an implausible "
            "volume or mean HU were left out. A structure that nobody drew counts as unknown, not as absent.",
            _network(training.network),
            f"{training.total_steps} steps; {begun}{term[training.objective.voxel_term]}; AdamW; the weights "
            "are a moving average. The configurations are in `models/configs/`.",
        ),
    ]


def _network(plan: Architecture) -> str:
    block = {"plain": "plain", "residual": "residual", "se_residual": "squeeze-and-excitation residual"}
    detail = f", and a branch of {plan.detail} channels at the resolution of the input" if plan.detail else ""
    halved = "once" if plan.down_samplings == 1 else f"{plan.down_samplings} times"
    return f"The paper's network with {block[plan.block]} blocks, halved {halved}{detail}."


_FROM_DICE = 0.05
"""So much higher is the Dice between the ends where the ends are named as a failure."""


def _ends(figures: Mapping[str, _Figures]) -> list[str]:
    """Which structures are drawn well but begin or end elsewhere than the reference, and by how much."""
    named = [
        f"{name} (Dice {one.dice:.2f}, and {one.dice_between_ends:.2f} over the slices in which both drew; "
        f"its ends vary by {one.above_sd_mm:.0f} mm above and {one.below_sd_mm:.0f} mm below)"
        for name, one in figures.items()
        if not one.mark and one.dice_between_ends - one.dice >= _FROM_DICE
    ]
    if not named:
        return []
    return [
        f"The ends are the least certain, most of all of {'; '.join(named)}. The picture below shows them."
    ]


def _limits(described: ModelDescription, figures: Mapping[str, _Figures]) -> list[str]:
    slice_mm, row_mm, _ = described.input.spacing_mm
    return [
        "## Limits and known failures",
        "",
        *_bullets(
            f"The training CTs were sampled at about {row_mm:.0f} mm in-plane and {slice_mm:g} mm along the "
            "patient: small structures and fine outlines cannot be better, and native detail is unproven.",
            "Their slabs were cut above and below the targets: the vertex, and the thorax below the upper "
            "lungs, are unproven.",
            "Clinics differ in where cord and brainstem meet, and in how far down cord and esophagus are "
            "drawn: expect to edit.",
            *_ends(figures),
            "A single network without an ensemble: its confidence is no probability of being right. Tumours, "
            "surgery, dental metal, missing organs and unusual anatomy were not examined separately.",
            "Patients' age, sex and origin are not known for this archive: fairness was not examined.",
            "Pictures of the three best and the three worst patients show patients, and are not shipped: the "
            "command in the evaluation draws them anew.",
        ),
        *(
            (
                "",
                "![How far each structure was drawn beyond or short of its ends, a dot a patient]"
                f"({EVALUATION}/ends.png)",
            )
            if figures
            else ()
        ),
    ]


def _bullets(*texts: str) -> list[str]:
    return [line for text in texts for line in _wrapped(text, "- ", "  ")]


def _wrapped(text: str, first: str = "", further: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        110,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )
