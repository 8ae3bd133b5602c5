"""Many at once: `python -m benchmarks.chaos.load`.

Owns the crowd, the pressure beside an inference, the long queue, and the counting of what they cost.
Speaks to `anatomynode listen` and `work` on loopback; Markdown on the standard output.
Never counts as delivered what the node's database and the archive do not both have.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pynetdicom.dsutils import split_dataset

from benchmarks.chaos import archive, process, wire
from benchmarks.chaos.node import AE_TITLE, Node
from benchmarks.chaos.scanner import AE_TITLE as SCANNER
from benchmarks.chaos.scanner import Scanner
from dicom_node.config import Destination, read_config
from dicom_node.database import open_engine
from dicom_node.states import JobState
from dicom_node.worker import Worker
from tests import phantoms
from tests.node_fixtures import BoxSegmenter, write_package
from tests.phantoms import ROOT, Phantom

STUDY = 100_000
"""The study's number in the template; each copy has another of the same length."""
RETRY_S = 0.2
IDLE_S = 15.0
WARM_SERIES = 25


@dataclass
class Figures:
    """Name, value, target, and whether it holds."""

    title: str
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def add(self, name: str, value: object, target: str = "", holds: bool = True) -> None:
        """One more row."""
        self.rows.append((name, str(value), target, holds))


