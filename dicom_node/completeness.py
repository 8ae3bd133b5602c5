"""Whether a series is complete, and by which evidence.

Owns the three rules: one released association with a gapless stack, a count that agrees, or quiet.
Speaks values in, a verdict out; positions in LPS millimetres, times in UTC epoch seconds.
Never looks at a clock, a database or the network, and never takes an aborted association for a whole series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicom_node.config import SeriesRules
from dicom_node.stack import GapReport, gap_report

RELEASED = "released"
_SAME_DIRECTION = 1e-4

Geometry = Mapping[str, Any]
"""`Instance.geometry`: DICOM keywords and their values, as far as the instance has them."""


@dataclass(frozen=True)
class AssociationFacts:
    """What one association brought of a series.

    Attributes:
        instances: how many different instances of the series; resent ones count.
        ended_at: None while it is open.
        outcome: None while it is open, else `released`, `aborted` or `lost`.
    """

    id: int
    calling_ae_title: str
    instances: int
    ended_at: float | None
    outcome: str | None


@dataclass(frozen=True)
class SeriesFacts:
    """What is known of a series' arrival.

    Attributes:
        instances: how many different ones are here.
        last_arrival_at: of any instance, new or resent.
        associations: those that brought something of it.
        geometries: one an instance.
        peer_count: how many the source has by C-FIND; None where it was not asked or does not know.
    """

    instances: int
    last_arrival_at: float
    associations: tuple[AssociationFacts, ...]
    geometries: tuple[Geometry, ...] = ()
    peer_count: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Complete by this evidence, or not yet.

    Attributes:
        evidence: None while it is not complete; else `kind` and the numbers, kept with the series.
        look_again_at: when time alone may change the verdict; infinite once there is evidence.
    """

    evidence: Mapping[str, Any] | None
    look_again_at: float = math.inf


def judge(facts: SeriesFacts, rules: SeriesRules, now: float) -> Verdict:
    """Whether a series that is being received is complete, by the best evidence there is."""
    candidates = [_by_quiet(facts, rules)]
    whole = _association_with_all(facts)
    if whole is not None and facts.instances >= rules.min_slices:
        stack = stack_of(facts.geometries)
        if stack is not None and stack.is_gapless:
            candidates.append(_by_association(whole, facts, rules, stack))
    if facts.peer_count == facts.instances:
        candidates.append(_by_count(facts, rules))
    return _earliest(candidates, now)


def judge_again(facts: SeriesFacts, rules: SeriesRules, now: float) -> Verdict:
    """Whether a repeated push of a series that has come to its end is over.

    Args:
        facts: of what came after the end only; `instances` and the stack are known already.
        rules: grace and quiet period.
        now: UTC epoch seconds.
    """
    candidates = [_by_quiet(facts, rules)]
    whole = _association_with_all(facts)
    if whole is not None:
        candidates.append(_by_association(whole, facts, rules, None))
    return _earliest(candidates, now)


def stack_of(geometries: Sequence[Geometry]) -> GapReport | None:
    """The stack that the instances form; None where some have no usable position or they are not parallel."""
    first = geometries[0] if geometries else {}
    orientation = _numbers(first.get("ImageOrientationPatient"), 6)
    positions = [_numbers(geometry.get("ImagePositionPatient"), 3) for geometry in geometries]
    if orientation is None or not all(_is_alike(geometry, first, orientation) for geometry in geometries):
        return None
    known = [position for position in positions if position is not None]
    return gap_report(known, orientation) if len(known) == len(positions) else None


def in_words(evidence: Mapping[str, Any]) -> str:
    """The evidence as a sentence for a person."""
    instances = evidence["instances"]
    if evidence["kind"] == "association":
        stack = f", a gapless stack of {evidence['extent_mm']:.1f} mm" if "extent_mm" in evidence else ""
        return (
            f"one association from {evidence['calling_ae_title']} brought all {instances} slices{stack} "
            f"and was released; nothing more came for {evidence['grace_s']:g} s"
        )
    if evidence["kind"] == "query":
        return f"all {instances} slices that the source counts (C-FIND) are here"
    unfinished = evidence["not_released"]
    doubt = f", {unfinished} of them not released" if unfinished else ""
    return (
        f"nothing came for {evidence['quiet_s']:g} s; {instances} slices over "
        f"{evidence['associations']} association(s){doubt}"
    )


def _association_with_all(facts: SeriesFacts) -> AssociationFacts | None:
    """A released association that brought every instance, unless another one may still bring more."""
    if any(association.outcome is None for association in facts.associations):
        return None
    whole = [
        association
        for association in facts.associations
        if association.outcome == RELEASED and association.instances >= facts.instances
    ]
    return whole[-1] if whole else None


def _by_association(
    whole: AssociationFacts, facts: SeriesFacts, rules: SeriesRules, stack: GapReport | None
) -> tuple[float, Mapping[str, Any]]:
    assert whole.ended_at is not None  # it was released
    evidence = {
        "kind": "association",
        "association": whole.id,
        "calling_ae_title": whole.calling_ae_title,
        "instances": facts.instances,
        "grace_s": rules.grace_s,
    }
    if stack is not None:
        evidence["extent_mm"] = round(stack.offsets_mm[-1] - stack.offsets_mm[0], 3)
    return max(whole.ended_at, facts.last_arrival_at) + rules.grace_s, evidence


def _by_count(facts: SeriesFacts, rules: SeriesRules) -> tuple[float, Mapping[str, Any]]:
    # The peer may itself still be receiving: what it counts must stay true for the grace.
    evidence = {"kind": "query", "instances": facts.instances, "grace_s": rules.grace_s}
    return facts.last_arrival_at + rules.grace_s, evidence


def _by_quiet(facts: SeriesFacts, rules: SeriesRules) -> tuple[float, Mapping[str, Any]]:
    evidence = {
        "kind": "quiet",
        "quiet_s": rules.quiet_period_s,
        "instances": facts.instances,
        "associations": len(facts.associations),
        "not_released": sum(association.outcome != RELEASED for association in facts.associations),
    }
    return facts.last_arrival_at + rules.quiet_period_s, evidence


def _earliest(candidates: Sequence[tuple[float, Mapping[str, Any]]], now: float) -> Verdict:
    """The strongest evidence that holds now, of candidates in rising strength, or when to look again."""
    holding = [evidence for from_then_on, evidence in candidates if from_then_on <= now]
    if holding:
        return Verdict(holding[-1])
    return Verdict(None, min(from_then_on for from_then_on, _ in candidates))


def _is_alike(geometry: Geometry, first: Geometry, orientation: Sequence[float]) -> bool:
    own = _numbers(geometry.get("ImageOrientationPatient"), 6)
    if own is None or any(abs(a - b) > _SAME_DIRECTION for a, b in zip(own, orientation, strict=True)):
        return False
    return all(geometry.get(word) == first.get(word) for word in ("Rows", "Columns"))


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers; None for anything else that a peer may have sent."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in value):
        return None
    return tuple(float(number) for number in value)
