"""How many instances of a series its source has: asked by C-FIND, beside the worker's own work.

Owns when the source is asked, and its last answer for each series.
Speaks SeriesInstanceUIDs in, counts out.
Never makes the worker wait, and never repeats a question more often than the source can bear.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

ASK_AGAIN_S = 5.0

Question = Callable[[str, str], int | None]
"""(StudyInstanceUID, SeriesInstanceUID) to the number of instances; None where there is no answer."""


@dataclass(frozen=True)
class _Asked:
    at: float
    answer: Future[int | None]


class PeerCounts:
    """The source's counts, as far as they have been answered."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._asked: dict[str, _Asked] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="c-find")

    def close(self) -> None:
        """End the thread; a question under way ends by its own timeouts."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def of(
        self, study_instance_uid: str, series_instance_uid: str, last_arrival_at: float, now: float
    ) -> int | None:
        """The answer to a question that was asked after the last arrival; None while there is none.

        Asks where no such question is under way, or the last one is long ago.
        """
        asked = self._asked.get(series_instance_uid)
        stale = asked is None or asked.at < last_arrival_at or now >= asked.at + ASK_AGAIN_S
        if stale and (asked is None or asked.answer.done()):
            answer = self._pool.submit(self._question, study_instance_uid, series_instance_uid)
            self._asked[series_instance_uid] = _Asked(now, answer)
        if asked is None or asked.at < last_arrival_at:
            return None
        return _answered(asked.answer)

    def forget(self, series_instance_uid: str) -> None:
        """The series is complete."""
        self._asked.pop(series_instance_uid, None)


def _answered(answer: Future[int | None]) -> int | None:
    return None if not answer.done() or answer.exception() is not None else answer.result()
