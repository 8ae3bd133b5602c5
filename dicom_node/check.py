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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import contouring, logs, migrate, networks, outputs
from dicom_node.commissioned import MODEL, changes, facts_of, settings_of
from dicom_node.commissioning_report import read_baseline
from dicom_node.config import AnyDestination, Config, read_config
from dicom_node.database import open_engine, reading
from dicom_node.editions import Editions
from dicom_node.errors import AnatomyNodeError, ConfigurationError, PermanentError
from dicom_node.metrics import BYTES_A_MIB
from dicom_node.shadow import candidate_of
from dicom_node.tls import days_left, server_context
from inference import cuda
from inference.errors import DeviceUnavailableError, InferenceFailedError
from inference.session import Session
from models.card import ModelDescription, ModelPackage

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
    yield from _model(config_path, config)
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


def _model(config_path: Path, config: Config) -> Iterator[Finding]:
    """Each package that the configuration names: whether it is whole, approved, and runs here."""
    packages: dict[str, ModelPackage] = {}
    for name in networks.named(config):
        try:
            packages[name] = contouring.package_of(config.model.model_copy(update={"package": name}))
        except ConfigurationError as problem:
            for line in problem.problems:
                yield Finding("model", name, line)
            continue
        described = packages[name].description
        yield Finding("model", f"{described.name} {described.version}, sha256 {described.sha256}")
        yield _approval(config, name, described.sha256)
    if len(packages) == len(networks.named(config)):
        yield from _editions(config)
        yield from _shadow(config, packages[config.model.package].description)
    for name, package in packages.items():
        found, device = _device(config, package)
        yield found
        if name == config.model.package:
            yield from against_baseline(config, facts_of(config_path, package.description, device))


def _approval(config: Config, name: str, sha256: str) -> Finding:
    approved = config.model.approved_of(name)
    if approved == sha256:
        return Finding("model approval", f"{name}: this model is the approved one")
    wrong = "is not set" if approved is None else "names another model"
    reason = f"model.approved_sha256 {wrong} for {name}: results are HELD, nothing is sent"
    return Finding("model approval", name, reason, fatal=False)


def _editions(config: Config) -> Iterator[Finding]:
    """Whether names, colours and labels of each result fit what each destination takes."""
    try:
        found = networks.read_networks(config)
    except ConfigurationError as problem:
        for line in problem.problems:
            yield Finding("RT Structure Sets", "", line)
        return
    names = ", ".join(destination.name for destination in config.destinations) or "no destination"
    sets = sum(len(network.editions) for network in found.values())
    kinds = "" if sets == 1 else f", in {sets} kinds of results"
    yield Finding("RT Structure Sets", f"names, colours and labels fit: {names}{kinds}")
    if config.routing:
        rules = ", ".join(rule.name for rule in config.routing)
        yield Finding("routing", f"{len(config.routing)} rule(s): {rules}")


def _shadow(config: Config, approved: ModelDescription) -> Iterator[Finding]:
    """Whether the candidate, where there is one, can be compared."""
    settings = candidate_of(config)
    if settings is None:
        return
    try:
        candidate = contouring.package_of(settings.model).description
        Editions.read(settings, candidate)
    except ConfigurationError as problem:
        for line in problem.problems:
            yield Finding("candidate", settings.model.package, f"model.shadow: {line}", fatal=False)
        return
    same = "model.shadow: it is the very model that contours; there is nothing to compare"
    seen = f"{candidate.name} {candidate.version}, sha256 {candidate.sha256}"
    yield Finding("candidate", seen, same if candidate.sha256 == approved.sha256 else None, fatal=False)


def against_baseline(config: Config, facts: Mapping[str, str]) -> Iterator[Finding]:
    """What is different from what was commissioned; where nothing was, that is said and no problem."""
    path = config.model.baseline
    if path is None:
        yield Finding("commissioning", "model.baseline is not set: nothing to compare with")
        return
    try:
        known = read_baseline(path)
    except PermanentError as problem:
        yield Finding("commissioning", str(path), f"model.baseline: {problem.reason}", fatal=False)
        return
    problems = list(changes(facts, settings_of(config), known.facts, known.settings))
    if not known.has_held:
        problems.append("the commissioning itself says that not all its points held")
    approved = config.model.approved_of(config.model.package)
    commissioned = known.facts.get(MODEL)
    if approved is not None and approved not in (commissioned, facts[MODEL]):
        problems.append(f"model.approved_sha256 is {approved}, but {commissioned} was commissioned")
    seen = f"{path}, made {known.made_at}"
    for changed in problems:
        yield Finding("commissioning", seen, f"since {known.made_at}: {changed}", fatal=False)
    if not problems:
        yield Finding("commissioning", f"program, model, configuration and device are those of {seen}")


def _device(config: Config, package: ModelPackage) -> tuple[Finding, str]:
    """Whether ONNX Runtime runs the network where the configuration wants it, and where it does."""
    wanted = config.inference
    try:
        session = Session(package.onnx, wanted.device, wanted.allow_cpu, wanted.threads)
    except (DeviceUnavailableError, InferenceFailedError) as problem:
        return Finding("inference", wanted.device, f"inference.device: {problem}"), "none"
    seen = cuda.look()
    if session.device != wanted.device:
        reason = (
            f"inference.device: {wanted.device} was asked for, but the CPU stands in: {cuda.why_not(seen)}"
        )
        return Finding("inference", f"runs on {session.device}", reason, fatal=False), session.device
    idle = session.device == "cpu" and seen.has_gpu
    advice = "; an NVIDIA GPU is there, which inference.device: cuda would use" if idle else ""
    return Finding("inference", f"runs on {session.device}{advice}"), session.device


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


def _destination(destination: AnyDestination, config: Config) -> Finding:
    name = f"destination {destination.name}"
    try:
        return Finding(name, outputs.look(destination, config.listener.ae_title))
    except AnatomyNodeError as problem:
        return Finding(name, "", problem.reason, fatal=False)


def _print(findings: list[Finding]) -> None:
    table = Table("", "check", Column("found", overflow="fold"), show_edge=False)  # checksums stay whole
    for finding in findings:
        found = escape(finding.problem or finding.detail)
        table.add_row("no" if finding.problem else "ok", finding.check, found)
    Console(highlight=False).print(table)
