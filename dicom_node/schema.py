"""The tables: what was received, what was made of it, where it went, and every change of state.

Owns the relational schema; `migrations/` builds it and its triggers.
Speaks SQLAlchemy declarative classes; times are UTC seconds since the epoch; files are relative
to the spool or results folder.
Never holds a patient's name, ID or birth date: what people search for is kept as a keyed hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dicom_node.states import COMPANION_TRANSITIONS, CompanionKind, DeliveryState, JobState, SeriesState


def _one_of(column: str, states: Iterable[StrEnum]) -> CheckConstraint:
    names = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({names})", name=f"{column}_is_known")


class Base(DeclarativeBase):
    """The root of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 (SQLAlchemy reads it)


class Association(Base):
    """One DICOM association with a peer that was let in."""

    __tablename__ = "associations"

    id: Mapped[int] = mapped_column(primary_key=True)
    calling_ae_title: Mapped[str]
    called_ae_title: Mapped[str]
    peer_address: Mapped[str]
    opened_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]
    """NULL while it is open, then `released`, `aborted` or `lost` (ended without a word, or by our crash)."""


class Series(Base):
    """One CT series, by its SeriesInstanceUID."""

    __tablename__ = "series"
    __table_args__ = (_one_of("state", SeriesState),)

    id: Mapped[int] = mapped_column(primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(unique=True)
    study_instance_uid: Mapped[str] = mapped_column(index=True)
    patient_key: Mapped[str] = mapped_column(index=True)
    """Keyed hash of PatientID."""
    accession_key: Mapped[str] = mapped_column(index=True)
    """Keyed hash of AccessionNumber."""
    state: Mapped[SeriesState] = mapped_column(default=SeriesState.RECEIVING)
    revision: Mapped[int] = mapped_column(default=1)
    evidence: Mapped[dict[str, Any] | None]
    """Why the revision was taken for complete: `{"kind": "association" | "query" | "quiet", ...numbers}`."""
    flag: Mapped[str | None]
    """What a person should know, such as an instance that came twice with different bytes."""
    first_instance_at: Mapped[float]
    last_instance_at: Mapped[float]
    """When the last *new* instance was committed."""
    pushed_again_at: Mapped[float | None]
    """When an instance that was already here was last pushed again, byte for byte."""
    completed_at: Mapped[float | None]
    slices_removed_at: Mapped[float | None]
    """Since when its received files are gone; NULL again once one of them comes again."""
    results_removed_at: Mapped[float | None]
    """Since when its results and the rows of its instances are gone; NULL again once slices come."""


class Instance(Base):
    """One received instance: the bytes are in the spool, fsynced, before this row exists."""

    __tablename__ = "instances"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(unique=True)
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    sha256: Mapped[str]
    """Of the data set's bytes as received, without the file's preamble and meta group."""
    file: Mapped[str] = mapped_column(unique=True)
    size_bytes: Mapped[int]
    received_at: Mapped[float]
    geometry: Mapped[dict[str, Any]]
    """ImagePositionPatient, ImageOrientationPatient, PixelSpacing, Rows, Columns as far as they are there."""


class Arrival(Base):
    """One acknowledged C-STORE of one instance over one association; resends have a row each."""

    __tablename__ = "arrivals"
    __table_args__ = (Index("arrivals_by_association", "association_id", "instance_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), index=True)
    association_id: Mapped[int] = mapped_column(ForeignKey("associations.id"))
    at: Mapped[float]


class Job(Base):
    """One contouring of one revision of a series by one model and template."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("state", JobState),
        # One result, however often: the same question is never asked twice.
        UniqueConstraint("series_id", "revision", "model_sha256", "template", name="one_job_a_revision"),
        Index("jobs_by_state", "state"),
        # One worker contours one job at a time.
        Index("one_job_runs", "state", unique=True, sqlite_where=text("state = 'RUNNING'")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    revision: Mapped[int]
    model_name: Mapped[str]
    model_sha256: Mapped[str]
    template: Mapped[str] = mapped_column(default="default")
    """The file that its rule names for names and colours; `default` where the destinations' own count."""
    rule: Mapped[str | None]
    """The rule of `routing` that asked for it; NULL where none is configured."""
    destinations: Mapped[list[Any] | None]
    """Names of those that are to get it; NULL means all."""
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Of two that wait the higher one runs first."""
    state: Mapped[JobState] = mapped_column(default=JobState.QUEUED)
    reason: Mapped[str | None]
    """Why it is in this state, for a person."""
    reason_code: Mapped[str | None]
    """The same as a bounded word, for metrics."""
    traceback: Mapped[str | None]
    created_at: Mapped[float]
    """Also the date and time inside the RT-STRUCT, so that a rerun makes the same bytes."""
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float | None]
    """A transient failure is tried again only from then on."""
    rt_struct_file: Mapped[str | None]
    rt_struct_sha256: Mapped[str | None]
    sop_instance_uid: Mapped[str | None]
    predecessor_sop_instance_uid: Mapped[str | None]
    report: Mapped[dict[str, Any] | None]
    """What `anatomynode contour --json` prints: ROIs with volumes, seconds by stage, device."""


class Delivery(Base):
    """A job's result for one destination."""

    __tablename__ = "deliveries"
    __table_args__ = (
        _one_of("state", DeliveryState),
        UniqueConstraint("job_id", "destination", name="one_delivery_a_destination"),
        # What is due is looked for several times a second, among the deliveries of years.
        Index("deliveries_that_are_due", "destination", "state", "next_attempt_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)
    destination: Mapped[str]
    state: Mapped[DeliveryState] = mapped_column(default=DeliveryState.PENDING)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float]
    next_attempt_at: Mapped[float]
    last_status: Mapped[int | None]
    stored_at: Mapped[float | None]
    rt_struct_file: Mapped[str | None]
    """The edition that this destination gets; NULL where it gets none, or the file was found damaged."""
    rt_struct_sha256: Mapped[str | None]
    sop_instance_uid: Mapped[str | None]
    commitment_due_at: Mapped[float | None]
    """STORED: when the destination is to be asked (again) to commit; NULL where nobody waits for that."""
    commitment_failures: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often the destination has reported that it did not keep the object."""


class Commitment(Base):
    """One request to a destination to commit itself to an object; committed before the N-ACTION goes out."""

    __tablename__ = "commitments"
    __table_args__ = (
        # Looked for every second, among the requests of years.
        Index(
            "reports_to_weigh",
            "reported_at",
            sqlite_where=text("reported_at IS NOT NULL AND weighed_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), index=True)
    transaction_uid: Mapped[str] = mapped_column(unique=True)
    sop_instance_uid: Mapped[str]
    stored_at: Mapped[float]
    """The delivery's `stored_at` when it was asked: a report about an earlier storing says nothing more."""
    asked_at: Mapped[float]
    reported_at: Mapped[float | None]
    """When the destination's report (N-EVENT-REPORT) was committed here."""
    failure_reason: Mapped[int | None]
    """Of the report (PS3.3 C.14.1.1); NULL where it took the commitment."""
    weighed_at: Mapped[float | None]
    """When the worker made of the report what follows from it."""


class Companion(Base):
    """Secondary Captures for one destination: pictures beside the RT-STRUCT, or a notice in place of one.

    It never decides what becomes of its job: a picture that is refused takes no contour back.
    """

    __tablename__ = "companions"
    __table_args__ = (
        _one_of("kind", CompanionKind),
        _one_of("state", COMPANION_TRANSITIONS),
        UniqueConstraint("job_id", "destination", "kind", name="one_companion_a_kind"),
        Index("companions_that_are_due", "destination", "state", "next_attempt_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)
    destination: Mapped[str]
    kind: Mapped[CompanionKind]
    state: Mapped[DeliveryState] = mapped_column(default=DeliveryState.PENDING)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float]
    next_attempt_at: Mapped[float]
    last_status: Mapped[int | None]
    stored_at: Mapped[float | None]
    files: Mapped[list[Any] | None]
    """In the results folder, each named by the sha256 of its bytes; NULL until they are drawn and fsynced."""


class Transition(Base):
    """Every change of state, with its time and reason; written in the same transaction as the change."""

    __tablename__ = "transitions"
    __table_args__ = (Index("transitions_by_subject", "subject", "subject_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str]
    """`series`, `job`, `delivery` or `companion`."""
    subject_id: Mapped[int]
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    at: Mapped[float]
    reason: Mapped[str]


class Removal(Base):
    """What was removed of a finished series to make room."""

    __tablename__ = "removals"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    what: Mapped[str]
    """`slices` or `results`."""
    cause: Mapped[str]
    """`age` or `space`."""
    files: Mapped[int]
    size_bytes: Mapped[int]
    at: Mapped[float]


class Discarded(Base):
    """How many instances of a storage class were accepted, counted and thrown away."""

    __tablename__ = "discarded"

    sop_class_uid: Mapped[str] = mapped_column(primary_key=True)
    instances: Mapped[int]
    size_bytes: Mapped[int]


class ShadowRun(Base):
    """How a candidate model's contours of a job's series agree with the job's; only figures are kept."""

    __tablename__ = "shadow_runs"
    __table_args__ = (UniqueConstraint("job_id", "model_sha256", name="one_run_a_candidate"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    model_name: Mapped[str]
    model_version: Mapped[str]
    model_sha256: Mapped[str]
    at: Mapped[float]
    seconds: Mapped[float | None]
    failure: Mapped[str | None]
    """Why there are no figures, for a person."""
    agreements: Mapped[list[Any] | None]
    """One a structure, with the fields of `agreement.Agreement`."""


class Duration(Base):
    """How long one stage of one job took. The first time counts, so no later event changes a histogram."""

    __tablename__ = "durations"
    __table_args__ = (UniqueConstraint("job_id", "stage", "destination", name="measured_once"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    stage: Mapped[str]
    """See `timings.Stage`."""
    destination: Mapped[str]
    """Empty where the stage is that of the job."""
    began_at: Mapped[float]
    seconds: Mapped[float]


class Finding(Base):
    """What the first result of a job said of one structure; kept when results go."""

    __tablename__ = "findings"
    __table_args__ = (UniqueConstraint("job_id", "structure", name="found_once"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    structure: Mapped[str]
    volume_cm3: Mapped[float | None]
    """NULL where it is not drawn."""
    confidence: Mapped[float | None]
    flags: Mapped[list[Any]]


class Contact(Base):
    """When a destination was last tried, and last answered."""

    __tablename__ = "contacts"

    destination: Mapped[str] = mapped_column(primary_key=True)
    tried_at: Mapped[float]
    reached_at: Mapped[float | None]
    is_reached: Mapped[bool]
    """Whether the last try found it."""


class WorkerStatus(Base):
    """The worker's sign of life and figures, which the listener's `/metrics` and `/readyz` show."""

    __tablename__ = "worker_status"

    id: Mapped[int] = mapped_column(primary_key=True)
    """Always 1."""
    pid: Mapped[int]
    heartbeat_at: Mapped[float]
    figures: Mapped[dict[str, Any]]
    """`device`, `model`, `peak_memory_bytes`, ... as `worker.py` writes and `metrics.py` reads them."""


class Constancy(Base):
    """What the last comparison with the commissioning's baseline came to, for `/metrics`."""

    __tablename__ = "constancy"

    id: Mapped[int] = mapped_column(primary_key=True)
    """Always 1."""
    made_at: Mapped[float]
    failed_points: Mapped[int]
    drifts: Mapped[int]
    """How many facts and figures differ by more than they may."""
