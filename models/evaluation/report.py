"""EVALUATION.md: the figures of a model as a physicist reads them.

Owns the words and tables; every number comes from the table of scores.
Speaks `Score` in, Markdown out; without a date, so that a rerun writes the same bytes.
Never shows a figure without saying over how many patients, and never hides who was left out, and why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from models.evaluation.goals import GOALS, SOURCES, Goal, verdict
from models.evaluation.metrics import TOLERANCE_MM
from models.evaluation.references import INSIDE, Standing
from models.evaluation.score_summary import (
    Spread,
    Summary,
    compare_runs,
    confidence_correlation,
    plausible,
    summarise,
)
from models.evaluation.scores import Run, Score, counted

_WORST_SHOWN = 3
_DICE = ("structure", "n", "missed", "Dice, mean ± sd", "median", "5th percentile", "worst")
_SURFACES = (
    f"surface Dice at {TOLERANCE_MM:g} mm",
    "HD95, mm",
    "mean surface distance, mm",
    "volume error, %",
)
ALLOWED_LOSS = 0.02
"""Mean Dice that a planning CT's matrix, couch and mask may cost (docs: goals of the model)."""


@dataclass(frozen=True)
class Facts:
    """What an evaluation is of, and what it stands beside.

    Attributes:
        command: as it was typed, folders by their last name.
        data: the folder's name.
        structures: what the model draws.
        drawn: in how many patients of the folder each organ was drawn.
        observers: clinical against radiographer's drawings; empty where no patient has both.
        other: the table and the run that `--compare` named.
    """

    run: Run
    command: str
    data: str
    structures: tuple[str, ...]
    drawn: Mapping[str, int]
    observers: tuple[Score, ...] = ()
    other: tuple[tuple[Score, ...], Run] | None = None


