"""A job's story tells what happened and why, and never whom it happened to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dicom_node import jobs, migrate, story
from dicom_node.database import open_engine, transaction
from dicom_node.jobs import NotHeldError
from dicom_node.schema import Job
from dicom_node.story import NoSuchJobError
from dicom_node.worker import Worker
from tests.node_fixtures import HASHED, BoxSegmenter, configuration, receive, write_package
from tests.phantoms import Phantom


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A node that has contoured one series; its PACS refused, was retried, and stored."""
    config = configuration(tmp_path, write_package(tmp_path / "packages"))
    migrate.upgrade(config.storage.database)
    engine = open_engine(config.storage.database)
    receive(engine, config, Phantom(), at=1000.0)
    worker = Worker(config, engine, BoxSegmenter, lambda: 1002.5)  # type: ignore[arg-type]
    worker.step()
    worker.finish()
    worker.close()
    with transaction(engine) as session:
        (delivery,) = jobs.deliveries_of(session, session.get_one(Job, 1))
        jobs.delivery_refused(session, delivery, 0xA900, "the data set does not match", 1003.0)
    yield engine
    engine.dispose()


def test_the_story_tells_of_slices_evidence_changes_work_and_deliveries(engine: Engine) -> None:
    words = story.show(engine, 1).in_words()
    assert "Job 1 is FAILED: refused by pacs" in words
    assert "The first slice came at 1970-01-01 00:16:40 UTC" in words
    assert "SCANNER at 127.0.0.1 brought 24 slice(s)" in words
    assert "one association from SCANNER brought all 24 slices, a gapless stack of 69.0 mm" in words
    assert "job      -> READY: contoured and checked: Brainstem" in words
    assert "delivery to pacs -> REFUSED: the data set does not match" in words
    assert "Contoured on cpu: decode" in words
    assert "To pacs: REFUSED after 1 attempt(s)" in words


def test_the_same_is_there_for_programs(engine: Engine) -> None:
    told = json.loads(json.dumps(story.show(engine, 1).as_json(), allow_nan=False))
    assert (told["job"]["state"], told["job"]["reason_code"]) == ("FAILED", "refused")
    assert told["deliveries"][0]["last_status"] == "0xA900"
    assert told["deliveries"][0]["sop_instance_uid"] == told["job"]["sop_instance_uid"]
    assert [change["to"] for change in told["transitions"] if change["subject"] == "job"] == [
        "QUEUED",
        "RUNNING",
        "READY",
        "FAILED",
    ]
    (line,) = json.loads(json.dumps(story.list_jobs(engine).as_json()))
    assert (line["job"], line["slices"], line["turnaround_s"]) == (1, 24, 2.5)


def test_no_word_of_it_names_the_patient(engine: Engine) -> None:
    told = story.show(engine, 1)
    for text in (told.in_words(), json.dumps(told.as_json()), story.list_jobs(engine).in_words()):
        for secret in ("Phantom^Test", "PHANTOM-1", "ACC1", "19700101"):
            assert secret not in text


def test_jobs_are_found_by_accession_number_and_patient_id_through_their_hash(engine: Engine) -> None:
    assert [line.job for line in story.find(engine, HASHED, "ACC1").lines] == [1]
    assert [line.job for line in story.find(engine, HASHED, "PHANTOM-1 ").lines] == [1]
    assert story.find(engine, HASHED, "PHANTOM-2").in_words() == "no jobs"


def test_a_person_retries_and_cancels_and_is_told_what_became_of_it(engine: Engine) -> None:
    assert story.retry(engine, 1) == "job 1 was FAILED and is now READY; 1 delivery(ies) to go out"
    assert story.cancel(engine, 1) == "job 1 was READY and is now CANCELLED"
    with pytest.raises(NotHeldError, match="job 1 is CANCELLED"):
        story.release(engine, 1)
    with pytest.raises(NoSuchJobError, match="no job 7"):
        story.show(engine, 7)
