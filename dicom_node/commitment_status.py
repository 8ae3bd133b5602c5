"""What each answer to a request for storage commitment, and each report, means for the delivery.

Owns the two tables: an N-ACTION's status, and the Failure Reason of a report; each number has one fate.
Speaks PS3.4 Annex J, PS3.3 C.14.1.1 (Failure Reason) and PS3.7 Annex C (status classes).
Never takes an object for committed: only a report that says so does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    """What follows from an answer or a report that is no success."""

    ASK_AGAIN = "ask_again"
    """It speaks of the peer's moment, not of the object: the same question later."""
    STORE_AGAIN = "store_again"
    """The peer says that it has not kept the object: the same bytes go out again."""
    REFUSED = "refused"
    """A person has to change something at the peer or in the configuration."""


@dataclass(frozen=True)
class Meaning:
    """The fate, and one sentence for a person."""

    fate: Fate
    reason: str


@dataclass(frozen=True)
class Report:
    """What a peer reported of one request.

    Attributes:
        failures: SOP Instance UID to Failure Reason (PS3.3 C.14.1.1) of what it did not keep.
        committed: SOP Instance UIDs for which it is to be relied on.
    """

    transaction_uid: str
    committed: frozenset[str]
    failures: Mapping[str, int]


_AT_THE_PEER = "enable it there for RT Structure Sets, or set storage_commitment.enabled to false; then retry"

ACTION_STATUSES: Mapping[int, Meaning] = {
    0x0112: Meaning(Fate.REFUSED, f"does not know the storage commitment instance; {_AT_THE_PEER}"),
    0x0118: Meaning(Fate.REFUSED, f"knows no storage commitment; {_AT_THE_PEER}"),
    0x0119: Meaning(Fate.REFUSED, f"takes the request for one of another class; {_AT_THE_PEER}"),
    0x0122: Meaning(Fate.REFUSED, f"supports no storage commitment; {_AT_THE_PEER}"),
    0x0123: Meaning(Fate.REFUSED, f"does not know the request for a commitment; {_AT_THE_PEER}"),
    0x0124: Meaning(Fate.REFUSED, f"does not allow this node to ask; {_AT_THE_PEER}"),
    0x0211: Meaning(Fate.REFUSED, f"does not recognise the request; {_AT_THE_PEER}"),
}
"""PS3.7 10.1.4.1.10. Every other failure, and no answer at all, says nothing final: asked again."""

FAILURE_REASONS: Mapping[int, Meaning] = {
    0x0110: Meaning(Fate.STORE_AGAIN, "a failure while it processed the request"),
    0x0112: Meaning(Fate.STORE_AGAIN, "it does not have the object"),
    0x0119: Meaning(
        Fate.REFUSED, "it has an object of another class under this UID; look at it there, then retry"
    ),
    0x0122: Meaning(Fate.REFUSED, f"it commits itself to no object of this class; {_AT_THE_PEER}"),
    0x0131: Meaning(Fate.ASK_AGAIN, "it knows the request's transaction UID already"),
    0x0213: Meaning(Fate.ASK_AGAIN, "it lacks the resources at present"),
}
"""PS3.3 C.14.1.1. Storing again is harmless, so a reason that no table names is met so, too."""


def of_action(status: int | None) -> Meaning:
    """What an N-ACTION status other than success means; None is no answer."""
    if status is None:
        unanswered = "gave no answer to the request for a commitment (does it know this node's AE title?)"
        return Meaning(Fate.ASK_AGAIN, unanswered)
    unknown = Meaning(Fate.ASK_AGAIN, "could not take the request for a commitment now")
    known = ACTION_STATUSES.get(status, unknown)
    return Meaning(known.fate, f"{known.reason} (0x{status:04X})")


def of_failure(reason: int) -> Meaning:
    """What a report's Failure Reason means."""
    known = FAILURE_REASONS.get(reason, Meaning(Fate.STORE_AGAIN, "a reason that no standard knows"))
    return Meaning(known.fate, f"{known.reason} (0x{reason:04X})")
