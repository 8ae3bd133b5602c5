"""Power cuts: what the disk holds at any instant must hold all that was acknowledged by then.

Owns a file system in an image file, copies of that image, and the counting of what they lack.
Speaks ext4 on loop devices, which needs root; `python -m benchmarks.chaos.power`.
Never flushes anything: what the node has not fsynced may be in the kernel's memory only, not in the copy.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos import archive
from benchmarks.chaos.node import AE_TITLE, Node
from benchmarks.chaos.scanner import Scanner
from benchmarks.figures import NotMeasuredError
from dicom_node.config import Destination
from dicom_node.states import JobState

IMAGE_MIB = 192
RESTART_EVERY = 10
"""After each so many cuts a node goes on from the copy, to the end of all that it finds."""
ENDS_WITHIN_S = 120.0


@dataclass
class Outcome:
    """What the cuts came to; numbers of cuts, but for slices, lost and copy_s."""

    cuts: int = 0
    slices: int = 0
    lost: int = 0
    damaged: int = 0
    inside_a_series: int = 0
    restarts: int = 0
    restarts_unfinished: int = 0
    copy_s: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing that was acknowledged was lost, nor the database damaged, nor a restart stuck."""
        return self.cuts > 0 and not (self.lost or self.damaged or self.restarts_unfinished)


def run(folder: Path, cuts: int, seed: int, fsyncs: bool = True) -> Outcome:
    """Cut the power so many times.

    Args:
        fsyncs: without them slices must get lost, or the cuts prove nothing.

    Raises:
        NotMeasuredError: this machine does not let us mount an image.
    """
    chance, outcome = random.Random(seed), Outcome()
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    _command("mkfs.ext4", "-q", str(image))
    node = Node(folder / "node", fsyncs)
    with ExitStack() as stack:
        node.storage = stack.enter_context(_mounted(image, folder / "disk")) / "storage"
        pacs = stack.enter_context(archive.running(folder / "archive", (AE_TITLE, node.port)))
        node.configure(pacs)
        target = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=AE_TITLE)
        sender = Scanner(folder / "series", target, lambda: node.unfinished() < 3)
        stack.callback(node.stop)
        stack.callback(sender.stop)
        node.start("listener")
        node.start("worker")
        _until(lambda: node.unfinished() == 0, 60)
        sender.start()
        while outcome.cuts < cuts:
            time.sleep(chance.uniform(0.2, 1.5))
            _cut(node, sender, image, folder / "cut", outcome)
    return outcome


def _cut(node: Node, sender: Scanner, image: Path, folder: Path, outcome: Outcome) -> None:
    """Copy the disk as it is now, and look at the copy as after a restart of the machine."""
    acknowledged, whole = dict(sender.acknowledged), len(sender.studies)
    folder.mkdir(exist_ok=True)
    began = time.monotonic()
    with node.frozen():
        _command("cp", "--sparse=auto", str(image), str(folder / "disk.img"))
    outcome.copy_s = max(outcome.copy_s, time.monotonic() - began)
    outcome.cuts += 1
    outcome.slices = len(acknowledged)
    outcome.inside_a_series += len(sender.studies) == whole and bool(node.unfinished())
    with _mounted(folder / "disk.img", folder / "disk") as disk:
        after = Node(folder / "node")
        after.storage = disk / "storage"
        outcome.lost += len(after.lost(acknowledged))
        outcome.damaged += not after.is_sound()
        if outcome.cuts % RESTART_EVERY == 0:
            outcome.restarts += 1
            outcome.restarts_unfinished += not _goes_on(after, folder)
    shutil.rmtree(folder)


def _goes_on(node: Node, folder: Path) -> bool:
    """Whether a node that starts on the copy ends all that it finds there well."""
    with archive.running(folder / "archive", (AE_TITLE, node.port)) as pacs:
        node.configure(pacs)
        try:
            node.start("listener")
            node.start("worker")
            ended = _until(lambda: node.unfinished() == 0, ENDS_WITHIN_S)
            # The series that the cut halved has no planning CT's number of slices, and is rejected.
            return ended and set(node.jobs()) <= {JobState.SENT, JobState.REJECTED}
        finally:
            node.stop()


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except Exception:
            pass
        time.sleep(0.2)
    return False


@contextmanager
def _mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    _command("mount", "-o", "loop", str(image), str(at))
    try:
        yield at
    finally:
        for _ in range(50):
            if subprocess.run(["umount", str(at)], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.2)


def _command(*words: str) -> None:
    if shutil.which(words[0]) is None or os.geteuid() != 0:
        raise NotMeasuredError(f"{words[0]} needs to be installed, and root to run it")
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotMeasuredError(f"this machine does not do `{' '.join(words)}`: {done.stderr.strip()}")


def as_markdown(outcome: Outcome) -> str:
    """The outcome as a page's table."""
    return "\n".join(
        [
            "| power cuts | | target |",
            "|---|---|---|",
            f"| cuts | {outcome.cuts} | |",
            f"| of them while a series was under way | {outcome.inside_a_series} | |",
            f"| slices acknowledged before the last cut | {outcome.slices} | |",
            f"| acknowledged slices lost or changed, all cuts together | {outcome.lost} | 0 |",
            f"| databases that SQLite's integrity check does not call ok | {outcome.damaged} | 0 |",
            f"| nodes started on a copy | {outcome.restarts} | |",
            f"| of them that did not end everything | {outcome.restarts_unfinished} | 0 |",
            f"| longest copy | {outcome.copy_s:.2f} s | |",
        ]
    )


def main() -> None:
    """Run and print; exit 0 where it holds."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.chaos.power", description=__doc__)
    arguments.add_argument("--cuts", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--without-fsync", action="store_true", help="the control: slices get lost")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="power-") as scratch:
        try:
            outcome = run(Path(scratch), given.cuts, given.seed, not given.without_fsync)
        except NotMeasuredError as problem:
            sys.exit(f"power cuts: not measured: {problem}")
    print(as_markdown(outcome))
    sys.exit(0 if outcome.holds else 1)


if __name__ == "__main__":
    main()
