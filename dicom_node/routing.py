"""Which rule a series meets, and what follows: models, templates, destinations and priority, or nothing.

Owns the rules of the configuration's `routing`, and the decision with its explanation, as data.
Speaks the AE titles of associations and DICOM attributes in, frozen values out; millimetres.
Never reads a file, a row or a clock: the same facts and rules give the same decision always.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

RETURN_TO_SENDER = "return_to_sender"
"""Stands in a result's destinations for those whose `senders` sent the series."""

TEXTS = (
    "protocol_name",
    "body_part_examined",
    "study_description",
    "series_description",
    "convolution_kernel",
    "manufacturer",
    "station_name",
)
"""The DICOM attributes that a rule may ask for by pattern."""
AE_TITLES = ("calling_ae_title", "called_ae_title")


def _as_list(value: Any) -> Any:
    """One pattern may stand without a list."""
    return [value] if isinstance(value, str) else value


Pattern = Annotated[str, Field(min_length=1, max_length=64)]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(_as_list)]
Millimetres = Annotated[float, Field(ge=0)]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RangeMm(_Described):
    """Both ends included; None leaves that end open."""

    min: Millimetres | None = None
    max: Millimetres | None = None

    @model_validator(mode="after")
    def _is_one(self) -> RangeMm:
        if self.min is None and self.max is None:
            raise ValueError("state min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g} mm, above max, {self.max:g} mm")
        return self

    def holds(self, mm: float) -> bool:
        """Whether a length lies within."""
        return (self.min is None or mm >= self.min) and (self.max is None or mm <= self.max)

    def __str__(self) -> str:
        if self.min is None:
            return f"at most {self.max:g} mm"
        return f"at least {self.min:g} mm" if self.max is None else f"{self.min:g} to {self.max:g} mm"


class Conditions(_Described):
    """What a series has to have; every one that is stated counts, and of its patterns any one.

    Shell patterns: `*`, `?`, `[abc]`. Capitals make no difference, but in AE titles, where they do in DICOM
    (PS3.5 6.2). What the series does not state meets no condition, not even `*`.
    """

    calling_ae_title: Patterns = ()
    """Who sent it; one of its senders is enough."""
    called_ae_title: Patterns = ()
    """To which of the listener's AE titles."""
    protocol_name: Patterns = ()
    body_part_examined: Patterns = ()
    study_description: Patterns = ()
    series_description: Patterns = ()
    convolution_kernel: Patterns = ()
    manufacturer: Patterns = ()
    station_name: Patterns = ()
    slice_thickness_mm: RangeMm | None = None

    @property
    def are_stated(self) -> bool:
        """Whether there is any."""
        return self != Conditions()


class ResultChoice(_Described):
    """One RT Structure Set that a rule asks for."""

    model: str | None = None
    """A model package; None: that of `model.package`."""
    template: Path | None = None
    """Names and colours for this result, before those of a destination; None: theirs."""
    destinations: tuple[str, ...] | None = None
    """Names of destinations, and `return_to_sender`; None: all of them."""


class Rule(_Described):
    """What becomes of the series that meet its conditions."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    """For job lists and `anatomynode explain`."""
    when: Conditions = Conditions()
    """None stated: every series meets it."""
    ignore: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Why such a series is not contoured, in words that stand in the job; no results then."""
    results: Annotated[tuple[ResultChoice, ...], Field(min_length=1)] = (ResultChoice(),)
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Of its jobs in the queue, higher first."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Rule:
        if self.ignore is not None and self.model_fields_set & {"results", "priority"}:
            raise ValueError("a rule with ignore has neither results nor priority")
        return self


