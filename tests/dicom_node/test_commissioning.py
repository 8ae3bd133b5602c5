"""The commissioning finds what is wrong with an installation, and what has changed since it was signed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from dicom_node import commissioning, rt_struct_check
from dicom_node.acquisitions import ACQUISITIONS
from dicom_node.check import against_baseline
from dicom_node.commissioned import CONFIGURATION, THE_SAME, settings_of
from dicom_node.commissioned import MODEL as MODEL_SHA256
from dicom_node.commissioning_report import (
    Baseline,
    BaselineError,
    Commissioning,
    Figure,
    Point,
    as_json,
    as_markdown,
    drifts,
    read_baseline,
)
from dicom_node.config import Config
from dicom_node.database import open_engine, reading
from dicom_node.schema import Constancy
from inference.volume import PlaneStack
from models.card import PACKAGES, read_package
from tests.organs import options
from tests.tools import run

MODEL = read_package(PACKAGES / "anatomynet-hn").description
FACTS = dict.fromkeys(THE_SAME, "x")
OPTIONS = replace(options(), model=MODEL)


def write_config(folder: Path, approved: str) -> Path:
    config = {
        "peers": [],
        "destinations": [],
        "storage": {"folder": str(folder / "storage")},
        "inference": {"device": "cpu", "allow_cpu": True, "threads": 1},
        "model": {"approved_sha256": approved},
        "hash_key": "0123456789abcdef",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def baseline_of(folder: Path, *points: Point) -> Baseline:
    made = Commissioning(datetime(2026, 1, 1, tzinfo=UTC), FACTS, points)
    (folder / "baseline.json").write_text(json.dumps(as_json(made)))
    return read_baseline(folder / "baseline.json")


def command(config: Path, output: Path, *more: object) -> tuple[int, str]:
    words = [sys.executable, "-m", "dicom_node", "commission", "--config", config, "--output", output]
    done = run([*words, *more], timeout_s=300)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration, and the JSON of its commissioning."""
    folder = tmp_path_factory.mktemp("commissioned")
    config = write_config(folder, MODEL.sha256)
    status, told = command(config, folder / "report")
    assert (status, "all points hold" in told) == (0, True), told
    (report,) = (folder / "report").glob("*.json")
    return config, report


def test_a_sound_installation_passes_and_its_page_names_what_was_commissioned(
    baseline: tuple[Path, Path],
) -> None:
    page = baseline[1].with_suffix(".md").read_text()
    assert MODEL.sha256 in page
    assert "not a medical device" in page
    assert "Signature:" in page
    assert all(f"| geometry, {one.name} | yes |" in page for one in ACQUISITIONS)
    assert "| a water phantom is refused | yes |" in page
    assert "| a Catphan-like phantom is refused | yes |" in page
    report = json.loads(baseline[1].read_text())
    assert report["holds"]
    figures = {figure["name"] for point in report["points"] for figure in point["figures"]}
    assert {f"{one.name}, volume" for one in MODEL.structures} <= figures


def test_the_same_installation_has_not_drifted_and_a_changed_one_says_what_has(
    baseline: tuple[Path, Path], tmp_path: Path
) -> None:
    config, report = baseline
    told = json.loads(report.read_text())
    (drawn,) = [point for point in told["points"] if point["name"] == "the network draws the phantom"]
    drawn["figures"][0]["value"] += 1.0
    told["facts"]["model sha256"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(told))
    status, said = command(config, tmp_path / "again", "--compare", other)
    drifted = [line for line in said.splitlines() if line.startswith("DRIFT")]
    assert status == 1
    assert len(drifted) == 2
    assert f"model sha256 was {'0' * 64} and is {MODEL.sha256}" in drifted[0]
    assert f"{MODEL.structures[0].name}, volume was" in drifted[1]
    with reading(open_engine(baseline[0].parent / "storage" / "anatomynode.sqlite")) as session:
        recorded = session.get_one(Constancy, 1)
        assert (recorded.failed_points, recorded.drifts) == (0, 2)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"facts": {}, "points": 3}',
        '{"facts": {}, "points": [{"name": "x"}]}',
        '{"facts": {}, "points": [{"name": "x", "figures": [{"name": "y", "value": "far"}]}]}',
    ],
)
def test_a_baseline_that_is_none_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text(content)
    with pytest.raises(BaselineError, match=r"none\.json: is no report of `anatomynode commission`"):
        read_baseline(tmp_path / "none.json")


def test_a_wrong_configuration_is_not_a_failed_point(tmp_path: Path) -> None:
    config = write_config(tmp_path, "0" * 64)
    config.write_text(config.read_text() + "nonsense: 1\n")
    status, told = command(config, tmp_path / "report")
    assert (status, "nonsense" in told) == (78, True)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("acquisition", ACQUISITIONS, ids=lambda one: one.name)
def test_contours_beside_their_body_are_found_out(monkeypatch: pytest.MonkeyPatch, acquisition) -> None:
    straight = PlaneStack.plane_points_mm
    monkeypatch.setattr(PlaneStack, "plane_points_mm", lambda *given: straight(*given) + 0.4)
    monkeypatch.setattr(rt_struct_check, "check", lambda *given: None)  # which would find it first
    point = commissioning._geometry(acquisition, OPTIONS)
    assert not point.holds
    assert {figure.name for figure in point.figures if not figure.holds} >= {
        "furthest from the ball's surface"
    }


