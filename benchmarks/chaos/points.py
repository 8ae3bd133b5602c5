"""The points at which a process of the node is killed, and the process that kills itself there.

Owns the names of the points: before and after each commit, each write and each word to a peer.
Speaks functions of the program, which are wrapped in the process to be killed and nowhere else.
Never changes what the program does up to that moment.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """Where a process dies.

    Attributes:
        name: for the table.
        place: module, or module:class.
        function: whose call it dies at.
        after: once the function has returned, not before it begins.
        by_slice: whether it is called for each slice, so that any of the calls may be meant.
        commits: whether it is reached only with a destination that is asked for storage commitment.
    """

    name: str
    place: str
    function: str
    after: bool = False
    by_slice: bool = False
    commits: bool = False


SPOOL, REGISTRY = "dicom_node.spool:Spool", "dicom_node.intake:Registry"
LISTENER = (
    Point("association opened, not accepted", REGISTRY, "association_opened", True),
    Point("slice received, nothing written", SPOOL, "write", by_slice=True),
    Point("slice on the disk, no row", SPOOL, "write", True, by_slice=True),
    Point("rows written, not committed", REGISTRY, "_take", True, by_slice=True),
    Point("slice committed, not answered", REGISTRY, "take", True, by_slice=True),
    Point("association released, not noted", REGISTRY, "association_ended"),
    Point("association's end noted", REGISTRY, "association_ended", True),
    Point("commitment reported, nothing written", REGISTRY, "reported", commits=True),
    Point("report written, not committed", "dicom_node.commitments", "note", True, commits=True),
    Point("report committed, not answered", REGISTRY, "reported", True, commits=True),
)
WORKER = (
    Point("series complete, not committed", "dicom_node.jobs", "complete", True),
    Point("job begun, not committed", "dicom_node.jobs", "start", True),
    Point("job begun, not contoured", "dicom_node.contouring", "segment"),
    Point("contoured, nothing written", "dicom_node.results:Results", "keep"),
    Point("RT-STRUCT on the disk, not committed", "dicom_node.results:Results", "keep", True),
    Point("job READY, not committed", "dicom_node.jobs", "finish", True),
    Point("job READY, not sent", "dicom_node.deliverer:Deliverer", "wake"),
    Point("associated, nothing sent", "dicom_node.scu", "send"),
    Point("sent and answered, not recorded", "dicom_node.scu", "send", True),
    Point("delivery STORED, not committed", "dicom_node.jobs", "delivery_stored", True),
    Point(
        "commitment's request written, not committed", "dicom_node.commitments", "begin", True, commits=True
    ),
    Point("commitment's request committed, not sent", "dicom_node.storage_commitment", "ask", commits=True),
    Point("commitment asked for, not recorded", "dicom_node.storage_commitment", "ask", True, commits=True),
    Point("delivery COMMITTED, not committed", "dicom_node.commitments", "_end", True, commits=True),
)


def arm(point: Point, call: int) -> None:
    """Die by kill -9 at the point, the `call`-th time that it is reached."""
    module, _, name = point.place.partition(":")
    place: Any = importlib.import_module(module)
    place = getattr(place, name) if name else place
    original: Callable[..., Any] = getattr(place, point.function)
    left = [call]

    def dying(*arguments: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not point.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **keywords)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, point.function, dying)


def run(command: str, config: Path, log: Path, point: Point | None, call: int, fsyncs: bool) -> None:
    """`anatomynode listen` or `work`, from its first line, in this process; its words go to `log`.

    Args:
        fsyncs: without them the program only believes that its files are on the disk (SQLite keeps its own).
    """
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if point is not None:
        arm(point, call)
    if not fsyncs:
        os.fsync = lambda _descriptor: None  # type: ignore[assignment]
    from dicom_node.cli import main

    sys.argv = ["anatomynode", command, "--config", str(config)]
    main()