class Addressee(Protocol):
    """What routing needs to know of a destination."""

    @property
    def name(self) -> str:
        """Of the configuration."""

    @property
    def senders(self) -> tuple[str, ...]:
        """Calling AE titles; with any, it gets only what was made of their series."""


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        calling_ae_titles, called_ae_titles: of the associations that brought slices of the series.
        texts: by the names of `TEXTS`; free text, which may say who the patient is: never to be logged.
        slice_thickness_mm: None where the series does not state it.
    """

    calling_ae_titles: tuple[str, ...]
    called_ae_titles: tuple[str, ...]
    texts: Mapping[str, str]
    slice_thickness_mm: float | None = None


@dataclass(frozen=True)
class Judged:
    """One condition: what it asks for, what it saw, and whether it is met."""

    condition: str
    asks: str
    saw: str
    met: bool


@dataclass(frozen=True)
class RuleJudged:
    """One rule, with each of its conditions."""

    rule: Rule
    conditions: tuple[Judged, ...]

    @property
    def met(self) -> bool:
        """Whether the series meets it."""
        return all(one.met for one in self.conditions)


@dataclass(frozen=True)
class Wanted:
    """One RT Structure Set that is to be made.

    Attributes:
        model: the package's name.
        template: None takes the destinations' own.
        destinations: names, in the order of the configuration.
    """

    model: str
    template: Path | None
    destinations: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """What becomes of a series, and why.

    Attributes:
        rule: the first rule that it meets; None where no routing is configured.
        judged: the rules that were looked at, the one that decided last.
        wanted: what is to be made; nothing where the rule ignores the series.
    """

    rule: Rule | None
    judged: tuple[RuleJudged, ...]
    wanted: tuple[Wanted, ...]

    @property
    def ignore(self) -> str | None:
        """Why nothing is made, in the rule's words; None where something is."""
        return None if self.rule is None else self.rule.ignore

    @property
    def priority(self) -> int:
        """Of the jobs in the queue, higher first."""
        return 0 if self.rule is None else self.rule.priority


def decide(
    rules: Sequence[Rule], facts: Facts, default_model: str, destinations: Sequence[Addressee]
) -> Decision:
    """The first rule that the facts meet, and what follows.

    Args:
        rules: in their order, the last one without conditions (`problems`); none at all: one result of the
            default model for all destinations.
    """
    judged: list[RuleJudged] = []
    for each in rules:
        judged.append(RuleJudged(each, tuple(_judge(each.when, facts))))
        if judged[-1].met:
            break
    rule = judged[-1].rule if judged else None
    choices = (ResultChoice(),) if rule is None else () if rule.ignore is not None else rule.results
    wanted = tuple(
        Wanted(
            choice.model or default_model,
            choice.template,
            tuple(_addressed(choice, facts.calling_ae_titles, destinations)),
        )
        for choice in choices
    )
    return Decision(rule, tuple(judged), wanted)


def choices(rules: Iterable[Rule]) -> Iterator[tuple[str, ResultChoice]]:
    """Each result that a rule may ask for, with its path in the configuration."""
    for index, rule in enumerate(rules):
        for place, choice in enumerate(() if rule.ignore is not None else rule.results):
            yield f"routing[{index}].results[{place}]", choice


def problems(
    rules: Sequence[Rule],
    destinations: Sequence[Addressee],
    calling_ae_titles: Sequence[str],
    called_ae_titles: Sequence[str],
) -> Iterator[str]:
    """What is wrong with rules, each with its path.

    Args:
        calling_ae_titles: of the peers.
        called_ae_titles: of the listener.
    """
    yield from _unreachable(rules, calling_ae_titles, called_ae_titles)
    for index, destination in enumerate(destinations):
        for title in destination.senders:
            if title.strip() not in calling_ae_titles:
                known = ", ".join(calling_ae_titles) or "none"
                yield f"destinations[{index}].senders: no peer has the AE title {title!r}; known: {known}"
    known_names = ", ".join(destination.name for destination in destinations)
    for path, choice in choices(rules):
        for name in choice.destinations or ():
            if name not in {RETURN_TO_SENDER, *(destination.name for destination in destinations)}:
                yield f"{path}.destinations: there is no destination {name!r}; known: {known_names}"
    for index, rule in enumerate(rules):
        made = [(choice.model, choice.template) for choice in rule.results]
        if len(set(made)) < len(made):
            yield (
                f"routing[{index}].results: two have the same model and template; name the destinations "
                "of both in one"
            )
    for path, rule, choice in _with_rules(rules):
        lost = [
            title
            for title in calling_ae_titles
            if _meets(rule.when.calling_ae_title, title)
            and not any(_addressed(choice, [title], destinations))
        ]
        if lost and destinations:
            yield (
                f"{path}: what is made of series from {', '.join(lost)} would go nowhere; name a destination "
                "that takes it, or the AE title in one's senders"
            )


