"""`anatomynode explain`: which rule a series in a folder would meet, why, and what would follow.

Owns the walk from files to a decision without contouring, and its words.
Speaks a folder and AE titles in; plain JSON values or lines of text out, with what the files say.
Never loads the network's runtime, and never sends or keeps anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from dicom_node import routing, routing_facts
from dicom_node.config import Config
from dicom_node.ct_folder import Found, Progress, look_through, no_ct, no_progress, read_series
from dicom_node.ct_slice import CtHeader, SliceRejectedError
from dicom_node.errors import SeriesRejectedError
from dicom_node.networks import Network, read_networks
from dicom_node.reconstruction import Candidate, rank
from dicom_node.routing import Decision, Judged, RuleJudged, Wanted

Slices = Sequence[tuple[Path, CtHeader | SliceRejectedError]]


@dataclass(frozen=True)
class Explained:
    """One series.

    Attributes:
        refused: why it would be rejected before the network runs; None where it would not.
        instead: of each result, the series that would be contoured in its place, and why that one.
    """

    series_instance_uid: str
    slices: int
    decision: Decision
    refused: SeriesRejectedError | None
    instead: tuple[str | None, ...]


@dataclass(frozen=True)
class Explanation:
    """What a folder's series would come to, as one sender's push.

    Attributes:
        calling: None where it was not said who sends.
        is_let_in: whether the node would take this association.
    """

    calling: str | None
    called: str
    is_let_in: bool
    series: tuple[Explained, ...]
    ignored: Mapping[str, int]
    networks: Mapping[str, Network]

    def as_json(self) -> dict[str, Any]:
        """Plain values; texts of the CT stand under `saw` of the conditions that asked for them."""
        return {
            "calling_ae_title": self.calling,
            "called_ae_title": self.called,
            "is_let_in": self.is_let_in,
            "series": [self._series_as_json(one) for one in self.series],
            "ignored_files": dict(self.ignored),
        }

    def in_words(self) -> str:
        """A paragraph for each series."""
        return "\n".join(_told(self))

    def _series_as_json(self, one: Explained) -> dict[str, Any]:
        decision, refused = one.decision, one.refused
        return {
            "series_instance_uid": one.series_instance_uid,
            "slices": one.slices,
            "rule": None if decision.rule is None else decision.rule.name,
            "ignore": decision.ignore,
            "priority": decision.priority,
            "rules": [
                {
                    "name": judged.rule.name,
                    "met": judged.met,
                    "conditions": [vars(condition) for condition in judged.conditions],
                }
                for judged in decision.judged
            ],
            "results": [
                {**self._wanted_as_json(wanted), "instead": instead}
                for wanted, instead in zip(decision.wanted, one.instead, strict=True)
            ],
            "refused": None if refused is None else {"code": refused.code, "reason": refused.reason},
        }

    def _wanted_as_json(self, wanted: Wanted) -> dict[str, Any]:
        network = self.networks[wanted.model]
        described = network.package.description
        return {
            "model": {
                "package": wanted.model,
                "version": described.version,
                "sha256": described.sha256,
                "approved": network.is_approved,
            },
            "template": None if wanted.template is None else str(wanted.template),
            "destinations": list(wanted.destinations),
        }


def explain(
    folder: Path,
    config: Config,
    calling: str | None,
    called: str | None,
    progress: Progress = no_progress,
) -> Explanation:
    """What the node would make of the series in a folder.

    Args:
        calling: the AE title that would send them; None: none that a rule asks for.
        called: the one that would be called; None: the listener's first.

    Raises:
        ConfigurationError: a model package or a template cannot be used.
        SeriesRejectedError: there is no CT series, or a damaged file may belong to any.
        OSError: the folder or a file cannot be read.
    """
    networks = read_networks(config)
    found = look_through(folder, progress)
    if not found.slices:
        raise no_ct(found)
    to = called or config.listener.ae_title
    decisions = {uid: _decided(slices, config, calling, to) for uid, slices in found.slices.items()}
    series = tuple(
        Explained(
            uid,
            len(slices),
            decisions[uid],
            None if decisions[uid].ignore is not None else _refused(slices, config, progress),
            tuple(
                _instead(uid, wanted, found, decisions, config, networks) for wanted in decisions[uid].wanted
            ),
        )
        for uid, slices in found.slices.items()
    )
    return Explanation(calling, to, _is_let_in(config, calling, to), series, found.ignored, networks)


def _decided(slices: Slices, config: Config, calling: str | None, called: str) -> Decision:
    files = [(_sop_instance_uid(path, seen), path) for path, seen in slices]
    facts = routing_facts.of_slices(files, [] if calling is None else [calling], [called])
    return routing.decide(config.routing, facts, config.model.package, config.destinations)


def _sop_instance_uid(path: Path, seen: CtHeader | SliceRejectedError) -> str:
    if isinstance(seen, CtHeader):
        return seen.sop_instance_uid
    try:
        return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID", ""))
    except Exception:  # pydicom has no common root for what malformed bytes can raise
        return ""


def _is_let_in(config: Config, calling: str | None, called: str) -> bool:
    knows = calling is None or any(peer.ae_title.strip() == calling for peer in config.peers)
    return knows and called in config.listener.ae_titles


def _refused(slices: Slices, config: Config, progress: Progress) -> SeriesRejectedError | None:
    try:
        read_series([path for path, _ in slices], config.series, progress)
    except SeriesRejectedError as refused:
        return refused
    return None


def _instead(
    uid: str,
    wanted: Wanted,
    found: Found,
    decisions: Mapping[str, Decision],
    config: Config,
    networks: Mapping[str, Network],
) -> str | None:
    """Another reconstruction of the same scan that would be contoured like this in its place, and why."""
    whole = {
        other: [seen for _, seen in slices if isinstance(seen, CtHeader)]
        for other, slices in found.slices.items()
        if any(_is_alike(one, wanted) for one in decisions[other].wanted)
    }
    usable = {
        other: headers
        for other, headers in whole.items()
        if len(headers) == len(found.slices[other]) and len(headers) >= config.series.min_slices
    }
    if uid not in usable:
        return None
    own = _scan(usable[uid][0])
    rivals = [Candidate.of(headers) for headers in usable.values() if _scan(headers[0]) == own]
    first = rank(rivals, config.series.exclude_kernels, networks[wanted.model].spacing_mm)[0]
    if first.candidate.series_instance_uid == uid:
        return None
    return f"series {first.candidate.series_instance_uid} ({', '.join(first.reasons)})"


def _is_alike(one: Wanted, other: Wanted) -> bool:
    return (one.model, one.template) == (other.model, other.template)


def _scan(header: CtHeader) -> tuple[str, str]:
    return header.study_instance_uid, header.frame_of_reference_uid


# --- values to words -----------------------------------------------------------------------------


def _told(explanation: Explanation) -> Iterator[str]:
    sender = explanation.calling or "nobody in particular (--calling says who)"
    yield f"As if {sender} sent it to {explanation.called}:"
    if not explanation.is_let_in:
        yield "  the association would be refused: this caller, or this called title, is not let in"
    for one in explanation.series:
        yield ""
        yield f"Series {one.series_instance_uid}, {one.slices} slices"
        for number, judged in enumerate(one.decision.judged, start=1):
            yield from _told_rule(number, judged)
        if one.decision.rule is None:
            yield "  no routing is configured"
        yield from _told_outcome(explanation, one)
    if explanation.ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(explanation.ignored.items()))
        yield ""
        yield f"Files that are no CT slices: {kinds}"


def _told_rule(number: int, judged: RuleJudged) -> Iterator[str]:
    all_of_none = "" if judged.conditions else ", it has no conditions"
    yield f"  rule {number}, {judged.rule.name}: {'met' if judged.met else 'not met'}{all_of_none}"
    for one in judged.conditions:
        yield f"    {_told_condition(one)}"


def _told_condition(one: Judged) -> str:
    saw = repr(one.saw) if one.saw else "nothing"
    return f"{'yes' if one.met else 'no '} {one.condition}: asks for {one.asks}, saw {saw}"


def _told_outcome(explanation: Explanation, one: Explained) -> Iterator[str]:
    if one.decision.ignore is not None:
        yield f"  => IGNORED: {one.decision.ignore}"
        return
    for wanted, instead in zip(one.decision.wanted, one.instead, strict=True):
        network = explanation.networks[wanted.model]
        described = network.package.description
        template = "" if wanted.template is None else f", template {wanted.template}"
        to = ", ".join(wanted.destinations) or "no destination"
        made = f"{described.name} {described.version}{template}"
        yield f"  => {made}, for {to}; priority {one.decision.priority}"
        if not network.is_approved:
            yield "     HELD until a person releases it: the model is not approved"
        if instead is not None:
            yield f"     IGNORED: another reconstruction of the scan is contoured instead, {instead}"
    if one.refused is not None:
        yield f"  REJECTED before contouring: {one.refused.code}: {one.refused.reason}"
