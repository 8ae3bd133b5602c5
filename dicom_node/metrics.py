"""What Prometheus sees of the node.

Owns the metrics' names and labels; the only door to prometheus-client.
Speaks figures of the database, of the listener's counters and of the disk; durations in seconds.
Never labels a figure with patient data, a UID, an address or any other unbounded value.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select, true
from sqlalchemy.orm import Session

from dicom_node import __version__
from dicom_node.audit_stream import AuditStream
from dicom_node.config import Config
from dicom_node.database import reading
from dicom_node.delivery_figures import DestinationFigures, read_figures
from dicom_node.history import Histograms, History, Labels
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.retention import Cause
from dicom_node.schema import (
    Commitment,
    Companion,
    Constancy,
    Contact,
    Delivery,
    Discarded,
    Job,
    Removal,
    Series,
    WorkerStatus,
)
from dicom_node.shadow_runs import AgreementHistory
from dicom_node.states import COMPANION_TRANSITIONS, CompanionKind, DeliveryState, JobState, SeriesState
from dicom_node.tls import days_left
from inference.flags import FLAGS, LEFT_OUT

CONTENT_TYPE = CONTENT_TYPE_LATEST
BOUNDED_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
MAX_CODES = 64
OTHER = "other"
BYTES_A_MIB = 1 << 20
WORKER_NUMBERS = {
    "warm_up_seconds": "How long the network's warm-up took.",
    "peak_memory_bytes": "The most memory that the worker has used.",
    "audit_messages_sent": "Audit messages of the worker that were brought out.",
    "audit_messages_lost": "Audit messages of the worker that were not.",
    "open_series": "Series whose slices are decoded as they arrive.",
    "open_series_bytes": "Memory that they take.",
}
"""Figures that the worker writes into the database (`worker_figures.py`) as they are shown."""


@dataclass(eq=False)  # the registry keeps collectors by identity
class NodeCollector(Collector):
    """Reads the figures anew at each scrape, all from one snapshot of the database.

    Attributes:
        engine: the node's database.
        config: the configuration in use.
        reception: the listener's counters.
        clock: UTC epoch seconds.
        audit: the listener's stream of audit messages; None: it has none.
    """

    engine: Engine
    config: Config
    reception: ReceptionFigures
    clock: Callable[[], float] = time.time
    audit: AuditStream | None = None
    _agreement: AgreementHistory = field(default_factory=AgreementHistory)
    _history: History = field(default_factory=History)

    def collect(self) -> Iterator[Metric]:
        """All figures at this moment."""
        with reading(self.engine) as session:
            self._history.read(session)
            yield from _series_and_jobs(session, self._history.transitions, self.clock())
            yield from _deliveries(session, self.config, self.clock())
            yield from _contacts(session, self.config)
            yield from _companions(session, self.config)
            yield from _worker(session, self.config, self.clock())
            yield from _constancy(session)
            self._agreement.read(session)
            yield from _discarded(session, self.config)
            yield from _removals(session)
        yield from _durations(self._history)
        yield from _shadow(self._agreement)
        yield from _structures(self._history)
        yield from _reception(self.reception)
        if self.audit is not None and self.audit.is_on:
            yield _total("audit_messages_sent", "Audit messages that were brought out.", self.audit.sent)
            yield _total("audit_messages_lost", "Audit messages that were not.", self.audit.lost)
        yield from _disk(self.config)
        yield from _certificates(self.config, self.clock())
        yield _labelled("build_info", "The version that runs; always 1.", ("version",), {(__version__,): 1})

    def describe(self) -> Iterable[Metric]:
        """Nothing: to name the figures in advance, the registry would have to read them."""
        return ()


def exposition(collector: NodeCollector) -> Callable[[], bytes]:
    """The function that renders `/metrics`: the node's figures and those of its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(namespace="anatomynode_listener", registry=registry)
    return lambda: generate_latest(registry)


