"""Every patient is judged once, by a network that was not taught on him."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train` (torch)")

from models.training.config import Folds  # noqa: E402
from models.training.cross_validation import cross_validate  # noqa: E402
from models.training.held_out import THRESHOLDS, read_scores  # noqa: E402
from tests.models.small_archive import CONFIG, write_patients  # noqa: E402


def test_every_patient_is_held_out_once_and_every_drawn_structure_judged(tmp_path: Path) -> None:
    data = write_patients(tmp_path / "patients", 5)
    told: list[str] = []
    table = cross_validate(replace(CONFIG, folds=Folds(2)), data, tmp_path / "out", report=told.append)
    scores = read_scores(table)
    assert sorted((one.patient, one.structure) for one in scores) == [
        (f"pt_{number}", name) for number in range(5) for name in sorted(CONFIG.structures)
    ]
    assert all(set(one.at) == set(THRESHOLDS) for one in scores)
    assert [line.split(";")[0] for line in told if "taught" in line] == [
        "2 patients taught, 3 watched",
        "3 patients taught, 2 watched",
    ]
    assert "| Brainstem | 5 |" in (tmp_path / "out" / "CROSS_VALIDATION.md").read_text()
