"""The processes of the node: `serve`, and its two halves `listen` and `work`.

Owns their start, in which every problem is found before the first slice comes, and their drained end.
Speaks signals, sd_notify and exit statuses; SIGTERM and SIGINT drain.
Never lets two listeners or two workers use one storage folder, and never outlives its supervisor.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from dicom_node import audit_message, http_status, logs, metrics, migrate
from dicom_node.audit_stream import AuditStream
from dicom_node.config import Config, read_config
from dicom_node.database import damaged, open_engine, reading, told_plainly
from dicom_node.errors import ConfigurationError, TransientError
from dicom_node.notify import Notifier
from dicom_node.supervisor import SUPERVISED, Supervisor

DRAIN_S = 30.0
"""Open associations may go on for this long after SIGTERM; then they are aborted, and the sender sees it."""
LOCK_WAIT_S = 10.0
"""A predecessor that is just ending gets this long to let go of the storage folder."""


class AlreadyRunningError(TransientError):
    """Another process does the same work on the same storage folder."""


def serve(config_path: Path) -> int:
    """Run listener and worker as two processes until SIGTERM. Returns the exit status.

    Raises:
        ConfigurationError: the configuration or the storage folder is wrong.
    """
    with _alone(config_path, "serve") as (_, stop):
        commands = {name: _command(name, config_path) for name in ("listen", "work")}
        return Supervisor(commands, Notifier()).run(stop)


def listen(config_path: Path) -> None:
    """Receive, and show the figures by HTTP, until SIGTERM.

    Raises:
        ConfigurationError: something is wrong with the configuration or the machine.
    """
    from dicom_node.http_port import HttpPort
    from dicom_node.listener import Listener  # keeps pynetdicom out of the supervisor
    from dicom_node.page import Page

    notifier = Notifier()
    with (
        _alone(config_path, "listen") as (config, stop),
        _database(config) as engine,
        _audited(config, "listen") as audit,
    ):
        listener = Listener(config, engine, audit=audit)
        collector = metrics.NodeCollector(engine, config, listener.figures, audit=audit)
        figures = metrics.exposition(collector)
        status = HttpPort(
            config.http,
            figures,
            lambda: http_status.readiness(engine, config, lambda: listener.is_listening),
            Page(engine, config) if config.http.shows_page else None,
        )
        listener.start()
        status.start()
        notifier.ready(f"listening on {config.listener.host}:{config.listener.port}")
        while not stop.wait(notifier.every_s):
            # A listener that accepts nobody, or cannot commit, is to be started again.
            if listener.is_listening and http_status.database_check(engine).ok:
                notifier.alive()
        notifier.stopping()
        listener.stop(DRAIN_S)
        status.stop()


def work(config_path: Path) -> None:
    """Contour what was received and send the results, until SIGTERM; the running job is finished first.

    Raises:
        ConfigurationError: something is wrong with the configuration or the machine.
    """
    from dicom_node import contouring  # keeps the network's runtime out of the listener
    from dicom_node.worker import Worker

    notifier = Notifier()
    with (
        _alone(config_path, "work") as (config, stop),
        _database(config) as engine,
        _audited(config, "work") as audit,
    ):
        worker = Worker(
            config,
            engine,
            lambda package: contouring.segmenter_of(package, config),
            time.time,
            shadow_command=_command("shadow", config_path, "run"),
            audit=audit,
        )
        worker.run(stop, ready=lambda: notifier.ready("waiting for series"), alive=notifier.alive)
        notifier.stopping()


@contextmanager
def _audited(config: Config, program: str) -> Iterator[AuditStream]:
    """The stream of audit messages, which begins and ends with the word that the program does.

    Raises:
        ConfigurationError: its certificates cannot be used.
    """
    stream = AuditStream(config, program)
    stream.start()
    stream.emit(lambda: audit_message.application(stream.own_title, program, True, stream.clock()))
    try:
        yield stream
    finally:
        stream.emit(lambda: audit_message.application(stream.own_title, program, False, stream.clock()))
        stream.stop()


def _command(name: str, config_path: Path, *more: str) -> list[str]:
    """The argument list that runs a command of ours with this configuration."""
    return [sys.executable, "-m", "dicom_node", name, "--config", str(config_path.resolve()), *more]


def _begin(config_path: Path, program: str) -> Config:
    """Read the configuration, set up logging, and make the storage folder.

    Raises:
        ConfigurationError: the configuration is wrong, or the folder cannot be made.
    """
    config = read_config(config_path)
    logs.configure(config.logging, program)
    logs.catch_threads()
    try:
        for folder in (config.storage.folder, config.storage.spool, config.storage.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigurationError(
            (f"storage.folder: {config.storage.folder} cannot be made: {problem.strerror}",)
        ) from problem
    return config


@contextmanager
def _database(config: Config) -> Iterator[Engine]:
    """The database, sound and brought to the current schema; both halves may do so at once.

    Raises:
        ConfigurationError: it is damaged; a node that went on with it would forget what it acknowledged.
        DatabaseUnavailableError: it cannot be used now.
    """
    path = config.storage.database
    engine = open_engine(path)
    try:
        with told_plainly(path):
            migrate.upgrade(path)
            with reading(engine) as session:
                found = session.scalar(text("PRAGMA quick_check(1)"))
        if found != "ok":
            raise damaged(path, str(found))
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _alone(config_path: Path, program: str) -> Iterator[tuple[Config, threading.Event]]:
    """The configuration, and the event that ends the process, while it is the only one of its kind.

    The system lets go of the lock however the process ends.

    Raises:
        AlreadyRunningError: another process holds the lock and does not end.
        ConfigurationError: the configuration is wrong, or the folder cannot be written.
    """
    config = _begin(config_path, program)
    stop = _stop_on_signals()
    path = config.storage.folder / f"{program}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise ConfigurationError((f"storage.folder: {path} cannot be made: {problem.strerror}",)) from problem
    try:
        _take(descriptor, path)
        yield config, stop
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise AlreadyRunningError(
                    f"{path} is held: another process does this on the same storage folder"
                ) from None
            time.sleep(0.1)
        else:
            return


def _stop_on_signals() -> threading.Event:
    """An event that SIGTERM, SIGINT and the end of the supervisor set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    if os.environ.get(SUPERVISED):
        threading.Thread(target=_outlive_nobody, args=(stop,), name="supervised", daemon=True).start()
    return stop


def _outlive_nobody(stop: threading.Event) -> None:
    """Set `stop` when the pipe from the supervisor closes: it is gone, however it ended."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    stop.set()
