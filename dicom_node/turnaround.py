"""How long the node takes, stage by stage, from the history in the database.

Owns the histograms and the names of the stages outside the contouring.
Speaks seconds; read anew from the whole history after a restart, so that no count ever falls.
Never counts a result that is only sent again, or that waited for a person.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session, aliased

from dicom_node.schema import Delivery, Job, Series, Transition
from dicom_node.states import JobState

STAGE_BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TURNAROUND_BOUNDS_S = (
    1.0,
    2.0,
    3.0,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
    86400.0,
)
STAGE_NAME = re.compile(r"^[a-z][a-z0-9_]{0,39}$")
MAX_STAGES = 32
"""Labels are bounded; a stage beyond this many is not shown."""


@dataclass
class Histogram:
    """Observations in buckets, each of which counts what is at most its bound (seconds)."""

    bounds_s: tuple[float, ...]
    total_s: float = 0.0
    _counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds_s) + 1)

    def observe(self, seconds: float) -> None:
        """Count one duration; one that a change of the clock made negative is none, since no sum may fall."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self.bounds_s, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, the last one `+Inf`, as Prometheus wants them."""
        bounds = [*(str(bound) for bound in self.bounds_s), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class TurnaroundHistory:
    """The durations of all jobs; what it has read once it does not read again.

    Attributes:
        stages: by stage: `arrival`, `completeness`, `queue`, `delivery`, and the stages of the reports.
        turnaround: from the last slice's commit until every destination had stored the RT-STRUCT.
    """

    def __init__(self) -> None:
        self.stages: dict[str, Histogram] = {}
        self.turnaround = Histogram(TURNAROUND_BOUNDS_S)
        self._read_until = 0

    def read(self, session: Session) -> None:
        """Add the jobs that became READY or SENT for the first time since the last call."""
        until = session.scalar(select(func.max(Transition.id))) or 0
        for change, job, series in session.execute(_first_changes(self._read_until, until)):
            if change.to_state == JobState.READY:
                for stage, seconds in _until_ready(job, series):
                    self._observe(stage, seconds)
            elif not _waited_for_a_person(session, job):
                stored_at = _stored_at(session, job) or change.at
                self._observe("delivery", stored_at - _ready_at(session, job))
                if _still_describes(series, job):
                    self.turnaround.observe(stored_at - series.last_instance_at)
        self._read_until = until

    def _observe(self, stage: str, seconds: float) -> None:
        if stage not in self.stages and (len(self.stages) >= MAX_STAGES or not STAGE_NAME.match(stage)):
            return
        self.stages.setdefault(stage, Histogram(STAGE_BOUNDS_S)).observe(seconds)


def _first_changes(after: int, until: int) -> Select[Transition, Job, Series]:
    """The first time that each job became READY, and SENT; what is sent again is no new turnaround."""
    earlier = aliased(Transition)
    repeated = select(earlier.id).where(
        earlier.subject == "job",
        earlier.subject_id == Transition.subject_id,
        earlier.to_state == Transition.to_state,
        earlier.id < Transition.id,
    )
    return (
        select(Transition, Job, Series)
        .join(Job, Job.id == Transition.subject_id)
        .join(Series, Series.id == Job.series_id)
        .where(
            Transition.id > after,
            Transition.id <= until,
            Transition.subject == "job",
            Transition.to_state.in_([JobState.READY, JobState.SENT]),
            ~repeated.exists(),
        )
        .order_by(Transition.id)
    )


def _until_ready(job: Job, series: Series) -> Iterator[tuple[str, float]]:
    if _still_describes(series, job):
        yield "arrival", series.last_instance_at - series.first_instance_at
        yield "completeness", job.created_at - series.last_instance_at
    if job.started_at is not None and job.attempts == 1:
        yield "queue", job.started_at - job.created_at
    for stage, seconds in ((job.report or {}).get("seconds") or {}).items():
        yield stage, float(seconds)


def _still_describes(series: Series, job: Job) -> bool:
    """Whether the row's times are those of the job's revision; a later revision overwrites them."""
    return series.revision == job.revision and series.last_instance_at <= job.created_at


def _waited_for_a_person(session: Session, job: Job) -> bool:
    """Whether it, or a delivery of it, was held: how long a person took says nothing about the node."""
    deliveries = select(Delivery.id).where(Delivery.job_id == job.id)
    held = select(Transition.id).where(
        Transition.to_state == JobState.HELD,
        or_(
            (Transition.subject == "job") & (Transition.subject_id == job.id),
            (Transition.subject == "delivery") & Transition.subject_id.in_(deliveries),
        ),
    )
    return session.scalars(held.limit(1)).first() is not None


def _ready_at(session: Session, job: Job) -> float:
    of_job = select(func.min(Transition.at)).where(
        Transition.subject == "job", Transition.subject_id == job.id, Transition.to_state == JobState.READY
    )
    return session.scalars(of_job).one()


def _stored_at(session: Session, job: Job) -> float | None:
    """When the last destination stored it; whether that commits itself to it is no part of the turnaround."""
    return session.scalars(select(func.max(Delivery.stored_at)).where(Delivery.job_id == job.id)).one()
