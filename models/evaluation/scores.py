"""The table of an evaluation: a row for each patient and structure.

Owns the rows, their order and format in `scores.csv`, and what all rows of one table have in common.
Speaks CSV; Dice 0 to 1, millimetres, percent, cm3, HU.
Never mixes two models, references or grids in one table.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.anatomy import ANATOMY
from models.evaluation.metrics import Agreement
from models.evaluation.references import Reference, Standing


class ScoresError(Exception):
    """A table that is damaged, or that belongs to another run; the message says which, and what to do."""


@dataclass(frozen=True)
class Run:
    """What decides the figures of a table besides the patients.

    Attributes:
        grid: of the CT that was contoured: "native", "512", "512 dressed".
    """

    model: str
    version: str
    sha256: str
    program_version: str
    reference: Reference
    grid: str


@dataclass(frozen=True)
class Score:
    """How one structure of one patient came out.

    Attributes:
        standing: whether the drawing counts.
        fault: why it does not, where it was left out.
        confidence: the product's own word, where it gave one.
        refusal: why the product refused the whole series; empty where it did not.
    """

    patient: str
    structure: str
    standing: Standing
    fault: str
    fraction_inside: float
    drawn_cm3: float
    drawn_mean_hu: float
    found_cm3: float
    agreement: Agreement
    confidence: float | None = None
    flags: tuple[str, ...] = ()
    refusal: str = ""


_RUN = ("model", "version", "sha256", "program_version", "reference", "grid")
_SCORE = (
    "patient",
    "structure",
    "standing",
    "fault",
    "fraction_inside",
    "drawn_cm3",
    "drawn_mean_hu",
    "found_cm3",
    "missed",
    "dice",
    "surface_dice_2mm",
    "hd95_mm",
    "mean_distance_mm",
    "volume_error_percent",
    "dice_between_ends",
    "above_mm",
    "below_mm",
    "confidence",
    "flags",
    "refusal",
)


def in_order(scores: Iterable[Score]) -> list[Score]:
    """By patient, then as `models.anatomy` lists the organs."""
    organs = list(ANATOMY)
    return sorted(scores, key=lambda score: (score.patient, organs.index(score.structure)))


def write_scores(path: Path, scores: Iterable[Score], run: Run | None = None) -> None:
    """Write a table, whole or not at all; the same scores give the same bytes."""
    fixed = [] if run is None else [str(getattr(run, name)) for name in _RUN]
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_SCORE, *(() if run is None else _RUN)])
        writer.writerows([*_cells(score), *fixed] for score in in_order(scores))
    partial.replace(path)


def read_scores(path: Path) -> tuple[list[Score], set[Run]]:
    """The rows of a table as they were written, and the runs that they are of.

    Raises:
        ScoresError: it is no such table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = list(csv.DictReader(file))
            runs = {Run(*(row[name] for name in _RUN)) for row in rows if _RUN[0] in row}  # type: ignore[arg-type]
            return [_score(row) for row in rows], runs
        except (KeyError, ValueError, TypeError, csv.Error) as problem:
            raise ScoresError(f"{path} is no table of scores: {problem!r}") from problem


def _cells(score: Score) -> list[str]:
    agreement = score.agreement
    return [
        score.patient,
        score.structure,
        score.standing.value,
        score.fault,
        f"{score.fraction_inside:.3f}",
        f"{score.drawn_cm3:.3f}",
        f"{score.drawn_mean_hu:.1f}",
        f"{score.found_cm3:.3f}",
        str(int(agreement.missed)),
        f"{agreement.dice:.4f}",
        f"{agreement.surface_dice:.4f}",
        _number(agreement.hd95_mm),
        _number(agreement.mean_distance_mm),
        f"{agreement.volume_error_percent:.2f}",
        _number(agreement.dice_between_ends),
        _number(agreement.above_mm),
        _number(agreement.below_mm),
        _number(score.confidence),
        " ".join(score.flags),
        score.refusal,
    ]


def _score(row: Mapping[str, str]) -> Score:
    return Score(
        patient=row["patient"],
        structure=row["structure"],
        standing=Standing(row["standing"]),
        fault=row["fault"],
        fraction_inside=float(row["fraction_inside"]),
        drawn_cm3=float(row["drawn_cm3"]),
        drawn_mean_hu=float(row["drawn_mean_hu"]),
        found_cm3=float(row["found_cm3"]),
        agreement=Agreement(
            dice=float(row["dice"]),
            surface_dice=float(row["surface_dice_2mm"]),
            hd95_mm=_maybe(row["hd95_mm"]),
            mean_distance_mm=_maybe(row["mean_distance_mm"]),
            volume_error_percent=float(row["volume_error_percent"]),
            dice_between_ends=_maybe(row["dice_between_ends"]),
            above_mm=_maybe(row["above_mm"]),
            below_mm=_maybe(row["below_mm"]),
        ),
        confidence=_maybe(row["confidence"]),
        flags=tuple(row["flags"].split()),
        refusal=row["refusal"],
    )


def counted(scores: Sequence[Score], *standings: Standing) -> list[Score]:
    """Those of the standings asked for."""
    return [score for score in scores if score.standing in standings]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _maybe(cell: str) -> float | None:
    return float(cell) if cell else None
