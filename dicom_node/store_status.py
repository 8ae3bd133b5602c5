"""What every C-STORE status means for the object that was sent.

Owns the total table: each of 0x0000 to 0xFFFF, and no status at all, has one kind and one sentence.
Speaks PS3.4 B.2.3 (storage), PS3.7 9.1.1.1.9 (C-STORE) and PS3.7 Annex C (status classes).
Never takes for stored what the peer did not explicitly say that it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StoreKind(StrEnum):
    """What became of an object."""

    STORED = "stored"
    """The peer keeps it."""
    WARNING = "warning"
    """The peer keeps it, and changed or doubts something."""
    DUPLICATE = "duplicate"
    """The peer already keeps an instance of this UID. Whether it is this one only the sender knows: where
    the UID was derived from what is inside, it is; in other people's files it may be another."""
    UNREACHABLE = "unreachable"
    """No association, so nothing was sent: it says nothing about the object. No status means this."""
    TRANSIENT = "transient"
    """Not stored, or not known to be: the same bytes under the same SOP Instance UID may go in later."""
    REFUSED = "refused"
    """The peer will not take these bytes until a person changes something."""


KEPT = frozenset({StoreKind.STORED, StoreKind.WARNING})
DELIVERED = KEPT | {StoreKind.DUPLICATE}
"""Our SOP Instance UIDs are derived from all that an RT-STRUCT is made of: what a destination has under this
UID is this one, from an attempt whose answer was lost or from an earlier push."""


@dataclass(frozen=True)
class StoreOutcome:
    """What became of one try to store an object, whatever the way to its destination.

    Attributes:
        status: the peer's answer as DICOM numbers it; None where it gave none.
        reason: one sentence for a person; without a word about the patient.
    """

    kind: StoreKind
    status: int | None
    reason: str


@dataclass(frozen=True)
class StatusRange:
    """The meaning of the statuses `first` to `last`, both included.

    Attributes:
        source: the section of the standard.
        reason: one sentence for a person: what it means and, where it failed, what to do.
    """

    first: int
    last: int
    kind: StoreKind
    source: str
    reason: str


_C = "PS3.7 Annex C"
_B = "PS3.4 B.2.3"
_S = "PS3.7 9.1.1.1.9"
_K = StoreKind

