"""The door to DICOMweb services: STOW-RS of one object (PS3.18 10.5), and whether the service is there.

Owns the request, its limits in time and size, and the total table of what each HTTP status means.
Speaks urllib3; a file's bytes go out as they lie on the disk.
Never follows a redirect, and never takes 200 for stored without the object's UID in the answer.
"""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from pydicom.filereader import read_file_meta_info
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)

from dicom_node.config import WebDestination
from dicom_node.errors import PermanentError, TransientError
from dicom_node.store_status import StoreKind, StoreOutcome, in_words, meaning

MOST_OF_AN_ANSWER_BYTES = 1 << 20
"""An answer about one object has some hundred bytes."""

NOBODYS_STUDY = "2.25.1"
"""Asked for to see whether the service is there: no study has this UID, so no patient is in the answer."""

REFERENCED, FAILED = "00081199", "00081198"
SOP_INSTANCE_UID, WARNING_REASON, FAILURE_REASON = "00081155", "00081196", "00081197"

_K = StoreKind
STATUSES: Mapping[range, tuple[StoreKind, str]] = {
    range(300, 400): (_K.REFUSED, "redirects, which is not followed: correct the destination's url"),
    range(400, 401): (_K.REFUSED, "finds the request malformed; its log names the cause"),
    range(401, 402): (
        _K.REFUSED,
        "wants to know who asks: correct user and password, or the token",
    ),
    range(403, 404): (
        _K.REFUSED,
        "does not allow this account to store; grant it the right there",
    ),
    range(404, 406): (
        _K.REFUSED,
        "has no STOW-RS at this address: correct the destination's url",
    ),
    range(406, 407): (_K.REFUSED, "does not answer in DICOM JSON, which is all that is read here"),
    range(408, 409): (_K.TRANSIENT, "waited too long for the request; tried again"),
    range(409, 410): (
        _K.REFUSED,
        "did not store the object, without saying why; its log does",
    ),
    range(413, 414): (_K.REFUSED, "takes no request of this size; raise its limit, then retry"),
    range(415, 416): (_K.REFUSED, "does not take application/dicom; correct the destination's url"),
    range(421, 422): (_K.TRANSIENT, "was reached under another name; tried again"),
    range(425, 426): (_K.TRANSIENT, "is not ready for the request; tried again"),
    range(429, 430): (_K.TRANSIENT, "is asked too often; tried again"),
    range(400, 500): (_K.REFUSED, "refuses the request; its log names the cause, then retry"),
    range(501, 502): (_K.REFUSED, "does not offer STOW-RS: correct the destination's url, then retry"),
    range(502, 505): (_K.UNREACHABLE, "is away behind its proxy, or not ready; tried again"),
    range(505, 506): (_K.REFUSED, "does not speak HTTP/1.1"),
    range(500, 600): (_K.TRANSIENT, "failed on its side; tried again, see its log"),
}
"""Looked up from the top (RFC 9110 15, PS3.18 10.5.3); what is in no range is tried again."""
_STORED = frozenset({200, 202})
"""All, or some, of what was sent was stored (PS3.18 Table 10.5.3-1); the answer says what of this object."""


def of_status(status: int) -> tuple[StoreKind, str]:
    """What an HTTP status means for the object, where the answer's body says nothing of it."""
    if status in _STORED:
        return StoreKind.TRANSIENT, "did not say that it keeps this object; it is sent again"
    known = next((outcome for statuses, outcome in STATUSES.items() if status in statuses), None)
    return known or (StoreKind.TRANSIENT, "gave an answer of no known meaning; it is sent again")


