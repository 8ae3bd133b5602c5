"""Where audit messages go: a syslog server over UDP or TLS, or a file.

Owns the queue between who has something to tell and the way out, and the count of what was lost.
Speaks RFC 5424 lines as PS3.15 A.6 wants them; RFC 5426 datagrams, RFC 5425 frames, lines of a file.
Never keeps anybody waiting: what does not fit into the queue is lost, and counted.
"""

from __future__ import annotations

import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from dicom_node import logs
from dicom_node.config import AuditStreamChoice, Config
from dicom_node.tls import client_context

QUEUED = 10_000
"""Messages, of about 1.5 kB each, that wait for a server that is away."""
AGAIN_AFTER_S = 5.0
CONNECT_S = 10.0
LEFT_S = 2.0
"""How long the end of a process waits for what is still to go out."""
PRIORITY = 10 * 8 + 5
"""Facility 10 (security and authorization), severity 5 (notice): PS3.15 A.6."""
LONGEST_BYTES = 60_000
"""A message that fits into no datagram is lost, whatever the way out."""

Write = Callable[[bytes], None]

log = logs.get(__name__)


class AuditStream:
    """Takes messages from any thread, and brings them out in a thread of its own.

    Args:
        program: `listen` or `work`.
        clock: UTC epoch seconds.

    Attributes:
        sent, lost: how many messages since the start.
        is_on: whether the configuration wants a stream; without one nothing is made or counted.

    Raises:
        ConfigurationError: the certificates cannot be used.
    """

    def __init__(self, config: Config, program: str, clock: Callable[[], float] = time.time) -> None:
        self._choice = config.audit_stream
        self.is_on = self._choice.transport is not None
        self.own_title = config.listener.ae_title
        self.program = program
        self.clock = clock
        self.sent = 0
        self.lost = 0
        self._counting = threading.Lock()
        self._queue: queue.Queue[bytes] = queue.Queue(QUEUED)
        self._stop = threading.Event()
        self._is_told = False
        tls = self._choice.tls
        self._context = None if tls is None else client_context(tls, "audit_stream.tls")
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Bring out from now on."""
        if self.is_on:
            self._thread.start()

    def emit(self, message: Callable[[], bytes]) -> None:
        """Queue a message, which is made only where there is a stream; returns at once, whatever happens."""
        if not self.is_on:
            return
        try:
            made = message()
            if len(made) > LONGEST_BYTES:
                raise ValueError(f"{len(made)} bytes")
            self._queue.put_nowait(made)
        except queue.Full:
            self._lose(1)
        except Exception as bug:  # whoever has something to tell has something better to do
            log.error("an audit message cannot be made", exc_info=bug)
            self._lose(1)

    def stop(self) -> None:
        """Bring out what is left, within `LEFT_S`; the rest is lost."""
        if not self.is_on:
            return
        self._stop.set()
        self._thread.join(LEFT_S)
        left = self._queue.qsize()
        if left:
            self._lose(left)
            log.warning("audit messages are lost at the end", messages=left)

    def _lose(self, messages: int) -> None:
        with self._counting:
            self.lost += messages

    def _run(self) -> None:
        while not (self._stop.is_set() and self._queue.empty()):
            try:
                with self._way_out() as write:
                    self._bring_out(write)
            except OSError as problem:  # ssl.SSLError is one
                if not self._is_told:
                    log.warning("audit messages cannot be brought out now", reason=str(problem))
                    self._is_told = True
                if self._stop.wait(AGAIN_AFTER_S):
                    return

    def _bring_out(self, write: Write) -> None:
        """Message by message; one that could not be written goes first over the next way out."""
        while not (self._stop.is_set() and self._queue.empty()):
            try:
                message = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                write(self._line(message))
            except OSError:
                with suppress(queue.Full):
                    self._queue.put_nowait(message)
                    raise
                self._lose(1)
                raise
            self._is_told = False
            with self._counting:
                self.sent += 1

    def _line(self, message: bytes) -> bytes:
        """RFC 5424, with the message identifier of PS3.15 A.6."""
        at = datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        head = f"<{PRIORITY}>1 {at} {socket.gethostname()} anatomynode-{self.program} {os.getpid()} "
        return f"{head}DICOM+RFC3881 - \ufeff".encode() + message.replace(b"\n", b" ")

    @contextmanager
    def _way_out(self) -> Iterator[Write]:
        way = {"udp": _datagrams, "tls": self._frames, "file": _lines}[self._choice.transport or "file"]
        with way(self._choice) as write:
            yield write

    @contextmanager
    def _frames(self, choice: AuditStreamChoice) -> Iterator[Write]:
        """RFC 5425: each message with its length before it, over TLS."""
        assert self._context is not None  # the configuration wants tls with this transport
        with (
            socket.create_connection((choice.host, choice.port), CONNECT_S) as plain,
            self._context.wrap_socket(plain) as secured,
        ):
            yield lambda line: _send(secured, line)


def _send(secured: ssl.SSLSocket, line: bytes) -> None:
    # A server that has gone says so by an end that is to be read: without a look the first message is lost.
    secured.setblocking(False)
    try:
        if secured.recv(1) == b"":
            raise ConnectionResetError("the audit record repository has closed the connection")
    except (ssl.SSLWantReadError, BlockingIOError):
        pass
    finally:
        secured.settimeout(CONNECT_S)
    secured.sendall(f"{len(line)} ".encode() + line)


@contextmanager
def _datagrams(choice: AuditStreamChoice) -> Iterator[Write]:
    """RFC 5426: a message a datagram; nobody says whether it has arrived."""
    family, kind, _, _, address = socket.getaddrinfo(choice.host, choice.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sender:

        def write(line: bytes) -> None:
            sender.sendto(line, address)

        yield write


@contextmanager
def _lines(choice: AuditStreamChoice) -> Iterator[Write]:
    """A line a message; the file is opened anew for each, so that it may be moved away meanwhile."""
    file = choice.file
    assert file is not None  # the configuration wants it with this transport

    def write(line: bytes) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "ab") as stream:  # noqa: PTH123 (the descriptor has its mode)
            stream.write(line + b"\n")

    yield write
