"""Whether series may come: what `/readyz` answers.

Owns what each check means; the checks look at the machine, not at memory of it.
Speaks `Check` by its name.
Never shows anything of a job, a series or a patient.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.config import Config
from dicom_node.database import reading, transaction
from dicom_node.metrics import BYTES_A_MIB
from dicom_node.schema import WorkerStatus

HEARTBEAT_LIMIT_S = 30.0
"""A worker that gave no sign of life for this long is taken for dead."""


@dataclass(frozen=True)
class Check:
    """One thing that must be well before series may come."""

    ok: bool
    detail: str


Checks = Mapping[str, Check]


def readiness(
    engine: Engine, config: Config, listens: Callable[[], bool], clock: Callable[[], float] = time.time
) -> Checks:
    """Whether the node can do its work now, check by check.

    Args:
        engine: the node's database.
        config: the configuration in use.
        listens: whether the DICOM port is bound and accepts.
        clock: UTC epoch seconds.
    """
    return {
        "listener": Check(listens(), f"port {config.listener.port}"),
        "database": database_check(engine),
        "disk": _disk(config),
        "worker": _worker(engine, clock),
    }


def database_check(engine: Engine) -> Check:
    """Whether a commit would go through now."""
    try:
        with transaction(engine) as session:
            session.connection()  # takes the write lock, as each commit does
            return Check(True, "writable")
    except SQLAlchemyError as problem:
        return Check(False, type(problem).__name__)


def _disk(config: Config) -> Check:
    try:
        free_mib = shutil.disk_usage(config.storage.folder).free // BYTES_A_MIB
    except OSError as problem:
        return Check(False, str(problem.strerror))
    reserve_mib = config.storage.reserve_mib
    return Check(free_mib > reserve_mib, f"{free_mib} MiB free, reserve {reserve_mib} MiB")


def _worker(engine: Engine, clock: Callable[[], float]) -> Check:
    try:
        with reading(engine) as session:
            status = session.get(WorkerStatus, 1)
            if status is None:
                return Check(False, "has not started yet")
            # One from the future is as old: since the clock was set back nobody has given another.
            age_s = abs(clock() - status.heartbeat_at)
            return Check(age_s <= HEARTBEAT_LIMIT_S, f"last sign of life {age_s:.1f} s ago")
    except SQLAlchemyError as problem:
        return Check(False, type(problem).__name__)
