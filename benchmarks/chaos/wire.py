"""A scanner on a plain socket, for rigs that send more, faster or ruder than a DICOM library does.

Owns PDUs and DIMSE commands as bytes, and a sender that times each answer.
Speaks PS3.8 9.3 and PS3.7 9.3 in Implicit VR LE commands; data sets go as they are given.
Never shares code with what it is sent to: a mistake in both would hide itself.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

CT, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
STORE_CONTEXT, ECHO_CONTEXT = 1, 3
STORE, ECHO = 0x0001, 0x0030
LONGEST_FRAGMENT = 65_000
RELEASE = struct.pack(">BBLL", 5, 0, 4, 0)
ABORT = struct.pack(">BBLL", 7, 0, 4, 0)
COMMAND, LAST = 1, 2
"""Bits of a fragment's control header (PS3.8 E.2)."""


class RefusedError(Exception):
    """The association was not accepted, or has ended."""


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU with its header (PS3.8 9.3.1)."""
    return struct.pack(">BBL", kind, 0, len(body)) + body


def item(kind: int, value: bytes) -> bytes:
    """An item of an association request (PS3.8 9.3.2)."""
    return struct.pack(">BBH", kind, 0, len(value)) + value


def title(name: str | bytes) -> bytes:
    """An AE title as its 16 bytes."""
    raw = name if isinstance(name, bytes) else name.encode()
    return raw[:16].ljust(16)


def association_request(calling: str | bytes, called: str | bytes, syntax: str = EXPLICIT) -> bytes:
    """An A-ASSOCIATE-RQ for CT Image Storage and Verification."""
    contexts = b"".join(
        item(
            0x20,
            bytes([number, 0, 0, 0]) + item(0x30, abstract.encode()) + item(0x40, transfer.encode()),
        )
        for number, abstract, transfer in (
            (STORE_CONTEXT, CT, syntax),
            (ECHO_CONTEXT, VERIFICATION, IMPLICIT),
        )
    )
    user = item(0x51, struct.pack(">L", 131_072)) + item(0x52, b"2.25.9")
    body = struct.pack(">HH", 1, 0) + title(called) + title(calling) + bytes(32)
    return pdu(1, body + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user))


def fragment(data: bytes, control: int, context: int = STORE_CONTEXT) -> bytes:
    """A P-DATA-TF with one fragment (PS3.8 9.3.5)."""
    return pdu(4, struct.pack(">LBB", len(data) + 2, context, control) + data)


def element(tag: int, value: bytes) -> bytes:
    """A data element in Implicit VR LE."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def uid(value: str | bytes) -> bytes:
    """A UID's value, padded to an even length."""
    raw = value if isinstance(value, bytes) else value.encode()
    return raw + b"\0" * (len(raw) % 2)


def command(kind: int, sop_class: str | bytes, sop_instance: str | bytes = b"", number: int = 1) -> bytes:
    """A command set (PS3.7 9.3.1.1, 9.3.5.1)."""
    parts = element(0x0002, uid(sop_class)) + element(0x0100, struct.pack("<H", kind))
    parts += element(0x0110, struct.pack("<H", number))
    if kind == STORE:
        parts += element(0x0700, b"\2\0")
    parts += element(0x0800, b"\1\0" if kind == STORE else b"\1\1")
    if kind == STORE:
        parts += element(0x1000, uid(sop_instance))
    return element(0x0000, struct.pack("<L", len(parts))) + parts


def echo_request() -> bytes:
    """A C-ECHO request."""
    return fragment(command(ECHO, VERIFICATION), COMMAND | LAST, ECHO_CONTEXT)


def store_request(sop_instance: str | bytes, data: bytes, longest: int = LONGEST_FRAGMENT) -> list[bytes]:
    """The PDUs of a C-STORE request."""
    pieces = [data[at : at + longest] for at in range(0, len(data), longest)] or [b""]
    first = fragment(command(STORE, CT, sop_instance), COMMAND | LAST)
    return [first, *(fragment(one, LAST if at == len(pieces) - 1 else 0) for at, one in enumerate(pieces))]


class Sender:
    """An accepted association on a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def echo(self) -> None:
        """Ask C-ECHO and wait for the answer."""
        self._connection.sendall(echo_request())
        self._status()

    def store(self, sop_instance: str, data: bytes) -> tuple[int, float]:
        """Status of a C-STORE, and seconds from the request's last byte sent to its answer."""
        self._connection.sendall(b"".join(store_request(sop_instance, data)))
        began = time.monotonic()
        return self._status(), time.monotonic() - began

    def release(self) -> None:
        """End the association (PS3.8 9.3.6)."""
        self._connection.sendall(RELEASE)
        _read_pdu(self._connection)

    def _status(self) -> int:
        kind, body = _read_pdu(self._connection)
        if kind != 4:
            raise RefusedError(f"a PDU of type {kind} instead of an answer")
        # (0000,0900) Status: its value is the two bytes behind tag and length
        return int.from_bytes(body.partition(b"\0\0\0\x09\x02\0\0\0")[2][:2], "little")


@contextmanager
def associated(
    port: int,
    calling: str,
    called: str,
    source: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    timeout_s: float = 30.0,
) -> Iterator[Sender]:
    """An association, released at the block's end.

    Raises:
        RefusedError: it was refused, or has ended.
        OSError: the connection was.
    """
    with connect(port, source, tls, timeout_s) as connection:
        connection.sendall(association_request(calling, called))
        kind, _ = _read_pdu(connection)
        if kind != 2:
            raise RefusedError(f"a PDU of type {kind} instead of an acceptance")
        sender = Sender(connection)
        yield sender
        sender.release()


@contextmanager
def connect(
    port: int, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None, timeout_s: float = 30.0
) -> Iterator[socket.socket]:
    """A connection to loopback from one of its addresses (all of 127.0.0.0/8 are on Linux)."""
    with socket.create_connection(("127.0.0.1", port), timeout_s, (source, 0)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            yield plain
        else:
            with tls.wrap_socket(plain) as secured:
                yield secured


def _read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    kind, _, length = struct.unpack(">BBL", _exactly(connection, 6))
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise RefusedError("the connection has ended")
        found += more
    return bytes(found)
