"""Hostile peers against a listener: `python -m benchmarks.chaos.hostile`.

Owns the attackers, the honest scanner and the C-ECHO beside them, and the counting of what it cost.
Speaks to `anatomynode listen` on loopback, with and without TLS; Markdown on the standard output.
Never counts as honest what comes from a hostile peer's address.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.chaos import fuzz, process, scanner, wire
from benchmarks.chaos.fuzz import CALLED, ROGUE, Visit
from benchmarks.chaos.node import Node
from benchmarks.chaos.scanner import Scanner
from dicom_node.config import Destination, Tls
from dicom_node.free_ports import free_ports
from dicom_node.schema import Instance
from tests import certificates

CONSOLE = "CONSOLE"
"""Asks C-ECHO."""
ROGUE_ADDRESS = "127.0.0.2"
"""A known peer that was taken over: its AE title and its address are in the configuration."""
ASK_EVERY_S = 0.5
ATTACKERS = 3
BATCH = 100
SPOOLED = re.compile(r"[0-9a-f]{2}/[0-9a-f]+/[0-9a-f]+\.dcm")


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        every: of the hostile names each so many-th is used.
        timeout_s: the listener's deadlines; slow peers stay for three of them.
    """

    sequences: int = 20_000
    seed: int = 1
    slow_peers: int = 200
    bomb_mib: int = 32
    every: int = 1
    timeout_s: float = 15.0

    @property
    def slow_s(self) -> float:
        """How long the slow peers stay."""
        return 3 * self.timeout_s


QUICK = Plan(sequences=40, slow_peers=40, bomb_mib=1, every=20, timeout_s=0.5)
"""Seconds, for the test suite."""


@dataclass
class Outcome:
    """What it came to for one listener.

    Attributes:
        echoes: seconds of each C-ECHO from connecting to its answer, by what happened meanwhile; None where
            it failed.
        sent: sequences by their kind.
        warm, fuzzed, ended: what the process took when warm, after the fuzzed sequences, and at the end.
    """

    name: str
    echoes: dict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    sent: Counter[str] = field(default_factory=Counter)
    alive: bool = False
    warm: process.Taken | None = None
    fuzzed: process.Taken | None = None
    ended: process.Taken | None = None
    honest_series: int = 0
    honest_slices: int = 0
    honest_lost: int = 0
    honest_broken: int = 0
    strange_files: list[str] = field(default_factory=list)
    files_without_row: int = 0
    rows_without_file: int = 0
    log: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> list[tuple[str, str, str, bool]]:
        """Name, value, target, and whether it holds."""
        assert self.warm is not None
        assert self.fuzzed is not None
        assert self.ended is not None
        every = [one for some in self.echoes.values() for one in some]
        answered = [one for one in every if one is not None]
        slowest = max(answered, default=float("inf"))
        growth = self.fuzzed.rss_mib - self.warm.rss_mib
        threads, descriptors = (
            self.ended.threads - self.warm.threads,
            self.ended.descriptors - self.warm.descriptors,
        )
        faults = self.log["not JSON"] + self.log["traceback"]
        return [
            ("the process that was started runs", str(self.alive), "True", self.alive),
            ("C-ECHOs asked, every 0.5 s", str(len(every)), "", True),
            ("of them without an answer", str(every.count(None)), "0", None not in every),
            ("slowest C-ECHO, connecting included", f"{slowest:.2f} s", "< 1 s", slowest < 1.0),
            ("honest series sent meanwhile", str(self.honest_series), "> 0", self.honest_series > 0),
            ("their slices acknowledged", str(self.honest_slices), "", True),
            ("of them lost or changed", str(self.honest_lost), "0", not self.honest_lost),
            ("honest associations refused or broken", str(self.honest_broken), "0", not self.honest_broken),
            ("memory (RSS) when warm", f"{self.warm.rss_mib:.0f} MiB", "", True),
            ("its growth over the fuzzed sequences", f"{growth:+.1f} MiB", "< 20 MiB", growth < 20),
            ("its growth at the end of all", f"{self.ended.rss_mib - self.warm.rss_mib:+.1f} MiB", "", True),
            ("its peak", f"{self.ended.peak_mib:.0f} MiB", "", True),
            ("threads more than when warm", str(max(threads, 0)), "0", threads <= 0),
            ("descriptors more than when warm", str(max(descriptors, 0)), "0", descriptors <= 0),
            (
                "files outside the spool, or with a name not ours",
                str(len(self.strange_files)),
                "0",
                not self.strange_files,
            ),
            (
                "files without a row, rows without a file",
                f"{self.files_without_row}, {self.rows_without_file}",
                "0, 0",
                not self.files_without_row + self.rows_without_file,
            ),
            ("lines in the log", str(self.log["lines"]), "", True),
            ("of them no JSON of ours, or a traceback", str(faults), "0", not faults),
            ("of them with a hostile peer's words", str(self.log["injected"]), "0", not self.log["injected"]),
        ]

    @property
    def holds(self) -> bool:
        """Whether every target is reached."""
        return all(holds for *_, holds in self.rows)


