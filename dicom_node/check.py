"""`anatomynode check`: whether this machine can be a node, every problem at once.

Owns the list of checks; each looks for itself, and none stops at another's failure.
Speaks findings for a person (a table) or a program (JSON), and an exit status: 0, 1 or 78.
Never changes anything but a probe file in the storage folder, which it removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydicom.uid import SecondaryCaptureImageStorage
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import contouring, logs, migrate, scu, storage_commitment
from dicom_node.config import Config, Destination, read_config
from dicom_node.database import open_engine, reading
from dicom_node.editions import Editions
from dicom_node.errors import AnatomyNodeError, ConfigurationError
from dicom_node.metrics import BYTES_A_MIB
from dicom_node.tls import days_left, server_context
from inference import cuda
from inference.errors import DeviceUnavailableError, InferenceFailedError
from inference.session import Session
from models.card import ModelPackage

DONE, FAILED, CONFIGURATION = 0, 1, 78


DAYS_TO_RENEW = 30
"""A certificate with fewer days left is told of."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at, such as `destination pacs`.
        problem: what is wrong and what to do, or None.
        detail: what was seen.
        fatal: whether the node cannot start with it (78); else it starts, and something waits (1).
    """

    check: str
    detail: str
    problem: str | None = None
    fatal: bool = True


def run(config_path: Path, as_json: bool) -> int:
    """Check everything, print it, and return the exit status."""
    logs.hush_libraries()
    findings = list(look(config_path))
    if as_json:
        problems = [finding for finding in findings if finding.problem]
        Console().print_json(data={"ok": not problems, "findings": [asdict(one) for one in findings]})
    else:
        _print(findings)
    if any(finding.problem and finding.fatal for finding in findings):
        return CONFIGURATION
    return FAILED if any(finding.problem for finding in findings) else DONE


def look(config_path: Path) -> Iterator[Finding]:
    """All findings; without a valid configuration only its own problems."""
    try:
        config = read_config(config_path)
    except ConfigurationError as problem:
        for line in problem.problems:
            yield Finding("configuration", str(config_path), line)
        return
    yield Finding("configuration", str(config_path))
    yield from _storage(config)
    yield _database(config)
    yield from _model(config)
    yield from _tls(config)
    yield _port("listener.port", config.listener.host, config.listener.port, config)
    yield _port("http.port", config.http.host, config.http.port, config)
    for destination in config.destinations:
        yield _destination(destination, config)


def _storage(config: Config) -> Iterator[Finding]:
    folder = config.storage.folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="check-") as probe:
            probe.write(b"probe")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as problem:
        reason = f"storage.folder: cannot be written and fsynced: {problem.strerror}"
        yield Finding("storage", str(folder), reason)
        return
    yield Finding("storage", f"{folder} is writable, fsync works")
    free_mib = shutil.disk_usage(folder).free // BYTES_A_MIB
    seen = f"{free_mib} MiB free, reserve {config.storage.reserve_mib} MiB"
    too_little = free_mib <= config.storage.reserve_mib
    yield Finding(
        "disk", seen, f"storage.reserve_mib: {seen}; free some space" if too_little else None, False
    )


def _database(config: Config) -> Finding:
    path = config.storage.database
    if not path.exists():
        return Finding("database", f"{path} will be made when the node starts")
    engine = open_engine(path)
    try:
        with reading(engine) as session:
            answer = session.scalar(text("PRAGMA quick_check"))
    except SQLAlchemyError as problem:
        return Finding("database", str(path), f"{path} cannot be read: {type(problem).__name__}")
    finally:
        engine.dispose()
    if answer != "ok":
        return Finding("database", str(path), f"{path} is damaged: restore a backup")
    found = migrate.revision(path)
    try:
        migrate.refuse_newer(path, found)
    except ConfigurationError as problem:
        return Finding("database", str(path), problem.reason)
    if found == migrate.newest():
        return Finding("database", f"{path} is sound")
    return Finding("database", f"{path} is sound; the start brings schema {found} to {migrate.newest()}")


def _model(config: Config) -> Iterator[Finding]:
    try:
        package = contouring.package_of(config.model)
    except ConfigurationError as problem:
        for line in problem.problems:
            yield Finding("model", config.model.package, line)
        return
    described = package.description
    yield Finding("model", f"{described.name} {described.version}, sha256 {described.sha256}")
    approved = config.model.approved_sha256
    if approved == described.sha256:
        yield Finding("model approval", "this model is the approved one")
    else:
        wrong = "is not set" if approved is None else "names another model"
        reason = f"model.approved_sha256 {wrong}: results are HELD, nothing is sent"
        yield Finding("model approval", described.name, reason, fatal=False)
    yield from _editions(config, package)
    yield _device(config, package)


def _editions(config: Config, package: ModelPackage) -> Iterator[Finding]:
    """Whether names, colours and labels fit what each destination takes."""
    try:
        editions = Editions.read(config, package.description)
    except ConfigurationError as problem:
        for line in problem.problems:
            yield Finding("RT Structure Sets", "", line)
        return
    names = ", ".join(editions.by_destination) or "no destination"
    yield Finding("RT Structure Sets", f"names, colours and labels fit: {names}")


def _device(config: Config, package: ModelPackage) -> Finding:
    """Whether ONNX Runtime runs the network where the configuration wants it."""
    wanted = config.inference
    try:
        session = Session(package.onnx, wanted.device, wanted.allow_cpu, wanted.threads)
    except (DeviceUnavailableError, InferenceFailedError) as problem:
        return Finding("inference", wanted.device, f"inference.device: {problem}")
    seen = cuda.look()
    if session.device != wanted.device:
        reason = (
            f"inference.device: {wanted.device} was asked for, but the CPU stands in: {cuda.why_not(seen)}"
        )
        return Finding("inference", f"runs on {session.device}", reason, fatal=False)
    idle = session.device == "cpu" and seen.has_gpu
    advice = "; an NVIDIA GPU is there, which inference.device: cuda would use" if idle else ""
    return Finding("inference", f"runs on {session.device}{advice}")


def _tls(config: Config) -> Iterator[Finding]:
    for owner, tls in config.tls_by_name.items():
        name = f"{owner}.tls"
        try:
            server_context(tls, name)
            left = days_left(tls.certificate, time.time())
        except ConfigurationError as problem:
            for line in problem.problems:
                yield Finding(name, str(tls.certificate), line)
        else:
            seen = f"{tls.certificate}: {left:.0f} day(s) left"
            advice = f"{name}: {seen}; renew it, no restart is needed" if left < DAYS_TO_RENEW else None
            yield Finding(name, seen, advice, fatal=False)


def _port(name: str, host: str, port: int, config: Config) -> Finding:
    """Free, or held by the node that runs on this storage folder."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            if _node_runs(config):
                return Finding(name, f"{host}:{port} is held by this node, which runs")
            return Finding(name, f"{host}:{port}", f"{name}: {host}:{port}: {problem.strerror}")
    return Finding(name, f"{host}:{port} is free")


