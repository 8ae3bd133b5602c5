"""The one HTTP port: `/metrics`, `/healthz`, `/readyz`.

Owns the HTTP server and what each check means; the checks look at the machine, not at memory of it.
Speaks Prometheus' text, and JSON that names each check; 200 when all is well, else 503.
Never shows anything of a job, a series or a patient, and never takes a request that changes something.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import logs
from dicom_node.config import Config, Http
from dicom_node.database import reading, transaction
from dicom_node.errors import ConfigurationError
from dicom_node.metrics import BYTES_A_MIB, CONTENT_TYPE
from dicom_node.schema import WorkerStatus

HEARTBEAT_LIMIT_S = 30.0
"""A worker that gave no sign of life for this long is taken for dead."""
REQUEST_TIMEOUT_S = 5.0


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


class HttpStatus:
    """The server, in threads of its own.

    Raises (from the constructor):
        ConfigurationError: the address cannot be bound.
    """

    def __init__(self, settings: Http, metrics: Callable[[], bytes], ready: Callable[[], Checks]) -> None:
        try:
            self._server = _Server((settings.host, settings.port), _Handler)
        except OSError as problem:
            raise ConfigurationError(
                (f"http: {settings.host}:{settings.port} cannot be bound: {problem.strerror}",)
            ) from problem
        self._server.metrics, self._server.ready = metrics, ready
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    metrics: Callable[[], bytes]
    ready: Callable[[], Checks]


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_TIMEOUT_S
    server_version = "anatomynode"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Answer one of the three paths; anything else is not found."""
        try:
            status, kind, body = self._answer()
        except Exception:
            logs.get(__name__).exception("a figure could not be read")
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"see the log\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[HTTPStatus, str, bytes]:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE, self.server.metrics()
        if path == "/healthz":
            return HTTPStatus.OK, "application/json", b'{"alive": true}\n'
        if path == "/readyz":
            checks = self.server.ready()
            ready = all(check.ok for check in checks.values())
            told = {"ready": ready, "checks": {name: asdict(check) for name, check in checks.items()}}
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "application/json", json.dumps(told, indent=2).encode() + b"\n"
        return HTTPStatus.NOT_FOUND, "text/plain", b"/metrics, /healthz, /readyz\n"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (its name in the base class)
        """Nothing: a scrape every few seconds is no news."""
