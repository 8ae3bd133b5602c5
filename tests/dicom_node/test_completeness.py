"""A series is complete by evidence, whatever the order and the ways in which its slices come."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import completeness
from dicom_node.completeness import AssociationFacts, Geometry, SeriesFacts
from dicom_node.config import SeriesRules

RULES = SeriesRules(grace_s=2.0, quiet_period_s=30.0, min_slices=20)
SLICES = 40


def geometry(number: int) -> Geometry:
    return {
        "ImagePositionPatient": [-250.0, -250.0, 2.5 * number],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "Rows": 512,
        "Columns": 512,
    }


@dataclass(frozen=True)
class Brought:
    """Slices that one association brought, one every 0.1 s, and how it ended."""

    slices: Sequence[int]
    outcome: str | None = "released"
    begun_at: float = 0.0

    @property
    def last_at(self) -> float:
        return self.begun_at + 0.1 * len(self.slices)


def facts(*brought: Brought) -> SeriesFacts:
    here = sorted({number for one in brought for number in one.slices})
    random.Random(7).shuffle(here)
    return SeriesFacts(
        instances=len(here),
        last_arrival_at=max(one.last_at for one in brought),
        associations=tuple(
            AssociationFacts(
                id=index,
                calling_ae_title="SCANNER",
                instances=len(set(one.slices)),
                ended_at=one.last_at if one.outcome else None,
                outcome=one.outcome,
            )
            for index, one in enumerate(brought)
        ),
        geometries=tuple(geometry(number) for number in here),
    )


ALL = range(SLICES)
SHUFFLED = random.Random(3).sample(ALL, SLICES)

SCENARIOS: dict[str, tuple[tuple[Brought, ...], str, float]] = {
    # what came -> by which evidence it is complete, and when
    "in order": ((Brought(ALL),), "association", 4.0 + 2.0),
    "shuffled": ((Brought(SHUFFLED),), "association", 4.0 + 2.0),
    "duplicated": ((Brought([*ALL, *ALL]),), "association", 8.0 + 2.0),
    "still open": ((Brought(ALL, None),), "quiet", 4.0 + 30.0),
    "aborted": ((Brought(ALL, "aborted"),), "quiet", 4.0 + 30.0),
    "aborted half-way": ((Brought(ALL[:20], "aborted"),), "quiet", 2.0 + 30.0),
    "lost": ((Brought(ALL, "lost"),), "quiet", 4.0 + 30.0),
    "resumed with the rest": (
        (Brought(ALL[:20], "aborted"), Brought(ALL[20:], begun_at=10.0)),
        "quiet",
        12.0 + 30.0,
    ),
    "resumed with all": (
        (Brought(ALL[:20], "aborted"), Brought(ALL, begun_at=10.0)),
        "association",
        14.0 + 2.0,
    ),
    "split over two": ((Brought(ALL[:20]), Brought(ALL[20:], begun_at=2.0)), "quiet", 4.0 + 30.0),
    "interleaved": ((Brought(ALL[::2]), Brought(ALL[1::2])), "quiet", 2.0 + 30.0),
    "one association a slice": (
        tuple(Brought([number], begun_at=float(number)) for number in ALL),
        "quiet",
        39.1 + 30.0,
    ),
    "too few for a planning CT": ((Brought(ALL[:19]),), "quiet", 1.9 + 30.0),
    "just enough": ((Brought(ALL[:20]),), "association", 2.0 + 2.0),
    "a slice missing": ((Brought([*ALL[:9], *ALL[10:]]),), "quiet", 3.9 + 30.0),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_way_of_arriving_is_complete_by_its_evidence_at_its_time(name: str) -> None:
    brought, kind, at = SCENARIOS[name]
    known = facts(*brought)
    before = completeness.judge(known, RULES, at - 0.01)
    assert before.evidence is None
    assert before.look_again_at == pytest.approx(at)
    evidence = completeness.judge(known, RULES, at + 1e-6).evidence
    assert evidence is not None
    assert evidence["kind"] == kind
    assert evidence["instances"] == known.instances
    assert str(known.instances) in completeness.in_words(evidence)


def test_a_count_that_agrees_is_evidence_and_one_that_does_not_is_none() -> None:
    half = facts(Brought(ALL[:20], "aborted"))
    agreeing, other = replace(half, peer_count=20), replace(half, peer_count=40)
    assert (completeness.judge(agreeing, RULES, 4.1).evidence or {})["kind"] == "query"
    assert completeness.judge(agreeing, RULES, 3.9).evidence is None  # the peer may still receive
    assert completeness.judge(other, RULES, 4.1).evidence is None
    assert (completeness.judge(other, RULES, 33.0).evidence or {})["kind"] == "quiet"


def test_an_association_still_open_may_bring_more_even_where_another_brought_all() -> None:
    known = facts(Brought(ALL), Brought(ALL[:5], None))
    assert completeness.judge(known, RULES, 20.0).evidence is None


def test_a_repeated_push_is_over_by_association_or_quiet_and_needs_no_stack() -> None:
    whole = replace(facts(Brought(ALL, begun_at=100.0)), geometries=())
    assert completeness.judge_again(whole, RULES, 105.9).evidence is None
    assert (completeness.judge_again(whole, RULES, 106.1).evidence or {})["kind"] == "association"
    part = replace(facts(Brought(ALL[:5], begun_at=100.0)), instances=SLICES, geometries=())
    assert completeness.judge_again(part, RULES, 110.0).evidence is None
    assert (completeness.judge_again(part, RULES, 130.6).evidence or {})["kind"] == "quiet"


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [0.0, 0.0]},
        {"ImagePositionPatient": [0.0, 0.0, float("nan")]},
        {"ImagePositionPatient": ["a", "b", "c"]},
        {"ImagePositionPatient": [-250.0, -250.0, 2.5]},
        {"ImageOrientationPatient": [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]},
        {"Rows": 256},
    ],
)
def test_what_is_no_stack_waits_for_quiet(broken: Geometry) -> None:
    known = facts(Brought(ALL))
    odd = {**geometry(7), **broken} if broken else {}
    known = replace(known, geometries=(*known.geometries[:-1], odd))
    if broken == {"ImagePositionPatient": [-250.0, -250.0, 2.5]}:  # where slice 1 is already
        known = replace(known, geometries=(*(geometry(n) for n in ALL[:-1]), odd))
    assert completeness.judge(known, RULES, 20.0).evidence is None
    assert (completeness.judge(known, RULES, 34.1).evidence or {})["kind"] == "quiet"


@given(
    cuts=st.lists(st.integers(0, SLICES), max_size=4),
    outcomes=st.lists(st.sampled_from(["released", "aborted", "lost", None]), min_size=5, max_size=5),
    now=st.floats(0, 200),
)
def test_every_series_ends_and_never_before_its_grace(
    cuts: list[int], outcomes: list[str | None], now: float
) -> None:
    edges = [0, *sorted(cuts), SLICES]
    parts = [ALL[a:b] for a, b in itertools.pairwise(edges)]
    known = facts(*(Brought(part, outcome) for part, outcome in zip(parts, outcomes, strict=False) if part))
    verdict = completeness.judge(known, RULES, now)
    if now >= known.last_arrival_at + RULES.quiet_period_s:
        assert verdict.evidence is not None
    elif verdict.evidence is None:
        assert now < verdict.look_again_at <= known.last_arrival_at + RULES.quiet_period_s
    else:
        assert now >= known.last_arrival_at + RULES.grace_s
        assert [a.outcome for a in known.associations if a.instances == SLICES] == ["released"]
