"""What the page shows of all jobs: a list to leaf through, how many are in each state, turnaround.

Owns the questions to the database, and what a line of the list tells.
Speaks a read-only session; seconds, UTC epoch seconds.
Never knows of HTTP or HTML.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.schema import Delivery, Duration, Instance, Job, Transition
from dicom_node.states import JobState
from dicom_node.timings import Stage, Turnaround

AT_WORK = (Stage.ASSEMBLING, Stage.INFERENCE, Stage.CONTOURING, Stage.CHECKING, Stage.KEEPING)
"""What the worker does, as one figure."""


@dataclass(frozen=True)
class Line:
    """One job in the list.

    Attributes:
        age_s: since the series was complete.
        for_s: how long it has been in its state.
        seconds: by `receiving`, `waiting`, `working` and `sending`, as far as they are measured; the slowest
            destination counts.
        turnaround_s: from the last slice until every destination had it; None where that is not so.
    """

    number: int
    state: JobState
    reason: str | None
    slices: int
    created_at: float
    age_s: float
    for_s: float
    seconds: Mapping[str, float]
    turnaround_s: float | None


@dataclass(frozen=True)
class Sheet:
    """A page of the list, the newest job first; `older` is where the next one begins."""

    lines: tuple[Line, ...]
    older: int | None


@dataclass(frozen=True)
class Arrived:
    """A result that a destination has stored.

    Attributes:
        at: when it was there.
        seconds: since the last slice.
    """

    job: int
    destination: str
    at: float
    seconds: float


def sheet(session: Session, state: JobState | None, before: int | None, length: int, now: float) -> Sheet:
    """The jobs with smaller numbers than `before`, of one state or of all."""
    wanted = select(Job).order_by(Job.id.desc()).limit(length + 1)
    if state is not None:
        wanted = wanted.where(Job.state == state)
    if before is not None:
        wanted = wanted.where(Job.id < before)
    jobs = list(session.scalars(wanted))
    shown = jobs[:length]
    return Sheet(_lines(session, shown, now), shown[-1].id if len(jobs) > length else None)


def counts(session: Session) -> dict[JobState, int]:
    """How many jobs there are in each state, in the order of `JobState`."""
    rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
    found = dict(rows)
    return {state: found.get(state, 0) for state in JobState}


def arrived(session: Session, since: float) -> list[Arrived]:
    """What destinations have stored since then."""
    at = Duration.began_at + Duration.seconds
    rows = select(Duration.job_id, Duration.destination, at, Duration.seconds).where(
        Duration.stage == Turnaround.LAST_SLICE, at >= since
    )
    return [Arrived(*row) for row in session.execute(rows.order_by(at))]


def stages_of(session: Session, job: int) -> list[Duration]:
    """What was measured of one job's stages, in the order of time."""
    rows = select(Duration).where(Duration.job_id == job, Duration.stage.in_(list(Stage)))
    order = {stage: index for index, stage in enumerate(Stage)}
    return sorted(session.scalars(rows), key=lambda one: (order[Stage(one.stage)], one.destination))


def _lines(session: Session, jobs: Sequence[Job], now: float) -> tuple[Line, ...]:
    numbers = [job.id for job in jobs]
    slices = _slices(session, [job.series_id for job in jobs])
    measured = _measured(session, numbers)
    changes = session.execute(
        select(Transition.subject_id, func.max(Transition.at))
        .where(Transition.subject == "job", Transition.subject_id.in_(numbers))
        .group_by(Transition.subject_id)
    )
    since = dict(changes.all())
    waiting = set(
        session.scalars(
            select(Delivery.job_id).where(Delivery.job_id.in_(numbers), Delivery.stored_at.is_(None))
        )
    )
    return tuple(
        Line(
            number=job.id,
            state=job.state,
            reason=job.reason,
            slices=slices.get(job.series_id, 0),
            created_at=job.created_at,
            age_s=max(0.0, now - job.created_at),
            for_s=max(0.0, now - since.get(job.id, job.created_at)),
            seconds=measured[job.id],
            turnaround_s=None if job.id in waiting else measured[job.id].get(Turnaround.LAST_SLICE),
        )
        for job in jobs
    )


def _slices(session: Session, series: Sequence[int]) -> dict[int, int]:
    rows = select(Instance.series_id, func.count()).where(Instance.series_id.in_(series))
    return dict(session.execute(rows.group_by(Instance.series_id)).all())


def _measured(session: Session, jobs: Sequence[int]) -> defaultdict[int, dict[str, float]]:
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    slowest = select(Duration.job_id, Duration.stage, func.max(Duration.seconds))
    rows = slowest.where(Duration.job_id.in_(jobs)).group_by(Duration.job_id, Duration.stage)
    for job, stage, seconds in session.execute(rows):
        seconds_of = found[job]
        name = "working" if stage in AT_WORK else stage
        seconds_of[name] = seconds_of.get(name, 0.0) + seconds
    return found
