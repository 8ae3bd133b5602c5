"""Networks are compared on the same patients, and the table says how sure the difference is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch", reason="training needs the extra `train` (torch)")

from models.training.ablation import ablate, difference, read_ablation  # noqa: E402
from models.training.config import TrainingConfigError  # noqa: E402
from models.training.held_out import HeldOutScore, Judged  # noqa: E402
from tests.models.small_archive import CONFIG, write_patients  # noqa: E402


def ablation_file(folder: Path, variants: dict[str, object]) -> Path:
    training = asdict(CONFIG)
    training["window"] = {"lower_hu": -200, "upper_hu": 800}
    file = folder / "ablation.yaml"
    content = _plain({"training": training, "variants": variants})
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def _plain(value: object) -> object:
    """Tuples as lists, which is all that YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def scores(dice: dict[tuple[str, str], float]) -> list[HeldOutScore]:
    return [
        HeldOutScore(patient, structure, {0.5: Judged(value, 0.9)})
        for (patient, structure), value in dice.items()
    ]


def test_each_variant_is_trained_once_and_stands_in_the_table_beside_the_reference(tmp_path: Path) -> None:
    variants = {
        "AnatomyNet": {},
        "plain": {"note": "no gates", "network": {"block": "plain"}},
        "Dice": {"objective": {"voxel_term": "none"}},
    }
    file = ablation_file(tmp_path, variants)
    data = write_patients(tmp_path / "patients", 6)
    told: list[str] = []
    ablate(read_ablation(file), data, tmp_path / "out", report=told.append)
    table = (tmp_path / "out" / "ABLATION.md").read_text()
    rows = [line.split(" | ")[0] for line in table.splitlines() if " M | " in line]
    assert rows == ["| AnatomyNet", "| plain", "| Dice"]
    assert "0.73 M" in table
    assert "2 patients of a fold that none was taught on" in " ".join(table.split())
    assert (tmp_path / "out" / "ablation.csv").read_text().count("\n") == 1 + 3 * 2 * 2
    told.clear()
    ablate(read_ablation(file), data, tmp_path / "out", report=told.append)
    assert sum(line == f"resumed at step {CONFIG.total_steps}" for line in told) == 3


def test_differences_are_taken_patient_by_patient_and_a_constant_gain_has_no_spread() -> None:
    reference = {("a", "x"): 0.9, ("a", "y"): 0.1, ("b", "x"): 0.5}
    better = {key: value + 0.05 for key, value in reference.items()}
    found = difference(scores(better), scores(reference))
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    mixed = difference(scores({("a", "x"): 0.8, ("a", "y"): 0.2, ("b", "x"): 0.7}), scores(reference))
    assert mixed.mean == pytest.approx(0.1)
    assert (mixed.low, mixed.high) == pytest.approx((0.0, 0.2))


def test_a_variant_may_change_only_what_is_compared(tmp_path: Path) -> None:
    with pytest.raises(TrainingConfigError, match="more steps changes phases"):
        read_ablation(ablation_file(tmp_path, {"AnatomyNet": {}, "more steps": {"phases": []}}))