def write(facts: Facts, scores: Sequence[Score]) -> str:
    """The whole page."""
    inside = summarise(counted(scores, Standing.INSIDE))
    parts = [
        _head(facts, scores),
        _headline(inside),
        ["![Dice and surface Dice of each structure, a dot a patient](boxes.png)"] if inside else [],
        _surfaces(inside),
        _ends(inside),
        _worst(inside),
        _all_plausible(scores),
        _left_out(scores),
        _refused(scores),
        _not_drawn(facts),
        _compared(facts, scores),
        _observers(facts.observers),
        _confidence(scores),
        _method(facts),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(facts: Facts, scores: Sequence[Score]) -> list[str]:
    run = facts.run
    patients = {score.patient for score in scores}
    refused = {score.patient for score in scores if score.refusal}
    return [
        f"# Evaluation of {run.model} {run.version}",
        "",
        "Through the whole product: each patient as a DICOM CT series in, the RT Structure Set out, read",
        f"back by an independent reader and compared with {run.reference} contours on the archive's grid.",
        "Not a medical device: these figures are no substitute for a clinic's own.",
        "",
        *_table(
            ("", ""),
            [
                ("model", f"{run.model} {run.version}"),
                ("sha256", f"`{run.sha256}`"),
                ("program", run.program_version),
                ("patients", f"{len(patients)} of `{facts.data}`, {len(refused)} of them refused"),
                ("CT", _GRIDS.get(run.grid, run.grid)),
                ("reference", f"{run.reference} contours"),
                ("command", f"`{facts.command}`"),
            ],
        ),
    ]


def _unmet(structure: str) -> str:
    goal = GOALS.get(structure, Goal()).dice
    return "" if goal is None else f", goal {goal:.2f} not met"


_GRIDS = {
    "native": "the archive's own grid",
    "512": "512 x 512 pixels, interpolated linearly in-plane",
    "512 dressed": "512 x 512 pixels, interpolated linearly in-plane, with couch, head rest and mask",
}


def _headline(inside: Sequence[Summary]) -> list[str]:
    lines = [
        "## Structures inside the slab",
        "",
        f"The headline: plausible drawings of which at least {INSIDE:.0%} lie within the slab that the",
        "archive kept. A structure that was not found has Dice 0 and counts.",
        "",
    ]
    if not inside:
        return [*lines, "There are none."]
    rows = [
        (
            *_dice_cells(one),
            verdict(one.structure, one.dice.mean),
            _known(GOALS.get(one.structure, Goal()).paper),
            _known(GOALS.get(one.structure, Goal()).observers),
        )
        for one in inside
    ]
    return [
        *lines,
        *_table(
            (*_DICE, "goal", "paper", "two observers"),
            rows,
        ),
        "",
        f"Mean over the structures: {fmean(one.dice.mean for one in inside):.3f}. {SOURCES}",
    ]  # fmt: skip


def _surfaces(inside: Sequence[Summary]) -> list[str]:
    if not inside:
        return []
    rows = [
        (
            one.structure,
            str(one.patients - one.missed),
            *_surface_cells(one),
            _f(one.hd95_mm.most, 1),
        )
        for one in inside
    ]
    return [
        "Mean / median; distances over those that were found, surface Dice and volume over all:",
        "",
        *_table(
            ("structure", "found", *_SURFACES, "largest HD95, mm"),
            rows,
        ),
    ]  # fmt: skip


def _ends(inside: Sequence[Summary]) -> list[str]:
    if not inside:
        return []
    rows = [
        (
            one.structure,
            _f(one.dice.mean),
            _f(one.dice_between_ends.mean),
            _shift(one.above_mm),
            _shift(one.below_mm),
            f"{one.drawn_cm3.mean:.1f} ± {one.drawn_cm3.sd:.1f}",
        )
        for one in inside
        if one.patients > 1
    ]
    return [
        "## Where it begins and ends",
        "",
        "Dice over the slices in which both drew tells how well a structure is drawn where nobody doubts",
        "that it is there. The other columns say how far the found one reaches beyond the drawn one (mean ±",
        "sd; negative: it stops short), and how different the drawn volumes are from patient to patient.",
        "",
        *_table(
            ("structure", "Dice", "Dice between the ends", "above, mm", "below, mm", "drawn, cm³"),
            rows,
        ),
        "",
        "![How far each structure was drawn beyond or short of its ends, a dot a patient](ends.png)",
    ]  # fmt: skip


def _worst(inside: Sequence[Summary]) -> list[str]:
    if not inside:
        return []
    rows = [
        (one.structure, _case(score), _volumes(score))
        for one in inside
        for score in one.scores[:_WORST_SHOWN]
    ]
    table = _table(("structure", "patient", "volume"), rows)
    return [
        "## Worst cases",
        "",
        f"The {_WORST_SHOWN} lowest Dice of each structure inside the slab.",
        "",
        *table,
    ]


def _case(score: Score) -> str:
    agreement = score.agreement
    told = f"{score.patient}: Dice {agreement.dice:.3f}"
    if score.refusal:
        return f"{told}, series refused"
    if agreement.hd95_mm is None:
        return f"{told}, **missed**"
    flags = ", ".join(flag.replace("_", " ") for flag in score.flags)
    return f"{told}, HD95 {agreement.hd95_mm:.1f} mm" + (f"; flagged: {flags}" if flags else "")


def _volumes(score: Score) -> str:
    return f"{score.found_cm3:.1f} cm³ found, {score.drawn_cm3:.1f} cm³ drawn"


def _all_plausible(scores: Sequence[Score]) -> list[str]:
    rows = [(*_dice_cells(one), *_surface_cells(one)) for one in summarise(plausible(scores))]
    if not rows:
        return []
    return [
        "## All plausible drawings",
        "",
        "Those included that the archive's slab cuts: of these the end may lie outside the CT.",
        "",
        *_table(
            (*_DICE, *_SURFACES),
            rows,
        ),
    ]  # fmt: skip


def _left_out(scores: Sequence[Score]) -> list[str]:
    faulty = counted(scores, Standing.LEFT_OUT)
    lines = ["## Left out: gross label errors", ""]
    if not faulty:
        return [*lines, "None."]
    rows = [
        (score.patient, score.structure, f"{score.drawn_cm3:.1f}", f"{score.drawn_mean_hu:.0f}", score.fault,
         _f(score.agreement.dice))
        for score in faulty
    ]  # fmt: skip
    return [
        *lines,
        "Drawings with a volume or a mean HU that the organ cannot have (`models/anatomy.py`); in no figure.",
        "",
        *_table(("patient", "structure", "drawn, cm³", "mean HU", "left out for", "Dice all the same"), rows),
    ]


def _refused(scores: Sequence[Score]) -> list[str]:
    reasons = {score.patient: score.refusal for score in scores if score.refusal}
    if not reasons:
        return []
    lines = [f"- {patient}: {reason}" for patient, reason in sorted(reasons.items())]
    return ["## Refused by the product", "", "Their structures count as missed.", "", *lines]


def _not_drawn(facts: Facts) -> list[str]:
    others = {name: count for name, count in facts.drawn.items() if name not in facts.structures}
    undrawn = [name for name in facts.structures if name not in facts.drawn]
    lines = []
    if others:
        told = ", ".join(f"{name} ({count}{_unmet(name)})" for name, count in others.items())
        lines.append(f"Drawn in the data but not by this model (patients): {told}.")
    if undrawn:
        lines.append(f"Drawn by this model but by nobody in the data: {', '.join(undrawn)}.")
    return ["## Not judged", "", *lines] if lines else []


def _compared(facts: Facts, scores: Sequence[Score]) -> list[str]:
    if facts.other is None:
        return []
    theirs, run = facts.other
    changes = compare_runs(scores, theirs)
    lines = [
        "## Against another run",
        "",
        f"The other: {run.model} {run.version} (`{run.sha256[:12]}`), {run.reference} contours, "
        f"{_GRIDS.get(run.grid, run.grid)}.",
        "Over structures inside the slab that both have, patient by patient, on the archive's grid.",
        "",
    ]
    if not changes:
        return [*lines, "They have no patient and structure in common."]
    rows = [
        (
            one.structure,
            str(one.patients),
            _f(one.there),
            _f(one.here),
            f"{-one.lost:+.3f}",
            f"{-one.most_lost:+.3f} ({one.most_lost_patient})",
        )
        for one in changes
    ]
    most = max(changes, key=lambda change: change.lost)
    mean = fmean(change.lost for change in changes)
    within = "within" if most.lost <= ALLOWED_LOSS else "**more than**"
    return [
        *lines,
        *_table(("structure", "n", "other Dice", "this Dice", "difference", "largest loss"), rows),
        "",
        f"Mean difference over the structures: {-mean:+.3f}. The most is lost by {most.structure} "
        f"({-most.lost:+.3f}): {within} the {ALLOWED_LOSS:.2f} that may be lost.",
    ]


def _observers(scores: Sequence[Score]) -> list[str]:
    if not scores:
        return []
    every = {one.structure: one for one in summarise(plausible(scores))}
    inside = {one.structure: one for one in summarise(counted(scores, Standing.INSIDE))}
    rows = []
    for name, whole in every.items():
        one = inside.get(name) or _nobody(name)
        rows.append(
            (
                name,
                str(one.patients),
                _mean_sd(one.dice),
                _f(one.dice.median),
                _f(one.dice.low),
                f"{_f(one.dice.least)} ({one.scores[0].patient})" if one.scores else "–",
                _f(one.dice_between_ends.mean),
                *_surface_cells(one),
                f"{_f(whole.dice.mean)} ({whole.patients})",
            )
        )
    patients = len({score.patient for score in scores})
    return [
        "## The data's own limit: two people",
        "",
        f"Radiographer's against clinical contours of the same {patients} patients: no model is in these",
        "figures. They are of the pairs that lie inside the slab both; mean / median as above.",
        "",
        *_table(
            (*_DICE[:2], *_DICE[3:], "Dice between the ends", *_SURFACES, "Dice of all plausible (n)"),
            rows,
        ),
    ]  # fmt: skip


def _nobody(structure: str) -> Summary:
    empty = Spread(*7 * (math.nan,))
    return Summary(structure, (), 0, *9 * (empty,))


def _confidence(scores: Sequence[Score]) -> list[str]:
    chosen = plausible(scores)
    count, overall = confidence_correlation(chosen)
    if math.isnan(overall):
        return []
    rows = []
    for one in summarise(chosen):
        own, correlation = confidence_correlation(one.scores)
        rows.append((one.structure, str(own), _f(correlation, 2)))
    return [
        "## Confidence",
        "",
        f"Spearman's rank correlation between the product's confidence and Dice: {overall:.2f} over {count}",
        "plausible structures that were found; for each structure:",
        "",
        *_table(("structure", "n", "rank correlation"), rows),
    ]


def _method(facts: Facts) -> list[str]:
    lines = [
        "## How it was measured",
        "",
        "- Volumes and Dice: voxels of the archive's grid whose centre lies inside a contour (even-odd).",
        "- Surfaces: triangle meshes half-way between voxel centres (marching cubes, scikit-image);",
        "  distances from each triangle's middle to the nearest point of the other mesh (trimesh), weighted",
        "  by area.",
        f"- Surface Dice: share of both surfaces within {TOLERANCE_MM:g} mm of the other. HD95: the larger",
        "  of the two directed 95th percentiles. Mean surface distance: over both surfaces. Volume error:",
        "  found over drawn, minus 1.",
        "- Where the slab cuts a structure, its cut face is surface too.",
        "- A structure that was not found has Dice 0, surface Dice 0, volume error -100 % and no distances.",
    ]
    if facts.run.grid != "native":
        lines.append(
            "- The contours lie in the slices' planes, which are the archive's; in-plane they are filled on\n"
            "  the archive's grid, so that the reference is never interpolated."
        )
    return lines


def _dice_cells(one: Summary) -> tuple[str, ...]:
    """Below `_DICE`."""
    return (
        one.structure,
        str(one.patients),
        str(one.missed),
        _mean_sd(one.dice),
        _f(one.dice.median),
        _f(one.dice.low),
        f"{_f(one.dice.least)} ({one.scores[0].patient})",
    )


def _surface_cells(one: Summary) -> tuple[str, ...]:
    """Below `_SURFACES`."""
    return (
        _pair(one.surface_dice, 3),
        _pair(one.hd95_mm, 1),
        _pair(one.mean_distance_mm, 2),
        _signed(one.volume_error_percent),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _f(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _mean_sd(spread: Spread) -> str:
    return _f(spread.mean) if math.isnan(spread.sd) else f"{spread.mean:.3f} ± {spread.sd:.3f}"


def _pair(spread: Spread, digits: int) -> str:
    return f"{_f(spread.mean, digits)} / {_f(spread.median, digits)}"


def _shift(spread: Spread) -> str:
    return f"{spread.mean:+.1f} ± {spread.sd:.1f}"


def _signed(spread: Spread) -> str:
    if math.isnan(spread.mean):
        return "–"
    return f"{round(spread.mean):+d} / {round(spread.median):+d}"
