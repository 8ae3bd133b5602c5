"""What is kept of a candidate model beside the approved one: a row a job, and what all say together.

Owns the rows of its runs, which job is next, and the table of the agreement.
Speaks rows in; plain JSON values, lines of text and figures out.
Never judges which of two models is right.
"""

from __future__ import annotations

import statistics
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from dicom_node.database import reading, transaction
from dicom_node.history import Histograms, put
from dicom_node.schema import Job, Series, ShadowRun
from dicom_node.states import JobState
from models.card import ModelDescription

DONE = frozenset({JobState.READY, JobState.SENT})
"""Jobs whose result may be compared: it is good enough to be sent."""
DICE_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)


def next_job(session: Session, candidate: ModelDescription, approved_sha256: str) -> int | None:
    """The newest job of the approved model that the candidate has not contoured and that can be compared."""
    tried = select(ShadowRun.id).where(ShadowRun.job_id == Job.id, ShadowRun.model_sha256 == candidate.sha256)
    jobs = (
        select(Job.id)
        .join(Series, Series.id == Job.series_id)
        .where(
            Job.state.in_(list(DONE)),
            Job.rt_struct_file.is_not(None),
            Job.model_sha256 == approved_sha256,
            Series.slices_removed_at.is_(None),
            ~tried.exists(),
        )
        .order_by(Job.id.desc())
    )
    return session.scalars(jobs.limit(1)).first()


def keep(
    engine: Engine,
    job: int,
    candidate: ModelDescription,
    at: float,
    seconds: float | None,
    failure: str | None,
    agreements: list[Any] | None = None,
) -> ShadowRun:
    """The row of a run; a later one of the same job and candidate takes its place."""
    with transaction(engine) as session:
        known = select(ShadowRun).where(ShadowRun.job_id == job, ShadowRun.model_sha256 == candidate.sha256)
        row = session.scalars(known).one_or_none()
        if row is None:
            row = ShadowRun(
                job_id=job,
                model_name=candidate.name,
                model_version=candidate.version,
                model_sha256=candidate.sha256,
            )
            session.add(row)
        row.at, row.seconds, row.failure = at, seconds, failure
        row.agreements = None if failure is not None else agreements
        session.flush()
    return row


# --- what it comes to ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class StructureLine:
    """One structure over all series that were compared.

    Attributes:
        series: in how many at least one of the two drew it.
        only_approved, only_candidate: in how many only that one did; their Dice is 0.
        mean_dice, lowest_dice: over `series`.
        mean_hd95_mm: where both drew it; None where they never did.
        mean_volume_ratio: the candidate's volume by the approved model's, where both drew it.
        lowest_job: where the Dice is lowest: the job to `replay`.
    """

    structure: str
    series: int
    only_approved: int
    only_candidate: int
    mean_dice: float
    lowest_dice: float
    lowest_job: int
    mean_hd95_mm: float | None
    mean_volume_ratio: float | None


@dataclass(frozen=True)
class CandidateTable:
    """What one candidate comes to beside the approved model."""

    model: str
    version: str
    sha256: str
    compared: int
    failures: tuple[tuple[int, str], ...]
    structures: tuple[StructureLine, ...]


