"""What the listener has counted since it started.

Owns the counters of reception and their lock.
Speaks plain numbers; refusals are counted by a bounded word.
Never carries a peer's address, a UID or patient data.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReceptionSnapshot:
    """The counters at one moment.

    Attributes:
        instances: new instances that were stored and acknowledged.
        instance_bytes: their data sets' bytes.
        instances_again: acknowledged instances that were here already, byte for byte.
        instances_discarded: accepted, counted and thrown away.
        own_results_returned: those of them that this program had made.
        instances_refused: by status, such as `0xA700`.
        associations_accepted: let in since the start.
        associations_open: let in and not yet ended.
        associations_refused: by reason, such as `calling_ae_title`.
        connections_dropped: by reason, such as `silent` or `tls`; these never became associations, or
            broke a limit of the guard.
    """

    instances: int
    instance_bytes: int
    instances_again: int
    instances_discarded: int
    own_results_returned: int
    instances_refused: Mapping[str, int]
    associations_accepted: int
    associations_open: int
    associations_refused: Mapping[str, int]
    connections_dropped: Mapping[str, int]


@dataclass
class ReceptionFigures:
    """Counters that many threads of the listener add to and the metrics read."""

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _counts: Counter[str] = field(default_factory=Counter)
    _instances_refused: Counter[str] = field(default_factory=Counter)
    _associations_refused: Counter[str] = field(default_factory=Counter)
    _connections_dropped: Counter[str] = field(default_factory=Counter)

    def instance_stored(self, size_bytes: int) -> None:
        """Count a new instance of `size_bytes`."""
        with self._lock:
            self._counts.update(instances=1, instance_bytes=size_bytes)

    def instance_again(self) -> None:
        """Count an instance that was here already."""
        self._add(self._counts, "again")

    def instance_discarded(self) -> None:
        """Count an instance of a storage class that is thrown away."""
        self._add(self._counts, "discarded")

    def own_result_returned(self) -> None:
        """Count, beside that, that it was made by this program: somebody sends our results back."""
        self._add(self._counts, "own")

    def instance_refused(self, status: int) -> None:
        """Count a C-STORE that was answered with the failure `status`."""
        self._add(self._instances_refused, f"0x{status:04X}")

    def association_accepted(self) -> None:
        """Count an association that was let in."""
        self._add(self._counts, "accepted")

    def association_ended(self) -> None:
        """Count the end, however it came, of an association that was let in."""
        self._add(self._counts, "ended")

    def association_refused(self, reason: str) -> None:
        """Count an association request that was rejected on the wire."""
        self._add(self._associations_refused, reason)

    def connection_dropped(self, reason: str) -> None:
        """Count a connection that the guard ended."""
        self._add(self._connections_dropped, reason)

    def _add(self, counter: Counter[str], key: str) -> None:
        with self._lock:
            counter[key] += 1

    def snapshot(self) -> ReceptionSnapshot:
        """All counters at one moment."""
        with self._lock:
            return ReceptionSnapshot(
                instances=self._counts["instances"],
                instance_bytes=self._counts["instance_bytes"],
                instances_again=self._counts["again"],
                instances_discarded=self._counts["discarded"],
                own_results_returned=self._counts["own"],
                instances_refused=dict(self._instances_refused),
                associations_accepted=self._counts["accepted"],
                associations_open=self._counts["accepted"] - self._counts["ended"],
                associations_refused=dict(self._associations_refused),
                connections_dropped=dict(self._connections_dropped),
            )