@dataclass
class Series:
    """Encoded slices, of which each copy is another patient's study."""

    slices: list[tuple[str, bytes]]

    @classmethod
    def of(cls, phantom: Phantom) -> Series:
        """The phantom's slices."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for dataset in phantoms.slices(phantom.but(study=str(STUDY))):
                file = Path(folder) / "slice.dcm"
                file.write_bytes(phantoms.encode(dataset))
                _, offset = split_dataset(file)
                found.append((str(dataset.SOPInstanceUID), file.read_bytes()[offset:]))
        return cls(found)

    def copy(self, number: int) -> Iterator[tuple[str, bytes]]:
        """SOP Instance UID and data set of each slice, in the study `STUDY + number`."""
        old, new = f"{ROOT}.{STUDY}", f"{ROOT}.{STUDY + number}"
        for uid, data in self.slices:
            yield uid.replace(old, new), data.replace(old.encode(), new.encode())

    @staticmethod
    def study(number: int) -> str:
        """Study Instance UID of a copy."""
        return f"{ROOT}.{STUDY + number}"


@dataclass
class Sent:
    """What senders were told.

    Attributes:
        acknowledged: SOP Instance UID to the sha256 of what was answered with success.
        answers: seconds from each request's last byte to its answer.
        refused: associations that had to be tried again.
    """

    acknowledged: dict[str, str] = field(default_factory=dict)
    answers: list[float] = field(default_factory=list)
    refused: int = 0

    def send(self, port: int, slices: Iterator[tuple[str, bytes]]) -> None:
        """Send each slice once it may, on one association after another until all are acknowledged."""
        left = list(slices)
        while left:
            try:
                with wire.associated(port, SCANNER, AE_TITLE, timeout_s=120.0) as sender:
                    while left:
                        uid, data = left[0]
                        status, took = sender.store(uid, data)
                        self.answers.append(took)
                        if status != 0:
                            raise wire.RefusedError(f"status 0x{status:04X}")
                        self.acknowledged[uid] = hashlib.sha256(data).hexdigest()
                        del left[0]
            except (OSError, wire.RefusedError):
                self.refused += 1
                time.sleep(RETRY_S)


def crowd(folder: Path, senders: int = 50) -> Figures:
    """So many at once, of which the listener takes ten at a time."""
    node, settings = _node(folder)
    series, sent = Series.of(Phantom(offsets_mm=tuple(3.0 * at for at in range(20)))), Sent()
    ready, warming = threading.Barrier(senders), Sent()

    def push(number: int) -> None:
        ready.wait()
        sent.send(node.port, series.copy(number))

    def warm(number: int) -> None:
        warming.send(node.port, series.copy(senders + number))

    with process.running("listen", settings, node.folder, node.port) as listener:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(warm, range(10)))
        time.sleep(1)
        base = process.Taken.of(listener.pid)
        began = time.monotonic()
        with ThreadPoolExecutor(senders) as pool:
            list(pool.map(push, range(senders)))
        took = time.monotonic() - began
        ended = process.wait_for(base, listener.pid, 30)
        lost = len(node.lost(sent.acknowledged))
    wanted = senders * 20
    figures = Figures(f"{senders} senders at once, ten associations, 20 slices of 64 x 64 each")
    figures.add("slices acknowledged", len(sent.acknowledged), str(wanted), len(sent.acknowledged) == wanted)
    figures.add("of them lost or changed", lost, "0", not lost)
    figures.add("associations refused, and tried again after 0.2 s", sent.refused)
    figures.add("all delivered after", f"{took:.1f} s")
    _back_to_base(figures, base, ended)
    return figures


def pressure(folder: Path, scanners: int = 4, slices: int = 300, matrix: int = 256) -> Figures:
    """Scanners push while the shipped network contours; before that, what both processes burn when idle."""
    node, settings = _node(folder)
    each = Series.of(
        Phantom(
            offsets_mm=tuple(1.0 * at for at in range(slices)),
            rows=matrix,
            columns=matrix,
            pixel_spacing=(1.0, 1.0),
        )
    )
    target = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=AE_TITLE)
    sent = [Sent() for _ in range(scanners)]
    before = Scanner(folder / "series", target, lambda: len(before.studies) < 12)
    with (
        process.running("listen", settings, node.folder, node.port) as listener,
        process.running("work", settings, node.folder) as worker,
    ):
        _until(lambda: "is warm" in (node.folder / "work.log").read_text(), 120)
        time.sleep(3)
        idle = _cpu_share(listener.pid), _cpu_share(worker.pid)
        before.start()
        _until(lambda: len(before.studies) >= 6 and _is_contouring(node), 120)
        busy: list[bool] = []
        with ThreadPoolExecutor(scanners) as pool, _sampling(lambda: _is_contouring(node), busy):
            began = time.monotonic()
            list(pool.map(lambda at: sent[at].send(node.port, each.copy(at)), range(scanners)))
            took = time.monotonic() - began
        before.stop()
        lost = sum(len(node.lost(one.acknowledged)) for one in sent)
    answers = sorted(one for some in sent for one in some.answers)
    p99 = answers[int(0.99 * len(answers))]
    acknowledged = sum(len(one.acknowledged) for one in sent)
    wanted = scanners * slices
    figures = Figures(
        f"{scanners} scanners push {slices} slices of {matrix} x {matrix} each beside the shipped network"
    )
    figures.add(
        "CPU of the listener, no association open", f"{idle[0]:.1%} of a core", "< 5 %", idle[0] < 0.05
    )
    figures.add("CPU of the worker, nothing to do", f"{idle[1]:.1%} of a core", "< 5 %", idle[1] < 0.05)
    figures.add("slices acknowledged", acknowledged, str(wanted), acknowledged == wanted)
    figures.add("of them lost or changed", lost, "0", not lost)
    figures.add("answers, median", f"{statistics.median(answers) * 1000:.0f} ms")
    figures.add("answers, p99", f"{p99 * 1000:.0f} ms", "< 500 ms", p99 < 0.5)
    figures.add("answers, slowest", f"{answers[-1] * 1000:.0f} ms")
    figures.add("slices a second, all together", f"{wanted / took:.0f}")
    share = statistics.fmean(busy)
    figures.add("a job was being contoured for", f"{share:.0%} of the time", "> 90 %", share > 0.9)
    return figures


def long_queue(folder: Path, count: int = 500) -> Figures:
    """So many series of 20 slices are queued while no worker runs; then each is contoured and sent."""
    node = Node(folder)
    series, sent = Series.of(Phantom(offsets_mm=tuple(3.0 * at for at in range(20)))), Sent()
    with archive.running(folder / "archive", (AE_TITLE, node.port)) as pacs:
        settings = _settings(node, pacs)
        settings["model"] = {
            "package": "test-model",
            "folder": str(folder / "packages"),
            "approved_sha256": write_package(folder / "packages"),
        }
        with process.running("listen", settings, node.folder, node.port) as listener:
            for number in range(WARM_SERIES):
                sent.send(node.port, series.copy(number))
            time.sleep(1)
            base, began = process.Taken.of(listener.pid), time.monotonic()
            for number in range(WARM_SERIES, count):
                sent.send(node.port, series.copy(number))
            received_s = time.monotonic() - began
            ended = process.wait_for(base, listener.pid, 30)
            lost, waiting = len(node.lost(sent.acknowledged)), node.unfinished()
            began = time.monotonic()
            with _worker(node.folder / "listen.yaml"):
                _until(lambda: node.jobs().total() == count and not node.unfinished(), 1200)
            worked_s = time.monotonic() - began
        jobs, held = node.jobs(), pacs.rt_structs()
    once = Counter(held[Series.study(number)] for number in range(count))
    growth = ended.rss_mib - base.rss_mib
    figures = Figures(f"{count} queued series of 20 slices, a stand-in network that finds a box, {pacs.name}")
    wanted = count * 20
    figures.add("slices acknowledged", len(sent.acknowledged), str(wanted), len(sent.acknowledged) == wanted)
    figures.add("of them lost or changed", lost, "0", not lost)
    figures.add(
        "instances a second, one association after another", f"{(count - WARM_SERIES) * 20 / received_s:.0f}"
    )
    growing = f"{base.rss_mib:.0f} MiB {growth:+.1f} MiB"
    figures.add(
        f"listener's memory (RSS) from {WARM_SERIES * 20} to {wanted} instances",
        growing,
        "< +20 MiB",
        growth < 20,
    )
    _back_to_base(figures, base, ended)
    figures.add("series that waited when the worker started", waiting, str(count), waiting == count)
    figures.add("jobs SENT", jobs[JobState.SENT], str(count), jobs[JobState.SENT] == count)
    for number, studies in sorted(once.items()):
        figures.add(
            f"series with {number} RT-STRUCT(s) at the PACS",
            studies,
            "all" if number == 1 else "0",
            number == 1,
        )
    figures.add("all contoured and sent after", f"{worked_s:.0f} s")
    return figures


def _node(folder: Path) -> tuple[Node, dict[str, Any]]:
    """A node whose results go nowhere."""
    node = Node(folder)
    settings = _settings(node, _Nowhere())
    settings["destinations"] = []
    return node, settings


class _Nowhere:
    name, port, commits = "nowhere", 1, False

    def rt_structs(self) -> Counter[str]:
        return Counter()


def _settings(node: Node, pacs: archive.Archive) -> dict[str, Any]:
    node.configure(pacs)
    settings: dict[str, Any] = yaml.safe_load((node.folder / "config.yaml").read_text())
    settings["series"]["min_slices"] = 20
    for destination in settings["destinations"]:
        destination["storage_commitment"]["enabled"] = False
    settings["logging"] = {"format": "json"}
    return settings


def _back_to_base(figures: Figures, base: process.Taken, ended: process.Taken) -> None:
    threads, descriptors = ended.threads - base.threads, ended.descriptors - base.descriptors
    figures.add("listener's threads more than before", max(threads, 0), "0", threads <= 0)
    figures.add("listener's descriptors more than before", max(descriptors, 0), "0", descriptors <= 0)


def _cpu_share(pid: int) -> float:
    """Of a core, over some seconds."""
    used, began = process.cpu_s(pid), time.monotonic()
    time.sleep(IDLE_S)
    return (process.cpu_s(pid) - used) / (time.monotonic() - began)


def _is_contouring(node: Node) -> bool:
    return node.jobs()[JobState.RUNNING] > 0


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


@contextmanager
def _sampling(question: Callable[[], bool], answers: list[bool]) -> Iterator[None]:
    """Ask five times a second as long as the block runs."""
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.wait(0.2):
            answers.append(question())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@contextmanager
def _worker(config: Path) -> Iterator[None]:
    """The node's worker with the stand-in network, in a process of its own."""
    running = multiprocessing.get_context("spawn").Process(target=_work, args=(config,), daemon=True)
    running.start()
    try:
        yield
    finally:
        running.terminate()
        running.join()


def _work(path: Path) -> None:
    config = read_config(path)
    engine = open_engine(config.storage.database)
    Worker(config, engine, BoxSegmenter, time.time).run(threading.Event())


PARTS = {"crowd": crowd, "pressure": pressure, "queue": long_queue}


def as_markdown(figures: Figures) -> str:
    """One table."""
    lines = [f"{figures.title}:", "", "| | | target |", "|---|---|---|"]
    for name, value, target, holds in figures.rows:
        lines.append(f"| {name} | {value}{'' if holds else ' (missed)'} | {target} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run and print; exit 0 where it holds."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.chaos.load", description=__doc__)
    arguments.add_argument("--part", choices=list(PARTS), action="append", help="default: all")
    given, held = arguments.parse_args(), True
    for part in given.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="load-") as scratch:
            figures = PARTS[part](Path(scratch))
        print(as_markdown(figures), flush=True)
        held = held and all(holds for *_, holds in figures.rows)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
