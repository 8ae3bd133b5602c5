"""Evaluation through the product: CT series in, RT Structure Set out, judged by the patients' own contours.

Owns the run: which patients, in which order, what is not done again, and the files that are written.
Speaks OpenKBP archives, the command `anatomynode contour`, and the modules that measure, tell and draw.
Never imports what it judges: the product runs as a subprocess, and its contours are filled anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pydicom

from models.archives.openkbp_dicom import Grid, read_grid, write_series
from models.card import PACKAGES, ModelDescription, read_package
from models.evaluation.box_plots import draw_boxes, draw_ends
from models.evaluation.contour_reader import Mask, read_masks
from models.evaluation.dressing import dress
from models.evaluation.metrics import compare
from models.evaluation.observers import compare_observers
from models.evaluation.overlays import Outlined, draw_overlay
from models.evaluation.references import Drawing, Reference, Standing, count_drawings, read_drawings
from models.evaluation.report import Facts, write
from models.evaluation.score_summary import best_and_worst, plausible, summarise, write_summary
from models.evaluation.scores import Run, Score, ScoresError, counted, read_scores, write_scores

Answer = Mapping[str, Any]
Product = Callable[[Path, Path, Path], Answer]
"""Contours a series (folder) into a file with a model (folder); answers what `contour --json` prints."""

_TIMEOUT_S = 900
_OVERLAYS = ("best_*.png", "worst_*.png")


class EvaluationError(Exception):
    """What stops an evaluation; what was scored so far is kept, and the next run goes on from there."""


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated, and how.

    Attributes:
        data: folder of OpenKBP archives (`.npz`).
        output: folder for tables and pictures; a `scores.csv` in it is gone on with.
        model: name of a package of the program, or the folder of one.
        matrix: pixels of the CT along each side; None for the archive's own grid.
        dressed: whether couch, head rest and mask are put around the patient.
        patients: only the first so many, by name; None takes all.
        other: the `scores.csv` of another run to stand beside this one.
        observers: folders whose patients tell how far two people agree; none: `data`.
    """

    data: Path
    output: Path
    model: str
    reference: Reference = "clinical"
    matrix: int | None = None
    dressed: bool = False
    patients: int | None = None
    other: Path | None = None
    observers: tuple[Path, ...] = ()

    @property
    def grid(self) -> str:
        """The CT's grid in a word or two."""
        return " ".join(
            (str(self.matrix) if self.matrix else "native", *(["dressed"] if self.dressed else []))
        )

    @property
    def command(self) -> str:
        """How it is asked for again; of folders and files only the last names, which say enough."""
        words = ["anatomynode models evaluate", "--data", self.data.resolve().name]
        words += ["--output", self.output.resolve().name, "--model", Path(self.model).name]
        words += ["--reference", self.reference]
        words += ["--matrix", str(self.matrix)] if self.matrix else []
        words += ["--dressed"] if self.dressed else []
        words += ["--patients", str(self.patients)] if self.patients else []
        words += ["--compare", "/".join(self.other.resolve().parts[-2:])] if self.other else []
        words += [word for folder in self.observers for word in ("--observers", folder.resolve().name)]
        return " ".join(words)