@dataclass(frozen=True)
class ShadowReport:
    """Every candidate that was ever compared, the latest first."""

    candidates: tuple[CandidateTable, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """One mapping a candidate."""
        return [asdict(one) for one in self.candidates]

    def in_words(self) -> str:
        """A table a candidate."""
        if not self.candidates:
            return "nothing has been compared yet; model.shadow names a candidate"
        return "\n\n".join("\n".join(_told(one)) for one in self.candidates)


def report(engine: Engine) -> ShadowReport:
    """What the database knows."""
    with reading(engine) as session:
        runs = list(session.scalars(select(ShadowRun).order_by(ShadowRun.id)))
    by_model: dict[str, list[ShadowRun]] = {}
    for run in reversed(runs):
        by_model.setdefault(run.model_sha256, []).append(run)
    return ShadowReport(tuple(_table(some) for some in by_model.values()))


def _table(runs: Sequence[ShadowRun]) -> CandidateTable:
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for run in runs:
        for one in run.agreements or ():
            found.setdefault(one["name"], []).append((run.job_id, one))
    latest = runs[0]
    return CandidateTable(
        latest.model_name,
        latest.model_version,
        latest.model_sha256,
        sum(run.failure is None for run in runs),
        tuple((run.job_id, run.failure) for run in runs if run.failure is not None),
        tuple(_line(name, found[name]) for name in sorted(found)),
    )


def _line(name: str, found: Sequence[tuple[int, dict[str, Any]]]) -> StructureLine:
    lowest_dice, lowest_job = min((one["dice"], job) for job, one in found)
    both = [one for _, one in found if one["before_cm3"] is not None and one["after_cm3"] is not None]
    return StructureLine(
        name,
        len(found),
        sum(one["after_cm3"] is None for _, one in found),
        sum(one["before_cm3"] is None for _, one in found),
        statistics.fmean(one["dice"] for _, one in found),
        lowest_dice,
        lowest_job,
        statistics.fmean(one["hd95_mm"] for one in both) if both else None,
        statistics.fmean(one["after_cm3"] / one["before_cm3"] for one in both if one["before_cm3"])
        if any(one["before_cm3"] for one in both)
        else None,
    )


def _told(one: CandidateTable) -> Iterator[str]:
    yield f"{one.model} {one.version}, sha256 {one.sha256}"
    yield f"compared on {one.compared} series, {len(one.failures)} failure(s)"
    yield (
        f"  {'STRUCTURE':<16}  {'SERIES':>6}  {'DICE':>5}  {'LOWEST':>13}  {'HD95 mm':>7}  {'VOLUME':>6}  "
        "ONLY APPROVED / CANDIDATE"
    )
    for line in one.structures:
        lowest = f"{line.lowest_dice:.3f} (job {line.lowest_job})"
        hd95 = "-" if line.mean_hd95_mm is None else f"{line.mean_hd95_mm:.1f}"
        ratio = "-" if line.mean_volume_ratio is None else f"x{line.mean_volume_ratio:.2f}"
        yield (
            f"  {line.structure:<16}  {line.series:>6}  {line.mean_dice:>5.3f}  {lowest:>13}  {hd95:>7}  "
            f"{ratio:>6}  {line.only_approved} / {line.only_candidate}"
        )
    for job, why in one.failures:
        yield f"  job {job}: {why}"


# --- what the metrics show ---------------------------------------------------------------------


@dataclass
class AgreementHistory:
    """The figures of all runs; a row counts once, however often it is written.

    Attributes:
        dice: by model, version and structure.
        compared, failures: by model and version.
        last_at: when the last run ended (UTC epoch seconds); None before the first.
    """

    dice: Histograms = field(default_factory=dict)
    compared: dict[tuple[str, str], int] = field(default_factory=dict)
    failures: dict[tuple[str, str], int] = field(default_factory=dict)
    last_at: float | None = None
    _read_until: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, session: Session) -> None:
        """Add the runs that have come since the last call; any thread may call it."""
        with self._lock:
            self._read(session)

    def _read(self, session: Session) -> None:
        new = select(ShadowRun).where(ShadowRun.id > self._read_until).order_by(ShadowRun.id)
        for run in session.scalars(new):
            model = run.model_name, run.model_version
            counts = self.compared if run.failure is None else self.failures
            counts[model] = counts.get(model, 0) + 1
            for one in run.agreements or ():
                dice = float(one["dice"])
                bucket = bisect_left(DICE_BOUNDS, dice)
                put(self.dice, (*model, str(one["name"])), DICE_BOUNDS, (bucket, 1, dice))
            self._read_until, self.last_at = run.id, run.at
