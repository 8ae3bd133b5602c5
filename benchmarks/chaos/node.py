"""The node under fire: `anatomynode listen` and `anatomynode work`, killed and started again.

Owns both processes, the configuration, and the reading of what the node knows.
Speaks kill -9 and the database (reading only).
Never stops the node politely while it is under fire.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pynetdicom.dsutils import split_dataset
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from benchmarks.chaos import archive, points, scanner
from benchmarks.chaos.points import Point
from dicom_node.database import open_engine, reading
from dicom_node.free_ports import free_ports
from dicom_node.jobs import CRASHED
from dicom_node.schema import Instance, Job, Series, Transition
from dicom_node.states import JOB_ENDS, JobState, SeriesState
from models.card import PACKAGES, read_package

AE_TITLE = "ANATOMYNODE"
PROGRAMS = {"listener": "listen", "worker": "work"}
PRELOADED = ["dicom_node.cli", "dicom_node.daemon", "dicom_node.listener", "dicom_node.worker"]


class Node:
    """Both processes of a node in `folder`.

    They are forked from a process that has imported the program and run nothing of it (the standard library's
    `forkserver`): two hundred restarts would else spend their time on imports.
    """

    def __init__(self, folder: Path, fsyncs: bool = True) -> None:
        self.folder = folder
        self._fsyncs = fsyncs
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_ports(1)[0]
        self.storage = folder / "storage"
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(PRELOADED)
        self._processes: dict[str, Any] = {}

    def configure(self, pacs: archive.Archive) -> None:
        """Write the configuration."""
        package = read_package(PACKAGES / "anatomynet-hn")
        settings = {
            "listener": {"ae_title": AE_TITLE, "port": self.port},
            "peers": [{"ae_title": scanner.AE_TITLE, "addresses": ["127.0.0.1"]}],
            "storage": {"folder": str(self.storage), "reserve_mib": 1},
            # As many as the series has: half a series is no planning CT, however long its sender pauses.
            "series": {"grace_s": 0.2, "quiet_period_s": 3.0, "min_slices": scanner.SLICES},
            "model": {"approved_sha256": package.description.sha256},
            "inference": {"device": "cpu", "allow_cpu": True},
            "retry": {"first_delay_s": 0.5, "max_delay_s": 2.0},
            "destinations": [
                {
                    "name": "pacs",
                    "host": "127.0.0.1",
                    "port": pacs.port,
                    "ae_title": archive.AE_TITLE,
                    "storage_commitment": {"enabled": pacs.commits, "wait_s": 0.2, "report_within_s": 10.0},
                }
            ],
            "http": {"port": free_ports(1)[0]},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))

    def start(self, name: str, point: Point | None = None, call: int = 1) -> None:
        """Start one of the two, to die at `point` where one is given; returns at once."""
        process = self._forks.Process(
            target=points.run,
            args=(
                PROGRAMS[name],
                self.folder / "config.yaml",
                self.folder / f"{name}.log",
                point,
                call,
                self._fsyncs,
            ),
            daemon=True,
        )
        process.start()
        self._processes[name] = process

    def kill(self, *names: str) -> None:
        """Kill -9, both at once where both are named."""
        for name in names:
            self._processes[name].kill()
        for name in names:
            self._processes[name].join()

    def died(self, name: str, within_s: float) -> bool:
        """Whether it has killed itself within this time."""
        self._processes[name].join(within_s)
        return self._processes[name].exitcode is not None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Neither runs within the block."""
        for process in self._processes.values():
            os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self._processes.values():
                os.kill(process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End both."""
        for process in self._processes.values():
            process.terminate()
            process.join(30)
            process.kill()

    # --- what it knows -----------------------------------------------------------------------------

    def unfinished(self) -> int:
        """Series that still arrive, and jobs that have not ended."""
        with self._reading() as session:
            receiving = session.scalars(select(Series.id).where(Series.state == SeriesState.RECEIVING))
            waiting = session.scalars(select(Job.id).where(Job.state.not_in(JOB_ENDS)))
            return len(list(receiving)) + len(list(waiting))

    def jobs(self) -> Counter[JobState]:
        """Jobs by state."""
        with self._reading() as session:
            return Counter(session.scalars(select(Job.state)))

    def most_crashes(self) -> int:
        """How often the worker has died under one job that has not ended."""
        crashes = (
            select(func.count())
            .select_from(Job)
            .join(Transition, (Transition.subject == "job") & (Transition.subject_id == Job.id))
            .where(Job.state.not_in(JOB_ENDS), Transition.reason == CRASHED)
            .group_by(Job.id)
        )
        with self._reading() as session:
            return max(session.scalars(crashes), default=0)

    def ends(self) -> dict[str, list[tuple[str, str]]]:
        """For each study the states and reasons of its jobs."""
        found: dict[str, list[tuple[str, str]]] = {}
        with self._reading() as session:
            rows = select(Series.study_instance_uid, Job.state, Job.reason)
            for study, state, reason in session.execute(rows.join(Job, Job.series_id == Series.id)):
                found.setdefault(study, []).append((str(state), reason or ""))
        return found

    def lost(self, acknowledged: Mapping[str, str]) -> list[str]:
        """Acknowledged slices whose row or bytes are not there, or others than were sent."""
        with self._reading() as session:
            files = dict(session.execute(select(Instance.sop_instance_uid, Instance.file)).all())
        return [
            uid
            for uid, sha256 in acknowledged.items()
            if uid not in files or _sha256(self.storage / "spool" / files[uid]) != sha256
        ]

    def is_sound(self) -> bool:
        """Whether SQLite finds its file intact."""
        with self._reading() as session:
            return bool(session.scalar(text("PRAGMA integrity_check")) == "ok")

    def wait(self, timeout_s: float) -> bool:
        """Whether everything has ended within this time."""
        deadline = time.monotonic() + timeout_s
        while self.unfinished():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        engine = open_engine(self.storage / "anatomynode.sqlite")
        try:
            with reading(engine) as session:
                yield session
        finally:
            engine.dispose()


def _sha256(file: Path) -> str | None:
    """Of the data set in a Part 10 file; None where there is none."""
    try:
        _, offset = split_dataset(file)
        return hashlib.sha256(file.read_bytes()[offset:]).hexdigest()
    except Exception:  # whatever is wrong with it: it is not what was sent
        return None
