"""What is old is removed: received slices first, results later; what is unfinished, never.

Owns which series may be thinned out, and the row that says what was removed, when and why.
Speaks rows and files; times are UTC epoch seconds.
Never removes the words: job, deliveries and every change of state stay, and so do the UIDs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from sqlalchemy import ColumnElement, Engine, and_, delete, exists, func, select
from sqlalchemy.orm import Session

from dicom_node import companions, jobs, logs
from dicom_node.config import Config
from dicom_node.database import reading, transaction
from dicom_node.results import Results
from dicom_node.schema import Arrival, Companion, Delivery, Instance, Job, Removal, Series
from dicom_node.states import DELIVERY_WAITS, JOB_ENDS, JobState, SeriesState

LOOK_EVERY_S = 60.0
"""How often the free space, and what has come of age, is looked at."""
FRESH_S = 86_400.0
"""Want of space takes nothing that ended less than a day ago: who asks why has that long."""
_DAY_S = 86_400.0

log = logs.get(__name__)


class Removed(StrEnum):
    """What of a series is gone."""

    SLICES = "slices"
    """The received files. What was made of them is here, and goes out again when they are pushed again."""
    RESULTS = "results"
    """RT-STRUCTs, pictures, and what was known of each slice: pushed again, the series is a new revision."""


class Cause(StrEnum):
    """Why it went."""

    AGE = "age"
    SPACE = "space"


class Retention:
    """Removes one series' files at a time, between other work.

    Args:
        clock: UTC epoch seconds.
        free_bytes: of a folder's disk.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        clock: Callable[[], float],
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._rules = config.retention
        self._storage = config.storage
        self._results = Results(config.storage.results)
        self._engine = engine
        self._clock = clock
        self._free_bytes = free_bytes
        self._look_again_at = 0.0

    def step(self) -> float:
        """Remove what is due of one series; when to look again."""
        now = self._clock()
        if now < self._look_again_at <= now + LOOK_EVERY_S:  # else the clock was set back
            return self._look_again_at
        try:
            removed = self._remove_results(now) or self._remove_slices(now)
        except OSError as problem:
            log.error("what is old cannot be removed", exc_info=problem)
            removed = False
        self._look_again_at = now if removed else now + LOOK_EVERY_S
        return self._look_again_at

    def _remove_slices(self, now: float) -> bool:
        """Of the series that ended first: where it is of age, or where space is wanted."""
        due, cause = now - self._rules.slices_days * _DAY_S, Cause.AGE
        series_id = self._oldest(Series.slices_removed_at.is_(None), due)
        if series_id is None and self._is_space_wanted():
            due, cause = now - FRESH_S, Cause.SPACE
            # Somebody was paged for a failure, and may want to try it again.
            failed = exists().where(Job.series_id == Series.id, Job.state == JobState.FAILED)
            series_id = self._oldest(and_(Series.slices_removed_at.is_(None), ~failed), due)
        if series_id is None:
            return False
        with transaction(self._engine) as session:
            if not _may_go(session, series_id, due):
                return True
            files = _spooled(session, series_id, self._storage.spool)
            size_bytes = sum(path.stat().st_size for path in files)
            # Under the write lock: who commits the same slice again afterwards sees that its file is gone.
            # The folder stays: the listener may be about to write into it.
            for path in files:
                path.unlink(missing_ok=True)
            session.get_one(Series, series_id).slices_removed_at = now
            _keep(session, series_id, Removed.SLICES, cause, len(files), size_bytes, now)
        log.info("slices are removed", series=series_id, cause=cause, files=len(files), size_bytes=size_bytes)
        return True

    def _remove_results(self, now: float) -> bool:
        """Of the series that ended first and whose slices are gone, where it is of age."""
        due = now - self._rules.results_days * _DAY_S
        gone = and_(Series.slices_removed_at.is_not(None), Series.results_removed_at.is_(None))
        series_id = self._oldest(gone, due)
        if series_id is None:
            return False
        with transaction(self._engine) as session:
            if not _may_go(session, series_id, due):
                return True
            named = _forget_results(session, series_id)
            _forget_slices(session, series_id)
            session.get_one(Series, series_id).results_removed_at = now
            # Two jobs whose bytes are the same share a file.
            files = named - jobs.named_files(session) - companions.named_files(session)
            paths = [self._storage.results / file for file in files]
            size_bytes = sum(path.stat().st_size for path in paths if path.exists())
            _keep(session, series_id, Removed.RESULTS, Cause.AGE, len(files), size_bytes, now)
        for file in files:  # what a crash leaves here, the next start sweeps
            self._results.discard(file)
        log.info("results are removed", series=series_id, files=len(files), size_bytes=size_bytes)
        return True

    def _is_space_wanted(self) -> bool:
        wanted_mib = self._storage.reserve_mib + self._rules.room_mib
        return self._free_bytes(self._storage.folder) < wanted_mib << 20

    def _oldest(self, condition: ColumnElement[bool], due: float) -> int | None:
        """The finished series whose last job ended first, before `due`."""
        ended = select(func.max(Job.ended_at)).where(Job.series_id == Series.id).scalar_subquery()
        found = select(Series.id).where(condition, ended < due, _is_finished()).order_by(ended, Series.id)
        with reading(self._engine) as session:
            # One by one: the arrivals of all series of a year are too many to be looked at every minute.
            return next((one for one in session.scalars(found) if _has_rested(session, one, due)), None)


