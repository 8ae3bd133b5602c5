"""Series become jobs: decoded while they arrive, complete by evidence, delivered again when pushed again.

Owns the watch over series that are being received.
Speaks to the database; asks the decoder, the rules of completeness and the source.
Never contours; each verdict is made inside the transaction that acts on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from dicom_node import arrivals, companions, completeness, jobs, logs
from dicom_node.completeness import SeriesFacts, Verdict
from dicom_node.config import Config
from dicom_node.database import reading, transaction
from dicom_node.decoding import Decoder, Spooled
from dicom_node.dispatch import Dispatcher
from dicom_node.peer_count import PeerCounts
from dicom_node.schema import Instance, Series
from dicom_node.states import SeriesState
from dicom_node.steady import SteadyAges

LOOK_FOR_ANSWER_S = 0.5

log = logs.get(__name__)


class Assembler:
    """Watches every series that is being received, pushed again, or reopened by late slices.

    Attributes:
        is_busy: whether there was one at the last look.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        dispatcher: Dispatcher,
        decoder: Decoder,
        peer_counts: PeerCounts | None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._ages = SteadyAges(clock, monotonic)
        self._dispatcher = dispatcher
        self._decoder = decoder
        self._peer_counts = peer_counts
        self.is_busy = False

    def step(self) -> float:
        """Do what is due for every series; when time alone will make more due (UTC epoch seconds)."""
        began_at = self._monotonic()
        self._reopen_late()
        with reading(self._engine) as session:
            receiving = _ids(session, Series.state == SeriesState.RECEIVING)
            pushed_again = _ids(
                session, Series.state == SeriesState.COMPLETE, Series.pushed_again_at.is_not(None)
            )
        looks = [math.inf]
        for series_id in receiving:
            self._decode_ahead(series_id)
            looks.append(self._complete(series_id))
        looks += [self._deliver_again(series_id) for series_id in pushed_again]
        self.is_busy = bool(receiving or pushed_again)
        self._ages.end_look(began_at, {*receiving, *pushed_again})
        return min(looks)

    def _reopen_late(self) -> None:
        with reading(self._engine) as session:
            late = _ids(
                session,
                Series.state == SeriesState.COMPLETE,
                Series.last_instance_at >= Series.completed_at,
            )
            # Where the clock was set back, what has long been seen may be as late as the series' completion.
            late = [one for one in late if jobs.late_slices(session, session.get_one(Series, one)) > 0]
        for series_id in late:
            with transaction(self._engine) as session:
                series = session.get_one(Series, series_id)
                if jobs.reopen_if_late(session, series, self._clock()):
                    log.info("late slices", series=series_id, revision=series.revision)

    def _decode_ahead(self, series_id: int) -> None:
        decoded_to = self._decoder.decoded_to(series_id)
        if decoded_to is None:
            return
        with reading(self._engine) as session:
            new = spooled(session, self._config.storage.spool, series_id, decoded_to)
        if new:
            self._decoder.ahead(series_id, new)

    def _complete(self, series_id: int) -> float:
        """Take the series for complete if it is; when to look again."""
        with reading(self._engine) as session:
            verdict = self._judge(session, session.get_one(Series, series_id))
        if verdict.evidence is None:
            return verdict.look_again_at
        with transaction(self._engine) as session:
            series = session.get_one(Series, series_id)
            verdict = self._judge(session, series)  # of what is there now that nobody else can write
            now = self._clock()
            if verdict.evidence is None:
                return now
            in_words = completeness.in_words(verdict.evidence)
            orders = self._dispatcher.orders(session, series)
            made = jobs.complete(session, series, verdict.evidence, in_words, orders, now)
            told, uid = {job.id: job.rule for job in made}, series.series_instance_uid
        if self._peer_counts is not None:
            self._peer_counts.forget(uid)
        for job, rule in told.items():
            kind = verdict.evidence["kind"]
            log.info("series complete", series=series_id, job=job, evidence=kind, rule=rule)
        return math.inf

    def _judge(self, session: Session, series: Series) -> Verdict:
        facts = arrivals.facts(session, series)
        now = self._now(series, facts)
        verdict = self._judge_at(now, series, facts)
        return replace(verdict, look_again_at=verdict.look_again_at + self._clock() - now)

    def _now(self, series: Series, facts: SeriesFacts) -> float:
        """The time by which `facts` are judged: their last change, and what has passed since then."""
        ends = (association.ended_at or 0.0 for association in facts.associations)
        is_now = series.last_instance_at, series.pushed_again_at, facts.instances, facts.associations
        return self._ages.now(series.id, max(facts.last_arrival_at, *ends, 0.0), is_now)

    def _judge_at(self, now: float, series: Series, facts: SeriesFacts) -> Verdict:
        rules = self._config.series
        verdict = completeness.judge(facts, rules, now)
        if verdict.evidence is not None or self._peer_counts is None:
            return verdict
        ask_from = facts.last_arrival_at + rules.grace_s
        if now < ask_from:
            return Verdict(None, min(verdict.look_again_at, ask_from))
        count = self._peer_counts.of(
            series.study_instance_uid, series.series_instance_uid, facts.last_arrival_at, now
        )
        counted = completeness.judge(replace(facts, peer_count=count), rules, now)
        return replace(counted, look_again_at=min(counted.look_again_at, now + LOOK_FOR_ANSWER_S))

    def _deliver_again(self, series_id: int) -> float:
        """Send the stored result again if the repeated push is over; else when to look again."""
        with transaction(self._engine) as session:
            series, now = session.get_one(Series, series_id), self._clock()
            facts = arrivals.facts_since_completion(session, series)
            its_now = self._now(series, facts)
            verdict = completeness.judge_again(facts, self._config.series, its_now)
            if verdict.evidence is None:
                return verdict.look_again_at + now - its_now
            in_words = "the same slices were pushed again"
            again = jobs.deliver_again(session, series, in_words, now)
            for job in again:
                companions.send_again(session, job, in_words, now)
            numbers = [job.id for job in again]
        log.info("series pushed again", series=series_id, delivered_again=numbers)
        return now


def spooled(session: Session, spool: Path, series_id: int, after: int = 0) -> list[Spooled]:
    """The instances of a series that came after the one numbered `after`, in the order of their arrival."""
    rows = session.execute(
        select(Instance.id, Instance.file)
        .where(Instance.series_id == series_id, Instance.id > after)
        .order_by(Instance.id)
    )
    return [Spooled(row.id, spool / row.file) for row in rows]


def _ids(session: Session, *conditions: ColumnElement[bool]) -> list[int]:
    return list(session.scalars(select(Series.id).where(*conditions).order_by(Series.id)))
