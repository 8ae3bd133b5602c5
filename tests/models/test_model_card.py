"""The card says what was measured, what is drawn of the paper's nine, and never more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.card import PACKAGES, read_package
from models.model_card import card, write_card
from models.training.config import TrainingConfig, parse_config, read_config

pytest.importorskip("torch", reason="needs the extra [train]")

SHIPPED = PACKAGES / "anatomynet-hn"


def config(**published: object) -> TrainingConfig:
    content = {
        "structures": ["Brainstem", "OpticNrv_L"],
        "spacing_mm": [2.5, 4.0, 4.0],
        "window": {"lower_hu": -200, "upper_hu": 400},
        "seed": 1,
        "phases": [{"steps": 7, "batch": 1, "shape": [16, 16, 16], "rates": [0.1, 0.1]}],
        "published": published,
    }
    return parse_config(content, Path("config.yaml"))


def test_without_an_evaluation_the_card_says_that_there_is_none() -> None:
    text = card(read_package(SHIPPED).description, config(), {})
    assert "It was not evaluated" in text
    assert "| Brainstem |" not in text


def test_each_of_the_papers_nine_is_drawn_or_has_its_reason() -> None:
    reasons = {
        "kept_back": {"OpticNrv_L": "too few patients to learn from"},
        "never_trained": {"Optic chiasm": "nobody drew it"},
    }
    text = card(read_package(SHIPPED).description, config(**reasons), {})
    section = text.split("## The nine structures of the paper")[1].split("##")[0]
    lines = [line for line in section.splitlines() if line.startswith("- ")]
    assert len(lines) == 9
    assert "- Optic chiasm: nobody drew it" in lines
    assert "- Optic nerve, left: too few patients to learn from" in lines
    assert "- Optic nerve, right: not trained" in lines
    assert "- Brainstem: drawn" in lines


def test_figures_come_from_the_evaluation_inside_the_slab(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.yaml"):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    (tmp_path / "evaluation").mkdir()
    header = (
        "set,structure,patients,missed,dice_mean,dice_low,surface_dice_mean,hd95_mm_median,"
        "dice_between_ends_mean,above_mm_sd,below_mm_sd"
    )
    rows = [
        "inside,Brainstem,18,1,0.8411,0.7001,0.6502,4.44,0.9012,9.4,4.1",
        "inside,Bone_Mandible,18,1,0.8411,0.7001,0.6502,4.44,0.8500,1.5,1.1",
        "plausible,Brainstem,27,2,0.1,0.1,0.1,99,0.2,1,1",
    ]
    (tmp_path / "evaluation" / "summary.csv").write_text("\n".join([header, *rows]) + "\n")
    text = write_card(tmp_path, config()).read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| Brainstem |")]
    assert "| 18 | 1 | 0.841 | 0.700 | 0.650 | 4.4 | 0.84 |" in row
    (unjudged,) = [line for line in text.splitlines() if line.startswith("| SpinalCord |")]
    assert "not judged" in unjudged
    (ends,) = [one for one in text.replace("\n  ", " ").splitlines() if "ends are the least certain" in one]
    assert "Brainstem (Dice 0.84, and 0.90 over" in ends
    assert "9 mm above and 4 mm below" in ends
    assert "Bone_Mandible" not in ends


def test_the_card_keeps_the_attributions_and_says_that_it_is_no_medical_device() -> None:
    described = read_package(SHIPPED).description
    text = card(described, config(), {})
    assert "not a medical device" in text
    assert described.sha256 in text
    for attribution in described.attributions:
        assert attribution in text


def test_the_shipped_card_is_what_its_package_and_evaluation_give(tmp_path: Path) -> None:
    shipped = (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
    copy = tmp_path / SHIPPED.name
    shutil.copytree(SHIPPED, copy)
    training = read_config(SHIPPED.parents[1] / "configs" / f"{SHIPPED.name}.yaml")
    assert write_card(copy, training).read_text(encoding="utf-8") == shipped
