"""The peak memory of the worker while it contours a large series.

Owns the reading of a process' high-water mark.
Speaks GiB of resident memory (`VmHWM` of Linux' /proc), all children of the node apart.
Never counts the sender or the stand-in PACS: they are other processes.
"""

from __future__ import annotations

from pathlib import Path

PEAK_LIMIT_GIB = 2.5


def peaks_gib(session_leader: int) -> dict[str, float]:
    """The peak resident memory of each living process of a session, by the command that it runs."""
    peaks: dict[str, float] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _session(process) == session_leader:
            status = (process / "status").read_text()
            peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
            words = (process / "cmdline").read_text().split("\0")
            role = next((word for word in ("serve", "listen", "work") if word in words), words[0])
            peaks[role] = max(peaks.get(role, 0.0), int(peak) / 1024**2)
    return peaks


def _session(process: Path) -> int | None:
    """The session that a process belongs to (the fourth field after its name in /proc/PID/stat)."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return None