def _series_and_jobs(session: Session, transitions: Mapping[Labels, int], now: float) -> Iterator[Metric]:
    series = _count(session, Series.state)
    yield _labelled(
        "series", "Series by state.", ("state",), {(state,): series.get(state, 0) for state in SeriesState}
    )
    jobs = _count(session, Job.state)
    yield _labelled(
        "jobs", "Jobs by state.", ("state",), {(state,): jobs.get(state, 0) for state in JobState}
    )
    by_reason = session.execute(
        select(Job.state, Job.reason_code, func.count())
        .where(Job.reason_code.is_not(None))
        .group_by(Job.state, Job.reason_code)
        .order_by(func.count().desc())
    )
    reasons: dict[tuple[str, ...], float] = {}
    for state, code, count in by_reason:
        key = (str(state), _word(code) if len(reasons) < MAX_CODES else OTHER)
        reasons[key] = reasons.get(key, 0) + count
    yield _labelled("jobs_by_reason", "Jobs by state and reason.", ("state", "reason"), reasons)
    yield _counted(
        "job_transitions",
        "How often a job came into a state.",
        "state",
        {state: float(transitions.get((state,), 0)) for state in JobState},
    )
    oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state == JobState.QUEUED))
    yield _gauge("queue_age_seconds", "Age of the oldest job that waits for the worker.", _age(oldest, now))


def _deliveries(session: Session, config: Config, now: float) -> Iterator[Metric]:
    known = {destination.name for destination in config.destinations}
    found = {
        (destination, state): count
        for destination, state, count in session.execute(
            select(Delivery.destination, Delivery.state, func.count()).group_by(
                Delivery.destination, Delivery.state
            )
        )
    }
    yield _labelled(
        "deliveries",
        "Deliveries by destination and state.",
        ("destination", "state"),
        {(name, state): found.get((name, state), 0) for name in sorted(known) for state in DeliveryState},
    )
    figures = read_figures(session, sorted(known), config.retry, now)
    yield _labelled(
        "delivery_pending_age_seconds",
        "How long the oldest delivery has waited that is not yet stored.",
        ("destination",),
        {(one.destination,): one.oldest_pending_s for one in figures},
    )
    yield _labelled(
        "delivery_consecutive_failures",
        "Failures in a row of the pending delivery that failed most often.",
        ("destination",),
        {(one.destination,): one.consecutive_failures for one in figures},
    )
    asked = [one.name for one in config.destinations if one.storage_commitment.enabled]
    yield from _commitments(session, asked, figures)
    yield _labelled(
        "delivery_overdue",
        "1 where a delivery has been tried, or waited for its commitment, longer than retry.alert_after_s.",
        ("destination",),
        {(one.destination,): float(one.needs_a_person) for one in figures},
    )
    yield _labelled(
        "delivery_last_success_timestamp_seconds",
        "When the destination last stored a result (UTC epoch); absent before the first.",
        ("destination",),
        {(one.destination,): one.last_success_at for one in figures if one.last_success_at is not None},
    )


def _contacts(session: Session, config: Config) -> Iterator[Metric]:
    """Nothing of a destination that nothing was sent to yet."""
    contacts = [session.get(Contact, one.name) for one in config.destinations]
    known = [one for one in contacts if one is not None]
    yield _labelled(
        "destination_reachable",
        "1 where the last try found the destination, whatever it answered.",
        ("destination",),
        {(one.destination,): float(one.is_reached) for one in known},
    )
    yield _labelled(
        "destination_last_reached_timestamp_seconds",
        "When the destination last answered (UTC epoch).",
        ("destination",),
        {(one.destination,): one.reached_at for one in known if one.reached_at is not None},
    )


def _commitments(
    session: Session, asked: Collection[str], figures: Iterable[DestinationFigures]
) -> Iterator[Metric]:
    """Of the destinations that are asked to commit themselves."""
    of_asked = [one for one in figures if one.destination in asked]
    yield _labelled(
        "commitment_waiting",
        "Deliveries that are stored and wait for the destination's commitment.",
        ("destination",),
        {(one.destination,): float(one.uncommitted) for one in of_asked},
    )
    yield _labelled(
        "commitment_waiting_age_seconds",
        "How long the oldest of them has been stored.",
        ("destination",),
        {(one.destination,): one.oldest_uncommitted_s for one in of_asked},
    )
    by_destination = select(Delivery.destination, func.count()).join(
        Commitment, Commitment.delivery_id == Delivery.id
    )
    for name, meaning, which in (
        ("commitment_requests", "Requests for a commitment.", true()),
        (
            "commitment_failures",
            "Reports that an object was not kept.",
            Commitment.failure_reason.is_not(None),
        ),
    ):
        rows = session.execute(by_destination.where(which).group_by(Delivery.destination)).all()
        counts = dict(rows)
        yield _counted(name, meaning, "destination", {one: float(counts.get(one, 0)) for one in asked})


