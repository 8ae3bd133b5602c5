"""A clinic's names and colours: what becomes of each structure, and which templates are refused where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node.errors import ConfigurationError
from dicom_node.profiles import Profile
from dicom_node.structure_template import Appearance, Template, appearance, problems, read_template
from tests.organs import structure

BRAINSTEM, CORD = structure("Brainstem", 1), structure("SpinalCord", 2)
COLOR = BRAINSTEM.color


@pytest.mark.parametrize(
    ("entry", "profile", "seen"),
    [
        ({}, {}, Appearance("Brainstem", COLOR)),
        ({"name": "Hirnstamm"}, {}, Appearance("Hirnstamm", COLOR)),
        ({"color": [1, 2, 3]}, {}, Appearance("Brainstem", (1, 2, 3))),
        ({"leave_out": True}, {}, None),
        ({}, {"name_case": "upper"}, Appearance("BRAINSTEM", COLOR)),
        ({}, {"name_case": "lower"}, Appearance("brainstem", COLOR)),
        ({"name": "Stamm"}, {"name_prefix": "AN_", "name_case": "upper"}, Appearance("AN_STAMM", COLOR)),
    ],
)
def test_what_becomes_of_a_structure(entry: Any, profile: Any, seen: Appearance | None) -> None:
    template = Template.model_validate({"structures": {"Brainstem": entry}})
    assert appearance(BRAINSTEM, template, Profile(**profile)) == seen


@pytest.mark.parametrize(
    ("written", "profile", "problem"),
    [
        ({"Liver": {}}, {}, "structures.Liver: the model draws no such structure"),
        ({"Brainstem": {"name": "spinalcord"}}, {}, "the same as that of"),
        ({"Brainstem": {"name": "B" * 17}}, {}, "structures.Brainstem.name: 'BBBBBBBBBBBBBBBBB' has 17"),
        ({}, {"name_prefix": "DRAFT_", "name_length": 12}, "'DRAFT_Brainstem' has 15 characters"),
        ({"Brainstem": {"leave_out": True}, "SpinalCord": {"leave_out": True}}, {}, "every structure"),
    ],
)
def test_what_does_not_fit_model_and_destination_is_named_with_its_path(
    written: Any, profile: Any, problem: str
) -> None:
    template = Template.model_validate({"structures": written})
    found = list(problems((BRAINSTEM, CORD), template, Profile(**profile)))
    assert any(problem in line for line in found), found


def test_names_that_differ_only_where_one_is_left_out_are_no_problem() -> None:
    template = Template.model_validate(
        {"structures": {"Brainstem": {"name": "SpinalCord"}, "SpinalCord": {"leave_out": True}}}
    )
    assert list(problems((BRAINSTEM, CORD), template, Profile())) == []


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"structures": {"Brainstem": {"color": [0, 0, 256]}}}, "structures.Brainstem.color.2"),
        ({"structures": {"Brainstem": {"color": "red"}}}, "structures.Brainstem.color"),
        ({"structures": {"Brainstem": {"name": ""}}}, "structures.Brainstem.name"),
        ({"structures": {"Brainstem": {"name": "Myélon"}}}, "structures.Brainstem.name"),
        ({"structures": {"Brainstem": {"name": "a\\b"}}}, "structures.Brainstem.name"),
        ({"structures": {"Brainstem": {"colour": [1, 2, 3]}}}, "structures.Brainstem.colour"),
        ({"organs": {}}, "organs"),
        (["Brainstem"], "the whole file"),
    ],
)
def test_a_bad_template_is_refused_at_its_path(tmp_path: Path, written: Any, place: str) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(yaml.safe_dump(written))
    with pytest.raises(ConfigurationError) as refused:
        read_template(path)
    assert any(line.startswith(f"{path}: {place}: ") for line in refused.value.problems)


def test_an_empty_template_changes_nothing_and_a_missing_or_broken_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_template(path)
    path.write_text("")
    assert read_template(path) == Template()
    path.write_text("structures: [")
    with pytest.raises(ConfigurationError, match="is no YAML"):
        read_template(path)
