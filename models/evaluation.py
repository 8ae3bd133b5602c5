"""Evaluation through the product: CT series in, RT-STRUCT out, Dice against the patients' own contours.

Owns the figures of a model as a hospital would see them, and an independent reader of RT-STRUCTs.
Speaks OpenKBP archives, the command `anatomynode contour`, Markdown and CSV.
Never imports what it judges: the product runs as a subprocess, and its contours are filled here anew.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from models.datasets import PLAUSIBLE, is_plausible
from models.openkbp_dicom import Grid, read_grid, write_series

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
_IN_PLANE_MM = 0.01
_TIMEOUT_S = 900
_WORST = 5


@dataclass(frozen=True)
class Score:
    """How one structure of one patient came out.

    Attributes:
        dice: 0 to 1, on the CT's grid.
        found_cm3, drawn_cm3: volume of the product's structure, and of the clinician's.
    """

    patient: str
    structure: str
    dice: float
    found_cm3: float
    drawn_cm3: float


@dataclass(frozen=True)
class Case:
    """One patient's outcome: his scores, or why the product refused him."""

    patient: str
    scores: tuple[Score, ...]
    refusal: str | None
    seconds: float


def evaluate(
    data: Path, output: Path, patients: int | None = None, report: Callable[[str], None] = print
) -> None:
    """Judge the shipped model on a folder of OpenKBP patients; writes `dice.csv` and `evaluation.md`.

    Each structure counts whose clinical mask is plausible (volume and mean HU, as in training),
    within the slab that the archive kept.

    Args:
        data: folder of `.npz` archives.
        output: folder for the tables.
        patients: only the first so many, by name; None takes all.
        report: called with a line for each patient.
    """
    output.mkdir(parents=True, exist_ok=True)
    cases = []
    for archive in sorted(data.glob("*.npz"))[:patients]:
        cases.append(_judge(archive))
        report(_line(cases[-1]))
    _write_csv(output / "dice.csv", cases)
    (output / "evaluation.md").write_text(summary(cases), encoding="utf-8")
    report(f"written: {output / 'evaluation.md'} and {output / 'dice.csv'}")


def _judge(archive: Path) -> Case:
    with tempfile.TemporaryDirectory() as scratch:
        series, rt_struct = Path(scratch) / "ct", Path(scratch) / "rs.dcm"
        write_series(archive, series)
        answer = _contour(series, rt_struct)
        if not rt_struct.exists():
            return Case(archive.stem, (), str(answer.get("reason")), 0.0)
        found = read_masks(pydicom.dcmread(rt_struct), read_grid(archive))
    return Case(archive.stem, _scores(archive, found), None, sum(answer["seconds"].values()))


