"""`make bench`: every benchmark, one table each, and an exit status that says whether all targets hold.

Owns the order; each module measures in one run what it compares.
Speaks tables on the standard output.
Never runs two at once, nor in one process: they would slow each other down.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("reception", "decoding", "rt_struct", "turnaround")


def run() -> bool:
    """Run all of them; whether each target holds."""
    results = [
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False) for name in BENCHMARKS
    ]
    return all(result.returncode == 0 for result in results)


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
