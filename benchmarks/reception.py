"""Durable reception of a CT series, against bare pynetdicom handlers, in one run.

Owns the three receivers, each a process of its own, and the sender.
Speaks seconds for 178 slices of 512 x 512 on one association; medians of alternating rounds.
Never compares receivers with different PDU lengths, disks or senders.

Run with `python -m benchmarks.reception`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from benchmarks.figures import Figure, at_least, at_most, show
from dicom_node.config import Listener

SLICES = 178
PDU_BYTES = Listener().max_pdu_bytes
TITLE = "BENCH"
NODE, FSYNC, NO_FSYNC = "node", "bare with fsync", "bare without fsync"


def measure(rounds: int = 5) -> tuple[Figure, ...]:
    """Time for a series through the node and through both bare handlers, and the two ratios."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = _measure(Path(folder), rounds)
    median_s = {name: statistics.median(times) for name, times in seconds.items()}
    return (
        *(Figure(f"{SLICES} slices of 512 x 512, {name}", took, "s") for name, took in median_s.items()),
        at_most("node / bare handler that fsyncs file and folder", median_s[NODE] / median_s[FSYNC], 1.3),
        at_least("rate of the node / bare handler without fsync", median_s[NO_FSYNC] / median_s[NODE], 0.55),
    )


def _measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each receiver in each round; the receivers take turns, and each round has new UIDs."""
    seconds: dict[str, list[float]] = {name: [] for name in RECEIVERS}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(_receiver(name, folder / name)) for name in RECEIVERS}
        for number in range(rounds + 1):
            turn = number % len(RECEIVERS)
            for name in [*RECEIVERS][turn:] + [*RECEIVERS][:turn]:
                took = _send(ports[name], _series(number))
                if number:  # the first round warms up
                    seconds[name].append(took)
    sys.stdin.read()


RECEIVERS: dict[str, Callable[[Path], None]] = {
    NODE: _serve_node,
    FSYNC: lambda folder: _serve_bare(folder, fsync=True),
    NO_FSYNC: lambda folder: _serve_bare(folder, fsync=False),
}


def _series(number: int) -> list[Dataset]:
    """A CT series of noise over a gradient, int16, with the header that an SCP looks at."""
    random = np.random.default_rng(number)
    slices = []
    for index in range(SLICES):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = f"1.2.826.0.1.3680043.10.1.{number + 1}.{index + 1}"
        ds.Modality = "CT"
        ds.PatientID = "BENCHMARK"
        ds.StudyInstanceUID = f"1.2.826.0.1.3680043.10.2.{number + 1}"
        ds.SeriesInstanceUID = f"1.2.826.0.1.3680043.10.3.{number + 1}"
        ds.ImagePositionPatient = [-250, -250, 2.5 * index]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.Rows = ds.Columns = 512
        ds.PixelSpacing = [0.97, 0.97]
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.PixelData = random.integers(-1000, 2000, (512, 512), np.int16).tobytes()
        slices.append(ds)
    return slices


def _send(port: int, slices: list[Dataset]) -> float:
    """Seconds from the first C-STORE to the last answer."""
    ae = AE(ae_title=TITLE)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title=TITLE)
    assert association.is_established
    for ds in slices:
        ds.file_meta = _meta()
    start = time.perf_counter()
    statuses = [association.send_c_store(ds).Status for ds in slices]
    took = time.perf_counter() - start
    association.release()
    assert not any(statuses), statuses
    return took


def _meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


if __name__ == "__main__":
    if len(sys.argv) > 1:  # a receiver, started by `_receiver`
        RECEIVERS[sys.argv[1]](Path(sys.argv[2]))
    else:
        show("Durable reception", measure())
