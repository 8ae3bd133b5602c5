"""Jobs whose rows tests write themselves, at moments that they know.

Owns one way of a job: last slice at NOW, complete at NOW + 2, begun at NOW + 2.5, READY at NOW + 5.5.
Speaks rows, through the product's own changes of state.
Never contours anything.
"""

from __future__ import annotations

from sqlalchemy import Engine

from dicom_node import jobs
from dicom_node.database import transaction
from dicom_node.schema import Delivery, Job, Series
from dicom_node.states import JobState, SeriesState

NOW = 1_800_000_000.0
SECRET = "1.2.826.0.1.3680043.8.498.77"


def add_job(engine: Engine, number: int) -> int:
    """A series whose last slice came at NOW, taken for complete 2 s later; its job waits."""
    with transaction(engine) as session:
        series = Series(
            series_instance_uid=f"{SECRET}.{number}",
            study_instance_uid=SECRET,
            patient_key="p",
            accession_key="a",
            state=SeriesState.RECEIVING,
            revision=1,
            first_instance_at=NOW - 10,
            last_instance_at=NOW,
            completed_at=NOW + 2,
        )
        jobs.begin(session, series, NOW - 10, "its first slice came")
        job = Job(
            series_id=series.id,
            revision=1,
            model_name="anatomynet-hn",
            model_sha256="0" * 64,
            state=JobState.QUEUED,
            created_at=NOW + 2,
            attempts=0,
        )
        jobs.begin(session, job, NOW + 2, "complete")
        return job.id


def contour(engine: Engine, number: int) -> int:
    """Contour a job within 3 s of its start: READY at NOW + 5.5."""
    rois = [
        {"name": "Brainstem", "volume_cm3": 25.0, "contours": 9, "confidence": 0.8, "flags": []},
        {"name": "Larynx", "volume_cm3": 0.0, "contours": 0, "confidence": None, "flags": ["not_found"]},
    ]
    seconds = {"decode": 0.1, "preprocess": 0.2, "forward": 2.0, "rt_struct": 0.2, "PATIENT^NAME": 1.0}
    model = {"name": "anatomynet-hn", "version": "1"}
    report = {"seconds": seconds, "rois": rois, "model": model, "device": "cpu"}
    with transaction(engine) as session:
        job = session.get_one(Job, number)
        jobs.start(session, job, NOW + 2.5, "the worker took it")
        kept = jobs.Kept("result.dcm", "cc", SECRET)
        jobs.finish(session, job, jobs.Result(kept, report, "checked"), ["pacs"], NOW + 5.5)
        (delivery,) = jobs.deliveries_of(session, job)
        return delivery.id


def deliver(engine: Engine, number: int, at: float) -> None:
    with transaction(engine) as session:
        jobs.delivery_stored(session, session.get_one(Delivery, number), 0x0000, "stored", at)
