"""When a delivery that failed is tried again, and when a person should be told.

Owns the exponential backoff with jitter, and the rule of what is due.
Speaks seconds, attempts and columns of times; pure: the clock's reading and the random numbers are given.
Never gives up: a delivery is tried until it is stored, refused or cancelled.
"""

from __future__ import annotations

from random import Random
from typing import TypeVar

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import InstrumentedAttribute

from dicom_node.config import Retry

_Time = TypeVar("_Time", float, float | None)

DOUBLINGS = 64
"""More doublings than any delay needs; keeps the power of two finite."""


def delay_s(failures: int, retry: Retry, rng: Random) -> float:
    """Seconds from the failure of attempt number `failures` (1 is the first) to the next attempt.

    The delay doubles from `first_delay_s` to `max_delay_s`; a random half of it is taken away, so that
    deliveries that failed together do not come back together. It is never above `max_delay_s`.
    """
    if failures < 1:
        raise ValueError(f"a delay follows a failure; {failures} is none")
    longest = min(retry.max_delay_s, retry.first_delay_s * 2.0 ** min(failures - 1, DOUBLINGS))
    return longest * rng.uniform(0.5, 1.0)


def is_due(at: InstrumentedAttribute[_Time], now: float, longest_s: float) -> ColumnElement[bool]:
    """Whose time has come, where `at` is a column of times (UTC epoch seconds).

    A time further away than the longest wait was set by a clock that has since been put back; it is due too.
    """
    return or_(at <= now, at > now + longest_s)


def has_come(at: float, now: float, longest_s: float) -> bool:
    """The same of one time."""
    return at <= now or at > now + longest_s


def needs_a_person(pending_s: float, retry: Retry) -> bool:
    """Whether a delivery has been pending for so long that somebody should look at the destination."""
    return pending_s >= retry.alert_after_s
