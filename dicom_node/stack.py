"""Whether slices form a gapless stack: from positions alone, without a pixel.

Owns the rule of what is a missing slice, what is merely uneven, and what is a duplicate.
Speaks ImagePositionPatient and ImageOrientationPatient, LPS millimetres.
Never moves a slice: it only sorts along the normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SAME_POSITION_MM = 0.01
WIDER = 1.5
"""A gap of more than this many times its neighbour is another spacing."""
LASTING_GAPS = 3
"""A spacing that lasts for this many slices is meant; a shorter one is a fault."""


@dataclass(frozen=True)
class Gap:
    """A gap that is wrong: between the slices `index` and `index + 1` of the sorted stack.

    Attributes:
        neighbour_mm: the spacing beside it.
    """

    index: int
    after_mm: float
    width_mm: float
    neighbour_mm: float


@dataclass(frozen=True)
class GapReport:
    """What the positions of a series say.

    Attributes:
        order: indices into the given positions, sorted along the normal.
        offsets_mm: the sorted distances along the normal.
        duplicates: pairs of indices into the given positions that lie at one place.
        missing: gaps that are wider than their surroundings: a slice is missing there.
        irregular: gaps that are narrower than their surroundings, and do not last.
        is_uneven: the spacing changes by more than half, and stays so; contoured exactly.
    """

    order: tuple[int, ...]
    offsets_mm: tuple[float, ...]
    duplicates: tuple[tuple[int, int], ...]
    missing: tuple[Gap, ...]
    irregular: tuple[Gap, ...]
    is_uneven: bool

    @property
    def is_gapless(self) -> bool:
        """At least two slices, each at its own place, none missing."""
        return len(self.order) > 1 and not (self.duplicates or self.missing or self.irregular)


def gap_report(positions: Sequence[Sequence[float]], orientation: Sequence[float]) -> GapReport:
    """Sort positions along the normal and judge the gaps between them.

    Args:
        positions: (n, 3) ImagePositionPatient of each slice, in any order.
        orientation: (6,) ImageOrientationPatient that all of them share.

    The gaps are cut into runs of one spacing, wherever one is more than 1.5 times the next. A run of
    fewer than three gaps is a fault: a missing slice where it is wider than what surrounds it, irregular
    otherwise. A stack of one run is even.
    """
    points = np.asarray(positions, np.float64).reshape(-1, 3)
    directions = np.asarray(orientation, np.float64)
    distances = points @ np.cross(directions[:3], directions[3:])
    order = np.argsort(distances, kind="stable")
    offsets = distances[order]
    widths = np.diff(offsets)
    same = np.flatnonzero(widths < SAME_POSITION_MM)
    missing, irregular, is_uneven = _judge(offsets, widths) if not same.size else ((), (), False)
    return GapReport(
        order=tuple(order.tolist()),
        offsets_mm=tuple(offsets.tolist()),
        duplicates=tuple((int(order[index]), int(order[index + 1])) for index in same),
        missing=missing,
        irregular=irregular,
        is_uneven=is_uneven,
    )


def _judge(
    offsets: NDArray[np.float64], widths: NDArray[np.float64]
) -> tuple[tuple[Gap, ...], tuple[Gap, ...], bool]:
    """Missing and irregular gaps, and whether more than one spacing lasts."""
    runs = _runs(widths)
    if len(runs) < 2:
        return (), (), False
    missing: list[Gap] = []
    irregular: list[Gap] = []
    for number, (start, end) in enumerate(runs):
        if end - start >= LASTING_GAPS:
            continue
        beside = [widths[start - 1]] if number else []
        beside += [widths[end]] if end < len(widths) else []
        for index in range(start, end):
            gap = Gap(index, float(offsets[index]), float(widths[index]), float(max(beside)))
            (missing if widths[index] > max(beside) else irregular).append(gap)
    return tuple(missing), tuple(irregular), True


def _runs(widths: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Half-open index ranges of consecutive gaps of which none is more than 1.5 times the next."""
    if not len(widths):
        return []
    ratios = np.maximum(widths[1:], widths[:-1]) / np.minimum(widths[1:], widths[:-1])
    cuts = [0, *(np.flatnonzero(ratios > WIDER) + 1).tolist(), len(widths)]
    return list(pairwise(cuts))