def _may_go(session: Session, series_id: int, due: float) -> bool:
    """Whether that still holds now that nobody else can write."""
    finished = select(Series.id).where(Series.id == series_id, _is_finished())
    return session.scalars(finished).first() is not None and _has_rested(session, series_id, due)


def _has_rested(session: Session, series_id: int, due: float) -> bool:
    """Whether none of its slices came after `due`, be it again."""
    last = (
        select(func.max(Arrival.at))
        .join(Instance, Instance.id == Arrival.instance_id)
        .where(Instance.series_id == series_id)
    )
    at = session.scalars(last).one()
    return at is None or at < due


def _is_finished() -> ColumnElement[bool]:
    """Complete, with at least one job, all of them ended, and nothing that is still to go out."""
    of_series = select(Job.id).where(Job.series_id == Series.id)
    waiting = list(DELIVERY_WAITS)
    return and_(
        Series.state == SeriesState.COMPLETE,
        Series.pushed_again_at.is_(None),
        exists().where(Job.series_id == Series.id),
        ~exists().where(Job.series_id == Series.id, Job.state.not_in(list(JOB_ENDS))),
        ~exists().where(Delivery.job_id.in_(of_series), jobs.is_open()),
        ~exists().where(Companion.job_id.in_(of_series), Companion.state.in_(waiting)),
    )


def _spooled(session: Session, series_id: int, spool: Path) -> list[Path]:
    """The received files that are there."""
    named = session.scalars(select(Instance.file).where(Instance.series_id == series_id))
    return [path for path in map(spool.joinpath, named) if path.exists()]


def _forget_results(session: Session, series_id: int) -> set[str]:
    """The files that the series' jobs, deliveries and companions named until now."""
    named: set[str | None] = set()
    for job in session.scalars(select(Job).where(Job.series_id == series_id)):
        named.add(job.rt_struct_file)
        job.rt_struct_file = None
        for delivery in jobs.deliveries_of(session, job):
            named.add(delivery.rt_struct_file)
            delivery.rt_struct_file = None
        for companion in companions.of_job(session, job):
            named.update(companion.files or ())
            companion.files = None
    session.flush()
    return {file for file in named if file is not None}


def _forget_slices(session: Session, series_id: int) -> None:
    """The rows of a year's slices would be most of the database. Any slice that comes now is a late one."""
    of_series = select(Instance.id).where(Instance.series_id == series_id)
    session.execute(delete(Arrival).where(Arrival.instance_id.in_(of_series)))
    session.execute(delete(Instance).where(Instance.series_id == series_id))
    series = session.get_one(Series, series_id)
    series.evidence = {**(series.evidence or {}), "instances": 0}


def _keep(
    session: Session, series_id: int, what: Removed, cause: Cause, files: int, size_bytes: int, at: float
) -> None:
    session.add(
        Removal(series_id=series_id, what=what, cause=cause, files=files, size_bytes=size_bytes, at=at)
    )
