"""`make bench`: every benchmark, one table each, and an exit status that says whether all targets hold.

Owns the order; each module measures in one run what it compares.
Speaks tables on the standard output.
Never runs two at once: they would slow each other down.
"""

from __future__ import annotations

import sys

from benchmarks import reception, rt_struct, turnaround
from benchmarks.figures import NotMeasuredError, show

BENCHMARKS = {
    "Durable reception": reception.measure,
    "Mask to RT-STRUCT": rt_struct.measure,
    "Turnaround and memory of the whole node": turnaround.measure,
}


def run() -> bool:
    """Run all of them; whether each target holds."""
    held = True
    for title, measure in BENCHMARKS.items():
        try:
            figures = measure()
        except NotMeasuredError as problem:
            print(f"{title}: not measured: {problem}", file=sys.stderr)
            held = False
            continue
        show(title, figures)
        held &= all(figure.holds is not False for figure in figures)
    return held


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
