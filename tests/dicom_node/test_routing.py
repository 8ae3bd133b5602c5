"""The first rule that a series meets decides, and each decision says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dicom_node import routing
from dicom_node.config import Config
from dicom_node.routing import Conditions, Facts, Rule, decide

FACTS = Facts(
    calling_ae_titles=("CT1", "PACS"),
    called_ae_titles=("ANATOMYNODE",),
    texts={
        "protocol_name": "RT Head Neck",
        "body_part_examined": "HEADNECK",
        "study_description": "",
        "series_description": "H/N 2.0 Hr38 ax",
        "convolution_kernel": "Hr38f 3",
        "manufacturer": "SIEMENS",
    },
    slice_thickness_mm=2.0,
)
IGNORED = {"name": "no", "ignore": "not a planning CT", "when": {"manufacturer": "*"}}
PEERS = [{"ae_title": title, "addresses": ["127.0.0.1"]} for title in ("CT1", "CT2", "PACS")]


def destination(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "host": "127.0.0.1", "port": 1, "ae_title": "X", **more}


def config(*rules: dict[str, Any], destinations: Any = None, **more: Any) -> Config:
    known = [destination("pacs"), destination("tps")] if destinations is None else destinations
    return Config.model_validate(
        {"peers": PEERS, "destinations": known, "routing": list(rules), **more},
    )


def wanted(settings: Config, facts: Facts = FACTS) -> list[tuple[str, str | None, tuple[str, ...]]]:
    made = decide(settings.routing, facts, settings.model.package, settings.destinations).wanted
    return [(one.model, str(one.template) if one.template else None, one.destinations) for one in made]


@pytest.mark.parametrize(
    ("when", "met"),
    [
        ({}, True),
        ({"calling_ae_title": "CT1"}, True),
        ({"calling_ae_title": ["CT2", "PAC?"]}, True),
        ({"calling_ae_title": "ct1"}, False),
        ({"calling_ae_title": "CT2"}, False),
        ({"called_ae_title": "ANATOMY*"}, True),
        ({"called_ae_title": "RESEARCH"}, False),
        ({"protocol_name": "rt *"}, True),
        ({"protocol_name": "rt"}, False),
        ({"series_description": ["*bone*", "H/N*"]}, True),
        ({"convolution_kernel": "hr[34]*"}, True),
        ({"study_description": "*"}, False),
        ({"station_name": "*"}, False),
        ({"manufacturer": "siemens", "body_part_examined": "HEAD*"}, True),
        ({"manufacturer": "siemens", "body_part_examined": "CHEST"}, False),
        ({"slice_thickness_mm": {"min": 2.0}}, True),
        ({"slice_thickness_mm": {"max": 2.0}}, True),
        ({"slice_thickness_mm": {"min": 2.5, "max": 5}}, False),
    ],
)
def test_a_rule_is_met_where_each_of_its_conditions_is_by_any_of_its_patterns(
    when: dict[str, Any], met: bool
) -> None:
    rules = [Rule.model_validate({"name": "first", "when": when}), Rule(name="rest")]

    assert (decide(rules, FACTS, "model", []).rule is rules[0]) is met


@pytest.mark.parametrize("when", [{"slice_thickness_mm": {"min": 0}}, {"protocol_name": "*"}])
def test_what_the_series_does_not_state_meets_no_condition(when: dict[str, Any]) -> None:
    rules = [Rule.model_validate({"name": "first", "when": when}), Rule(name="rest")]

    assert decide(rules, replace(FACTS, texts={}, slice_thickness_mm=None), "model", []).rule is rules[1]


@given(st.lists(st.booleans(), max_size=6))
def test_the_first_rule_that_is_met_decides_and_each_one_before_it_says_what_it_saw(met: list[bool]) -> None:
    rules = [
        Rule(name=f"r{index}", when=Conditions(manufacturer=("SIEMENS" if hit else "GE",)))
        for index, hit in enumerate(met)
    ] + [Rule(name="rest")]

    decision = decide(rules, FACTS, "model", [])

    first = met.index(True) if True in met else len(met)
    assert decision.rule is rules[first]
    assert [one.met for one in decision.judged] == [*[False] * first, True]
    for judged in decision.judged[:first]:
        (condition,) = judged.conditions
        assert (condition.condition, condition.asks, condition.saw) == ("manufacturer", "GE", "SIEMENS")


def test_without_rules_the_default_model_goes_to_every_destination() -> None:
    assert wanted(config()) == [("anatomynet-hn", None, ("pacs", "tps"))]


def test_a_rule_may_ask_for_several_results_each_with_its_model_template_and_destinations() -> None:
    settings = config(
        {
            "name": "both",
            "results": [
                {"template": "a.yaml", "destinations": ["tps"]},
                {"model": "other", "template": "b.yaml"},
            ],
        }
    )

    assert wanted(settings) == [
        ("anatomynet-hn", "a.yaml", ("tps",)),
        ("other", "b.yaml", ("pacs", "tps")),
    ]


def test_a_rule_that_ignores_asks_for_nothing_and_says_why() -> None:
    settings = config(
        {"name": "no", "ignore": "not a planning CT", "when": {"manufacturer": "*"}}, {"name": "rest"}
    )

    decision = decide(settings.routing, FACTS, "model", settings.destinations)

    assert (decision.ignore, decision.wanted) == ("not a planning CT", ())


@pytest.mark.parametrize(
    ("senders", "expected"),
    [
        (("CT1",), ("pacs", "ct1")),
        (("CT2",), ("pacs", "ct2")),
        (("CT1", "CT2"), ("pacs", "ct1", "ct2")),
        (("PACS",), ("pacs",)),
    ],
)
@pytest.mark.parametrize("named", [None, ["pacs", "return_to_sender"], ["pacs", "ct1", "ct2"]])
def test_what_returns_to_the_sender_goes_to_each_one_that_sent_it_and_to_no_other(
    named: list[str] | None, senders: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    known = [
        destination("pacs"),
        destination("ct1", senders=["CT1"]),
        destination("ct2", senders=["CT2"]),
    ]
    settings = config({"name": "all", "results": [{"destinations": named}]}, destinations=known)

    ((_, _, names),) = wanted(settings, replace(FACTS, calling_ae_titles=senders))

    assert names == expected


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            [{"name": "a"}, {"name": "b", "when": {"manufacturer": "x"}}],
            "routing[1]: never met, since routing[0]",
        ),
        (
            [
                {"name": "a", "when": {"manufacturer": "x"}},
                {"name": "b", "when": {"manufacturer": ["x"]}},
                {"name": "c"},
            ],
            "routing[1]: never met, since rule 'a' has the same conditions",
        ),
        ([{"name": "a", "when": {"manufacturer": "x"}}], "the last rule must have no conditions"),
        ([{"name": "a", "when": {"manufacturer": "x"}}, {"name": "a"}], "two rules are called 'a'"),
        (
            [{"name": "a", "when": {"calling_ae_title": "CT9"}}, {"name": "b"}],
            "routing[0].when.calling_ae_title: 'CT9' fits none",
        ),
        (
            [{"name": "a", "when": {"called_ae_title": "RESEARCH"}}, {"name": "b"}],
            "routing[0].when.called_ae_title: 'RESEARCH' fits none",
        ),
        (
            [{"name": "a", "results": [{}, {"destinations": ["moon"]}]}],
            "routing[0].results[1].destinations: there is no destination 'moon'",
        ),
        (
            [{"name": "a", "results": [{"destinations": ["pacs"]}, {"destinations": ["tps"]}]}],
            "routing[0].results: two have the same model and template",
        ),
        (
            [{"name": "a", "results": [{"destinations": ["return_to_sender"]}]}],
            "routing[0].results[0]: what is made of series from CT1, CT2, PACS would go nowhere",
        ),
    ],
)
def test_rules_that_cannot_be_meant_are_problems_that_name_their_path(
    rules: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        config(*rules)

    assert words in str(refused.value)


def test_a_way_back_to_somebody_who_is_not_let_in_is_a_problem() -> None:
    known = [destination("pacs"), destination("console", senders=["CT9"])]

    with pytest.raises(ValidationError, match=r"destinations\[1\]\.senders: no peer has the AE title 'CT9'"):
        config(destinations=known)


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "A B"},
        {"name": "a", "colour": "blue"},
        {"name": "a", "when": {"patient_name": "*"}},
        {"name": "a", "when": {"slice_thickness_mm": {}}},
        {"name": "a", "when": {"slice_thickness_mm": {"min": 3, "max": 2}}},
        {"name": "a", "ignore": "why", "results": [{}]},
        {"name": "a", "ignore": "why", "priority": 3},
        {"name": "a", "results": []},
        {"name": "a", "priority": 101},
    ],
)
def test_a_rule_that_says_nothing_or_two_things_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate(rule)


def test_the_paths_of_results_are_those_of_the_configuration() -> None:
    settings = config(
        {"name": "no", "ignore": "no", "when": {"manufacturer": "*"}},
        {"name": "rest", "results": [{"template": Path("a.yaml")}, {}]},
    )

    assert [path for path, _ in routing.choices(settings.routing)] == [
        "routing[1].results[0]",
        "routing[1].results[1]",
    ]