def _companions(session: Session, config: Config) -> Iterator[Metric]:
    each = Companion.destination, Companion.kind, Companion.state
    found = {
        (destination, kind, state): count
        for destination, kind, state, count in session.execute(select(*each, func.count()).group_by(*each))
    }
    yield _labelled(
        "companions",
        "Pictures and notices by destination and state.",
        ("destination", "kind", "state"),
        {
            (one.name, kind, state): found.get((one.name, kind, state), 0)
            for one in config.destinations
            if one.preview
            for kind in CompanionKind
            for state in COMPANION_TRANSITIONS
        },
    )


def _worker(session: Session, config: Config, now: float) -> Iterator[Metric]:
    status = session.get(WorkerStatus, 1)
    if status is None:
        return
    yield _gauge(
        "worker_heartbeat_age_seconds",
        "Since the worker's last sign of life.",
        abs(now - status.heartbeat_at),  # see `http_status.py`
    )
    figures = status.figures
    model = figures.get("model") or {}
    words = {
        "device": figures.get("device"),
        "model": model.get("name"),
        "version": model.get("version"),
        "sha256": model.get("sha256"),
    }
    known = tuple(_word(word) for word in words.values())
    yield _labelled("worker_info", "What the worker runs on; always 1.", tuple(words), {known: 1})
    yield _gauge(
        "worker_model_approved",
        "1 where the model is the approved one, so that its results are sent.",
        float(bool(model.get("approved"))),
    )
    yield _gauge("worker_gpu_used", "1 where the network runs on a GPU.", float(words["device"] == "cuda"))
    wanted = float(config.inference.device == "cuda")
    yield _gauge("worker_gpu_wanted", "1 where the configuration asks for a GPU.", wanted)
    yield _gauge("worker_busy", "1 while a job is contoured.", float(figures.get("running_job") is not None))
    for name, meaning in WORKER_NUMBERS.items():
        if isinstance(figures.get(name), int | float):
            yield _gauge(f"worker_{name}", meaning, figures[name])


def _constancy(session: Session) -> Iterator[Metric]:
    """Nothing before the first check."""
    last = session.get(Constancy, 1)
    if last is None:
        return
    yield _gauge("constancy_last_run_timestamp_seconds", "When constancy was last checked.", last.made_at)
    yield _gauge("constancy_failed_points", "Points that did not hold then.", last.failed_points)
    yield _gauge("constancy_drifts", "What had drifted from the baseline then.", last.drifts)


def _shadow(history: AgreementHistory) -> Iterator[Metric]:
    """Nothing before the first comparison with a candidate."""
    if history.last_at is None:
        return
    of_model = "model", "version"
    for name, meaning, counts in (
        ("shadow_compared_series", "Series on which a candidate was compared.", history.compared),
        ("shadow_failed_series", "Series on which a candidate could not be compared.", history.failures),
    ):
        values = {tuple(map(_word, model)): float(count) for model, count in counts.items()}
        yield _labelled(name, meaning, of_model, values)
    meaning = "Dice of a candidate's structure with the approved model's; 0 where only one has it."
    dice = {tuple(map(_word, words)): histogram for words, histogram in history.dice.items()}
    yield _histogram("shadow_dice", meaning, (*of_model, "structure"), dice)
    meaning = "When a candidate was last compared (UTC epoch)."
    yield _gauge("shadow_last_run_timestamp_seconds", meaning, history.last_at)


def _word(value: object) -> str:
    """A label's value as it is where it is a short plain word, else `other`."""
    return value if isinstance(value, str) and BOUNDED_WORD.fullmatch(value) else OTHER


def _discarded(session: Session, config: Config) -> Iterator[Metric]:
    rows = {row.sop_class_uid: row for row in session.scalars(select(Discarded))}
    counts = {
        uid: float(rows[uid].instances) if uid in rows else 0.0 for uid in config.listener.discard_sop_classes
    }
    yield _counted(
        "instances_discarded",
        "Instances of classes in listener.discard_sop_classes that were thrown away.",
        "sop_class_uid",
        counts,
    )


def _removals(session: Session) -> Iterator[Metric]:
    sums = select(Removal.cause, func.sum(Removal.files), func.sum(Removal.size_bytes)).group_by(
        Removal.cause
    )
    rows = {row[0]: row for row in session.execute(sums)}
    for name, meaning, place in (
        ("files_removed", "Slices and results of finished series that were removed.", 1),
        ("bytes_removed", "What they had taken on the disk.", 2),
    ):
        counts = {str(cause): float(rows[cause][place]) if cause in rows else 0.0 for cause in Cause}
        yield _counted(name, meaning, "cause", counts)


