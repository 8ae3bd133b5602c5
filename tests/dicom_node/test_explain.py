"""A person sees which rule a series meets and why, before anything is sent, and without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node.config import Config
from dicom_node.explain import explain
from tests.node_fixtures import configuration, write_package
from tests.phantoms import Phantom, write
from tests.tools import ROOT

PHANTOM = Phantom(overrides={"SeriesDescription": "H/N soft", "SliceThickness": 3})
BONE = PHANTOM.but(series="2", overrides={"SeriesDescription": "H/N bone", "SliceThickness": 3})
RULES = [
    {"name": "bone", "when": {"series_description": "*bone*"}, "ignore": "for radiologists"},
    {
        "name": "thick",
        "when": {"calling_ae_title": "CT1", "slice_thickness_mm": {"min": 2.5}},
        "results": [{"destinations": ["pacs"]}],
        "priority": 7,
    },
    {"name": "rest"},
]


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return configuration(
        tmp_path,
        write_package(tmp_path / "packages"),
        peers=[{"ae_title": "CT1", "addresses": ["127.0.0.1"]}],
        routing=RULES,
    )


def explained(folder: Path, settings: Config, calling: str | None = "CT1") -> dict[str, Any]:
    """By the series' UIDs."""
    told = explain(folder, settings, calling, None).as_json()
    return {one["series_instance_uid"].rpartition(".")[2]: one for one in told["series"]}


def test_each_rule_says_what_it_asked_for_and_saw_and_the_first_that_is_met_decides(
    tmp_path: Path, settings: Config
) -> None:
    write(PHANTOM, tmp_path / "ct")

    (told,) = explain(tmp_path / "ct", settings, "CT1", None).as_json()["series"]

    assert (told["rule"], told["priority"], told["refused"]) == ("thick", 7, None)
    assert told["rules"][0]["conditions"] == [
        {"condition": "series_description", "asks": "*bone*", "saw": "H/N soft", "met": False}
    ]
    assert [one["met"] for one in told["rules"]] == [False, True]
    assert told["rules"][1]["conditions"][1]["asks"] == "at least 2.5 mm"
    ((result),) = told["results"]
    assert (result["model"]["package"], result["model"]["approved"]) == ("test-model", True)
    assert (result["template"], result["destinations"], result["instead"]) == (None, ["pacs"], None)


def test_who_sends_it_decides_and_a_stranger_would_not_be_let_in(tmp_path: Path, settings: Config) -> None:
    write(PHANTOM, tmp_path / "ct")

    by_nobody = explain(tmp_path / "ct", settings, None, None).as_json()
    by_a_stranger = explain(tmp_path / "ct", settings, "CT9", None).as_json()

    assert [one["series"][0]["rule"] for one in (by_nobody, by_a_stranger)] == ["rest", "rest"]
    assert [one["is_let_in"] for one in (by_nobody, by_a_stranger)] == [True, False]


def test_what_would_be_refused_or_give_way_to_another_reconstruction_is_told(
    tmp_path: Path, settings: Config
) -> None:
    write(PHANTOM.but(series="3", overrides={"ConvolutionKernel": "BONE"}), tmp_path / "ct")
    write(PHANTOM, tmp_path / "ct")
    gap = tuple(mm for mm in PHANTOM.offsets_mm if mm != 30.0)
    write(
        PHANTOM.but(series="4", study="1", offsets_mm=gap, orientation=PHANTOM.orientation), tmp_path / "ct"
    )

    told = explain(tmp_path / "ct", settings, "CT1", None)

    by_rule = {one.series_instance_uid: one for one in told.series}
    assert [one.refused.code for one in by_rule.values() if one.refused] == ["missing_slice"]
    assert sum(one.instead != (None,) for one in by_rule.values()) == 2
    assert "another reconstruction of the scan is contoured instead" in told.in_words()


def test_the_command_tells_in_words_and_json_and_loads_no_runtime(tmp_path: Path, settings: Config) -> None:
    write(BONE, tmp_path / "ct")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(json.loads(settings.model_dump_json(exclude_unset=True))))
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from dicom_node import cli\n"
            "try:\n    cli.app()\nfinally:\n    print('onnxruntime' in sys.modules, file=sys.stderr)",
            "explain",
            str(tmp_path / "ct"),
            "--config",
            str(config),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert told.returncode == 0, told.stderr
    assert "rule 1, bone: met" in told.stdout
    assert "yes series_description: asks for *bone*, saw 'H/N bone'" in told.stdout
    assert "=> IGNORED: for radiologists" in told.stdout
    assert told.stderr.strip().endswith("False")
