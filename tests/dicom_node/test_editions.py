"""Editions: destinations that want the same share one, and what does not fit is told before the start."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node import check
from dicom_node.config import Config
from dicom_node.editions import Editions
from dicom_node.errors import ConfigurationError
from dicom_node.profiles import MOST_POINTS_EXPLICIT, PROFILES, Profile
from tests.node_fixtures import write_package
from tests.organs import MODEL, structure

AT = datetime(2026, 3, 1, tzinfo=UTC)
NAMED = MODEL.model_copy(update={"structures": (structure("Brainstem", 1), structure("Glnd_Submand_L", 2))})


def config(*wanted: Mapping[str, Any], **changes: Any) -> Config:
    """A node with a destination for each choice, called a, b, c."""
    destinations = [
        {"name": name, "host": "h", "port": 1, "ae_title": "A", "rt_struct": choice}
        for name, choice in zip("abcd", wanted, strict=False)
    ]
    return Config.model_validate({"peers": [], "destinations": destinations, **changes})


def test_destinations_that_want_the_same_get_the_same_and_others_their_own() -> None:
    wanted = config({}, {"profile": "eclipse"}, {"name_prefix": "AN"}, {"profile": "raystation"})
    made = Editions.read(wanted, NAMED).of_job(AT, None, {})
    assert [names for _, names in made] == [("a", "b"), ("c",), ("d",)]
    assert [options.profile for options, _ in made] == [
        Profile(),
        Profile(name_prefix="AN"),
        PROFILES["raystation"],
    ]
    assert {options.created_at for options, _ in made} == {AT}


def test_what_a_destination_has_of_an_earlier_revision_parts_the_editions() -> None:
    made = Editions.read(config({}, {}), NAMED).of_job(AT, "1.2", {"b": "1.2.3"})
    assert [(options.predecessor_sop_instance_uid, names) for options, names in made] == [
        (None, ("a",)),
        ("1.2.3", ("b",)),
    ]


def test_without_a_destination_there_is_one_plain_edition() -> None:
    ((options, names),) = Editions.read(config(), NAMED).of_job(AT, "1.2", {})
    assert (options.profile, options.predecessor_sop_instance_uid, names) == (Profile(), "1.2", ())


def test_every_knob_of_a_profile_can_be_set_for_a_destination() -> None:
    other = {
        "name_length": 20,
        "name_case": "upper",
        "name_prefix": "AN_",
        "holes": "xor",
        "points_per_contour": 500,
        "empty_structures": "include",
        "roi_type": "AVOIDANCE",
        "transfer_syntax": "explicit",
    }
    assert other.keys() == Profile.model_fields.keys()
    options = Editions.read(config({"profile": "eclipse", **other}), NAMED).by_destination["a"]
    assert options.profile == Profile.model_validate(other)
    assert all(getattr(options.profile, name) != getattr(Profile(), name) for name in other)


def test_explicit_vr_sets_a_limit_of_points_of_its_own() -> None:
    assert Profile().most_points is None
    assert Profile(points_per_contour=500).most_points == 500
    assert Profile(transfer_syntax="explicit").most_points == MOST_POINTS_EXPLICIT
    assert Profile(transfer_syntax="explicit", points_per_contour=9000).most_points == MOST_POINTS_EXPLICIT
    assert MOST_POINTS_EXPLICIT * 3 * 17 <= 65_534


def test_a_template_of_the_destination_takes_the_place_of_the_common_one(tmp_path: Path) -> None:
    for name in ("common", "own"):
        written = {"structures": {"Brainstem": {"name": name}}}
        (tmp_path / name).write_text(yaml.safe_dump(written))
    wanted = config({}, {"template": tmp_path / "own"}, rt_struct={"template": tmp_path / "common"})
    editions = Editions.read(wanted, NAMED)
    names = [
        one.appearance(NAMED.structures[0]) for one in (editions.plain, *editions.by_destination.values())
    ]
    assert [seen and seen.name for seen in names] == ["common", "common", "own"]


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (
            {"name_prefix": "DRAFT_"},
            "destinations[0].rt_struct: structures.Glnd_Submand_L.name: 'DRAFT_Glnd_",
        ),
        (
            {"structure_set_label": "{model}"},
            "destinations[0].rt_struct.structure_set_label: with this model",
        ),
        ({"template": "/no/such/file"}, "destinations[0].rt_struct.template: /no/such/file: cannot be read"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(choice: Mapping[str, Any], problem: str) -> None:
    long = NAMED.model_copy(update={"name": "anatomynet-of-the-north"})
    with pytest.raises(ConfigurationError) as refused:
        Editions.read(config(choice), long)
    assert any(line.startswith(problem) for line in refused.value.problems), refused.value.problems


def test_the_check_command_names_a_bad_template(tmp_path: Path) -> None:
    write_package(tmp_path / "packages")
    template = tmp_path / "names.yaml"
    template.write_text("structures: {Liver: {}}")
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "peers": [],
                "destinations": [],
                "storage": {"folder": str(tmp_path / "data"), "reserve_mib": 1},
                "model": {"package": "test-model", "folder": str(tmp_path / "packages")},
                "rt_struct": {"template": str(template)},
            }
        )
    )
    found = [finding for finding in check.look(path) if finding.check == "RT Structure Sets"]
    assert [finding.problem for finding in found] == [
        f"rt_struct: {template}: structures.Liver: the model draws no such structure; it draws Brainstem"
    ]
    assert found[0].fatal
