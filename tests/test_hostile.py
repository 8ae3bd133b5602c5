"""The quick part of `python -m benchmarks.chaos.hostile`: rude peers cost nobody else anything."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chaos import fuzz, hostile


def test_hostile_peers_stop_nobody_leave_nothing_and_say_nothing_in_the_log(tmp_path: Path) -> None:
    (outcome,) = hostile.run(tmp_path, hostile.QUICK, secured=(False,))
    # How long an answer takes is the rig's to measure: this machine may be busy with other tests.
    missed = [row for row in outcome.rows if not row[-1] and not row[0].startswith("slowest")]
    assert not missed, hostile.as_markdown([outcome])
    assert outcome.sent.total() > hostile.QUICK.sequences


def test_the_same_seed_says_the_same_and_every_kind_is_said() -> None:
    first, again = list(fuzz.visits(7, 100)), list(fuzz.visits(7, 100))
    assert first == again != list(fuzz.visits(8, 100))
    assert len({one.kind for one in first}) == len(fuzz.KINDS)
    assert len(set(fuzz.NAMES)) == 40
