"""How long the node takes and what it finds, as histograms and counters that never fall.

Owns the buckets, and the way from the rows of `timings.py` to cumulative counts.
Speaks seconds, cm3 and expected Dice; SQLite groups the rows, so that reading years of them takes no time.
Never reads a row twice, and never shows more label values than it has room for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, true
from sqlalchemy.orm import Session

from dicom_node.schema import Duration, Finding, Job, Transition
from dicom_node.timings import Stage, Step, Turnaround

BOUNDS_S = (
    *(0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0),
    *(300.0, 600.0, 1800.0, 3600.0, 86400.0),
)
BOUNDS_CM3 = (
    *(0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0, 112.0, 160.0),
    *(224.0, 320.0, 640.0),
)
BOUNDS_DICE = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
MAX_LABELS = 512
"""Sets of label values a metric; what comes beyond is not shown."""

Labels = tuple[str, ...]
Counted = tuple[int, int, float]
"""Which bucket, how many, and their sum."""


@dataclass
class Histogram:
    """Observations in buckets, each of which counts what is at most its bound."""

    bounds: tuple[float, ...]
    total: float = 0.0
    _counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, bucket: int, count: int, total: float) -> None:
        """Count observations that lie in one bucket."""
        self._counts[bucket] += count
        self.total += total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, the last one `+Inf`, as Prometheus wants them."""
        bounds = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


Histograms = dict[Labels, Histogram]


class History:
    """What all jobs took and what was found in them; what it has read once it does not read again.

    Attributes:
        stages: by stage, model and destination (empty for those before the sending).
        steps: by step and model.
        turnarounds: by since when, model and destination.
        volumes_cm3, confidences: of what was drawn, by structure and model.
        structures: how often each was looked for, by structure and model.
        flags: how often each was raised, by structure, model and flag.
        transitions: how often a job came into a state.
    """

    def __init__(self) -> None:
        self.stages: Histograms = {}
        self.steps: Histograms = {}
        self.turnarounds: Histograms = {}
        self.volumes_cm3: Histograms = {}
        self.confidences: Histograms = {}
        self.structures: dict[Labels, int] = {}
        self.flags: dict[Labels, int] = {}
        self.transitions: dict[Labels, int] = {}
        self._transitions_until = 0
        self._durations_until = 0
        self._findings_until = 0
        self._lock = threading.Lock()

    def read(self, session: Session) -> None:
        """Add what was measured since the last call; any thread may call it."""
        with self._lock:
            self._read_transitions(session)
            self._read_durations(session)
            self._read_findings(session)

    def _read_transitions(self, session: Session) -> None:
        until = session.scalar(select(func.max(Transition.id))) or 0
        new = Transition.id > self._transitions_until, Transition.id <= until, Transition.subject == "job"
        rows = select(Transition.to_state, func.count()).where(*new).group_by(Transition.to_state)
        for state, count in session.execute(rows):
            _count(self.transitions, (state,), count)
        self._transitions_until = max(until, self._transitions_until)

    def _read_durations(self, session: Session) -> None:
        until = session.scalar(select(func.max(Duration.id))) or 0
        by = Duration.stage, Job.model_name, Duration.destination
        new = Duration.id > self._durations_until, Duration.id <= until
        for (stage, model, destination), found in _grouped(
            session, Duration, Duration.seconds, BOUNDS_S, by, new
        ):
            if stage in tuple(Stage):
                put(self.stages, (stage, model, destination), BOUNDS_S, found)
            elif stage in tuple(Step):
                put(self.steps, (stage, model), BOUNDS_S, found)
            elif stage in tuple(Turnaround):
                put(self.turnarounds, (stage.removeprefix("since_"), model, destination), BOUNDS_S, found)
        self._durations_until = max(until, self._durations_until)  # another's snapshot may be newer

    def _read_findings(self, session: Session) -> None:
        until = session.scalar(select(func.max(Finding.id))) or 0
        by = Finding.structure, Job.model_name
        new = Finding.id > self._findings_until, Finding.id <= until
        for figures, column, bounds in (
            (self.volumes_cm3, Finding.volume_cm3, BOUNDS_CM3),
            (self.confidences, Finding.confidence, BOUNDS_DICE),
        ):
            drawn = Finding.volume_cm3.is_not(None), column.is_not(None)
            for labels, found in _grouped(session, Finding, column, bounds, by, (*new, *drawn)):
                put(figures, labels, bounds, found)
        flag = func.json_each(Finding.flags).table_valued("value").c.value
        for counts, each in ((self.structures, by), (self.flags, (*by, flag))):
            rows = select(*each, func.count()).select_from(Finding).join(Job, Job.id == Finding.job_id)
            if each is not by:
                rows = rows.join(flag.table, true())
            for *words, count in session.execute(rows.where(*new).group_by(*each)):
                _count(counts, tuple(words), count)
        self._findings_until = max(until, self._findings_until)


def _grouped(
    session: Session,
    table: type[Duration | Finding],
    column: Any,
    bounds: tuple[float, ...],
    by: Sequence[Any],
    where: Sequence[ColumnElement[bool]],
) -> Iterator[tuple[Labels, Counted]]:
    """For each of `by` and each bucket: how many lie there, and their sum."""
    bucket = case(*((column <= bound, index) for index, bound in enumerate(bounds)), else_=len(bounds))
    rows = select(*by, bucket, func.count(), func.sum(column)).join(Job, Job.id == table.job_id)
    for *labels, index, count, total in session.execute(rows.where(*where).group_by(*by, bucket)):
        yield tuple(labels), (index, count, total)


def put(figures: Histograms, labels: Labels, bounds: tuple[float, ...], found: Counted) -> None:
    """Count what was found under these labels, where there is room for them."""
    if labels in figures or len(figures) < MAX_LABELS:
        figures.setdefault(labels, Histogram(bounds)).add(*found)


def _count(figures: dict[Labels, int], labels: Labels, count: int) -> None:
    if labels in figures or len(figures) < MAX_LABELS:
        figures[labels] = figures.get(labels, 0) + count
