"""The listener: the guarded storage SCP between its start and its drained end.

Owns the life of the server: what is made ready before the port opens, and what waits when it closes.
Speaks `Config` in and ConfigurationError out; clocks are injected.
Never opens the port before spool, database and certificates are known to work.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import logs, scp
from dicom_node.audit_stream import AuditStream
from dicom_node.config import Config
from dicom_node.errors import ConfigurationError
from dicom_node.guard import GuardedServer, Limits
from dicom_node.intake import Registry
from dicom_node.keyed_hash import KeyedHash, load_key
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.spool import Spool, SpoolError
from dicom_node.tls import ServerTls
from dicom_node.transfers import Arrivals

POLL_S = 0.1
"""How soon the accept loop notices that it is to end."""
STUCK_S = 10.0
"""An accept loop that did not come around for so long hangs: it has nothing to wait for but the poll."""


class Listener:
    """Receives until it is stopped.

    Args:
        engine: on a database that has the current schema.
        clock: UTC seconds since the epoch.
        audit: told of what comes and of whom is refused; None: nobody is.

    Attributes:
        figures: what was counted since the start.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        clock: Callable[[], float] = time.time,
        audit: AuditStream | None = None,
    ) -> None:
        self._arrivals = Arrivals(audit)
        self.figures = ReceptionFigures()
        self._config = config
        self._spool = Spool(config.storage.spool, config.storage.reserve_mib << 20)
        self._registry = Registry(engine, clock, self._spool.has)
        self._log = logs.get(__name__)
        self._server: GuardedServer | None = None
        self._accepting: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        if self._server is None:
            raise RuntimeError("the listener has not been started")
        return int(self._server.server_address[1])

    @property
    def is_listening(self) -> bool:
        """Whether connections are being accepted: the loop that does so lives and comes around."""
        if self._server is None or self._accepting is None or not self._accepting.is_alive():
            return False
        return time.monotonic() - self._server.came_around_at < STUCK_S

    def start(self) -> None:
        """Begin to receive; peers are answered from the moment that this returns.

        Raises:
            ConfigurationError: the port cannot be had, a certificate cannot be read, the spool or the
                database cannot be written.
        """
        ae = scp.application_entity(self._config)
        configured = self._config.listener.tls
        secured = None if configured is None else ServerTls(configured, "listener.tls")
        receiver = scp.StorageScp(
            self._config,
            self._spool,
            self._registry,
            KeyedHash(load_key(self._config)),
            self.figures,
            self._arrivals,
        )
        self._make_ready()
        server = self._bind(ae, secured, receiver)
        self._server = server
        self._accepting = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": POLL_S}, name="accept", daemon=True
        )
        self._accepting.start()
        self._log.info("listening", port=self.port, tls=secured is not None)

    def stop(self, drain_s: float = 10.0) -> None:
        """Accept nobody more, let open associations end within `drain_s` seconds, break the rest."""
        if self._server is None:
            return
        self._server.stop_accepting()
        broken = self._server.drain(drain_s)
        if self._accepting is not None:
            self._accepting.join()
        self._server = None
        self._accepting = None
        self._log.info("stopped", associations_broken=broken)

    def _make_ready(self) -> None:
        """Bring spool and database to where a crash may have left them off."""
        try:
            swept = self._spool.open()
            lost = self._registry.close_lost_associations()
        except SpoolError as problem:
            raise ConfigurationError((f"storage.folder: {problem.reason}",)) from problem
        except SQLAlchemyError as problem:
            raise ConfigurationError(
                (f"storage.folder: the database cannot be used: {type(problem).__name__}",)
            ) from problem
        if swept or lost:
            self._log.warning("recovered", half_written_files=swept, associations_lost=lost)

    def _bind(self, ae: Any, secured: ServerTls | None, receiver: scp.StorageScp) -> GuardedServer:
        listener = self._config.listener
        try:
            server = ae.make_server(
                _address(listener.host, listener.port),
                ae_title=listener.ae_title,
                evt_handlers=receiver.handlers(),
                server_class=GuardedServer,
                tls=secured,
                limits=Limits.of(listener),
                gatekeeper=receiver,
                figures=self.figures,
            )
        except OSError as problem:
            raise ConfigurationError(
                (f"listener.port: cannot listen on {listener.host}:{listener.port}: {problem.strerror}",)
            ) from problem
        assert isinstance(server, GuardedServer)
        return server


def _address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The address in the form that the host's family has."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return socket.gethostbyname(host), port
    return (host, port) if version == 4 else (host, port, 0, 0)
