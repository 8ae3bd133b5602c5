"""A command of the node as a process of its own, and what it takes of the machine.

Owns the process from its start to its end.
Speaks `anatomynode listen`, started as a unit starts it, and Linux's /proc.
Never looks into the process: what it says is in its log.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Taken:
    """What a process takes now; memory is what is resident, in MiB."""

    rss_mib: float
    peak_mib: float
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Taken:
        """What the process takes."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return cls(
            int(status["VmRSS"].split()[0]) / 1024,
            int(status["VmHWM"].split()[0]) / 1024,
            int(status["Threads"]),
            sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        )

    def is_within(self, base: Taken) -> bool:
        """Whether threads and descriptors are no more than they were."""
        return self.threads <= base.threads and self.descriptors <= base.descriptors


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def wait_for(base: Taken, pid: int, timeout_s: float) -> Taken:
    """What the process takes once threads and descriptors are back to `base`, or when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not (now := Taken.of(pid)).is_within(base) and time.monotonic() < deadline:
        time.sleep(0.2)
    return now


@contextmanager
def running(
    command: str, settings: Mapping[str, Any], folder: Path, port: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`anatomynode COMMAND` with a configuration; its words are in `folder`/COMMAND.log.

    Args:
        port: the block begins once it answers there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{command}.yaml"
    config.write_text(yaml.safe_dump(dict(settings)))
    with (folder / f"{command}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dicom_node", command, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        if port is not None:
            _await_port(process, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args} does not listen on {port}")
