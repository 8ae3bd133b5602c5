"""A small honest archive on loopback, for the demo and the tests.

Owns a folder of Part 10 files, one a SOP Instance UID, named by a hash of it.
Speaks C-ECHO, C-STORE of any storage class, and C-FIND of the Study Root's SERIES and IMAGE levels.
Never answers success before the bytes are fsynced, and never overwrites: it counts what comes twice.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import split_dataset
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.durable import write_durably

MAX_PDU_BYTES = 131_072

SUCCESS = 0x0000
PENDING = 0xFF00
OUT_OF_RESOURCES = 0xA700  # PS3.4 B.2.3
CANNOT_UNDERSTAND = 0xC000  # PS3.4 B.2.3
DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 Annex C
IDENTIFIER_DOES_NOT_MATCH = 0xA900  # PS3.4 C.4.1.1.4

STORAGE_CLASSES = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Kept:
    """One instance in the archive.

    Attributes:
        sha256: of the data set's bytes as received, without preamble and meta group.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sha256: str
    file: Path


class StandInPacs:
    """An archive that keeps what it is sent in `folder`; restarted on the same folder, it still has it.

    As a context manager it runs within the block.
    """

    def __init__(
        self, folder: Path, ae_title: str = "STANDINPACS", host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.host = host
        self.port = port
        """0 takes a free port; after `start` it is the one taken."""
        self.duplicates = 0
        """How often an instance came that was already here."""
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> None:
        """Listen; returns when a peer can associate.

        Raises:
            OSError: the port is taken, or the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.folder.glob("*.dcm")):
            kept = _read_kept(file)
            self._kept[kept.sop_instance_uid] = kept
        ae = AE(ae_title=self.ae_title)
        ae.maximum_pdu_size = MAX_PDU_BYTES
        ae.add_supported_context(Verification)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        self._server = ae.start_server(
            (self.host, self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_REQUESTED, _accept_all_storage),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_FIND, self._on_find),
            ],
        )
        assert self._server is not None
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        """End every association and stop listening."""
        if self._server is not None:
            self._server.ae.shutdown()
            self._server = None

    def __enter__(self) -> StandInPacs:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def instances(self, sop_class_uid: str | None = None) -> tuple[Kept, ...]:
        """What is kept, in the order of arrival; of one storage class, or all."""
        with self._lock:
            return tuple(kept for kept in self._kept.values() if sop_class_uid in (None, kept.sop_class_uid))

    def _on_store(self, event: Event) -> int:
        """Keep one instance; the status of PS3.4 B.2.3 that says what became of it."""
        request = event.request
        assert isinstance(request, C_STORE)
        part_10 = event.encoded_dataset()
        data_set_sha256 = hashlib.sha256(event.encoded_dataset(include_meta=False)).hexdigest()
        identity = _identity(part_10)
        if identity is None or identity["SOPInstanceUID"] != request.AffectedSOPInstanceUID:
            return CANNOT_UNDERSTAND
        uid = identity["SOPInstanceUID"]
        with self._lock:
            known = self._kept.get(uid)
            if known is not None:
                self.duplicates += 1
                return SUCCESS if known.sha256 == data_set_sha256 else DUPLICATE_SOP_INSTANCE
            file = self.folder / f"{hashlib.sha256(uid.encode()).hexdigest()}.dcm"
            try:
                write_durably(file, part_10)
            except OSError:
                return OUT_OF_RESOURCES
            self._kept[uid] = _kept(identity, data_set_sha256, file)
        return SUCCESS

    def _on_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer how many instances a series has (PS3.4 C.4.1, Study Root)."""
        query = event.identifier
        level = query.get("QueryRetrieveLevel", "")
        wanted = {"study_instance_uid": "StudyInstanceUID", "series_instance_uid": "SeriesInstanceUID"}
        found = [
            kept
            for kept in self.instances()
            if all(query.get(keyword, "") in ("", getattr(kept, name)) for name, keyword in wanted.items())
        ]
        if level == "SERIES":
            answers = _series_answers(found)
        elif level == "IMAGE":
            answers = [_answer(level, kept) for kept in found]
        else:
            yield IDENTIFIER_DOES_NOT_MATCH, None
            return
        for answer in answers:
            yield PENDING, answer


def _accept_all_storage(event: Event) -> None:
    """Support each storage class that the peer proposes, in whichever transfer syntax it likes best.

    Listing every storage class with every transfer syntax in advance costs 0.1 s for each association.
    """
    request = event.assoc.requestor.primitive
    assert isinstance(request, A_ASSOCIATE)
    proposed = {str(item.abstract_syntax) for item in request.presentation_context_definition_list}
    acceptor = event.assoc.acceptor
    acceptor.supported_contexts = [
        *acceptor.supported_contexts,
        *(build_context(uid, AllTransferSyntaxes) for uid in sorted(proposed & STORAGE_CLASSES)),
    ]


def _identity(part_10: bytes) -> dict[str, str] | None:
    """The UIDs inside a file, or None where it has not all of them or cannot be read."""
    try:
        data_set = dcmread(BytesIO(part_10), stop_before_pixels=True, specific_tags=list(IDENTITY))
        return {keyword: str(data_set[keyword].value) for keyword in IDENTITY}
    except Exception:  # whatever hostile bytes make pydicom raise: the peer is told, the archive lives
        return None


def _kept(identity: dict[str, str], sha256: str, file: Path) -> Kept:
    return Kept(
        sop_instance_uid=identity["SOPInstanceUID"],
        sop_class_uid=identity["SOPClassUID"],
        study_instance_uid=identity["StudyInstanceUID"],
        series_instance_uid=identity["SeriesInstanceUID"],
        sha256=sha256,
        file=file,
    )


def _read_kept(file: Path) -> Kept:
    """What an earlier run kept in `file`."""
    part_10 = file.read_bytes()
    identity = _identity(part_10)
    if identity is None:
        raise OSError(f"{file.name} in the archive's folder is no DICOM file")
    _, offset = split_dataset(file)
    return _kept(identity, hashlib.sha256(part_10[offset:]).hexdigest(), file)


def _series_answers(found: list[Kept]) -> list[Dataset]:
    series: dict[str, list[Kept]] = {}
    for kept in found:
        series.setdefault(kept.series_instance_uid, []).append(kept)
    answers = []
    for members in series.values():
        answer = _answer("SERIES", members[0])
        answer.NumberOfSeriesRelatedInstances = len(members)
        answers.append(answer)
    return answers


def _answer(level: str, kept: Kept) -> Any:
    answer = Dataset()
    answer.QueryRetrieveLevel = level
    answer.StudyInstanceUID = kept.study_instance_uid
    answer.SeriesInstanceUID = kept.series_instance_uid
    if level == "IMAGE":
        answer.SOPClassUID = kept.sop_class_uid
        answer.SOPInstanceUID = kept.sop_instance_uid
    return answer