def store(destination: WebDestination, file: Path) -> StoreOutcome:
    """Send one Part 10 file.

    Raises:
        OSError: the file cannot be read.
    """
    data = file.read_bytes()
    uid = str(read_file_meta_info(file).get("MediaStorageSOPInstanceUID", ""))
    boundary = secrets.token_hex(24)
    body = b"".join(
        (
            f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
            data,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    kind_of_body = f'multipart/related; type="application/dicom"; boundary={boundary}'
    try:
        status, answer = _ask(destination, "POST", "/studies", {"Content-Type": kind_of_body}, body)
    except _NoConnectionError as problem:
        return StoreOutcome(StoreKind.UNREACHABLE, None, problem.reason)
    except _NoAnswerError as problem:
        return StoreOutcome(StoreKind.TRANSIENT, None, problem.reason)
    except PermanentError as problem:
        return StoreOutcome(StoreKind.REFUSED, None, problem.reason)
    return _outcome(destination, uid, status, answer)


def look(destination: WebDestination) -> str:
    """Whether the service is there and lets us in; in words.

    A search (QIDO-RS, PS3.18 10.6) for a study that nobody has. Not every service that stores also searches:
    that it knows no search says nothing against it.

    Raises:
        TransientError: it is not, now.
        PermanentError: a person has to change something first.
    """
    status, _ = _ask(destination, "GET", f"/studies?StudyInstanceUID={NOBODYS_STUDY}&limit=1", {}, None)
    kind, words = of_status(status)
    if status < 300 or status in {400, 405, 406, 501}:
        return f"{destination.url} answers"
    problem = PermanentError if kind is StoreKind.REFUSED else TransientError
    raise problem(f"{destination.url} answered HTTP {status}: it {words}")


class _NoConnectionError(TransientError):
    """Nothing was sent."""


class _NoAnswerError(TransientError):
    """Nobody knows what became of what was sent."""


def _ask(
    destination: WebDestination, method: str, path: str, headers: Mapping[str, str], body: bytes | None
) -> tuple[int, bytes]:
    """The HTTP status and the answer's body, as far as it is read.

    Raises:
        _NoConnectionError, _NoAnswerError: it may go better later.
        PermanentError: it would tell a secret to whoever listens.
    """
    asked = {"Accept": "application/dicom+json", "User-Agent": "AnatomyNode", **headers}
    asked.update(_who_asks(destination))
    wait = urllib3.Timeout(connect=destination.connect_timeout_s, read=destination.response_timeout_s)
    with (
        _told_plainly(destination),
        urllib3.PoolManager(ssl_context=_tls(destination), timeout=wait, retries=False) as pool,
    ):
        answer = pool.request(
            method, destination.url + path, body=body, headers=asked, redirect=False, preload_content=False
        )
        try:
            return answer.status, _limited(answer, time.monotonic() + destination.response_timeout_s)
        finally:
            answer.close()


def _limited(answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
    """The body; what drips, or never ends, is not waited for beyond `until` (of `time.monotonic`)."""
    read = bytearray()
    for piece in answer.stream(1 << 16):
        read += piece
        if len(read) > MOST_OF_AN_ANSWER_BYTES or time.monotonic() > until:
            raise _NoAnswerError("its answer is too long, or takes too long; the same object is sent again")
    return bytes(read)


def _who_asks(destination: WebDestination) -> dict[str, str]:
    """The Authorization header, if any.

    Raises:
        _NoConnectionError: its file cannot be read now.
        PermanentError: the way there is no secret.
    """
    try:
        password, token = destination.secret("password"), destination.secret("token")
    except OSError as problem:
        raise _NoConnectionError(f"{problem.filename} cannot be read: {problem.strerror}") from problem
    if (password or token) and not destination.is_private:
        raise PermanentError("passwords and tokens go to https only, or to this machine: correct the url")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if destination.user is not None:
        basic = urllib3.make_headers(basic_auth=f"{destination.user}:{password or ''}")
        return {"Authorization": basic["authorization"]}
    return {}


def _tls(destination: WebDestination) -> ssl.SSLContext:
    """TLS 1.2 or newer; unlike in DICOM the host's name is compared, since a URL has one.

    Raises:
        _NoConnectionError: the CA file cannot be used; a renewal may be under way.
    """
    try:
        context = ssl.create_default_context(cafile=None if destination.ca is None else str(destination.ca))
    except OSError as problem:  # ssl.SSLError is one
        reason = f"{destination.ca} cannot be used: {problem.strerror or problem}"
        raise _NoConnectionError(reason) from problem
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def _told_plainly(destination: WebDestination) -> Iterator[None]:
    """What urllib3 raises, as one of two: nothing was sent, or nobody knows."""
    where = destination.url
    try:
        yield
    except NameResolutionError as problem:
        raise _NoConnectionError(f"the host of {where} cannot be resolved to an address") from problem
    except NewConnectionError as problem:
        raise _NoConnectionError(f"{where} does not take connections") from problem
    except ConnectTimeoutError as problem:
        reason = f"{where} did not take the connection within {destination.connect_timeout_s:g} s"
        raise _NoConnectionError(reason) from problem
    except SSLError as problem:
        raise _NoConnectionError(f"{where} and this node do not trust each other: {problem}") from problem
    except (HTTPError, OSError) as problem:
        said = f"{where} gave no valid answer ({type(problem).__name__}), so nobody knows what it has stored"
        raise _NoAnswerError(f"{said}; the same object is sent again") from problem


def _outcome(destination: WebDestination, uid: str, status: int, answer: bytes) -> StoreOutcome:
    """By the answer's word on this object (PS3.18 I.2), else by the HTTP status."""
    items = _items(answer)
    failed, kept = _item(items, FAILED, uid), _item(items, REFERENCED, uid)
    if failed is not None:
        reason = _number(failed, FAILURE_REASON)
        kind = meaning(reason).kind
        if kind in {StoreKind.STORED, StoreKind.WARNING}:  # a number of success under what failed
            kind = StoreKind.TRANSIENT
        return StoreOutcome(kind, reason, f"HTTP {status}: {in_words(reason)}")
    if kept is not None and status in _STORED:
        warned = _number(kept, WARNING_REASON)
        if warned is None:
            return StoreOutcome(StoreKind.STORED, None, f"HTTP {status}: stored")
        return StoreOutcome(StoreKind.WARNING, warned, f"HTTP {status}: {in_words(warned)}")
    kind, words = of_status(status)
    return StoreOutcome(kind, None, f"{destination.url} answered HTTP {status}: it {words}")


def _items(answer: bytes) -> Mapping[str, Any]:
    """The Store Instances Response Module as DICOM JSON; empty where it is none."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) else {}


def _item(items: Mapping[str, Any], sequence: str, uid: str) -> Mapping[str, Any] | None:
    for item in _values(items, sequence):
        if isinstance(item, dict) and _values(item, SOP_INSTANCE_UID)[:1] == [uid]:
            return item
    return None


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    """A status of 16 bits; None where there is none."""
    values = _values(item, tag)
    status = values[0] if values else None
    return status if type(status) is int and 0 <= status <= 0xFFFF else None


def _values(item: Mapping[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []
