"""A listener on loopback and small CT slices to send to it, for the tests of reception.

Owns the configuration of such a listener and its start and end.
Speaks pydicom data sets, raw PDUs on sockets, and rows of the database.
Never uses a fixed port or a folder outside the test's own.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from sqlalchemy import text

from dicom_node.config import Config, Listener, Peer, Storage
from dicom_node.database import open_engine, reading
from dicom_node.listener import Listener as Reception
from dicom_node.migrate import upgrade
from tests.tools import free_port, running

CALLING, CALLED = "CT1", "NODE"


def configuration(folder: Path, **listener: Any) -> Config:
    """A node that CT1 on loopback, and STRANGE from elsewhere, may send to."""
    return Config(
        listener=Listener(ae_title=CALLED, port=free_port(), **listener),
        peers=(
            Peer(ae_title=CALLING, addresses=("127.0.0.1",)),
            Peer(ae_title="STRANGE", addresses=("10.1.2.0/24",)),
        ),
        storage=Storage(folder=folder, reserve_mib=1),
        destinations=(),
    )


@contextmanager
def listening(config: Config) -> Iterator[Reception]:
    """A listener that runs within the block."""
    config.storage.folder.mkdir(exist_ok=True)
    upgrade(config.storage.database)
    reception = Reception(config, open_engine(config.storage.database), time.time)
    reception.start()
    try:
        yield reception
    finally:
        reception.stop(drain_s=1)


def ct_slice(number: int = 1, series: str = "2.25.7", pixels: bytes = bytes(32 * 32 * 2)) -> Dataset:
    """A small CT slice; `number` is in its UID and its position."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{series}.{number}"
    ds.Modality, ds.PatientName, ds.PatientID, ds.AccessionNumber = "CT", "Secret^Name", "PID-77", "ACC-5"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.6", series
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    ds.Rows = ds.Columns = 32
    ds.PixelSpacing = [0.9, 1.1]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelData = pixels
    return ds


@contextmanager
def associated(
    port: int, *classes: str, syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,)
) -> Iterator[Association]:
    """An association of CT1, released at the block's end."""
    ae = AE(ae_title=CALLING)
    for uid in classes or (CTImageStorage,):
        ae.add_requested_context(uid, list(syntaxes))
    association = ae.associate("127.0.0.1", port, ae_title=CALLED)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def rows(config: Config, query: str) -> list[tuple[Any, ...]]:
    """What a query finds in the node's database now."""
    with reading(open_engine(config.storage.database)) as session:
        return [tuple(row) for row in session.execute(text(query))]


def association_request(calling: str = CALLING, called: str = CALLED) -> bytes:
    """An A-ASSOCIATE-RQ for CT Image Storage in Implicit VR LE (PS3.8 9.3.2), maximum length 16384."""

    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(value)) + value

    context = b"\x01\0\0\0" + item(0x30, CTImageStorage.encode()) + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"2.25.9")
    body = struct.pack(">HH", 1, 0) + called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU with its header (PS3.8 9.3.1)."""
    return struct.pack(">BBL", kind, 0, len(body)) + body


def fragment(data: bytes, control: int) -> bytes:
    """A P-DATA-TF with one fragment on context 1; control 1 is a command, 2 the last (PS3.8 9.3.5, E.2)."""
    return pdu(4, struct.pack(">LBB", len(data) + 2, 1, control) + data)


@contextmanager
def raw_association(port: int) -> Iterator[socket.socket]:
    """A plain socket on which an association has been accepted."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(association_request())
        answer = peer.recv(4096)
        assert answer[:1] == b"\x02", answer
        yield peer


def ends(peer: socket.socket, timeout_s: float) -> bool:
    """Whether the other side ends the connection within `timeout_s`; an A-ABORT before is read over."""
    peer.settimeout(timeout_s)
    try:
        while peer.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def store_request(ds: Dataset, message_id: int = 1) -> list[bytes]:
    """The PDUs of a C-STORE request on `raw_association`'s context: Implicit VR LE, at most 16384 bytes."""
    request = C_STORE()
    request.MessageID, request.Priority = message_id, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    request.DataSet = BytesIO(encode(ds, True, True) or b"")
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    pdus = []
    for primitive in message.encode_msg(1, 16384):
        data = P_DATA_TF()
        data.from_primitive(primitive)
        pdus.append(data.encode())
    return pdus


def answered_status(peer: socket.socket) -> int:
    """The status in the next C-STORE answer on `raw_association`."""
    with peer.makefile("rb", buffering=0) as stream:
        kind, _, length = struct.unpack(">BBL", _exactly(stream, 6))
        assert kind == 4, f"PDU of type {kind}"
        # A fragment's length, context and control precede the command (PS3.8 9.3.5.1)
        command = _exactly(stream, length)[6:]
    return int(read_dataset(BytesIO(command), True, True).Status)


def _exactly(stream: Any, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = stream.read(size - len(found))
        assert more, "the listener ended the connection"
        found += more
    return found


@contextmanager
def serving(config: Config, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A listener in a process of its own, to be stopped or killed."""
    file = config.storage.folder.parent / "config.json"
    file.write_text(config.model_dump_json())
    module = [sys.executable, "-m", "tests.dicom_node.reception_rig", file]
    with running(module, log, config.listener.port, {"PYTHONPATH": "."}, 30) as process:
        yield process


def serve(file: Path) -> None:
    """Receive with the configuration in `file` until killed; `python -m tests.dicom_node.reception_rig`."""
    with listening(Config.model_validate_json(file.read_text())):
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
