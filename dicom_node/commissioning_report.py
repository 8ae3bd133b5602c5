"""What a commissioning found: its points and figures, as a page to sign, and against an earlier one.

Owns the values of a report, its Markdown and JSON, and what counts as drift.
Speaks figures with their units, limits and allowed drift.
Never measures: `commissioning.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_node.commissioned import changes
from dicom_node.errors import PermanentError


@dataclass(frozen=True)
class Figure:
    """A number in a report.

    Attributes:
        limit: what it may be at most; None: it is only kept to be compared.
        drift: how far from the baseline's it may be.
    """

    name: str
    value: float
    unit: str
    drift: float
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is within its limit."""
        return self.limit is None or abs(self.value) <= self.limit


@dataclass(frozen=True)
class Point:
    """One thing that was looked at.

    Attributes:
        name: the same in each report.
        problem: what is wrong; None where it holds.
        detail: what was seen.
    """

    name: str
    detail: str
    figures: tuple[Figure, ...] = ()
    problem: str | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong and each figure is within its limit."""
        return self.problem is None and all(figure.holds for figure in self.figures)


@dataclass(frozen=True)
class Commissioning:
    """What one run found.

    Attributes:
        made_at: aware, UTC.
        facts: versions, hashes and the device, by name.
        settings: the configuration in use, key by key.
        drifts: what differs from the baseline, in words.
    """

    made_at: datetime
    facts: Mapping[str, str]
    points: tuple[Point, ...]
    drifts: tuple[str, ...] = ()
    baseline: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every point holds and nothing has drifted."""
        return all(point.holds for point in self.points) and not self.drifts


@dataclass(frozen=True)
class Baseline:
    """What an earlier run found.

    Attributes:
        made_at: ISO 8601, as the report has it.
        has_held: whether all its points did.
        facts: by name.
        figures: values by point and by figure.
        settings: None where its version did not keep them.
    """

    made_at: str
    has_held: bool
    facts: Mapping[str, str]
    figures: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, str] | None = None


class BaselineError(PermanentError):
    """A baseline that cannot be read; the message says why."""


def read_baseline(path: Path) -> Baseline:
    """The JSON of an earlier report.

    Raises:
        BaselineError: it is none.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        facts, points = dict(known["facts"]), known["points"]
        figures = {
            point["name"]: {one["name"]: float(one["value"]) for one in point["figures"]} for point in points
        }
        made_at, has_held = str(known["made_at"]), bool(known["holds"])
        settings = None if known.get("settings") is None else dict(known["settings"])
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise BaselineError(f"{path}: is no report of `anatomynode commission`: {problem!r}") from problem
    return Baseline(made_at, has_held, facts, figures, settings)


def drifts(
    facts: Mapping[str, str], settings: Mapping[str, str], points: Sequence[Point], known: Baseline
) -> Iterator[str]:
    """What differs from the baseline, in words."""
    yield from changes(facts, settings, known.facts, known.settings)
    for name in known.figures.keys() - {point.name for point in points}:
        yield f"{name}: the baseline has this point, this run has not"
    for point in points:
        if point.name not in known.figures:
            yield f"{point.name}: the baseline has no such point"
        else:
            yield from _moved(point, known.figures[point.name])


def _moved(point: Point, before: Mapping[str, float]) -> Iterator[str]:
    for figure in point.figures:
        was = before.get(figure.name)
        if was is None or not abs(figure.value - was) <= figure.drift:  # NaN has moved, too
            yield (
                f"{point.name}: {figure.name} was {was} and is {figure.value:.3f} {figure.unit} "
                f"(may move by {figure.drift:g})"
            )


def as_json(done: Commissioning) -> dict[str, Any]:
    """The report as plain values, which is also what a later run takes for its baseline."""
    return {
        "made_at": done.made_at.isoformat(timespec="seconds"),
        "holds": done.holds,
        "facts": dict(done.facts),
        "settings": dict(done.settings),
        "points": [{**asdict(point), "holds": point.holds} for point in done.points],
        "baseline": done.baseline,
        "drifts": list(done.drifts),
    }


def as_markdown(done: Commissioning) -> str:
    """The report as a page to print, sign and file."""
    verdict = "All points hold." if done.holds else "NOT all points hold."
    lines = [
        "# AnatomyNode: commissioning report",
        "",
        f"Made {done.made_at:%Y-%m-%d %H:%M} UTC. **{verdict}**",
        "",
        "This is not a medical device. The report shows that the installation draws known bodies where they",
        "are; it says nothing about the model on your patients (docs/COMMISSIONING.md, part 2).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in done.facts.items()),
        "",
        "## Points",
        "",
        "| point | holds | seen | figures (limit) |",
        "|---|---|---|---|",
        *(_row(point) for point in done.points),
    ]
    if done.baseline is not None:
        told = [f"- {drift}" for drift in done.drifts] or ["Nothing has drifted."]
        lines += ["", f"## Against the baseline {done.baseline}", "", *told]
    lines += ["", "## Signed", "", "Name, function:", "", "Date:", "", "Signature:", ""]
    return "\n".join(lines)


def _row(point: Point) -> str:
    figures = "; ".join(
        f"{one.name} {one.value:.3f} {one.unit}" + ("" if one.limit is None else f" ({one.limit:g})")
        for one in point.figures
    )
    holds = "yes" if point.holds else "**NO**"
    return f"| {point.name} | {holds} | {point.problem or point.detail} | {figures} |"
