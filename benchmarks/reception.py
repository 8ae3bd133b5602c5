"""Durable reception of a CT series, against bare pynetdicom handlers, in one run.

Owns the three receivers, each a process of its own, and the sender.
Speaks seconds for 178 slices of 512 x 512 on one association; medians of alternating rounds.
Never compares receivers with different PDU lengths, disks or senders.

Run with `python -m benchmarks.reception`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from benchmarks.figures import Figure, NotMeasuredError, at_least, at_most, main
from dicom_node import logs
from dicom_node.config import Config, Listener, Peer, Storage
from dicom_node.database import open_engine
from dicom_node.listener import Listener as Reception
from dicom_node.migrate import upgrade

SLICES = 178
PDU_BYTES = Listener().max_pdu_bytes
TITLE = "BENCH"
PATIENCE_S = 600.0
"""How long the sender waits for an answer. pynetdicom's own 30 s can pass on a disk that others keep busy,
and the sender then breaks the association off itself."""
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
                took = _send(name, ports[name], _series(number))
                if number:  # the first round warms up
                    seconds[name].append(took)
    return seconds


@contextmanager
def _receiver(name: str, folder: Path) -> Iterator[int]:
    """A receiver in its own process; its port."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.reception", name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)


def _serve_node(folder: Path) -> None:
    """The node's listener, as it is in service."""
    config = Config(
        # Port 0: the operating system chooses; no configuration file can say so.
        listener=Listener.model_construct(ae_title=TITLE, port=0),
        peers=(Peer(ae_title=TITLE, addresses=("127.0.0.1",)),),
        storage=Storage(folder=folder, reserve_mib=1),
        destinations=(),
    )
    logs.configure(config.logging, "listener")
    upgrade(config.storage.database)
    reception = Reception(config, open_engine(config.storage.database), time.time)
    reception.start()
    _announce(reception.port)
    reception.stop()


def _serve_bare(folder: Path, fsync: bool) -> None:
    """The shortest pynetdicom handler that writes what it receives."""

    def on_store(event: evt.Event) -> int:
        path = folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
        with path.open("wb") as file:
            file.write(event.encoded_dataset())
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        if fsync:
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return 0x0000

    ae = AE(ae_title=TITLE)
    ae.maximum_pdu_size = PDU_BYTES
    # pynetdicom counts the time that a handler takes as the peer's silence, and ends the association for it.
    ae.network_timeout = PATIENCE_S
    ae.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    _announce(server.server_address[1])
    server.shutdown()


def _announce(port: int) -> None:
    """Say where, then serve until the parent closes our input."""
    print(port, flush=True)
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


def _send(name: str, port: int, slices: list[Dataset]) -> float:
    """Seconds from the first C-STORE to the last answer.

    Raises:
        NotMeasuredError: the receiver `name` did not take the series.
    """
    ae = AE(ae_title=TITLE)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title=TITLE)
    if not association.is_established:
        raise NotMeasuredError(f"{name}: the association was not accepted")
    for ds in slices:
        ds.file_meta = _meta()
    start = time.perf_counter()
    for number, ds in enumerate(slices):
        status = association.send_c_store(ds).get("Status")
        if status != 0x0000:
            association.abort()
            answer = "no answer: the association ended" if status is None else f"status 0x{status:04X}"
            raise NotMeasuredError(f"{name}: slice {number + 1} of {len(slices)}: {answer}")
    took = time.perf_counter() - start
    association.release()
    return took


def _meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


if __name__ == "__main__":
    if len(sys.argv) > 1:  # a receiver, started by `_receiver`
        RECEIVERS[sys.argv[1]](Path(sys.argv[2]))
    else:
        main("Durable reception", measure)
