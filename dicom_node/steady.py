"""How long ago something happened, whatever is done to the system's clock meanwhile.

Owns the time since the last change of each thing that is watched.
Speaks UTC epoch seconds, as rows hold them, and monotonic seconds, as this process counts them.
Never believes that something is older than the last look at which it had not happened yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class _Seen:
    is_now: Hashable
    at: float
    """Monotonic seconds of the look that found it so."""
    age_s: float
    """How long it had been so then."""


class SteadyAges:
    """Watches things whose rows say when they last changed, in many looks.

    A process that was just started knows only what the rows say. From then on its own monotonic clock counts:
    the clock of the rows may be put forward or back by hours, and nothing becomes old or young by that.
    """

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        """Begin to watch.

        Args:
            clock: UTC epoch seconds.
            monotonic: seconds that nobody sets.
        """
        self._clock = clock
        self._monotonic = monotonic
        self._seen: dict[Hashable, _Seen] = {}
        self._looked_at: float | None = None

    def now(self, thing: Hashable, changed_at: float, is_now: Hashable) -> float:
        """The time it is for `thing`: `changed_at` and the seconds since then.

        Args:
            changed_at: when its rows say that it last changed (UTC epoch seconds).
            is_now: anything that differs after each change.
        """
        seen, at = self._seen.get(thing), self._monotonic()
        if seen is None or seen.is_now != is_now:
            seen = self._seen[thing] = _Seen(is_now, at, self._age_s(changed_at, at))
        return changed_at + seen.age_s + at - seen.at

    def end_look(self, began_at: float, things: Collection[Hashable]) -> None:
        """A look at everything is over; forget all but `things`.

        Args:
            began_at: monotonic seconds before anything was read.
        """
        self._looked_at = began_at
        self._seen = {thing: seen for thing, seen in self._seen.items() if thing in things}

    def _age_s(self, changed_at: float, at: float) -> float:
        by_rows = max(0.0, self._clock() - changed_at)
        return by_rows if self._looked_at is None else min(by_rows, at - self._looked_at)