@pytest.mark.parametrize("mode", ["smooth", "voxel"])
def test_each_contour_mode_keeps_its_own_limits(mode: str) -> None:
    for acquisition in ACQUISITIONS:
        point = commissioning._geometry(acquisition, replace(OPTIONS, contour_mode=mode))
        assert point.holds, (acquisition.name, point)


@pytest.mark.parametrize("mode", ["smooth", "voxel"])
def test_a_reader_that_is_not_ours_finds_the_ball_where_it_is_and_not_where_it_is_not(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = replace(OPTIONS, contour_mode=mode)
    point = commissioning._other_reader(given, tmp_path)
    assert point.holds, point
    straight = PlaneStack.plane_points_mm
    monkeypatch.setattr(PlaneStack, "plane_points_mm", lambda *these: straight(*these) + 1.2)
    monkeypatch.setattr(rt_struct_check, "check", lambda *these: None)  # which would find it first
    (tmp_path / "beside").mkdir()
    assert not commissioning._other_reader(given, tmp_path / "beside").holds


@pytest.mark.parametrize(
    ("value", "drifted"), [(10.19, False), (9.81, False), (9.7, True), (10.3, True), (float("nan"), True)]
)
def test_figures_may_move_by_their_drift_and_no_further(value: float, drifted: bool, tmp_path: Path) -> None:
    figure = Figure("volume", 10.0, "cm3", drift=0.2)
    known = baseline_of(tmp_path, Point("phantom", "seen", (figure,)))
    told = list(drifts(FACTS, {}, [Point("phantom", "", (replace(figure, value=value),))], known))
    assert [line.split(" cm3")[0] for line in told] == (
        [f"phantom: volume was 10.0 and is {value:.3f}"] if drifted else []
    )


def test_a_point_that_has_come_or_gone_is_drift(tmp_path: Path) -> None:
    known = baseline_of(tmp_path, Point("one", ""), Point("two", ""))
    assert list(drifts(FACTS, {}, [Point("two", ""), Point("three", "")], known)) == [
        "one: the baseline has this point, this run has not",
        "three: the baseline has no such point",
    ]


def test_a_point_that_does_not_hold_is_seen_on_the_page() -> None:
    made = Commissioning(datetime(2026, 1, 1, tzinfo=UTC), FACTS, (Point("phantom", "", problem="broken"),))
    assert "| phantom | **NO** | broken |" in as_markdown(made)
    assert "NOT all points hold" in as_markdown(made)


def test_a_model_that_nobody_approved_does_not_pass(tmp_path: Path) -> None:
    config = commissioning.read_config(write_config(tmp_path, "0" * 64))
    point = commissioning._approval(config, read_package(PACKAGES / "anatomynet-hn"))
    assert not point.holds
    assert MODEL.sha256 in (point.problem or "")


def _checked(config: Config, facts: dict[str, str]) -> list[str]:
    return [found.problem or "" for found in against_baseline(config, facts)]


def test_check_tells_what_is_different_from_what_was_commissioned_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    settings = {"peers": [], "destinations": [], "hash_key": "0123456789abcdef", "model": {"baseline": path}}
    before = Config.model_validate(settings)
    made = Commissioning(datetime(2026, 1, 1, tzinfo=UTC), FACTS, (), settings=settings_of(before))
    path.write_text(json.dumps(as_json(made)))
    assert "0123456789abcdef" not in path.read_text()
    assert _checked(before, FACTS) == [""]
    assert _checked(before, {**FACTS, CONFIGURATION: "other comments"}) == [""]
    assert _checked(before, {**FACTS, MODEL_SHA256: "y"}) == [
        "since 2026-01-01T00:00:00+00:00: model sha256 was x and is y: commission anew"
    ]
    after = Config.model_validate({**settings, "series": {"min_slices": 10}, "peers": [PEER]})
    told = _checked(after, {**FACTS, CONFIGURATION: "y"})
    assert [one.partition(": ")[2] for one in told] == [
        "peers was [] and is not there: commission anew",
        'peers[0].addresses was not there and is ["127.0.0.1"]: commission anew',
        'peers[0].ae_title was not there and is "CT1": commission anew',
        "series.min_slices was 20 and is 10: commission anew",
    ]
    wrong = before.model_copy(update={"model": before.model.model_copy(update={"approved_sha256": "a" * 64})})
    assert f"model.approved_sha256 is {'a' * 64}, but x was commissioned" in _checked(wrong, FACTS)[0]
    path.write_text(json.dumps({**as_json(made), "holds": False}))
    assert "not all its points held" in _checked(before, FACTS)[0]
    path.write_text("{}")
    assert "model.baseline: " in _checked(before, FACTS)[0]
    assert _checked(Config(peers=(), destinations=()), FACTS) == [""]


PEER = {"ae_title": "CT1", "addresses": ["127.0.0.1"]}