def _contour(series: Path, rt_struct: Path) -> dict[str, Any]:
    """Run the product; what it printed as JSON, or its complaint as the reason."""
    command = [
        sys.executable,
        "-m",
        "dicom_node",
        "contour",
        str(series),
        "--output",
        str(rt_struct),
        "--json",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    try:
        answer: dict[str, Any] = json.loads(run.stdout)
    except json.JSONDecodeError:
        return {"reason": (run.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return answer


def _scores(archive: Path, found: Mapping[str, Mask]) -> tuple[Score, ...]:
    """Compare what was found with each plausible clinical mask of the archive."""
    with np.load(archive) as patient:
        hu, spacing_mm = patient["ct_hu"], patient["spacing_mm"].astype(np.float64)
        drawn = {
            name: patient[f"clinical/{name}"] for name in PLAUSIBLE if f"clinical/{name}" in patient.files
        }
    voxel_cm3 = float(spacing_mm.prod() / 1000)
    scores = []
    for name, mask in drawn.items():
        if is_plausible(name, hu, mask, spacing_mm):
            mine = found.get(name, np.zeros_like(mask))
            volumes = float(mine.sum() * voxel_cm3), float(mask.sum() * voxel_cm3)
            scores.append(Score(archive.stem, name, dice(mine, mask), *volumes))
    return tuple(scores)


def dice(first: Mask, second: Mask) -> float:
    """Twice the common volume by the sum of both; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def read_masks(rt_struct: Dataset, grid: Grid) -> dict[str, Mask]:
    """The ROIs of an RT-STRUCT as masks on an axis-parallel grid, by name: even-odd, by voxel centre.

    Raises:
        ValueError: a contour that lies in none of the grid's planes.
    """
    names = {roi.ROINumber: str(roi.ROIName) for roi in rt_struct.StructureSetROISequence}
    slice_mm, row_mm, column_mm = grid.spacing_mm
    x_mm, y_mm, z_mm = grid.origin_mm
    masks: dict[str, Mask] = {}
    for roi in rt_struct.ROIContourSequence:
        mask = np.zeros(grid.hu.shape, bool)
        for contour in roi.get("ContourSequence", []):
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
            index = round(float(points[0, 2] - z_mm) / slice_mm)
            if np.abs(points[:, 2] - z_mm - index * slice_mm).max() > _IN_PLANE_MM:
                raise ValueError(f"a contour of {names[roi.ReferencedROINumber]} lies between two slices")
            rows, columns = (points[:, 1] - y_mm) / row_mm, (points[:, 0] - x_mm) / column_mm
            mask[index] ^= _inside(rows, columns, grid.hu.shape[1:])
        masks[names[roi.ReferencedROINumber]] = mask
    return masks


def _inside(rows: Floats, columns: Floats, shape: Sequence[int]) -> Mask:
    """Which voxel centres a closed polygon surrounds: those with an odd number of edges to their right."""
    crossings = np.zeros((shape[0], shape[1]), np.int64)
    grid_columns = np.arange(shape[1])
    for row, column, next_row, next_column in zip(
        rows, columns, np.roll(rows, -1), np.roll(columns, -1), strict=True
    ):
        first, last = sorted((row, next_row))
        between = np.arange(max(0, int(np.ceil(first))), min(shape[0], int(np.ceil(last))))
        if between.size:
            edge = column + (between - row) / (next_row - row) * (next_column - column)
            crossings[between] += grid_columns < edge[:, None]
    return crossings % 2 == 1


def summary(cases: Sequence[Case]) -> str:
    """The figures as Markdown: a row a structure, the worst cases, and who was refused and why."""
    lines = [
        "# Evaluation through the product",
        "",
        f"{len(cases)} patients, each written as a DICOM series, contoured by `anatomynode contour`,",
        "read back by an independent reader and compared with the clinical contours on the CT's grid.",
        "",
        "| structure | patients | Dice mean | sd | median | lowest |",
        "|---|---|---|---|---|---|",
    ]
    scores = [score for case in cases for score in case.scores]
    means = []
    for name in PLAUSIBLE:
        values = np.array([score.dice for score in scores if score.structure == name])
        if values.size:
            means.append(values.mean())
            lines.append(
                f"| {name} | {values.size} | {values.mean():.3f} | {values.std():.3f} "
                f"| {np.median(values):.3f} | {values.min():.3f} |"
            )
    if means:
        lines += ["", f"Mean over the structures: {np.mean(means):.3f}.", "", "Worst cases:", ""]
    for score in sorted(scores, key=lambda score: score.dice)[:_WORST]:
        lines.append(
            f"- {score.structure} of {score.patient}: Dice {score.dice:.3f}, "
            f"{score.found_cm3:.1f} cm³ where {score.drawn_cm3:.1f} cm³ were drawn"
        )
    refused = [case for case in cases if case.refusal is not None]
    lines += ["", f"Refused: {len(refused)}.", ""]
    lines += [f"- {case.patient}: {case.refusal}" for case in refused]
    return "\n".join(lines).rstrip() + "\n"


def _line(case: Case) -> str:
    if case.refusal is not None:
        return f"{case.patient}: refused: {case.refusal}"
    told = ", ".join(f"{score.structure} {score.dice:.3f}" for score in case.scores)
    return f"{case.patient}: {told or 'nothing plausible was drawn'} ({case.seconds:.1f} s)"


def _write_csv(path: Path, cases: Iterable[Case]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("patient", "structure", "dice", "found_cm3", "drawn_cm3"))
        for case in cases:
            for score in case.scores:
                writer.writerow(
                    (
                        score.patient,
                        score.structure,
                        f"{score.dice:.4f}",
                        f"{score.found_cm3:.2f}",
                        f"{score.drawn_cm3:.2f}",
                    )
                )
