"""The worker: the order of things, from received slices to an RT-STRUCT that is ready to be sent.

Owns recovery at the start, which job runs next, and what becomes of it.
Speaks to every other room; the only module that knows their order.
Never runs two jobs at once, never sends an unapproved model's result, and never ends a job without a reason.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from dicom_node import companions, contouring, jobs, logs, outputs, review, scu, siblings
from dicom_node.assembly import Assembler, spooled
from dicom_node.audit_stream import AuditStream
from dicom_node.committer import Committer
from dicom_node.companion_sender import CompanionSender
from dicom_node.config import Config
from dicom_node.contouring import Contoured, ForwardPassError
from dicom_node.ct_series import CtSeries
from dicom_node.database import ChangeWatch, reading, transaction
from dicom_node.decoding import Begun, Decoder, Spooled
from dicom_node.deliverer import Deliverer
from dicom_node.dispatch import Dispatcher
from dicom_node.errors import AnatomyNodeError, ConfigurationError, SeriesRejectedError, TransientError
from dicom_node.jobs import Kept, Result
from dicom_node.networks import Network, Networks
from dicom_node.peer_count import PeerCounts
from dicom_node.results import Results
from dicom_node.retention import Retention
from dicom_node.retry import has_come
from dicom_node.rt_struct import IncompleteError, RtStruct
from dicom_node.rt_struct_check import RtStructCheckError
from dicom_node.schema import Job, Series
from dicom_node.shadow import candidate_of
from dicom_node.shadow_runner import ShadowRunner
from dicom_node.siblings import Wait, Yield
from dicom_node.states import JobState, SeriesState
from dicom_node.transfers import audited
from dicom_node.worker_figures import Heartbeat, WorkerFigures
from inference.segmentation import Segmentation
from inference.segmenter import Segmenter
from models.card import ModelPackage

POLL_S = 0.1
MAX_CRASHES = 5
"""After so many deaths under one job it fails. A power cut counts too, so fewer would be too few."""
MAX_FORWARD_PASSES = 8
"""So often the network may fail on one job; with the default delays that takes ten minutes."""
AFTER_TROUBLE_S = 1.0
"""How long the worker rests when the disk under the database does not answer."""

log = logs.get(__name__)


@dataclass(frozen=True)
class Run:
    """One try at a job, with all that contouring needs to know, as it was in the transaction that began it.

    Attributes:
        attempt: tells it from an earlier try that late slices have overtaken.
        predecessor_sop_instance_uid: the RT-STRUCT of an earlier revision.
        predecessors: what each destination has of it.
        template: which of the network's editions are to be made.
        addressees: for which destinations.
        is_followed: whether another result of the same series and network waits.
    """

    job_id: int
    series_id: int
    attempt: int
    created_at: float
    predecessor_sop_instance_uid: str | None
    predecessors: Mapping[str, str]
    instances: tuple[Spooled, ...]
    network: Network
    template: str
    addressees: tuple[str, ...]
    is_followed: bool

    @property
    def made_of(self) -> tuple[str, tuple[Spooled, ...]]:
        """What the segmentation follows from."""
        return self.network.model.sha256, self.instances


@dataclass(frozen=True)
class Found:
    """What the network found, for the next result of the same series."""

    made_of: tuple[str, tuple[Spooled, ...]]
    series: CtSeries
    segmentation: Segmentation


@dataclass(frozen=True)
class UnderWay:
    """The run that is contoured now; its outcome is kept here until the database has taken it."""

    run: Run
    outcome: Future[Result]


class Worker:
    """Contours what is complete, one job at a time, and has it sent.

    One thread decides everything. Contouring, which decides nothing and touches no database, has a
    thread of its own, so that meanwhile the slices of other series are decoded and taken for complete.

    Everything that must outlive a crash is in the database and the spool: what a new worker finds there
    is all that it needs to go on.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        segmenter_factory: Callable[[ModelPackage], Segmenter],
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        shadow_command: Sequence[str] | None = None,
        audit: AuditStream | None = None,
    ) -> None:
        """Read the model package and load the network.

        Args:
            config: the node's.
            engine: on a migrated database.
            segmenter_factory: makes the network of a package; `contouring.segmenter_of` does.
            clock: UTC epoch seconds.
            monotonic: seconds that nobody sets.
            shadow_command: compares the job, whose number is put at its end, with the candidate of
                `model.shadow`; None: nothing is compared.
            audit: told of what is sent; None: nobody is.

        Raises:
            ConfigurationError: the package, the device or a destination's edition cannot be used.
        """
        self._config = config
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._networks = Networks(config, segmenter_factory)
        self._dispatcher = Dispatcher(config, self._networks.models)
        self._decoder = Decoder()
        self._peer_counts = _peer_counts(config)
        self._assembler = Assembler(
            config, engine, clock, monotonic, self._dispatcher, self._decoder, self._peer_counts
        )
        self._audit = audit
        store = outputs.storing if audit is None else audited(outputs.storing, audit)
        self._deliverer = Deliverer(config, engine, clock, store)
        self._committer = Committer(config, engine, clock)
        self._companions = CompanionSender(config, engine, clock, store)
        self._results = Results(config.storage.results)
        self._retention = Retention(config, engine, clock)
        self._shadow = None if shadow_command is None else self._shadow_runner(shadow_command)
        self._contouring = ThreadPoolExecutor(1, thread_name_prefix="contour")
        self._under_way: UnderWay | None = None
        self._found: Found | None = None
        """The contouring thread's own."""
        self._figures = WorkerFigures(clock(), monotonic)
        default = self._networks.default
        described = default.package.description
        self._figures.put(
            device=self._networks.device,
            model={
                "name": described.name,
                "version": described.version,
                "sha256": described.sha256,
                "approved": default.is_approved,
            },
        )

    def run(
        self,
        stop: threading.Event,
        ready: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Work until `stop` is set; the job that runs then is finished first.

        Args:
            stop: set by the caller, such as on SIGTERM.
            ready: called once the network is warm and the work begins.
            alive: called every second while the worker makes progress.
        """
        with ExitStack() as at_end:
            at_end.callback(self.close)
            warm_up_seconds = self._networks.warm_up()
            self._figures.put(warm_up_seconds=warm_up_seconds)
            log.info("network is warm", device=self._networks.device, seconds=round(warm_up_seconds, 3))
            self.recover()
            watch = ChangeWatch(self._engine)
            at_end.callback(watch.close)
            heartbeat = Heartbeat(self._engine, self._figures, self._clock, alive)
            heartbeat.start()
            at_end.callback(heartbeat.stop)
            self._deliverer.start()
            at_end.callback(self._deliverer.stop)
            self._committer.start()
            at_end.callback(self._committer.stop)
            self._companions.start()
            at_end.callback(self._companions.stop)
            ready()
            while not stop.is_set():
                self._wait(stop, watch, self._step_or_rest(stop))
            try:
                self.finish()
            except OperationalError as problem:
                log.error("the outcome cannot be kept; contoured again after the start", exc_info=problem)

    def close(self) -> None:
        """End the threads of contouring, decoding and asking, and the candidate's process."""
        if self._shadow is not None:
            self._shadow.close()
        self._contouring.shutdown()
        self._decoder.close()
        if self._peer_counts is not None:
            self._peer_counts.close()

    def recover(self) -> None:
        """What runs by the database does not run, and no result is being written: the worker starts now."""
        with transaction(self._engine) as session:
            interrupted = jobs.recover(session, MAX_CRASHES, self._clock())
            for job in interrupted:
                companions.follow(session, job, self._config, self._clock())
            recovered = [(job.id, job.state) for job in interrupted]
            named = jobs.named_files(session) | companions.named_files(session)
        swept = self._results.sweep(named)
        if swept:
            log.info("results without a job are removed", files=swept)
        for job_id, state in recovered:
            log.warning("the worker ended under a job", job=job_id, state=state)

    def step(self) -> float:
        """Do what is due now, and begin a job where none runs; when time alone will make more due."""
        self._figures.progress()
        self._record()
        look_again_at = min(self._assembler.step(), self._retention.step())
        if self._audit is not None and self._audit.is_on:
            self._figures.put(audit_messages_sent=self._audit.sent, audit_messages_lost=self._audit.lost)
        self._figures.put(open_series=self._decoder.open_series, open_series_bytes=self._decoder.size_bytes)
        if self._under_way is not None:
            return look_again_at
        run, job_look_again_at = self._next_run()
        if run is None:
            is_idle = not self._assembler.is_busy and job_look_again_at == math.inf
            return min(look_again_at, job_look_again_at, self._clock() + self._compare(is_idle))
        self._compare(is_idle=False)
        self._begin(run)
        # Not at once: this thread would take the interpreter from the one that contours.
        return look_again_at

    def _compare(self, is_idle: bool) -> float:
        """Have a candidate compared while there is nothing else to do; seconds until it is looked after."""
        if self._shadow is None:
            return math.inf
        if is_idle:
            return self._shadow.step()
        self._shadow.give_way()
        return math.inf

    def _shadow_runner(self, command: Sequence[str]) -> ShadowRunner | None:
        """None where the candidate cannot be used: the approved model does its work without it."""
        settings = candidate_of(self._config)
        if settings is None:
            return None
        try:
            candidate = contouring.package_of(settings.model).description
        except ConfigurationError as problem:
            log.error("the candidate of model.shadow cannot be used", problems=problem.problems)
            return None
        approved = self._networks.default.model.sha256
        return ShadowRunner(command, candidate, approved, self._engine, self._clock, self._monotonic)

    def finish(self) -> None:
        """Wait for the job that runs, and record what became of it."""
        while self._under_way is not None:
            self._figures.progress()
            futures.wait((self._under_way.outcome,), POLL_S)
            self._record()

    def _step_or_rest(self, stop: threading.Event) -> float:
        """A step; where the database cannot be written, such as on a full disk, a rest and another try."""
        try:
            return self.step()
        except OperationalError as problem:
            log.error("the database cannot be used now", exc_info=problem)
            stop.wait(AFTER_TROUBLE_S)
            return self._clock()

    def _wait(self, stop: threading.Event, watch: ChangeWatch, look_again_at: float) -> None:
        """Until somebody has committed something, the job has ended, or time has made something due.

        A commit is seen at the next poll, not at once: hundreds of slices a second must not keep this
        process busy with looking, and the listener short of the core.
        """
        until = self._monotonic() + look_again_at - self._clock()
        while not stop.is_set():
            self._figures.progress()
            left_s = until - self._monotonic()
            if left_s <= 0:
                return
            pause_s = min(POLL_S, left_s)
            if self._under_way is None:
                stop.wait(pause_s)
            elif futures.wait((self._under_way.outcome,), pause_s).done:
                return
            if watch.changed():
                return

    # --- which job ---------------------------------------------------------------------------------

    def _next_run(self) -> tuple[Run | None, float]:
        """Start the oldest job that may run; else when to look again."""
        look_again_at = math.inf
        with reading(self._engine) as session:
            queued = self._queued(session)
        for job_id in queued:
            with transaction(self._engine) as session:
                job, now = session.get_one(Job, job_id), self._clock()
                if job.state is not JobState.QUEUED:
                    continue
                longest_s = self._config.retry.max_delay_s
                if job.not_before is not None and not has_come(job.not_before, now, longest_s):
                    look_again_at = min(look_again_at, job.not_before)
                    continue
                network = self._networks.of(job.model_sha256)
                if self._is_set_aside(session, job, now) or network is None:
                    continue
                match siblings.judge(session, job, self._config, network.spacing_mm, now):
                    case Wait(until):
                        look_again_at = min(look_again_at, until)
                    case Yield(reason):
                        jobs.move(session, job, JobState.IGNORED, now, reason, "other_reconstruction")
                    case None:
                        return self._start(session, job, network, now), now
        return None, look_again_at

    @staticmethod
    def _queued(session: Session) -> list[int]:
        """Jobs of complete series by priority, those first that never killed a worker, then by age."""
        return list(
            session.scalars(
                select(Job.id)
                .join(Series, Series.id == Job.series_id)
                .where(Job.state == JobState.QUEUED, Series.state == SeriesState.COMPLETE)
                .order_by(Job.priority.desc(), Job.attempts, Job.created_at, Job.id)
            )
        )

    def _is_set_aside(self, session: Session, job: Job, now: float) -> bool:
        """Whether the job is for an earlier revision, not what the rules ask for now, or may not send."""
        series = session.get_one(Series, job.series_id)
        if job.revision != series.revision:
            reason = f"revision {series.revision} of the series has taken the place of {job.revision}"
            jobs.move(session, job, JobState.CANCELLED, now, reason, "later_revision")
            return True
        if series.slices_removed_at is not None:
            reason = (
                "its slices were removed, as retention.slices_days or room_mib says: push the whole series "
                f"again, then run `anatomynode jobs retry {job.id}`"
            )
            jobs.move(session, job, JobState.REJECTED, now, reason, "slices_removed")
            return True
        return self._is_routed_elsewhere(session, job, series, now) or self._is_held(session, job, now)

    def _is_routed_elsewhere(self, session: Session, job: Job, series: Series, now: float) -> bool:
        """Whether the configuration, perhaps another one than when it was made, no longer asks for it."""
        orders = self._dispatcher.orders(session, series, jobs.was_asked_for(session, job))
        order = next((order for order in orders if order.asks_for(job)), None)
        if order is not None:
            return jobs.follow(session, job, order, now)
        network = self._networks.of(job.model_sha256)
        if network is None:
            running = ", ".join(order.model.sha256 for order in orders)
            reason, code = (
                f"made for model {job.model_sha256}; this node now runs {running}",
                "model_exchanged",
            )
        else:
            asked = f"{network.name} with the template {job.template}"
            reason, code = f"no rule asks for {asked} here any more", "routing_changed"
        jobs.move(session, job, JobState.CANCELLED, now, reason, code)
        for order in orders:
            jobs.ensure_job(session, series, order, now, "contoured as the configuration says now")
        return True

    def _is_held(self, session: Session, job: Job, now: float) -> bool:
        """Whether its model may not send; it then waits for a person."""
        network = self._networks.of(job.model_sha256)
        if network is None or network.is_approved:
            return False
        approved = self._config.model.approved_of(network.name) or "not set"
        reason = (
            f"model {network.name} has the sha256 {network.model.sha256}, but model.approved_sha256 is "
            f"{approved}: have a physicist commission it, set model.approved_sha256 to it, restart, and "
            f"run `anatomynode jobs release {job.id}`"
        )
        jobs.move(session, job, JobState.HELD, now, reason, "model_not_approved")
        log.warning("held: the model is not approved", job=job.id, sha256=network.model.sha256)
        return True

    def _start(self, session: Session, job: Job, network: Network, now: float) -> Run:
        jobs.start(session, job, now, f"contouring begins on {self._networks.device}")
        instances = tuple(spooled(session, self._config.storage.spool, job.series_id))
        return Run(
            job_id=job.id,
            series_id=job.series_id,
            attempt=job.attempts,
            created_at=job.created_at,
            predecessor_sop_instance_uid=job.predecessor_sop_instance_uid,
            predecessors=jobs.predecessors(session, job),
            instances=instances,
            network=network,
            template=job.template,
            addressees=self._addressees(job),
            is_followed=jobs.is_followed(session, job),
        )

    def _addressees(self, job: Job) -> tuple[str, ...]:
        return tuple(jobs.addressees(job, [destination.name for destination in self._config.destinations]))

    # --- one job -----------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        """Hand the series over to the thread that contours; what comes late is decoded anew, beside it."""
        self._figures.job_begins(run.job_id)
        begun = self._decoder.take(run.series_id)
        self._under_way = UnderWay(run, self._contouring.submit(self._result, run, begun))

    def _record(self) -> None:
        """What became of the run, once it has ended.

        Raises:
            ForwardPassError: the device is lost to this process, which ends with it and is started anew.
        """
        if self._under_way is None or not self._under_way.outcome.done():
            return
        run, outcome = self._under_way.run, self._under_way.outcome
        lost: ForwardPassError | None = None
        with logs.bound(job=run.job_id):
            try:
                result = outcome.result()
            except Exception as problem:  # the class decides; what is not ours is a bug, and told as one
                self._end_badly(run, problem)
                lost = problem if isinstance(problem, ForwardPassError) and problem.is_device_lost else None
            else:
                self._end_well(run, result)
        self._under_way = None
        self._figures.job_ends()
        if lost is not None:
            raise lost

    def _result(self, run: Run, begun: Begun) -> Result:
        """Contour one series, in the thread for it; touches no database."""
        with logs.bound(job=run.job_id):
            try:
                return self._contoured(run, begun)
            except RtStructCheckError as refused:
                raise self._with_evidence(run, refused) from refused

    def _contoured(self, run: Run, begun: Begun) -> Result:
        watch = contouring.Stopwatch()
        series, segmentation = self._segmented(run, begun, watch)
        created_at = datetime.fromtimestamp(run.created_at, UTC)
        editions = run.network.editions[run.template].of_job(
            created_at, run.predecessor_sop_instance_uid, run.predecessors, run.addressees
        )
        done = contouring.draw(series, segmentation, *(options for options, _ in editions))
        seconds = {stage: round(value, 4) for stage, value in {**watch.seconds, **done.seconds}.items()}
        done = replace(done, report={**done.report, "seconds": seconds}, seconds=seconds)
        why = review.why_to_hold(series, done.segmentation, self._config.review.hold)
        holds = review.holds(series, done.segmentation, self._config)
        held = {name: why for name, why in holds.items() if name in run.addressees}
        return replace(self._kept(done, [names for _, names in editions]), hold=why, holds=held)

    def _segmented(
        self, run: Run, begun: Begun, watch: contouring.Stopwatch
    ) -> tuple[CtSeries, Segmentation]:
        """The volume and what the network finds in it, unless the run before has just found the same."""
        found, self._found = self._found, None
        if found is None or found.made_of != run.made_of:
            with watch.stage("decode"):
                series = self._decoder.whole(begun, run.instances).build(self._config.series.min_slices)
            found = Found(run.made_of, series, self._find(series, run.network))
        if run.is_followed:
            self._found = replace(found, segmentation=replace(found.segmentation, seconds={}))
        return found.series, found.segmentation

    def _find(self, series: CtSeries, network: Network) -> Segmentation:
        segmenter = self._networks.segmenter(network)
        try:
            return contouring.segment(series, segmenter)
        except ForwardPassError:
            self._networks.keep_only(network)
            raise

    def _kept(self, contoured: Contoured, destinations: list[tuple[str, ...]]) -> Result:
        """The result after its bytes are fsynced; the same bytes have the same name.

        Args:
            destinations: which ones get each edition.
        """
        try:
            first = self._kept_edition(contoured.rt_struct)
            editions = {
                name: str(edition) if isinstance(edition, IncompleteError) else self._kept_edition(edition)
                for edition, names in zip(contoured.editions, destinations, strict=True)
                for name in names
            }
        except OSError as problem:
            reason = f"the RT-STRUCT cannot be written to the results folder: {problem.strerror}"
            raise TransientError(reason) from problem
        found = [roi.name for roi in contoured.rt_struct.rois if roi.contours]
        in_words = f"contoured and checked: {', '.join(found) or 'no structure found'}"
        return Result(first, contoured.report, in_words, editions)

    def _kept_edition(self, edition: RtStruct) -> Kept:
        file, sha256 = self._results.keep(edition.data)
        return Kept(file, sha256, edition.sop_instance_uid)

    def _with_evidence(self, run: Run, refused: RtStructCheckError) -> RtStructCheckError:
        """The same error, after the object that failed its check was kept for a person."""
        try:
            return refused.kept_at(self._results.quarantine(run.job_id, refused.data))
        except OSError as problem:
            log.error("the object that failed its check cannot be kept", exc_info=problem)
            return refused

    def _end_well(self, run: Run, result: Result) -> None:
        with self._ending(run) as (session, job, now):
            if job is None:
                self._discard(session, result)
                return
            if jobs.hold_for_review(session, job, result, now):
                self._discard(session, result)
                companions.follow(session, job, self._config, now)
                log.warning("held for review", job=job.id)
                return
            jobs.finish(session, job, result, self._addressees(job), now)
            companions.follow(session, job, self._config, now)
        self._deliverer.wake()
        log.info(
            "contoured", sop_instance_uid=result.first.sop_instance_uid, seconds=result.report["seconds"]
        )

    def _discard(self, session: Session, result: Result) -> None:
        """Remove the files of a result that no job is to have."""
        for file in {kept.file for kept in result.kept} - jobs.named_files(session):
            self._results.discard(file)

    def _end_badly(self, run: Run, problem: Exception) -> None:
        """The class of the error decides what becomes of the job."""
        with self._ending(run) as (session, job, now):
            if job is None:
                return
            match problem:
                case SeriesRejectedError():
                    jobs.move(session, job, JobState.REJECTED, now, problem.reason, problem.code)
                    log.info("rejected", code=problem.code, reason=problem.reason)
                case ForwardPassError() if self._failed_passes(session, job) + 1 >= MAX_FORWARD_PASSES:
                    reason = (
                        f"{problem.reason} ({MAX_FORWARD_PASSES} times): see that nothing else uses the "
                        f"device and that the series fits it, then run `anatomynode jobs retry {job.id}`"
                    )
                    jobs.fail(session, job, reason, problem.code, now, logs.describe(problem))
                    log.error("failed", reason=reason)
                case TransientError():
                    code = problem.code if isinstance(problem, ForwardPassError) else "transient"
                    jobs.postpone(session, job, problem.reason, now + self._delay_s(run), now, code)
                    log.warning("postponed", reason=problem.reason)
                case AnatomyNodeError():
                    jobs.fail(session, job, problem.reason, "permanent", now, logs.describe(problem))
                    log.error("failed", reason=problem.reason)
                case MemoryError():
                    reason = (
                        f"too little memory to contour {len(run.instances)} slices: give the machine or the "
                        f"service more, or end what else uses it, then run `anatomynode jobs retry {job.id}`"
                    )
                    jobs.fail(session, job, reason, "out_of_memory", now, logs.describe(problem))
                    log.error("failed", reason=reason)
                case _:
                    reason = f"an error of this program: {type(problem).__name__}; its traceback is kept"
                    jobs.fail(session, job, reason, "bug", now, logs.describe(problem))
                    log.error("failed by a bug", exc_info=problem)
            companions.follow(session, job, self._config, now)

    @staticmethod
    def _failed_passes(session: Session, job: Job) -> int:
        return jobs.times_so_far(session, job, ForwardPassError.BEGINNING)

    @contextmanager
    def _ending(self, run: Run) -> Iterator[tuple[Session, Job | None, float]]:
        """The transaction that ends a run; no job where late slices or a person have overtaken it."""
        with transaction(self._engine) as session:
            job, now = session.get_one(Job, run.job_id), self._clock()
            jobs.reopen_if_late(session, session.get_one(Series, run.series_id), now)
            overtaken = job.state is not JobState.RUNNING or job.attempts != run.attempt
            if overtaken:
                log.info("the run is overtaken; its outcome is dropped", state=job.state)
            yield session, None if overtaken else job, now

    def _delay_s(self, run: Run) -> float:
        retry = self._config.retry
        return min(retry.first_delay_s * 2.0 ** min(run.attempt - 1, 20), retry.max_delay_s)


def _peer_counts(config: Config) -> PeerCounts | None:
    """Who is asked by C-FIND; None where nobody is."""
    source = config.series.query_source
    if source is None:
        return None
    destination = next(one for one in config.dicom_destinations if one.name == source)
    calling = destination.calling_ae_title or config.listener.ae_title
    return PeerCounts(lambda study, series: scu.count_instances(destination, calling, study, series))