def contour_series(series: Path, rt_struct: Path, model: Path) -> Answer:
    """Run the product on a folder of DICOM files.

    Raises:
        EvaluationError: it neither contoured nor rejected the series.
    """
    command = [sys.executable, "-m", "dicom_node", "contour", str(series)]
    command += ["--output", str(rt_struct), "--model", str(model), "--json"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        answer: dict[str, Any] = json.loads(run.stdout)
    except subprocess.TimeoutExpired as problem:
        raise EvaluationError(f"anatomynode contour took more than {_TIMEOUT_S} s") from problem
    except json.JSONDecodeError as problem:
        said = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EvaluationError(f"anatomynode contour ended with status {run.returncode}: {said}") from problem
    if answer["status"] == "failed":
        raise EvaluationError(f"anatomynode contour failed: {answer['reason']}")
    return answer


def evaluate(
    plan: Plan,
    report: Callable[[str], None] = print,
    product: Product = contour_series,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Judge a model on a folder of patients.

    Writes `scores.csv`, `summary.csv`, `observers.csv`, `EVALUATION.md`, `boxes.png`, `ends.png`, overlays of
    the best and the worst patients, and the product's RT Structure Sets below `rt_structs/`. Patients that
    are in `scores.csv` already are not contoured again.

    Args:
        report: called with a line for each patient.

    Raises:
        EvaluationError: the product cannot contour, or there is nothing to evaluate.
        ScoresError: the output folder holds the scores of another run.
        ModelPackageError: there is no such model.
    """
    model = read_package(_package_folder(plan.model)).description
    run = Run(model.name, model.version, model.sha256, _program_version(), plan.reference, plan.grid)
    other = _read_other(plan.other)
    plan.output.mkdir(parents=True, exist_ok=True)
    table = plan.output / "scores.csv"
    scores = _scores_so_far(table, run, plan.data)
    todo = _todo(plan, model, {score.patient for score in scores})
    seconds: list[float] = []
    for number, (npz, drawings) in enumerate(todo, start=1):
        began = clock()
        scores += _judge(npz, drawings, plan, model, product)
        write_scores(table, scores, run)
        seconds.append(clock() - began)
        left_min = fmean(seconds) * (len(todo) - number) / 60
        own = [score for score in scores if score.patient == npz.stem]
        report(f"{number}/{len(todo)} {_line(own)} ({seconds[-1]:.0f} s, {left_min:.0f} min to go)")
    if not scores:
        raise EvaluationError(f"{plan.data}: nobody drew ({plan.reference}) what {model.name} draws")
    _write_all(plan, model, run, read_scores(table)[0], other)
    report(f"written: {plan.output / 'EVALUATION.md'}")


def _package_folder(model: str) -> Path:
    folder = Path(model) if (Path(model) / "model.yaml").is_file() else PACKAGES / model
    return folder.resolve()


def _program_version() -> str:
    """What the product says of itself."""
    command = [sys.executable, "-m", "dicom_node", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _read_other(path: Path | None) -> tuple[tuple[Score, ...], Run] | None:
    if path is None:
        return None
    scores, runs = read_scores(path)
    if len(runs) != 1:
        raise ScoresError(f"{path} is not the table of one run")
    return tuple(scores), runs.pop()


def _scores_so_far(table: Path, run: Run, data: Path) -> list[Score]:
    """What an earlier run left.

    Raises:
        ScoresError: it was another model, reference, grid, program version or folder of patients.
    """
    if not table.exists():
        return []
    scores, runs = read_scores(table)
    strangers = sorted({score.patient for score in scores} - {npz.stem for npz in data.glob("*.npz")})
    if runs - {run} or strangers:
        whose = f"patients that are not in {data.name}" if strangers else "another model, program or option"
        raise ScoresError(f"{table} holds scores of {whose}: choose another --output, or remove it")
    return scores


def _todo(plan: Plan, model: ModelDescription, done: set[str]) -> list[tuple[Path, dict[str, Drawing]]]:
    """The patients that are not yet scored, with what was drawn of the model's structures."""
    names = {structure.name for structure in model.structures}
    todo = []
    for npz in sorted(plan.data.glob("*.npz"))[: plan.patients]:
        if npz.stem not in done:
            drawings = {
                name: one for name, one in read_drawings(npz, plan.reference).items() if name in names
            }
            if drawings:
                todo.append((npz, drawings))
    return todo


def _ct(npz: Path, plan: Plan) -> Grid:
    """The CT that the product gets."""
    grid = read_grid(npz, plan.matrix)
    return dress(grid, npz.stem) if plan.dressed else grid


def _rt_struct(plan: Plan, patient: str) -> Path:
    return plan.output / "rt_structs" / f"{patient}.dcm"


def _judge(
    npz: Path, drawings: Mapping[str, Drawing], plan: Plan, model: ModelDescription, product: Product
) -> list[Score]:
    """Contour a patient, and compare what was found with what was drawn."""
    target = _rt_struct(plan, npz.stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_series(_ct(npz, plan), npz.stem, Path(scratch))
        answer = product(Path(scratch), target, _package_folder(plan.model))
    if target.exists() and answer["model"]["sha256"] != model.sha256:
        raise EvaluationError(f"the product used another model: {answer['model']['sha256']}")
    native = read_grid(npz)
    found = _found(target, native)
    told = {roi["name"]: roi for roi in answer["rois"]}
    refusal = "" if target.exists() else str(answer["reason"])
    return [
        _score(npz.stem, drawing, found.get(name), native, told.get(name, {}), refusal)
        for name, drawing in drawings.items()
    ]


def _found(rt_struct: Path, native: Grid) -> dict[str, Mask]:
    return read_masks(pydicom.dcmread(rt_struct), native) if rt_struct.exists() else {}


def _score(
    patient: str, drawing: Drawing, found: Mask | None, native: Grid, told: Mapping[str, Any], refusal: str
) -> Score:
    mask = np.zeros_like(drawing.mask) if found is None else found
    return Score(
        patient=patient,
        structure=drawing.structure,
        standing=drawing.standing,
        fault=drawing.fault,
        fraction_inside=drawing.fraction_inside,
        drawn_cm3=drawing.volume_cm3,
        drawn_mean_hu=drawing.mean_hu,
        found_cm3=float(mask.sum() * np.prod(native.spacing_mm) / 1000),
        agreement=compare(mask, drawing.mask, native.spacing_mm),
        confidence=told.get("confidence"),
        flags=tuple(flag for flag in told.get("flags", ()) if flag != "not_found"),
        refusal=refusal,
    )


def _write_all(
    plan: Plan,
    model: ModelDescription,
    run: Run,
    scores: Sequence[Score],
    other: tuple[tuple[Score, ...], Run] | None,
) -> None:
    """Everything that follows from the scores."""
    observers = compare_observers(plan.observers or (plan.data,))
    if observers:
        write_scores(plan.output / "observers.csv", observers)
    facts = Facts(
        run=run,
        command=plan.command,
        data=plan.data.resolve().name,
        structures=tuple(structure.name for structure in model.structures),
        drawn=count_drawings(plan.data, plan.reference),
        observers=tuple(observers),
        other=other,
    )
    write_summary(plan.output / "summary.csv", scores)
    (plan.output / "EVALUATION.md").write_text(write(facts, scores), encoding="utf-8")
    title = f"{model.name} {model.version}, {run.reference} contours, {run.grid} grid, inside the slab"
    inside = summarise(counted(scores, Standing.INSIDE))
    draw_boxes(plan.output / "boxes.png", title, inside)
    draw_ends(plan.output / "ends.png", title, inside)
    _draw_overlays(plan, scores)


def _draw_overlays(plan: Plan, scores: Sequence[Score]) -> None:
    """The best and the worst patients; pictures of an earlier run go."""
    for pattern in _OVERLAYS:
        for stale in plan.output.glob(pattern):
            stale.unlink()
    for kind, patients in zip(("best", "worst"), best_and_worst(scores), strict=True):
        for rank, patient in enumerate(patients, start=1):
            own = [score for score in scores if score.patient == patient]
            # Without the product's file the picture would say that it found nothing.
            if own[0].refusal or _rt_struct(plan, patient).exists():
                _draw_overlay(plan.output / f"{kind}_{rank}_{patient}.png", f"{kind} {rank}", own, plan)


def _draw_overlay(path: Path, rank: str, scores: Sequence[Score], plan: Plan) -> None:
    patient = scores[0].patient
    npz = plan.data / f"{patient}.npz"
    native, drawings = read_grid(npz), read_drawings(npz, plan.reference)
    found = _found(_rt_struct(plan, patient), native)
    nothing = np.zeros(native.hu.shape, bool)
    outlined = [
        Outlined(score.structure, found.get(score.structure, nothing), drawings[score.structure].mask, words)
        for score, words in ((score, _few_words(score)) for score in plausible(scores))
    ]
    mean = fmean(score.agreement.dice for score in counted(scores, Standing.INSIDE))
    title = f"{patient}  ·  {rank} by mean Dice of the structures inside the slab: {mean:.3f}"
    draw_overlay(path, f"{title}  ·  {plan.grid} grid", _ct(npz, plan), native, outlined)


def _few_words(score: Score) -> str:
    words = "missed" if score.agreement.missed else f"{score.agreement.dice:.2f}"
    return words if score.standing is Standing.INSIDE else f"{words} ({score.standing.value})"


def _line(scores: Sequence[Score]) -> str:
    """A patient's figures in a line; what does not count in brackets."""
    patient = scores[0].patient
    if scores[0].refusal:
        return f"{patient}: refused: {scores[0].refusal}"
    told = [
        f"{score.structure} {score.agreement.dice:.3f}"
        if score.standing is Standing.INSIDE
        else f"[{score.structure} {score.agreement.dice:.3f} {score.standing.value}]"
        for score in scores
    ]
    return f"{patient}: {', '.join(told)}"