def _node_runs(config: Config) -> bool:
    """Whether a listener holds its lock on the storage folder."""
    try:
        descriptor = os.open(config.storage.folder / "listen.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _destination(destination: Destination, config: Config) -> Finding:
    name = f"destination {destination.name}"
    seen = f"{destination.ae_title} at {destination.host}:{destination.port}"
    try:
        calling = destination.calling_ae_title or config.listener.ae_title
        scu.echo(destination, calling)
        if destination.preview:
            scu.accepts(destination, calling, SecondaryCaptureImageStorage)
        if destination.storage_commitment.enabled:
            scu.accepts(destination, calling, storage_commitment.SOP_CLASS_UID)
    except AnatomyNodeError as problem:
        return Finding(name, seen, problem.reason, fatal=False)
    takes = ", takes pictures" if destination.preview else ""
    commits = ", offers storage commitment" if destination.storage_commitment.enabled else ""
    return Finding(name, f"{seen} answers C-ECHO{takes}{commits}")


def _print(findings: list[Finding]) -> None:
    table = Table("", "check", Column("found", overflow="fold"), show_edge=False)  # checksums stay whole
    for finding in findings:
        found = escape(finding.problem or finding.detail)
        table.add_row("no" if finding.problem else "ok", finding.check, found)
    Console(highlight=False).print(table)
