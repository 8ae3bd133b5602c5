"""What tests need to drive real programs: which of them are here, free ports, processes that always end.

Owns the names of the Debian packages that bring the tools, and the life of started processes.
Speaks pytest markers, TCP ports of loopback, and `subprocess.Popen`.
Never ends a process that it did not start, and never leaves one behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dicom_node.free_ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
"""The repository's root, from which the rooms are imported."""

SHARED_DATA = ROOT.parent / "shared" / "data"
"""Real patients' CTs; not part of the repository, so tests that use it skip where it is missing."""

ORTHANC_DICOMWEB = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
"""Orthanc's DICOMweb plugin, as Debian installs it."""

DEBIAN_PACKAGES = {
    "curl": "curl",
    "dcmcjpeg": "dcmtk",
    "dcmcjpls": "dcmtk",
    "dcmcrle": "dcmtk",
    "dcmconv": "dcmtk",
    "dcmdump": "dcmtk",
    "dcmsend": "dcmtk",
    "echoscu": "dcmtk",
    "findscu": "dcmtk",
    "storescp": "dcmtk",
    "storescu": "dcmtk",
    "dcentvfy": "dicom3tools",
    "dciodvfy": "dicom3tools",
    "Orthanc": "orthanc",
    ORTHANC_DICOMWEB: "orthanc-dicomweb",
    "plastimatch": "plastimatch",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "strace": "strace",
    "shellcheck": "shellcheck",
    "systemd-analyze": "systemd",
}


def needs(*tools: str) -> pytest.MarkDecorator:
    """A marker that skips the test, visibly, where one of `tools` is not on the PATH, or no file."""
    missing = [tool for tool in tools if shutil.which(tool) is None and not Path(tool).is_file()]
    packages = sorted({DEBIAN_PACKAGES.get(tool, tool.lower()) for tool in missing})
    reason = f"{', '.join(missing)} not found; apt-get install {' '.join(packages)}"
    return pytest.mark.skipif(bool(missing), reason=reason)


def needs_shared_data(part: str) -> pytest.MarkDecorator:
    """A marker that skips the test, visibly, where `../shared/data/PART` is missing."""
    return pytest.mark.skipif(
        not (SHARED_DATA / part).exists(), reason=f"../shared/data/{part} is not on this machine"
    )


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    (port,) = free_ports(1)
    return port


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "the condition") -> None:
    """Return as soon as `condition()` holds; fail the test when it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(0.02)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts TCP connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def start(
    arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program from the repository's root in a session of its own; both its streams go to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> int:
    """End a program that `start` started, politely and then not, with all its children; its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            kill(process)
    _end_session(process)
    return process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 a program that `start` started, with all its children, as a power cut would end them."""
    _end_session(process)
    process.wait()


@contextmanager
def running(
    arguments: Sequence[str | Path],
    log: Path,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 20.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs within the block; with `port`, the block begins once it answers there."""
    process = start(arguments, log, environment)
    try:
        if port is not None:
            wait_until(
                lambda: answers(port) or process.poll() is not None,
                timeout_s,
                f"{arguments[0]} on port {port}",
            )
            if process.poll() is not None:
                pytest.fail(
                    f"{arguments[0]} ended with {process.returncode}:\n{log.read_text(errors='replace')}"
                )
        yield process
    finally:
        stop(process)


def run(
    arguments: Sequence[str | Path],
    timeout_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program from the repository's root to its end; its output is text, both streams in `stdout`."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """kill -9 whatever is left of the session that `process` leads."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