def run(folder: Path, plan: Plan, secured: Sequence[bool] = (False, True)) -> list[Outcome]:
    """Attack a listener; one without TLS, and one with it."""
    folder.mkdir(exist_ok=True)
    keys = {is_secured: certificates.make(folder / "pem") if is_secured else None for is_secured in secured}
    return [_attack(folder / ("tls" if tls else "plain"), plan, tls) for tls in keys.values()]


def _attack(folder: Path, plan: Plan, tls: Tls | None) -> Outcome:
    outcome = Outcome("without TLS" if tls is None else "with TLS")
    node = Node(folder / "node")
    settings = _settings(node, plan, tls)
    chance = random.Random(plan.seed)
    with process.running("listen", settings, node.folder, node.port) as listener:
        client = None if tls is None else _client(tls)
        target = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=CALLED, tls=tls)
        asker = Asker(node.port, client, outcome)
        beat = Beat(4.0 if plan.timeout_s > 5 else 1.0)
        honest = Scanner(folder / "series", target, beat.due)
        with Attackers(node.port, tls) as attackers, asker.asking(), _sending(honest):
            asker.meanwhile = "warming up"
            _warm_up(attackers, honest, plan)
            outcome.warm = _at_rest(listener.pid)
            before = _files(folder)
            asker.meanwhile = "fuzzed sequences"
            # The TLS layer is the same for all of them; a tenth goes through it.
            wanted = plan.sequences if tls is None else max(1, plan.sequences // 10)
            outcome.sent += attackers.fuzz(chance.getrandbits(32), wanted)
            outcome.fuzzed = process.wait_for(outcome.warm, listener.pid, plan.slow_s)
            asker.meanwhile = f"{plan.slow_peers} slow or silent peers"
            _slow_peers(node.port, tls, plan)
            asker.meanwhile = f"{len(fuzz.NAMES[:: plan.every])} hostile names"
            outcome.sent += attackers.names(plan.every)
            asker.meanwhile = "bombs"
            outcome.sent += attackers.bombs(plan.bomb_mib, plan.slow_s)
            asker.meanwhile = "afterwards"
            time.sleep(1)
        outcome.alive = listener.poll() is None
        outcome.ended = process.wait_for(outcome.warm, listener.pid, 3 * plan.slow_s)
        _count(outcome, node, honest, folder, before)
    return outcome


def _settings(node: Node, plan: Plan, tls: Tls | None) -> dict[str, Any]:
    names = (scanner.AE_TITLE, CONSOLE)
    return {
        "listener": {
            "ae_title": CALLED,
            "port": node.port,
            # The rogue may not have all places: as docs/SECURITY.md advises where several send.
            "max_associations_per_address": 5,
            "idle_timeout_s": 2 * plan.timeout_s,
            "pdu_timeout_s": plan.timeout_s,
            "message_timeout_s": 2 * plan.timeout_s,
            "max_instance_mib": plan.bomb_mib,
            "tls": None if tls is None else {key: str(value) for key, value in tls.model_dump().items()},
        },
        "peers": [
            *({"ae_title": one, "addresses": ["127.0.0.1"]} for one in names),
            {"ae_title": ROGUE, "addresses": [ROGUE_ADDRESS]},
        ],
        "storage": {"folder": str(node.storage), "reserve_mib": 1},
        "destinations": [],
        "http": {"port": free_ports(1)[0]},
        "logging": {"format": "json"},
    }


def _warm_up(attackers: Attackers, honest: Scanner, plan: Plan) -> None:
    """All that is made once: pools, caches, code that is imported when first needed."""
    attackers.fuzz(plan.seed - 1, max(20, plan.sequences // 20))
    deadline = time.monotonic() + 60
    while not honest.studies and time.monotonic() < deadline:
        time.sleep(0.1)


def _at_rest(pid: int) -> process.Taken:
    """The most that it takes within a second: the honest scanner and the C-ECHOs go on."""
    seen = []
    for _ in range(10):
        seen.append(process.Taken.of(pid))
        time.sleep(0.1)
    return max(seen, key=lambda one: one.threads)


def _client(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.check_hostname = False
    context.load_cert_chain(tls.certificate, tls.key)
    return context


class Beat:
    """Says yes once every so many seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._next = every_s, 0.0

    def due(self) -> bool:
        """Whether it is time again."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True


@contextmanager
def _sending(honest: Scanner) -> Iterator[None]:
    honest.start()
    try:
        yield
    finally:
        honest.stop()


class Asker:
    """Asks C-ECHO on an association of its own, again and again.

    Attributes:
        meanwhile: what is happening.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None, outcome: Outcome) -> None:
        self.meanwhile = ""
        self._port, self._tls, self._outcome = port, tls, outcome
        self._stopping = threading.Event()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask as long as the block runs."""
        thread = threading.Thread(target=self._run, name="asker", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join(60)

    def _run(self) -> None:
        while not self._stopping.wait(ASK_EVERY_S):
            meanwhile, began = self.meanwhile, time.monotonic()
            took: float | None = None
            with (
                suppress(OSError, wire.RefusedError),
                wire.associated(self._port, CONSOLE, CALLED, tls=self._tls) as sender,
            ):
                sender.echo()
                took = time.monotonic() - began
            self._outcome.echoes[meanwhile].append(took)


# --- the attackers, each in a process of its own ---------------------------------------------------


class Attackers:
    """Processes that pay visits from the rogue's address."""

    def __init__(self, port: int, tls: Tls | None) -> None:
        self._port, self._tls = port, tls
        self._pool = ProcessPoolExecutor(ATTACKERS, _processes())

    def __enter__(self) -> Attackers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def fuzz(self, seed: int, count: int) -> Counter[str]:
        """Pay fuzzed visits; how many of each kind."""
        sizes = [min(BATCH, count - at) for at in range(0, count, BATCH)]
        jobs = [
            self._pool.submit(_fuzz, self._port, self._tls, seed + at, size) for at, size in enumerate(sizes)
        ]
        return sum((job.result() for job in jobs), Counter[str]())

    def names(self, every: int) -> Counter[str]:
        """Pay visits under each `every`-th hostile name."""
        jobs = [
            self._pool.submit(_names, self._port, self._tls, number)
            for number in range(0, len(fuzz.NAMES), every)
        ]
        return sum((job.result() for job in jobs), Counter[str]())

    def bombs(self, mib: int, patience_s: float) -> Counter[str]:
        """Throw each bomb; a peer that is not cut within its patience hangs up by itself."""
        count = sum(1 for _ in fuzz.bombs(1))
        jobs = [
            self._pool.submit(_bomb, self._port, self._tls, mib, number, patience_s)
            for number in range(count)
        ]
        return sum((job.result() for job in jobs), Counter[str]())


def _processes() -> Any:
    """Processes that are forked from one which has imported all this and runs no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__ if __name__ != "__main__" else "benchmarks.chaos.hostile"])
    return context


def _fuzz(port: int, tls: Tls | None, seed: int, count: int) -> Counter[str]:
    return _pay(port, tls, list(fuzz.visits(seed, count)))


def _names(port: int, tls: Tls | None, number: int) -> Counter[str]:
    return _pay(port, tls, list(fuzz.named(fuzz.NAMES[number], number)))


def _bomb(port: int, tls: Tls | None, mib: int, number: int, patience_s: float) -> Counter[str]:
    return _pay(port, tls, [one for at, one in enumerate(fuzz.bombs(mib)) if at == number], patience_s)


def _pay(port: int, tls: Tls | None, visits: Sequence[Visit], patience_s: float = 0.05) -> Counter[str]:
    client, kinds = None if tls is None else _client(tls), Counter[str]()
    for visit in visits:
        kinds[visit.kind] += 1
        with suppress(OSError), wire.connect(port, ROGUE_ADDRESS, client, 60.0) as peer:
            _visit(peer, visit, patience_s)
    return kinds


def _visit(peer: socket.socket, visit: Visit, patience_s: float) -> None:
    peer.sendall(visit.hello)
    peer.settimeout(patience_s)
    if visit.awaits:
        with suppress(TimeoutError):
            peer.recv(4096)
    for piece in visit.pieces:
        peer.sendall(piece)
    if visit.reads:
        with suppress(TimeoutError):
            while peer.recv(65_536):
                pass


def _slow_peers(port: int, tls: Tls | None, plan: Plan) -> None:
    """Have the slow peers come, and come again whenever they are sent away."""
    slow = _processes().Process(target=_be_slow, args=(port, tls, plan.slow_peers, plan.slow_s), daemon=True)
    slow.start()
    slow.join()


def _be_slow(port: int, tls: Tls | None, count: int, seconds: float) -> None:
    """Half of them strangers from addresses of their own, half the rogue's."""
    deadline = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_dawdle, args=(port, tls, number, deadline), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _dawdle(port: int, tls: Tls | None, number: int, deadline: float) -> None:
    source = f"127.0.1.{number % 250 + 1}" if number % 2 else ROGUE_ADDRESS
    # Peers of a TLS listener dawdle before the handshake or after it.
    client = _client(tls) if tls is not None and number % 8 >= 6 else None
    hello = fuzz.association_request(ROGUE, CALLED)
    began_word = b"\x16\x03\x01\x02\0\1" if tls is not None and client is None else hello
    say = (b"", began_word[:1], began_word[:40], hello + fuzz.fragment(bytes(3000), 0)[:50])[number // 2 % 4]
    drips = number % 3 == 0
    while time.monotonic() < deadline:
        with suppress(OSError), wire.connect(port, source, client, 10.0) as peer:
            peer.sendall(say)
            peer.settimeout(1.0)
            while time.monotonic() < deadline:
                try:
                    if not peer.recv(4096):
                        break
                except TimeoutError:
                    if drips:
                        peer.sendall(b"\0")
        time.sleep(0.5)


# --- counting --------------------------------------------------------------------------------------


def _files(folder: Path) -> set[str]:
    """Every file of the rig but the honest scanner's own."""
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    return {one for one in found if not one.startswith("series")}


def _count(outcome: Outcome, node: Node, honest: Scanner, folder: Path, before: set[str]) -> None:
    outcome.honest_series, outcome.honest_slices = len(honest.studies), len(honest.acknowledged)
    outcome.honest_lost, outcome.honest_broken = len(node.lost(honest.acknowledged)), honest.resends
    spool = node.storage.relative_to(folder) / "spool"
    outside = (one for one in _files(folder) - before if not one.startswith(f"{spool}/"))
    inside = {
        file.relative_to(folder / spool).as_posix() for file in (folder / spool).rglob("*") if file.is_file()
    }
    strange = [one for one in inside if not SPOOLED.fullmatch(one)]
    outcome.strange_files = [*outside, *strange]
    with node._reading() as session:
        named = set(session.scalars(select(Instance.file)))
    outcome.files_without_row, outcome.rows_without_file = len(inside - named), len(named - inside)
    for line in (node.folder / "listen.log").read_text(errors="replace").splitlines():
        _count_line(outcome, line)


def _count_line(outcome: Outcome, line: str) -> None:
    outcome.log["lines"] += 1
    outcome.log["injected"] += any(word in line for word in ("inj", "Injected", "cleared", "escaped", "DROP"))
    try:
        said = json.loads(line)
        event = said["event"]
    except (ValueError, TypeError, KeyError):
        outcome.log["not JSON"] += 1
        return
    outcome.log["traceback"] += "exception" in said
    outcome.said[f"{event}: {said.get('reason') or said.get('place', '')}".rstrip(": ")] += 1


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a page's tables."""
    lines = []
    for outcome in outcomes:
        lines += [
            f"Listener {outcome.name}: {outcome.sent.total()} hostile associations",
            "",
            "| | | target |",
            "|---|---|---|",
            *(
                f"| {name} | {value}{'' if holds else ' (missed)'} | {target} |"
                for name, value, target, holds in outcome.rows
            ),
            "",
            "| meanwhile | C-ECHOs | without an answer | median | slowest |",
            "|---|---|---|---|---|",
        ]
        for meanwhile, every in outcome.echoes.items():
            some = [one for one in every if one is not None] or [float("nan")]
            times = f"{statistics.median(some):.3f} s | {max(some):.3f} s"
            lines.append(f"| {meanwhile} | {len(every)} | {every.count(None)} | {times} |")
        lines += ["", "| hostile peers sent | times |", "|---|---|"]
        lines += [f"| {kind} | {times} |" for kind, times in sorted(outcome.sent.items())]
        lines += ["", "| the log says | times |", "|---|---|"]
        lines += [f"| {event} | {times} |" for event, times in sorted(outcome.said.items())]
        lines += ["", *(f"Strange file: {one}" for one in outcome.strange_files[:20])]
    return "\n".join(lines)


def main() -> None:
    """Run and print; exit 0 where it holds."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.chaos.hostile", description=__doc__)
    arguments.add_argument("--sequences", type=int, default=2_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--folder", type=Path, help="where to leave everything; default: nowhere")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        outcomes = run(given.folder or Path(scratch), Plan(given.sequences, given.seed))
    print(as_markdown(outcomes))
    sys.exit(0 if all(outcome.holds for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
