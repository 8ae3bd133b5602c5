"""Turnaround of the last days as a picture: where each point, tick and day's median lies.

Owns the plot's scales.
Speaks seconds and UTC epoch seconds in, SVG coordinates out; the template draws them.
Never leaves a point out: what is slower than the scale's end makes the scale longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median, quantiles

from dicom_node.page_facts import Arrived

DAY_S = 86_400.0
WIDTH, HEIGHT = 960, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 30
TICKS_S = (1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 86_400.0)


@dataclass(frozen=True)
class Dot:
    """One result at one destination; `x` and `y` in the picture."""

    x: float
    y: float
    result: Arrived


@dataclass(frozen=True)
class Day:
    """One day (UTC) with its results; `x` and `wide` are its column in the picture, `y` its median."""

    date: str
    x: float
    wide: float
    count: int
    median_s: float | None
    p95_s: float | None
    y: float | None


@dataclass(frozen=True)
class Plot:
    """All that is drawn; `ticks` are seconds and their y."""

    dots: tuple[Dot, ...]
    days: tuple[Day, ...]
    ticks: tuple[tuple[float, float], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def begin_of(days: int, now: float) -> float:
    """When the first of the last `days` days began; today is one of them."""
    return (now // DAY_S - days + 1) * DAY_S


def plot(results: Sequence[Arrived], days: int, now: float) -> Plot:
    """The results since `begin_of(days, now)`; seconds on a logarithmic scale, as waits are felt."""
    begin = begin_of(days, now)
    seconds = [result.seconds for result in results]
    low = max((tick for tick in TICKS_S if tick <= min(seconds, default=1.0)), default=TICKS_S[0])
    low = min(low, TICKS_S[-2])
    high = next((tick for tick in TICKS_S if tick >= max(seconds, default=60.0)), max(seconds, default=60.0))
    high = max(high, low * 10)

    def x(at: float) -> float:
        return LEFT + (at - begin) / (days * DAY_S) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def day(index: int) -> Day:
        first = begin + index * DAY_S
        of_day = [result.seconds for result in results if first <= result.at < first + DAY_S]
        middle = median(of_day) if of_day else None
        return Day(
            date=datetime.fromtimestamp(first, UTC).strftime("%a %d %b"),
            x=x(first),
            wide=x(first + DAY_S) - x(first),
            count=len(of_day),
            median_s=middle,
            p95_s=quantiles(of_day, n=20, method="inclusive")[-1] if len(of_day) > 1 else middle,
            y=None if middle is None else y(middle),
        )

    return Plot(
        dots=tuple(Dot(x(result.at), y(result.seconds), result) for result in results),
        days=tuple(day(index) for index in range(days)),
        ticks=tuple((tick, y(tick)) for tick in TICKS_S if low <= tick <= high),
    )
