"""A worker whose network hangs or dies in native code on one kind of series: `python -m tests.native_faults`.

Owns the faults, as a runtime's own library would have them: Python neither sees nor catches any of them.
Speaks the worker of the product, in a process of its own that a supervisor keeps.
Never is part of the product.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dicom_node import worker as worker_module
from dicom_node import worker_figures
from dicom_node.database import open_engine
from dicom_node.notify import Notifier
from dicom_node.worker import Worker
from inference.segmentation import Segmentation
from inference.volume import Volume
from tests.node_fixtures import BoxSegmenter, configuration

POISONED_SLICES = 26
"""A series of so many slices meets the fault; any other is contoured."""
JOB_LIMIT_S = 2.0
FOR_EVER_S = 3600

FAULTS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "hang beside the interpreter": lambda: ctypes.CDLL(None).sleep(FOR_EVER_S),
    # PyDLL keeps the interpreter's lock: no other thread of the process runs, not even the heartbeat.
    "hang with the interpreter": lambda: ctypes.PyDLL(None).sleep(FOR_EVER_S),
}


class PoisonedSegmenter(BoxSegmenter):
    """Finds a box, but for the one kind of series."""

    fault: Callable[[], object]

    def segment(self, volume: Volume) -> Segmentation:
        if volume.hu.shape[0] == POISONED_SLICES:
            self.fault()
        return super().segment(volume)


def work(folder: Path, sha256: str, fault: str, max_crashes: int) -> None:
    """What `anatomynode work` does, with limits short enough for a test."""
    worker_module.MAX_CRASHES, worker_figures.JOB_LIMIT_S = max_crashes, JOB_LIMIT_S
    PoisonedSegmenter.fault = staticmethod(FAULTS[fault])
    stop, notifier = threading.Event(), Notifier()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    config = configuration(folder, sha256)
    worker = Worker(config, open_engine(config.storage.database), PoisonedSegmenter, time.time)  # type: ignore[arg-type]
    worker.run(stop, ready=lambda: notifier.ready("waiting for series"), alive=notifier.alive)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
