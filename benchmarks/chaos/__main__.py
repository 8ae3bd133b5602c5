"""`make chaos`: kill -9 of listener, worker and both, at random moments and at every named point.

Owns the plan of the kills, and the counting of what they cost.
Speaks a Markdown table on the standard output, and an exit status: 0 where nothing was lost.
Never counts a kill that did not happen.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos import archive
from benchmarks.chaos.node import AE_TITLE, Node
from benchmarks.chaos.points import LISTENER, WORKER, Point
from benchmarks.chaos.scanner import SLICES, Scanner
from dicom_node.config import Destination
from dicom_node.states import JobState

IN_THE_QUEUE = 2
"""Series that may be unfinished before the scanner waits."""
REACHED_WITHIN_S = 90.0
ENDS_WITHIN_S = 180.0
MOST_CRASHES = 1
"""Of any job before the worker is killed, twice at most, again: the fifth crash under a job fails it, and the
last one is not counted before the worker has come up again."""
RANDOM = "a random moment"


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        kills: by (process, where).
        missed: points that were armed and not reached in time.
        seconds: how long it took.
    """

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    pacs: str = ""
    slices: int = 0
    series: int = 0
    resends: int = 0
    lost: int = 0
    stuck: int = 0
    other_ends: list[str] = field(default_factory=list)
    rt_structs: Counter[int] = field(default_factory=Counter)
    is_sound: bool = False
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Nothing lost, nothing stuck, exactly one RT Structure Set a series."""
        exactly_one = self.rt_structs == Counter({1: self.series}) and not self.other_ends
        return not self.lost and not self.stuck and exactly_one and self.is_sound


def run(folder: Path, kills: int, seed: int, names: Sequence[str] = ()) -> Outcome:
    """Kill `kills` times or a few more, then let the node finish, and count.

    Args:
        names: only the points of these names; none stands for all.
    """
    chance, outcome, began = random.Random(seed), Outcome(), time.monotonic()
    node = Node(folder / "node")
    with archive.running(folder / "archive", (AE_TITLE, node.port)) as pacs:
        outcome.pacs = pacs.name
        node.configure(pacs)
        target = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=AE_TITLE)
        sender = Scanner(folder / "series", target, lambda: node.unfinished() < IN_THE_QUEUE)
        try:
            for name in ("listener", "worker"):
                node.start(name)
            _wait_for_the_database(node)
            sender.start()
            _kill(node, outcome, kills, _plan(chance, pacs.commits, names), chance)
            sender.stop()
            node.wait(ENDS_WITHIN_S)
        finally:
            sender.stop()
            node.stop()
        _count(node, sender, pacs, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _plan(chance: random.Random, commits: bool, names: Sequence[str]) -> Iterator[tuple[str, Point | None]]:
    """Whom to kill, and to let die at which point afterwards; every point in turn, in a shuffled order."""
    turns: list[tuple[str, Point | None]] = [("listener", one) for one in LISTENER]
    turns += [("worker", one) for one in WORKER]
    turns = [(name, one) for name, one in turns if one and (commits or not one.commits)]
    turns = [(name, one) for name, one in turns if one and (not names or one.name in names)]
    turns += [("both", None)] * max(1, len(turns) // 6)
    while True:
        chance.shuffle(turns)
        yield from turns


def _kill(
    node: Node,
    outcome: Outcome,
    wanted: int,
    plan: Iterator[tuple[str, Point | None]],
    chance: random.Random,
) -> None:
    """Carry out the plan until there were as many kills as wanted."""
    kills = outcome.kills
    for name, point in plan:
        if kills.total() >= wanted:
            return
        if name != "listener":
            _spare(node)
        time.sleep(chance.uniform(0.0, 1.5))
        victims = ("listener", "worker") if name == "both" else (name,)
        node.kill(*victims)
        kills[name, RANDOM] += 1
        for victim in victims:
            call = chance.randint(1, SLICES) if point is not None and point.by_slice else 1
            node.start(victim, point, call)
        if point is None:
            continue
        if node.died(name, REACHED_WITHIN_S):
            kills[name, point.name] += 1
            node.start(name)
        else:
            outcome.missed[name, point.name] += 1


def _spare(node: Node) -> None:
    """Wait until no job is about to be taken for one that kills the worker by itself."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while node.most_crashes() > MOST_CRASHES and time.monotonic() < deadline:
        time.sleep(0.1)


def _wait_for_the_database(node: Node) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            node.unfinished()
        except Exception:  # no table yet
            time.sleep(0.2)
        else:
            return


def _count(node: Node, sender: Scanner, pacs: archive.Archive, outcome: Outcome) -> None:
    """What the node and the archive have at the end."""
    outcome.slices, outcome.series = len(sender.acknowledged), len(sender.studies)
    outcome.resends = sender.resends
    outcome.lost, outcome.stuck = len(node.lost(sender.acknowledged)), node.unfinished()
    outcome.is_sound = node.is_sound()
    held = pacs.rt_structs()
    outcome.rt_structs = Counter(held[study] for study in sender.studies)
    ends = node.ends()
    for study in sender.studies:
        last = ends.get(study, [("no job", "")])[-1]
        if last[0] != JobState.SENT:
            outcome.other_ends.append(": ".join(last))


# --- the table -----------------------------------------------------------------------------------


def as_markdown(outcome: Outcome) -> str:
    """The outcome as a page's tables."""
    kills, missed = outcome.kills, outcome.missed
    lines = [
        f"{kills.total()} kills in {outcome.seconds:.0f} s; {outcome.series} series of {SLICES} slices, "
        f"sent until acknowledged ({outcome.resends} associations broke), results to {outcome.pacs}.",
        "",
        "| what was counted at the end | | target |",
        "|---|---|---|",
        f"| acknowledged slices | {outcome.slices} | |",
        f"| of them lost or changed | {outcome.lost} | 0 |",
        f"| series and jobs stuck | {outcome.stuck} | 0 |",
        f"| series whose job did not end SENT | {len(outcome.other_ends)} | 0 |",
        *(
            f"| series with {number} RT-STRUCT(s) at the PACS | {series} | {'all' if number == 1 else 0} |"
            for number, series in sorted(outcome.rt_structs.items())
        ),
        f"| SQLite's integrity check | {'ok' if outcome.is_sound else 'FAILED'} | ok |",
        "",
        "| killed | at | times |",
        "|---|---|---|",
        *(f"| {name} | {where} | {times} |" for (name, where), times in sorted(kills.items())),
        *(f"| {name} | {where}: not reached | {times} |" for (name, where), times in sorted(missed.items())),
    ]
    return "\n".join([*lines, *(f"\nNot SENT: {end}" for end in outcome.other_ends)])


def main() -> None:
    """Run and print; exit 0 where it holds."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--folder", type=Path, help="where to leave everything; default: nowhere")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        outcome = run(given.folder or Path(scratch), given.kills, given.seed)
    print(as_markdown(outcome))
    sys.exit(0 if outcome.holds else 1)


if __name__ == "__main__":
    main()
