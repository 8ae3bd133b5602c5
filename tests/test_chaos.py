"""The quick part of `make chaos`: a node that is killed loses no slice, and delivers each series once."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos.points import LISTENER, WORKER

QUICK = ("slice committed, not answered", "sent and answered, not recorded")


def test_killed_at_random_and_right_after_an_answer_it_loses_nothing_and_delivers_once(
    tmp_path: Path,
) -> None:
    outcome = chaos.run(tmp_path, 5, 1, QUICK)
    assert outcome.holds, chaos.as_markdown(outcome)
    assert outcome.series > 0
    assert {("listener", QUICK[0]), ("worker", QUICK[1])} <= outcome.kills.keys()


def test_every_point_is_a_function_of_the_program() -> None:
    for point in (*LISTENER, *WORKER):
        module, _, name = point.place.partition(":")
        place = import_module(module)
        assert callable(getattr(getattr(place, name) if name else place, point.function)), point.name
    assert len({point.name for point in (*LISTENER, *WORKER)}) == len(LISTENER) + len(WORKER)
