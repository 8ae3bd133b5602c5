"""Evaluation through the product, on a phantom with the shipped model, and what happens around it.

Owns the run: what is written, what is not done again, and what stops it.
Speaks archives, the command's own output and CSV.
Never reads a real patient.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("trimesh", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from dicom_node.cli import app
from models.card import PACKAGES
from models.evaluation.references import Standing
from models.evaluation.run import EvaluationError, Plan, contour_series, evaluate
from models.evaluation.scores import ScoresError, read_scores
from tests.models.openkbp_patients import write_archive, write_phantom_archive

MODEL = "anatomynet-hn"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients: one to contour, one that the product refuses: a block of three slices."""
    folder = tmp_path_factory.mktemp("data")
    write_phantom_archive(folder / "pt_1.npz")
    hu = np.full((3, 40, 40), 40, np.int16)
    drawn = np.zeros(hu.shape, bool)
    drawn[1, 10:20, 10:20] = True
    write_archive(folder / "pt_2.npz", hu, {"clinical/Brainstem": drawn, "radiographer/Brainstem": drawn})
    return folder


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "plain"
    ran = CliRunner().invoke(app, ["models", "evaluate", "--data", str(data), "--output", str(output)])
    assert ran.exit_code == 0, ran.output
    assert "2/2 pt_2: refused" in ran.output
    return output


def plan(data: Path, output: Path) -> Plan:
    return Plan(data, output, MODEL)


def no_product(series: Path, rt_struct: Path, model: Path) -> Mapping[str, Any]:
    raise AssertionError("nothing was left to contour")


def test_a_patient_goes_through_the_product_and_comes_back_as_scores(evaluated: Path) -> None:
    scores, (run,) = read_scores(evaluated / "scores.csv")
    phantom = {score.structure: score for score in scores if score.patient == "pt_1"}
    assert (run.model, run.grid, run.reference) == (MODEL, "native", "clinical")
    assert set(phantom) == {"Brainstem", "SpinalCord", "Parotid_L", "Parotid_R", "Bone_Mandible"}
    assert phantom["Bone_Mandible"].agreement.dice > 0.5
    assert phantom["Bone_Mandible"].confidence is not None
    assert (evaluated / "rt_structs" / "pt_1.dcm").exists()


def test_a_refused_patient_counts_as_missed(evaluated: Path) -> None:
    (score,) = [score for score in read_scores(evaluated / "scores.csv")[0] if score.patient == "pt_2"]
    assert score.refusal
    assert score.agreement.missed
    assert score.standing is Standing.INSIDE
    assert f"- pt_2: {score.refusal}" in (evaluated / "EVALUATION.md").read_text()


def test_tables_and_pictures_are_written_and_name_no_folder(data: Path, evaluated: Path) -> None:
    text = (evaluated / "EVALUATION.md").read_text()
    assert f"--data {data.name} --output plain --model {MODEL} --reference clinical" in text
    assert str(data.parent) not in text
    pictures = sorted(path.name for path in evaluated.glob("*.png"))
    assert pictures == ["best_1_pt_1.png", "boxes.png", "ends.png"]
    assert "## The data's own limit" in text
    assert (evaluated / "observers.csv").exists()


def test_scored_patients_are_not_contoured_again_and_a_rerun_writes_the_same_bytes(
    data: Path, evaluated: Path, tmp_path: Path
) -> None:
    again = tmp_path / "plain"
    shutil.copytree(evaluated, again)
    evaluate(plan(data, again), lambda line: None, no_product)
    for path in evaluated.glob("*.*"):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_failure_of_the_product_stops_the_run_and_keeps_what_was_scored(
    data: Path, evaluated: Path, tmp_path: Path
) -> None:
    def failing(series: Path, rt_struct: Path, model: Path) -> Mapping[str, Any]:
        if len(list(series.iterdir())) == 3:
            raise EvaluationError("the disk is full")
        rt_struct.write_bytes((evaluated / "rt_structs" / "pt_1.dcm").read_bytes())
        return answer

    scores, (run,) = read_scores(evaluated / "scores.csv")
    rois = [{"name": one.structure, "confidence": one.confidence, "flags": one.flags} for one in scores]
    answer = {"model": {"sha256": run.sha256}, "rois": rois[:5]}
    with pytest.raises(EvaluationError, match="disk"):
        evaluate(plan(data, tmp_path), lambda line: None, failing)
    assert {score.patient for score in read_scores(tmp_path / "scores.csv")[0]} == {"pt_1"}
    evaluate(plan(data, tmp_path), lambda line: None)
    assert (tmp_path / "scores.csv").read_bytes() == (evaluated / "scores.csv").read_bytes()


def test_the_scores_of_another_run_are_never_mixed_in(data: Path, evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="another model, program or option"):
        evaluate(Plan(data, evaluated, MODEL, matrix=512), lambda line: None, no_product)
    with pytest.raises(ScoresError, match="patients that are not in"):
        evaluate(plan(tmp_path, evaluated), lambda line: None, no_product)


def test_what_is_no_answer_of_the_product_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no-such-model"):
        contour_series(tmp_path, tmp_path / "rs.dcm", Path("no-such-model"))


def test_a_dressed_scan_on_the_scanners_matrix_is_judged_on_the_archives_grid(
    data: Path, evaluated: Path, tmp_path: Path
) -> None:
    output = tmp_path / "dressed"
    model = tmp_path / "mine"
    shutil.copytree(PACKAGES / MODEL, model)
    words = ["--data", str(data), "--output", str(output), "--model", str(model), "--patients", "1"]
    words += ["--matrix", "512", "--dressed"]
    ran = CliRunner().invoke(app, ["models", "evaluate", *words, "--compare", str(evaluated / "scores.csv")])
    assert ran.exit_code == 0, ran.output
    scores, (run,) = read_scores(output / "scores.csv")
    before = {score.structure: score for score in read_scores(evaluated / "scores.csv")[0][:5]}
    assert run.grid == "512 dressed"
    for score in scores:
        assert score.drawn_cm3 == before[score.structure].drawn_cm3
        assert score.agreement.dice > before[score.structure].agreement.dice - 0.15
    assert "## Against another run" in (output / "EVALUATION.md").read_text()
