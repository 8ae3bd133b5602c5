"""Whether a job is the one of its study to contour, or yields to another reconstruction of the same scan.

Owns which series compete, and for how long an unfinished one is waited for.
Speaks rows in, a verdict with its reason out; the ranking itself is `reconstruction.py`'s.
Never sets a job aside that a person asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node import arrivals, jobs
from dicom_node.completeness import SeriesFacts, stack_of
from dicom_node.config import Config
from dicom_node.ct_slice import CtHeader, read_header
from dicom_node.errors import SeriesRejectedError
from dicom_node.reconstruction import Candidate, rank
from dicom_node.schema import Instance, Job, Series
from dicom_node.states import JobState, SeriesState

WAIT_IN_QUIET_PERIODS = 3
"""A sibling that is still being received is waited for so long, and no longer."""
OUT_OF_THE_RACE = frozenset({JobState.REJECTED, JobState.CANCELLED, JobState.IGNORED})


@dataclass(frozen=True)
class Yield:
    """Another series of the study is contoured instead."""

    reason: str


@dataclass(frozen=True)
class Wait:
    """A sibling is still being received: look again when something came, at the latest then."""

    until: float


def judge(
    session: Session, job: Job, config: Config, model_spacing_mm: float, now: float
) -> Yield | Wait | None:
    """Whether the job yields, waits, or (None) is to be contoured."""
    series = session.get_one(Series, job.series_id)
    others = [other for other in _others(session, series) if _competes(session, other, job, config)]
    if not others or jobs.was_asked_for(session, job):
        return None
    longest_s = WAIT_IN_QUIET_PERIODS * config.series.quiet_period_s
    until = min(series.completed_at or now, now) + longest_s  # a clock may have been set back
    if now < until and any(other.state is SeriesState.RECEIVING for other in others):
        return Wait(until)
    spool = config.storage.spool
    own = _candidate(session, series, spool)
    if own is None:
        return None  # it will be rejected, and the slices' own reason says more
    header, candidate = own
    rivals = [_candidate(session, other, spool) for other in others]
    of_one_scan = [
        rival
        for found in rivals
        if found is not None
        for rival_header, rival in [found]
        if rival_header.frame_of_reference_uid == header.frame_of_reference_uid
    ]
    first = rank([candidate, *of_one_scan], config.series.exclude_kernels, model_spacing_mm)[0]
    if first.candidate == candidate:
        return None
    return Yield(f"another reconstruction of this scan is contoured instead: {', '.join(first.reasons)}")


def _others(session: Session, series: Series) -> list[Series]:
    same_study = select(Series).where(
        Series.study_instance_uid == series.study_instance_uid, Series.id != series.id
    )
    return list(session.scalars(same_study.order_by(Series.id)))


def _competes(session: Session, other: Series, job: Job, config: Config) -> bool:
    """Whether it is, or may still become, a series that could be contoured like this; a localizer is not.

    What a rule sends to another model or template is asked for besides, and takes nobody's place.
    """
    if other.state is SeriesState.COMPLETE:
        states = {
            rival.state
            for rival in jobs.jobs_of_revision(session, other)
            if (rival.model_sha256, rival.template) == (job.model_sha256, job.template)
        }
        return bool(states - OUT_OF_THE_RACE) and _has_enough(arrivals.facts(session, other), config)
    facts = arrivals.facts(session, other)
    still_coming = any(association.outcome is None for association in facts.associations)
    return still_coming or _has_enough(facts, config)


def _has_enough(facts: SeriesFacts, config: Config) -> bool:
    return facts.instances >= config.series.min_slices


def _candidate(session: Session, series: Series, spool: Path) -> tuple[CtHeader, Candidate] | None:
    """What the rule ranks, from the rows and one slice's header; None where it is no stack."""
    rows = session.execute(
        select(Instance.file, Instance.geometry).where(Instance.series_id == series.id).order_by(Instance.id)
    ).all()
    stack = stack_of([row.geometry for row in rows])
    if stack is None:
        return None
    try:
        header = read_header(spool / rows[0].file)
    except (SeriesRejectedError, OSError):
        return None
    gaps = np.diff(stack.offsets_mm)
    candidate = Candidate(
        series_instance_uid=series.series_instance_uid,
        slices=len(rows),
        spacing_mm=float(np.median(gaps)) if len(gaps) else 0.0,
        extent_mm=stack.offsets_mm[-1] - stack.offsets_mm[0],
        convolution_kernel=header.convolution_kernel,
        words=" ".join((header.convolution_kernel, header.series_description, header.protocol_name)),
        is_original="ORIGINAL" in header.image_type,
    )
    return header, candidate
