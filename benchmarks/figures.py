"""A measured figure beside its target, and the table that shows them.

Owns the value that every benchmark returns: each module here has `measure() -> tuple[Figure, ...]`.
Speaks a number with its unit, and whether the target holds.
Never measures anything itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from rich.console import Console
from rich.table import Table


class NotMeasuredError(Exception):
    """A benchmark could not be run to its end; the message says what stopped it."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        target: in words, such as `<= 1.3`; empty where the figure only explains another.
        holds: whether the target is reached; None where there is none.
    """

    name: str
    value: float
    unit: str = ""
    target: str = ""
    holds: bool | None = None


def at_most(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that may not exceed `limit`."""
    return Figure(name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that may not fall below `limit`."""
    return Figure(name, value, unit, f">= {limit:g}", value >= limit)


def show(title: str, figures: Iterable[Figure]) -> None:
    """Print figures as one table."""
    table = Table(title=title, title_justify="left")
    for heading, justify in (("figure", "left"), ("measured", "right"), ("target", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    verdicts = {True: "holds", False: "[bold red]missed[/]", None: ""}
    for figure in figures:
        table.add_row(
            figure.name, f"{figure.value:.3g} {figure.unit}".strip(), figure.target, verdicts[figure.holds]
        )
    Console(width=110).print(table)


def main(title: str, measure: Callable[[], tuple[Figure, ...]]) -> NoReturn:
    """Run one benchmark by itself and exit: 0 where every target holds, else 1."""
    try:
        figures = measure()
    except NotMeasuredError as problem:
        sys.exit(f"{title}: not measured: {problem}")
    show(title, figures)
    sys.exit(0 if all(figure.holds is not False for figure in figures) else 1)