def _with_rules(rules: Sequence[Rule]) -> Iterator[tuple[str, Rule, ResultChoice]]:
    if not rules:
        yield "destinations", Rule(name="all"), ResultChoice()
    for index, rule in enumerate(rules):
        for path, choice in choices([rule]):
            yield path.replace("[0]", f"[{index}]", 1), rule, choice


def _unreachable(
    rules: Sequence[Rule], calling_ae_titles: Sequence[str], called_ae_titles: Sequence[str]
) -> Iterator[str]:
    """Rules that no series can meet, and series that would meet no rule."""
    catch_all: int | None = None
    for index, rule in enumerate(rules):
        path, when = f"routing[{index}]", rule.when
        same = next((earlier for earlier in rules[:index] if earlier.when == when), None)
        if any(earlier.name == rule.name for earlier in rules[:index]):
            yield f"{path}.name: two rules are called {rule.name!r}; give each its own name"
        if catch_all is not None:
            yield f"{path}: never met, since routing[{catch_all}] has no conditions and stands before it"
        elif same is not None:
            yield f"{path}: never met, since rule {same.name!r} has the same conditions and stands before it"
        if catch_all is None and not when.are_stated:
            catch_all = index
        for name, titles in zip(AE_TITLES, (calling_ae_titles, called_ae_titles), strict=True):
            for pattern in getattr(when, name):
                if not any(fnmatchcase(title.strip(), pattern) for title in titles):
                    known = ", ".join(titles) or "none"
                    yield f"{path}.when.{name}: {pattern!r} fits none that is let in; those are {known}"
    if rules and catch_all is None:
        yield (
            "routing: the last rule must have no conditions and say what becomes of every other series, "
            "be it `ignore`"
        )


def _addressed(
    choice: ResultChoice, senders: Sequence[str], destinations: Sequence[Addressee]
) -> Iterator[str]:
    """Who gets a result: those that are named, or all; one with senders only where one of them sent it."""
    for destination in destinations:
        own_senders = {title.strip() for title in destination.senders}
        is_return = bool(own_senders)
        is_named = (
            choice.destinations is None
            or destination.name in choice.destinations
            or (is_return and RETURN_TO_SENDER in choice.destinations)
        )
        if is_named and (not is_return or not own_senders.isdisjoint(senders)):
            yield destination.name


def _judge(when: Conditions, facts: Facts) -> Iterator[Judged]:
    for name, titles in zip(AE_TITLES, (facts.calling_ae_titles, facts.called_ae_titles), strict=True):
        patterns: tuple[str, ...] = getattr(when, name)
        if patterns:
            met = any(_meets(patterns, title) for title in titles)
            yield Judged(name, " or ".join(patterns), ", ".join(titles), met)
    for name in TEXTS:
        patterns = getattr(when, name)
        if patterns:
            text = facts.texts.get(name, "").strip()
            met = bool(text) and any(fnmatchcase(text.casefold(), one.casefold()) for one in patterns)
            yield Judged(name, " or ".join(patterns), text, met)
    if when.slice_thickness_mm is not None:
        mm = facts.slice_thickness_mm
        met = mm is not None and when.slice_thickness_mm.holds(mm)
        saw = "" if mm is None else f"{mm:g} mm"
        yield Judged("slice_thickness_mm", str(when.slice_thickness_mm), saw, met)


def _meets(patterns: tuple[str, ...], title: str) -> bool:
    """Whether an AE title fits one of the patterns, or nothing is asked of it."""
    return not patterns or any(fnmatchcase(title.strip(), pattern) for pattern in patterns)
