"""The one HTTP port: `/metrics`, `/healthz`, `/readyz`, and the page where it is shown.

Owns the HTTP server, its threads and its limits; the only door to waitress.
Speaks Prometheus' text, and JSON that names each check; 200 when all is well, else 503.
Never takes a request that changes something, and never answers with an exception's text.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from waitress import create_server, wasyncore
from werkzeug import Request, Response

from dicom_node import logs
from dicom_node.config import Http
from dicom_node.errors import ConfigurationError
from dicom_node.http_status import Checks
from dicom_node.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

THREADS = 8
LIMITS = {
    "threads": THREADS,
    "connection_limit": 200,
    "channel_timeout": 30,  # seconds in which a connection may say nothing
    "cleanup_interval": 10,  # seconds; how often that is looked at
    "max_request_header_size": 16_384,
    "max_request_body_size": 1_024,  # nothing here takes a body
    "ident": "anatomynode",
    "clear_untrusted_proxy_headers": True,
}

log = logs.get(__name__)


class HttpPort:
    """The server, in threads of its own.

    Args:
        metrics: renders `/metrics`.
        ready: the checks of `/readyz`.
        page: answers every other path; None where no page is shown.

    Raises (from the constructor):
        ConfigurationError: the address cannot be bound.
    """

    def __init__(
        self,
        settings: Http,
        metrics: Callable[[], bytes],
        ready: Callable[[], Checks],
        page: WSGIApplication | None = None,
    ) -> None:
        self._metrics, self._ready, self._page = metrics, ready, page
        self._sockets: dict[int, Any] = {}
        """Those that the server's loop looks at; it ends when there are none."""
        self._server = create_server(self, map=self._sockets, sockets=[_bound(settings)], **LIMITS)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        # The loop's own thread closes what the loop looks at.
        self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._sockets))
        self._thread.join()
        self._server.task_dispatcher.shutdown()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """The WSGI application."""
        try:
            return self._answer(Request(environ))(environ, start_response)
        except Exception:
            log.exception("a request could not be answered")
            failed = Response("see the log\n", HTTPStatus.INTERNAL_SERVER_ERROR, content_type="text/plain")
            return failed(environ, start_response)

    def _answer(self, request: Request) -> WSGIApplication:
        if request.method not in ("GET", "HEAD"):
            return Response(
                "this port only shows\n", HTTPStatus.METHOD_NOT_ALLOWED, content_type="text/plain"
            )
        if request.path == "/metrics":
            return Response(self._metrics(), content_type=CONTENT_TYPE)
        if request.path == "/healthz":
            return Response('{"alive": true}\n', content_type="application/json")
        if request.path == "/readyz":
            return self._readiness()
        if self._page is not None:
            return self._page
        return Response("/metrics, /healthz, /readyz\n", HTTPStatus.NOT_FOUND, content_type="text/plain")

    def _readiness(self) -> Response:
        checks = self._ready()
        ready = all(check.ok for check in checks.values())
        told = {"ready": ready, "checks": {name: asdict(check) for name, check in checks.items()}}
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(json.dumps(told, indent=2) + "\n", status, content_type="application/json")


def _bound(settings: Http) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], address[1]), family=family)
    except OSError as problem:
        raise ConfigurationError(
            (f"http: {settings.host}:{settings.port} cannot be bound: {problem.strerror}",)
        ) from problem