def _durations(history: History) -> Iterator[Metric]:
    yield _histogram(
        "turnaround_seconds",
        "From a series' first or last slice until a destination had stored the RT-STRUCT.",
        ("since", "model", "destination"),
        history.turnarounds,
    )
    yield _histogram(
        "stage_seconds",
        "Duration of each stage of each job; with a destination for what follows its contouring.",
        ("stage", "model", "destination"),
        history.stages,
    )
    yield _histogram("step_seconds", "Duration of parts of stages.", ("step", "model"), history.steps)


def _structures(history: History) -> Iterator[Metric]:
    """What drifts when patients, scanners or the network do."""
    each = ("structure", "model")
    yield _histogram(
        "structure_volume_cm3", "Volume of each structure that was drawn.", each, history.volumes_cm3
    )
    yield _histogram("structure_confidence", "Dice to be expected of it.", each, history.confidences)
    sought = {labels: float(count) for labels, count in history.structures.items()}
    yield _counters("structures", "How often a structure was looked for.", each, sought)
    raised: dict[Labels, float] = {
        (*labels, flag): 0.0 for labels in history.structures for flag in (*FLAGS, LEFT_OUT)
    }
    raised.update({labels: float(count) for labels, count in history.flags.items() if labels in raised})
    yield _counters("structure_flags", "How often a structure looked odd.", (*each, "flag"), raised)


def _reception(figures: ReceptionFigures) -> Iterator[Metric]:
    now = figures.snapshot()
    yield _total("instances_received", "New instances stored and acknowledged.", now.instances)
    yield _total("instance_bytes_received", "Bytes of their data sets.", now.instance_bytes)
    yield _total("instances_received_again", "Instances that were here already.", now.instances_again)
    yield _total(
        "own_results_returned",
        "Instances thrown away that this program had made: somebody sends its results back.",
        now.own_results_returned,
    )
    yield _counted("instances_refused", "C-STOREs by failure status.", "status", now.instances_refused)
    yield _total("associations_accepted", "Associations that were let in.", now.associations_accepted)
    yield _gauge("associations_open", "Associations that are open now.", now.associations_open)
    yield _counted(
        "associations_refused", "Association requests rejected.", "reason", now.associations_refused
    )
    yield _counted("connections_dropped", "Connections ended by a limit.", "reason", now.connections_dropped)


def _disk(config: Config) -> Iterator[Metric]:
    free = shutil.disk_usage(config.storage.folder).free
    yield _gauge("storage_free_bytes", "Free space in storage.folder.", free)
    yield _gauge(
        "storage_reserve_bytes", "Below this, C-STORE is refused.", config.storage.reserve_mib * BYTES_A_MIB
    )


def _certificates(config: Config, now: float) -> Iterator[Metric]:
    """Of files that can be read; that they cannot, the log and `check` say."""
    left: dict[tuple[str, ...], float] = {}
    for name, tls in config.tls_by_name.items():
        with suppress(OSError, ValueError):
            left[(name,)] = days_left(tls.certificate, now)
    meaning = "Until the certificate of `listener`, or for a destination, expires; negative since it has."
    yield _labelled("certificate_days_left", meaning, ("name",), left)


def _count(session: Session, column: Any) -> dict[str, int]:
    rows = session.execute(select(column, func.count()).group_by(column))
    return {str(key): count for key, count in rows}


def _age(since: float | None, now: float) -> float:
    """Seconds since then; 0 where there is nothing that ages."""
    return 0.0 if since is None else max(0.0, now - since)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"anatomynode_{name}", meaning, value=value)


def _total(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"anatomynode_{name}", meaning, value=value)


def _labelled(
    name: str, meaning: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(f"anatomynode_{name}", meaning, labels=labels)
    for words, value in values.items():
        family.add_metric(words, value)
    return family


def _counted(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    return _counters(name, meaning, (label,), {(word,): value for word, value in values.items()})


def _counters(name: str, meaning: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    family = CounterMetricFamily(f"anatomynode_{name}", meaning, labels=labels)
    for words, value in values.items():
        family.add_metric(words, value)
    return family


def _histogram(name: str, meaning: str, labels: Labels, histograms: Histograms) -> Metric:
    family = HistogramMetricFamily(f"anatomynode_{name}", meaning, labels=labels)
    for words, histogram in sorted(histograms.items()):
        family.add_metric(words, buckets=histogram.buckets(), sum_value=histogram.total)
    return family
