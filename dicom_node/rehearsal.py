"""A whole node and a stand-in PACS on loopback: for the demo, the benchmarks and the tests.

Owns the node's configuration, its process (`anatomynode serve`) and where the stages of a job are read.
Speaks free loopback ports, the node's database (reading only), and seconds.
Never touches a hospital's node: everything lives in the folder that it is given.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.config import SeriesRules
from dicom_node.database import open_engine, reading
from dicom_node.errors import PermanentError
from dicom_node.free_ports import free_ports
from dicom_node.schema import Delivery, Job, Series, Transition
from dicom_node.stand_in_pacs import StandInPacs
from dicom_node.states import JOB_ENDS, JobState, SeriesState
from models.card import PACKAGES, read_package

SCANNER = "SCANNER"
NODE = "ANATOMYNODE"
_POLL_S = 0.05


class RehearsalError(PermanentError):
    """The node on loopback did not do what was asked of it; the reason holds the end of its log."""


@dataclass(frozen=True)
class Turnaround:
    """Where the time went from a series' first slice to its stored RT-STRUCT.

    Attributes:
        stages: seconds by stage, in the order of time; together they are the whole way.
        after_last_slice_s: from the commit of the last slice to the PACS's answer.
        grace_s: of those, the wait for late slices that the configuration asks for.
        forward_s: of those, the network's forward pass.
    """

    stages: Mapping[str, float]
    after_last_slice_s: float
    grace_s: float
    forward_s: float

    @property
    def own_s(self) -> float:
        """What the node itself adds after the last slice: without grace and forward pass."""
        return self.after_last_slice_s - self.grace_s - self.forward_s


@dataclass(frozen=True)
class JobSeen:
    """A job as the database shows it now."""

    series_instance_uid: str
    state: JobState
    reason: str | None
    reason_code: str | None
    sop_instance_uid: str | None
    report: Mapping[str, Any] | None
    turnaround: Turnaround | None
    """None until its RT-STRUCT is stored."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in JOB_ENDS or self.state is JobState.HELD


@dataclass
class Rehearsal:
    """A node in `folder`, ready when its block begins, and gone without a trace when it ends.

    Attributes:
        pacs: where the node sends; None starts a stand-in PACS of its own.
        overrides: configuration sections whose keys replace the rehearsal's.
    """

    folder: Path
    pacs: tuple[str, int] | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    start_timeout_s: float = 90.0
    archive: StandInPacs = field(init=False)
    port: int = field(init=False)
    http_port: int = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Choose ports and write the configuration; nothing runs yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http_port = free_ports(2)
        self.archive = StandInPacs(self.folder / "pacs", ae_title="PACS")

    @property
    def log(self) -> Path:
        """What the node says."""
        return self.folder / "node.log"

    @property
    def config(self) -> Path:
        """The node's configuration."""
        return self.folder / "config.yaml"

    @property
    def database(self) -> Path:
        """The node's SQLite file."""
        return self.folder / "storage" / "anatomynode.sqlite"

    @property
    def process_id(self) -> int:
        """Of `anatomynode serve`, which leads a session of its own."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Rehearsal:
        if self.pacs is None:
            self.archive.start()
            self.pacs = (self.archive.ae_title, self.archive.port)
        self.config.write_text(yaml.safe_dump(self._configuration(), sort_keys=False), encoding="utf-8")
        try:
            self.start_node()
        except BaseException:
            self.stop_node()
            self.archive.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_node()
        self.archive.stop()

    def start_node(self) -> None:
        """Start `anatomynode serve` and wait until `/readyz` says yes.

        Raises:
            RehearsalError: it ended, or was not ready in time.
        """
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node", "serve", "--config", str(self.config)],
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait(self._is_ready, self.start_timeout_s, "the node did not become ready")

    def stop_node(self) -> None:
        """Let the node drain and end."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def kill_node(self) -> None:
        """End the node with its listener and worker by kill -9, as a power cut would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def wait(self, condition: Callable[[], bool], timeout_s: float, failing: str) -> None:
        """Return as soon as `condition()` holds.

        Raises:
            RehearsalError: it did not in time, or the node has ended.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RehearsalError(f"{failing}; the end of its log:\n{self._end_of_log()}")
            time.sleep(_POLL_S)

    def jobs(self) -> tuple[JobSeen, ...]:
        """The jobs, oldest first."""
        with self._reading() as session:
            both = select(Job, Series).join(Series, Job.series_id == Series.id).order_by(Job.id)
            return tuple(_seen(session, job, series, self.grace_s) for job, series in session.execute(both))

    def is_idle(self) -> bool:
        """Whether every series that came is complete, and every job has ended; false before the first."""
        with self._reading() as session:
            receiving = select(Series.id).where(Series.state == SeriesState.RECEIVING)
            if session.scalar(receiving.limit(1)) is not None:
                return False
        jobs = self.jobs()
        return bool(jobs) and all(job.has_ended for job in jobs)

    @property
    def grace_s(self) -> float:
        """How long the node waits for late slices."""
        return float(self.overrides.get("series", {}).get("grace_s", SeriesRules().grace_s))

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        engine = open_engine(self.database)
        try:
            with reading(engine) as session:
                yield session
        finally:
            engine.dispose()

    def _configuration(self) -> dict[str, Any]:
        assert self.pacs is not None
        package = read_package(PACKAGES / "anatomynet-hn")
        sections: dict[str, Any] = {
            "listener": {"ae_title": NODE, "host": "127.0.0.1", "port": self.port},
            "peers": [{"ae_title": SCANNER, "addresses": ["127.0.0.1"]}],
            "storage": {"folder": str(self.folder / "storage"), "reserve_mib": 64},
            "model": {"approved_sha256": package.description.sha256},
            "inference": {"device": "cuda", "allow_cpu": True},
            "destinations": [
                {"name": "pacs", "host": "127.0.0.1", "ae_title": self.pacs[0], "port": self.pacs[1]}
            ],
            "http": {"port": self.http_port},
        }
        for name, section in self.overrides.items():
            kept = sections.get(name)
            sections[name] = {**kept, **section} if isinstance(kept, dict) else section
        return sections

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def _seen(session: Session, job: Job, series: Series, grace_s: float) -> JobSeen:
    ready_at = session.scalar(
        select(Transition.at)
        .where(Transition.subject == "job", Transition.subject_id == job.id)
        .where(Transition.to_state == JobState.READY)
        .order_by(Transition.id)
    )
    stored_at = session.scalar(select(Delivery.stored_at).where(Delivery.job_id == job.id))
    turnaround = None
    if stored_at is not None and ready_at is not None:
        turnaround = _turnaround(series, job, ready_at, stored_at, grace_s)
    return JobSeen(
        series.series_instance_uid,
        job.state,
        job.reason,
        job.reason_code,
        job.sop_instance_uid,
        job.report,
        turnaround,
    )


def _turnaround(series: Series, job: Job, ready_at: float, stored_at: float, grace_s: float) -> Turnaround:
    assert job.started_at is not None
    inside = dict((job.report or {}).get("seconds", {}))
    stages = {
        "arrival": series.last_instance_at - series.first_instance_at,
        "completeness": job.created_at - series.last_instance_at,
        "queue": job.started_at - job.created_at,
        **inside,
        "keeping": ready_at - job.started_at - sum(inside.values()),
        "delivery": stored_at - ready_at,
    }
    waited_s = min(grace_s, stages["completeness"])
    return Turnaround(stages, stored_at - series.last_instance_at, waited_s, inside.get("forward", 0.0))
