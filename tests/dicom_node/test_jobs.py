"""States change as the tables say and in no other way, and every change is kept."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicom_node import jobs, migrate
from dicom_node.database import open_engine, reading, transaction
from dicom_node.jobs import IllegalTransitionError, Kept, Model, NotHeldError, Order, Result
from dicom_node.schema import Companion, Delivery, Instance, Job, Series, Transition
from dicom_node.states import (
    COMPANION_TRANSITIONS,
    DELIVERY_TRANSITIONS,
    JOB_TRANSITIONS,
    SERIES_TRANSITIONS,
    CompanionKind,
    DeliveryState,
    JobState,
    SeriesState,
)

MODEL = Model("anatomynet-hn", "a" * 64)
OTHER_MODEL = Model("anatomynet-hn", "b" * 64)
RESULT = Result(Kept("r.dcm", "c" * 64, "2.25.7"), {"rois": []}, "5 structures")
EVIDENCE = {"kind": "quiet", "quiet_s": 30.0, "instances": 0, "associations": 0, "not_released": 0}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    migrate.upgrade(tmp_path / "node.sqlite")
    engine = open_engine(tmp_path / "node.sqlite")
    yield engine
    engine.dispose()


def new_series(session: Session, number: int = 1) -> Series:
    series = Series(
        series_instance_uid=f"1.2.{number}",
        study_instance_uid="1.2",
        patient_key="p",
        accession_key="a",
        state=SeriesState.RECEIVING,
        revision=1,
        first_instance_at=1.0,
        last_instance_at=1.0,
    )
    jobs.begin(session, series, 1.0, "the first slice came")
    return series


def come(session: Session, series: Series) -> None:
    """One more instance of the series."""
    session.add(
        Instance(
            series_id=series.id,
            sop_instance_uid="1.2.3",
            sop_class_uid="1.2",
            transfer_syntax_uid="1.2",
            sha256="0" * 64,
            file="f",
            size_bytes=1,
            received_at=1.0,
            geometry={},
        )
    )


def completed(session: Session, at: float = 10.0) -> tuple[Series, Job]:
    series = new_series(session)
    (job,) = jobs.complete(session, series, EVIDENCE, "30 s of quiet", [Order(MODEL)], at)
    return series, job


def sent(session: Session) -> tuple[Series, Job, list[Delivery]]:
    series, job = completed(session)
    jobs.start(session, job, 11.0, "begun")
    jobs.finish(session, job, RESULT, ["pacs", "tps"], 12.0)
    deliveries = jobs.deliveries_of(session, job)
    for delivery in deliveries:
        jobs.delivery_stored(session, delivery, 0x0000, "success", 13.0)
    return series, job, deliveries


def history(session: Session, subject: str) -> list[str]:
    rows = select(Transition.to_state).where(Transition.subject == subject).order_by(Transition.id)
    return list(session.scalars(rows))


# --- the tables --------------------------------------------------------------------------------

EVERY_PAIR = [
    (subject, before, after, after in followers)
    for subject, table in (
        ("series", SERIES_TRANSITIONS),
        ("jobs", JOB_TRANSITIONS),
        ("deliveries", DELIVERY_TRANSITIONS),
        ("companions", COMPANION_TRANSITIONS),
    )
    for before, followers in table.items()
    for after in type(before)
]


def _subject_in(session: Session, table: str, state: str) -> jobs.Subject:
    series = new_series(session)
    job = Job(series_id=series.id, revision=1, model_name="m", model_sha256="a", created_at=1.0)
    session.add(job)
    session.flush()
    delivery = Delivery(job_id=job.id, destination="pacs", created_at=1.0, next_attempt_at=1.0)
    session.add(delivery)
    session.flush()
    beside = Companion(
        job_id=job.id, destination="pacs", kind=CompanionKind.NOTICE, created_at=1.0, next_attempt_at=1.0
    )
    session.add(beside)
    session.flush()
    subject = {"series": series, "jobs": job, "deliveries": delivery, "companions": beside}[table]
    session.execute(text(f"DROP TRIGGER {table}_state_follows_the_table"))
    session.execute(text(f"UPDATE {table} SET state = '{state}'"))
    migrate.install_triggers(session.connection())
    session.refresh(subject)
    return subject


def test_every_pair_of_states_is_legal_or_refused_by_mover_and_database_alike(engine: Engine) -> None:
    assert len(EVERY_PAIR) == 2 * 2 + 9 * 9 + 6 * 6 + 5 * 6
    for table, before, after, legal in EVERY_PAIR:
        with Session(engine) as session:
            subject = _subject_in(session, table, before)
            update = text(f"UPDATE {table} SET state = '{after}'")
            if legal:
                with session.begin_nested() as savepoint:
                    session.execute(update)
                    savepoint.rollback()
                jobs.move(session, subject, after, 2.0, "why")
                last = session.scalars(select(Transition).order_by(Transition.id.desc())).first()
                assert last is not None
                assert (last.from_state, last.to_state, last.at, last.reason) == (before, after, 2.0, "why")
            else:
                kept = session.scalar(select(func.count()).select_from(Transition))
                with pytest.raises(IllegalTransitionError, match=f"is {before}; it cannot become {after}"):
                    jobs.move(session, subject, after, 2.0, "why")
                assert subject.state is before
                assert session.scalar(select(func.count()).select_from(Transition)) == kept
                if before is not after:
                    with pytest.raises(IntegrityError, match="illegal change of state"):
                        session.execute(update)
            session.rollback()


def test_a_kept_transition_cannot_be_rewritten(engine: Engine) -> None:
    with transaction(engine) as session:
        new_series(session)
    with pytest.raises(IntegrityError, match="history"), transaction(engine) as session:
        session.execute(text("UPDATE transitions SET reason = 'another'"))


def test_a_state_and_its_history_are_kept_together_or_not_at_all(engine: Engine) -> None:
    with pytest.raises(IntegrityError), transaction(engine) as session:
        jobs.move(session, completed(session)[1], JobState.RUNNING, None, "no time")  # type: ignore[arg-type]
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(Series)) == 0
        assert session.scalar(select(func.count()).select_from(Transition)) == 0


def test_eight_threads_of_moves_lose_none(engine: Engine) -> None:
    with transaction(engine) as session:
        delivery_id = sent(session)[2][0].id
        before = session.scalar(select(func.count()).select_from(Transition)) or 0

    def go_round(_: int) -> None:
        for _ in range(20):
            with transaction(engine) as session:
                delivery = session.get_one(Delivery, delivery_id)
                stored = delivery.state is DeliveryState.STORED
                to = DeliveryState.PENDING if stored else DeliveryState.STORED
                jobs.move(session, delivery, to, 20.0, "again")
                delivery.attempts += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go_round, range(8)))
    with reading(engine) as session:
        assert session.get_one(Delivery, delivery_id).attempts == 1 + 160
        assert (session.scalar(select(func.count()).select_from(Transition)) or 0) == before + 160


# --- late slices -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.HELD])
def test_a_late_slice_before_ready_reopens_the_series_and_the_same_job_contours_all(
    engine: Engine, state: JobState
) -> None:
    with transaction(engine) as session:
        series, job = completed(session)
        if state is JobState.RUNNING:
            jobs.start(session, job, 11.0, "begun")
        elif state is JobState.HELD:
            jobs.move(session, job, JobState.HELD, 11.0, "not approved")
        come(session, series)
        assert jobs.reopen_if_late(session, series, 12.0)
        assert (series.state, series.revision) == (SeriesState.RECEIVING, 1)
        assert job.state is (JobState.HELD if state is JobState.HELD else JobState.QUEUED)
        now = {**EVIDENCE, "instances": 1}
        assert jobs.complete(session, series, now, "quiet", [Order(MODEL)], 50.0) == [job]
        assert not jobs.reopen_if_late(session, series, 51.0)


@pytest.mark.parametrize("end", ["ready", "sent", "rejected", "failed", "cancelled", "ignored"])
def test_a_late_slice_from_ready_on_makes_a_revision_that_names_its_predecessor(
    engine: Engine, end: str
) -> None:
    with transaction(engine) as session:
        if end == "sent":
            series, job, _ = sent(session)
        else:
            series, job = completed(session)
            if end != "ignored":
                jobs.start(session, job, 11.0, "begun")
        if end == "ready":
            jobs.finish(session, job, RESULT, ["pacs"], 12.0)
        elif end != "sent":
            jobs.move(session, job, JobState(end.upper()), 12.0, "why")
        before = job.state
        come(session, series)
        assert jobs.reopen_if_late(session, series, 20.0)
        (later,) = jobs.complete(session, series, EVIDENCE, "30 s of quiet", [Order(MODEL)], 60.0)
        assert (series.revision, later.revision, later.state) == (2, 2, JobState.QUEUED)
        assert later.id != job.id
        assert job.state is before
        has_result = end in {"ready", "sent"}
        assert later.predecessor_sop_instance_uid == (RESULT.first.sop_instance_uid if has_result else None)


def test_a_revision_has_one_job_a_model_however_often_it_is_asked_for(engine: Engine) -> None:
    with transaction(engine) as session:
        series, job = completed(session)
        assert jobs.ensure_job(session, series, Order(MODEL), 11.0, "why") is job
        assert jobs.ensure_job(session, series, Order(OTHER_MODEL), 11.0, "why") is not job
    with pytest.raises(IntegrityError), transaction(engine) as session:
        session.add(Job(series_id=1, revision=1, model_name="m", model_sha256="a" * 64, created_at=1.0))


# --- deliveries --------------------------------------------------------------------------------


def test_a_job_is_sent_when_all_its_deliveries_are(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job = completed(session)
        jobs.start(session, job, 11.0, "begun")
        jobs.finish(session, job, RESULT, ["pacs", "tps"], 12.0)
        pacs, tps = jobs.deliveries_of(session, job)
        jobs.delivery_stored(session, pacs, 0x0000, "success", 13.0)
        assert job.state is JobState.READY
        jobs.delivery_postponed(session, tps, None, "no answer", 99.0)
        assert (job.state, tps.attempts, tps.next_attempt_at) == (JobState.READY, 1, 99.0)
        jobs.delivery_stored(session, tps, 0xB000, "stored with a warning", 100.0)
        assert (job.state, job.ended_at) == (JobState.SENT, 100.0)
        assert history(session, "job") == ["QUEUED", "RUNNING", "READY", "SENT"]


def test_one_refused_delivery_fails_the_job_while_the_others_go_on(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job = completed(session)
        jobs.start(session, job, 11.0, "begun")
        jobs.finish(session, job, RESULT, ["pacs", "tps"], 12.0)
        pacs, tps = jobs.deliveries_of(session, job)
        jobs.delivery_refused(session, pacs, 0xA900, "data set does not match", 13.0)
        assert (job.state, tps.state) == (JobState.FAILED, DeliveryState.PENDING)
        jobs.delivery_stored(session, tps, 0x0000, "success", 14.0)
        assert job.state is JobState.FAILED
        jobs.retry(session, job, 15.0)
        assert (job.state, pacs.state, tps.state) == (
            JobState.READY,
            DeliveryState.PENDING,
            DeliveryState.STORED,
        )
        jobs.delivery_stored(session, pacs, 0x0000, "success", 16.0)
        assert job.state is JobState.SENT


def test_a_repeated_push_sends_the_stored_result_once_more(engine: Engine) -> None:
    with transaction(engine) as session:
        series, job, deliveries = sent(session)
        series.pushed_again_at = 20.0
        assert jobs.deliver_again(session, series, "pushed again", 25.0) == [job]
        assert series.pushed_again_at is None
        assert job.state is JobState.READY
        assert {(d.state, d.next_attempt_at) for d in deliveries} == {(DeliveryState.PENDING, 25.0)}
        assert job.rt_struct_file == RESULT.first.file
        assert jobs.deliver_again(session, series, "pushed again", 26.0) == []  # it is under way


def test_a_job_without_destinations_ends_well_and_says_so(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job = completed(session)
        jobs.start(session, job, 11.0, "begun")
        jobs.finish(session, job, RESULT, [], 12.0)
        assert job.state is JobState.SENT
        assert "no destination" in (job.reason or "")


HELD_RESULT = replace(RESULT, holds={"tps": "the gantry was tilted by 15.0 degrees"})


def ready_with_one_held(session: Session) -> tuple[Series, Job, Delivery, Delivery]:
    series, job = completed(session)
    jobs.start(session, job, 11.0, "begun")
    jobs.finish(session, job, HELD_RESULT, ["pacs", "tps"], 12.0)
    pacs, tps = jobs.deliveries_of(session, job)
    return series, job, pacs, tps


def test_what_one_destination_holds_goes_to_the_others_at_once_and_to_it_once_released(
    engine: Engine,
) -> None:
    with transaction(engine) as session:
        _, job, pacs, tps = ready_with_one_held(session)
        assert (pacs.state, tps.state) == (DeliveryState.PENDING, DeliveryState.HELD)
        assert "held for tps: the gantry was tilted" in (job.reason or "")
        assert f"jobs release {job.id} --destination tps" in (tps.reason or "")
        assert jobs.named_files(session) == {RESULT.first.file}
        jobs.delivery_stored(session, pacs, 0x0000, "success", 13.0)
        assert job.state is JobState.READY
        with pytest.raises(NotHeldError, match="job 1 is READY, and nothing for pacs is held"):
            jobs.release(session, job, 20.0, "pacs")
        jobs.release(session, job, 20.0, "tps")
        assert (tps.state, tps.next_attempt_at) == (DeliveryState.PENDING, 20.0)
        jobs.delivery_stored(session, tps, 0x0000, "success", 21.0)
        assert job.state is JobState.SENT


@pytest.mark.parametrize("released", [False, True])
def test_a_held_delivery_stays_so_through_push_and_retry_until_it_was_released_once(
    engine: Engine, released: bool
) -> None:
    with transaction(engine) as session:
        series, job, pacs, tps = ready_with_one_held(session)
        if released:
            jobs.release(session, job, 12.5)
        expected = DeliveryState.PENDING if released else DeliveryState.HELD
        jobs.delivery_refused(session, pacs, 0xA900, "data set does not match", 13.0)
        assert (job.state, tps.state) == (JobState.FAILED, expected)
        jobs.deliver_again(session, series, "pushed again", 14.0)
        assert (pacs.state, tps.state) == (DeliveryState.PENDING, expected)
        jobs.delivery_refused(session, pacs, 0xA900, "data set does not match", 15.0)
        pacs.rt_struct_file = None  # damaged: a retry contours again
        jobs.retry(session, job, 16.0)
        jobs.start(session, job, 17.0, "begun")
        jobs.finish(session, job, HELD_RESULT, ["pacs", "tps"], 18.0)
        assert (pacs.state, tps.state) == (DeliveryState.PENDING, expected)


def test_what_a_person_cancelled_while_it_was_held_is_held_again_when_asked_for(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job, _, tps = ready_with_one_held(session)
        jobs.cancel(session, job, 13.0)
        assert (job.state, tps.state) == (JobState.CANCELLED, DeliveryState.CANCELLED)
        jobs.retry(session, job, 14.0)
        jobs.start(session, job, 15.0, "begun")
        jobs.finish(session, job, HELD_RESULT, ["pacs", "tps"], 16.0)
        assert tps.state is DeliveryState.HELD


def test_a_later_revision_takes_the_place_of_what_is_held_and_names_no_predecessor_there(
    engine: Engine,
) -> None:
    with transaction(engine) as session:
        series, job, pacs, tps = ready_with_one_held(session)
        jobs.delivery_stored(session, pacs, 0x0000, "success", 13.0)
        come(session, series)
        jobs.reopen_if_late(session, series, 20.0)
        (later,) = jobs.complete(session, series, EVIDENCE, "30 s of quiet", [Order(MODEL)], 60.0)
        assert jobs.predecessors(session, later) == {"pacs": RESULT.first.sop_instance_uid}
        jobs.start(session, later, 61.0, "begun")
        assert tps.state is DeliveryState.HELD, "the later one may yet be rejected"
        jobs.finish(session, later, HELD_RESULT, ["pacs", "tps"], 62.0)
        assert (tps.state, job.state) == (DeliveryState.CANCELLED, JobState.SENT)
        assert [one.state for one in jobs.deliveries_of(session, later)] == [
            DeliveryState.PENDING,
            DeliveryState.HELD,
        ]


# --- persons and crashes -----------------------------------------------------------------------


def test_a_person_may_cancel_what_goes_on_and_ask_again_for_what_ended(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job = completed(session)
        with pytest.raises(IllegalTransitionError):
            jobs.retry(session, job, 11.0)
        with pytest.raises(NotHeldError):
            jobs.release(session, job, 11.0)
        jobs.cancel(session, job, 12.0)
        assert job.state is JobState.CANCELLED
        with pytest.raises(IllegalTransitionError):
            jobs.cancel(session, job, 13.0)
        jobs.retry(session, job, 14.0)
        assert (job.state, job.ended_at) == (JobState.QUEUED, None)


def test_cancelling_a_ready_job_cancels_what_is_still_to_be_sent(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job = completed(session)
        jobs.start(session, job, 11.0, "begun")
        jobs.finish(session, job, RESULT, ["pacs"], 12.0)
        jobs.cancel(session, job, 13.0)
        assert job.state is JobState.CANCELLED
        assert [d.state for d in jobs.deliveries_of(session, job)] == [DeliveryState.CANCELLED]


def test_a_job_that_kills_the_worker_again_and_again_fails_instead(engine: Engine) -> None:
    with transaction(engine) as session:
        _, job = completed(session)
        for crash in (1, 2, 3):
            jobs.start(session, job, 10.0 + crash, "begun")
            jobs.recover(session, 3, 20.0 + crash)
            assert job.state is (JobState.QUEUED if crash < 3 else JobState.FAILED)
        assert job.reason_code == "worker_crashed"
        jobs.retry(session, job, 30.0)
        jobs.start(session, job, 31.0, "begun")
        jobs.recover(session, 3, 32.0)
        assert job.state is JobState.QUEUED  # a person's word starts the count anew