# Why a kind was chosen where the standard says only "failure":
# * 0110 (processing failure), 0210 (duplicate invocation) and 0213 (resource limitation) speak of the peer's
#   moment, not of the object: archives answer 0110 while their database is locked or restarting, and a new
#   association brings a new message ID. They are tried again.
# * Cxxx is "cannot understand" with digits that each vendor chooses; nothing in the standard tells the one
#   that would pass later. The same bytes meet the same parser: refused, so that a person sees it now and not
#   after a night of retries. `anatomynode jobs retry` sends the same bytes again once the cause is gone.
# * 0124 (not authorised) and 0122 (SOP class not supported) need a person at the peer; likewise refused.
# * 0105-0106, 0112-0115, 0118-0119, 0123 belong to DIMSE-N, but real peers send them: they judge the object.
# * Axxx outside A7xx and A9xx, and all that no table names, is unknown: nobody said that it is stored, nobody
#   that it never will be, and a resend of the same SOP Instance UID is harmless. It is tried again.
TABLE: tuple[StatusRange, ...] = (
    StatusRange(0x0000, 0x0000, _K.STORED, _S, "stored"),
    StatusRange(0x0001, 0x0001, _K.WARNING, _C, "stored with a warning that names nothing; compare there"),
    StatusRange(
        0x0105, 0x0105, _K.REFUSED, _C,
        "the peer does not know an attribute of the object; ask its vendor which, and report it to us",
    ),
    StatusRange(
        0x0106, 0x0106, _K.REFUSED, _C,
        "the peer finds an attribute's value invalid; its log names the attribute",
    ),
    StatusRange(
        0x0107, 0x0107, _K.WARNING, _C,
        "stored, but the peer did not understand some attributes; compare the object there",
    ),
    StatusRange(
        0x0110, 0x0110, _K.TRANSIENT, _C,
        "the peer failed while processing; tried again, its log names the cause",
    ),
    StatusRange(
        0x0111, 0x0111, _K.DUPLICATE, _C,
        "the peer already keeps an instance of this SOP Instance UID and did not replace it",
    ),
    StatusRange(
        0x0112, 0x0112, _K.REFUSED, _C,
        "the peer misses an instance that this one refers to; send it the CT series first, then retry",
    ),
    StatusRange(
        0x0113, 0x0115, _K.REFUSED, _C,
        "the peer took the request for another service; check that host and port belong to a storage service",
    ),
    StatusRange(
        0x0116, 0x0116, _K.WARNING, _C,
        "stored, but the peer finds an attribute's value out of range; compare the object there",
    ),
    StatusRange(
        0x0117, 0x0117, _K.REFUSED, _S,
        "the peer finds the SOP Instance UID invalid; check its rules for UIDs",
    ),
    StatusRange(
        0x0118, 0x0118, _K.REFUSED, _C,
        "the peer does not know the SOP class; enable this storage class there, then retry",
    ),
    StatusRange(
        0x0119, 0x0119, _K.REFUSED, _C,
        "the peer keeps an instance of this UID under another SOP class; look there which one it is",
    ),
    StatusRange(
        0x0120, 0x0120, _K.REFUSED, _C,
        "the peer misses an attribute that it requires; its log names it",
    ),
    StatusRange(
        0x0121, 0x0121, _K.REFUSED, _C,
        "the peer misses the value of an attribute that it requires; its log names it",
    ),
    StatusRange(
        0x0122, 0x0122, _K.REFUSED, _S,
        "the peer does not support the SOP class; enable this storage class there, then retry",
    ),
    StatusRange(
        0x0123, 0x0123, _K.REFUSED, _C,
        "the peer took the request for another service; check that host and port belong to a storage service",
    ),
    StatusRange(
        0x0124, 0x0124, _K.REFUSED, _S,
        "the peer does not allow this AE title to store; grant it the right there, then retry",
    ),
    StatusRange(
        0x0210, 0x0210, _K.TRANSIENT, _S,
        "the peer believes that the message ID is in use; tried again on a new association",
    ),
    StatusRange(
        0x0211, 0x0211, _K.REFUSED, _S,
        "the peer does not know C-STORE on this port; check that host and port belong to a storage service",
    ),
    StatusRange(
        0x0212, 0x0212, _K.REFUSED, _S,
        "the peer finds a parameter of the request mistyped; its log names it, report it to us",
    ),
    StatusRange(
        0x0213, 0x0213, _K.TRANSIENT, _C,
        "the peer is short of resources; tried again, see to its disk, memory and licences",
    ),
    StatusRange(
        0xA700, 0xA7FF, _K.TRANSIENT, _B,
        "the peer is out of resources; tried again, see to its disk space",
    ),
    StatusRange(
        0xA900, 0xA9FF, _K.REFUSED, _B,
        "the peer says that the data set does not match its SOP class; its log names the attribute",
    ),
    StatusRange(
        0xB000, 0xB000, _K.WARNING, _B,
        "stored, but the peer changed attributes (coercion); compare the object there",
    ),
    StatusRange(
        0xB006, 0xB006, _K.WARNING, _B,
        "stored, but the peer dropped attributes; compare the object there",
    ),
    StatusRange(
        0xB007, 0xB007, _K.WARNING, _B,
        "stored, but the peer says that the data set does not match its SOP class; compare the object there",
    ),
    StatusRange(
        0xB000, 0xBFFF, _K.WARNING, _C,
        "stored with a warning of the peer's own; its conformance statement explains it",
    ),
    StatusRange(
        0xC000, 0xCFFF, _K.REFUSED, _B,
        "the peer cannot understand the object; its log and conformance statement explain the code, "
        "then retry",
    ),
)  # fmt: skip
"""Looked up from the top; the first range that holds a status decides."""

UNKNOWN = StatusRange(
    0x0000,
    0xFFFF,
    StoreKind.TRANSIENT,
    _C,
    "no table of the standard gives this status a meaning for C-STORE; the same instance is sent again",
)

NO_STATUS = StatusRange(
    0x0000,
    0xFFFF,
    StoreKind.TRANSIENT,
    _S,
    "the peer gave no valid answer, so nobody knows whether it is stored; the same instance is sent again",
)


def meaning(status: int | None) -> StatusRange:
    """What a C-STORE status means; None is an empty, invalid or missing answer.

    Raises:
        ValueError: `status` is no 16-bit number.
    """
    if status is None:
        return NO_STATUS
    if not 0 <= status <= 0xFFFF:
        raise ValueError(f"a status has 16 bits, not {status}")
    return next((entry for entry in TABLE if entry.first <= status <= entry.last), UNKNOWN)


def in_words(status: int | None) -> str:
    """The sentence for a person, with the status where there is one."""
    reason = meaning(status).reason
    return reason if status is None else f"0x{status:04X}: {reason}"
