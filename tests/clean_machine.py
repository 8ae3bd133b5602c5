"""A machine of its own for a test: systemd as its first process, no network, only Debian's /usr.

Owns its folders, its boot and its end.
Speaks commands that run on it as root.
Never touches the real machine: /usr is this one's, read-only; all else, /usr/local too, is the test's folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tools import start, stop, wait_until

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
BOOT = """
set -eu
mount --bind /usr "$1/usr"
mount -o remount,bind,ro "$1/usr"
mount -t tmpfs tmpfs "$1/usr/local"
mkdir "$1/usr/local/bin" "$1/usr/local/sbin"
exec systemd-nspawn --quiet --directory "$1" --machine "$2" --private-network --register=no --keep-unit \
    --boot systemd.unit=basic.target
"""


def cannot_boot() -> str | None:
    """Why there can be no such machine here, or None."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    if missing := [tool for tool in ("systemd-nspawn", "nsenter", "unshare") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found; apt-get install systemd-container util-linux"
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return "name spaces and mounts are not permitted here" if tried.returncode else None


@dataclass(frozen=True)
class Machine:
    """A booted machine; `root` is its / as this one sees it."""

    root: Path
    leader: int

    def tries(self, command: str) -> subprocess.CompletedProcess[str]:
        """What a command of bash comes to there, both streams in `stdout`."""
        inside = ["nsenter", "--target", str(self.leader), "--all", "--root", "--wd", "env", "-i"]
        return subprocess.run(
            [*inside, "HOME=/root", f"PATH={PATH}", "COLUMNS=200", "bash", "-euo", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )

    def does(self, command: str) -> str:
        """The output of a command that must succeed there."""
        done = self.tries(command)
        if done.returncode:
            journal = self.tries("journalctl --no-pager --lines 40").stdout
            pytest.fail(f"{command}\nended with {done.returncode}:\n{done.stdout}\n{journal}")
        return done.stdout

    def sees(self, command: str, within_s: float = 120.0) -> None:
        """Wait until a command succeeds there."""
        wait_until(lambda: self.tries(command).returncode == 0, within_s, shlex.quote(command))


@contextmanager
def clean_machine(folder: Path) -> Iterator[Machine]:
    """A machine that runs within the block, below `folder`."""
    root = folder / f"anatomynode-{os.getpid()}"
    for name in (
        "usr",
        "proc",
        "dev",
        "sys",
        "tmp",
        "run",
        "opt",
        "root",
        "srv",
        "var/lib",
        "var/tmp",
        "var/log",
    ):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    subprocess.run(["cp", "--archive", "/etc", root], check=True)
    _forget_what_this_machine_runs(root / "etc")
    booted = start(["unshare", "--mount", "bash", "-c", BOOT, "boot", root, root.name], folder / "boot.log")
    try:
        wait_until(
            lambda: booted.poll() is not None or _first_process(booted.pid) is not None,
            30,
            "the machine's start",
        )
        leader = _first_process(booted.pid)
        if leader is None:
            pytest.skip(f"no machine can be booted here: {(folder / 'boot.log').read_text()[-200:]}")
        machine = Machine(root, leader)
        machine.sees("systemctl is-active --quiet basic.target", 60)
        yield machine
    finally:
        stop(booted, 20)


def _forget_what_this_machine_runs(etc: Path) -> None:
    for enabled in (etc / "systemd" / "system").glob("*.wants"):
        shutil.rmtree(enabled)
    for ours in etc.glob("systemd/system/anatomynode*"):
        shutil.rmtree(ours) if ours.is_dir() else ours.unlink()
    shutil.rmtree(etc / "anatomynode", ignore_errors=True)
    (etc / "fstab").unlink(missing_ok=True)
    # With one it is no first boot, at which Debian would enable every service of /usr.
    (etc / "machine-id").write_text(f"{'0123456789abcdef' * 2}\n")


def _first_process(nspawn: int) -> int | None:
    """The machine's systemd, once nspawn has got so far."""
    with suppress(FileNotFoundError):
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
    return None
