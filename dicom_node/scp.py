"""The storage SCP: what the node answers to C-ECHO and C-STORE, and to whom.

Owns the presentation contexts, the allow-list, and the status of every answer.
Speaks C-STORE statuses (PS3.4 B.2.3, PS3.7 9.1.1.1.9) and data sets as bytes.
Never answers 0x0000 before the bytes are durable and their rows are committed, never decodes pixels.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import Verification, register_uid, uid_to_service_class
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import guard, logs, storage_commitment
from dicom_node.config import Config, Destination, Peer, is_within
from dicom_node.errors import ConfigurationError
from dicom_node.guard import AssociationRequest, Refusal
from dicom_node.intake import AssociationEnd, Intake, Outcome, Registry
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.spool import OutOfSpaceError, Received, Spool, receive
from dicom_node.transfer_syntaxes import COMPRESSED
from dicom_node.transfers import Arrivals
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_derived

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
"""Values are checked here where they are used; a line in the log for each odd one would let peers fill it."""

LOSSLESS = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, *COMPRESSED)
"""Nothing lossy: contours follow HU. Nothing deflated: 0.5 MB of it can become 1 GB."""

LOSSY = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
)
"""Offered beside the lossless ones only for what is thrown away unread, or its sender's queue would jam."""

LAST_HEADER_TAG = 0x0028_0030
"""PixelSpacing: nothing behind it is needed here."""
UID = re.compile(r"[0-9.]{1,64}")
DECIMALS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
INTEGERS = ("Rows", "Columns")
HEADER_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "PatientID",
        "AccessionNumber",
        *DECIMALS,
        *INTEGERS,
    )
]


class StoreStatus(IntEnum):
    """Every status that this SCP answers to C-STORE."""

    SUCCESS = 0x0000
    """The bytes are durable and their rows committed; or the class is one that is thrown away."""
    PROCESSING_FAILURE = 0x0110
    """A defect of ours; nothing was acknowledged (PS3.7 C.5.6)."""
    DUPLICATE = 0x0111
    """The same SOP Instance UID is here with other bytes (PS3.7 C.5.3)."""
    OUT_OF_RESOURCES = 0xA700
    """No room on the disk, or the database cannot be written now; the sender may try again later."""
    MISMATCH = 0xA900
    """The data set is not the one that the command names."""
    NOT_UNDERSTOOD = 0xC000
    """The data set cannot be read as far as its identifiers, or has none."""


class NotTakenError(Exception):
    """An instance that is answered with a failure.

    Attributes:
        status: the answer.
        reason: a bounded word for the log.
    """

    def __init__(self, status: StoreStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class InstanceHeader:
    """The few attributes that reception needs, by their keywords."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    accession_number: str
    geometry: Mapping[str, Any]


def read_header(data: bytes, transfer_syntax_uid: str) -> InstanceHeader:
    """Read a data set's identifiers and plane, and nothing from PixelSpacing on.

    Raises:
        NotTakenError: NOT_UNDERSTOOD when an identifier is missing, malformed or unreadable.
    """
    try:
        found = read_dataset(
            BytesIO(data),
            is_implicit_VR=transfer_syntax_uid == ImplicitVRLittleEndian,
            is_little_endian=True,
            stop_when=lambda tag, _vr, _length: int.__gt__(tag, LAST_HEADER_TAG),
            specific_tags=HEADER_TAGS,
        )
        return InstanceHeader(
            sop_class_uid=_uid(found, "SOPClassUID"),
            sop_instance_uid=_uid(found, "SOPInstanceUID"),
            study_instance_uid=_uid(found, "StudyInstanceUID"),
            series_instance_uid=_uid(found, "SeriesInstanceUID"),
            patient_id=str(found.get("PatientID") or ""),
            accession_number=str(found.get("AccessionNumber") or ""),
            geometry=dict(_geometry(found)),
        )
    except NotTakenError:
        raise
    except Exception as problem:
        raise NotTakenError(StoreStatus.NOT_UNDERSTOOD, "unreadable") from problem


def _uid(found: Dataset, keyword: str) -> str:
    uid = _value(found, keyword).decode("ascii").rstrip("\0 ")
    if not UID.fullmatch(uid):
        raise NotTakenError(StoreStatus.NOT_UNDERSTOOD, "identifier")
    return uid


def _geometry(found: Dataset) -> Iterator[tuple[str, Any]]:
    """The plane's attributes that are there; what is malformed is left to the reader of the whole slice."""
    for keyword in DECIMALS:
        with suppress(ValueError):
            yield keyword, [float(number) for number in _value(found, keyword).split(b"\\")]
    for keyword in INTEGERS:
        value = _value(found, keyword)
        if len(value) == 2:
            yield keyword, int.from_bytes(value, "little")


def _value(found: Dataset, keyword: str) -> bytes:
    """An element's bytes as received; none when it is absent. Decoding all values would double the time."""
    element = found.get_item(Tag(keyword)) if keyword in found else None
    return (element.value or b"") if isinstance(element, RawDataElement) else b""


class Reporters:
    """Who may report what became of a storage commitment: the destinations that are asked for one.

    A destination's host may be a name; it is resolved when somebody with its AE title comes.
    """

    def __init__(self, destinations: Iterable[Destination]) -> None:
        self._asked = [one for one in destinations if one.storage_commitment.enabled]

    def know(self, ae_title: str) -> bool:
        """Whether a destination that is asked has this AE title."""
        return any(one.ae_title.strip() == ae_title for one in self._asked)

    def __contains__(self, address: str) -> bool:
        """Whether one has this address, as far as its configuration says so without a name to be resolved."""
        return any(
            is_within(address, one.storage_commitment.addresses) or address == one.host for one in self._asked
        )

    def of(self, ae_title: str, address: str) -> frozenset[str]:
        """The names of the destinations for which a peer may report."""
        return frozenset(
            one.name
            for one in self._asked
            if one.ae_title.strip() == ae_title and is_within(address, _report_networks(one))
        )


def _report_networks(destination: Destination) -> tuple[str, ...]:
    """Where its reports may come from."""
    if destination.storage_commitment.addresses:
        return destination.storage_commitment.addresses
    try:
        found = socket.getaddrinfo(destination.host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()  # nobody, as long as the name means nothing
    return tuple(str(address[0]).split("%")[0] for *_, address in found)


def verification_context() -> PresentationContext:
    """What everybody who is let in may ask."""
    return build_context(Verification, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])


class StorageScp:
    """Takes in what known peers send; the gatekeeper of `guard`.

    Args:
        hashed: the keyed hash under which patient and accession numbers are kept.
        transfers: what is told to the audit stream.
    """

    def __init__(
        self,
        config: Config,
        spool: Spool,
        registry: Registry,
        hashed: Callable[[str], str],
        figures: ReceptionFigures,
        transfers: Arrivals,
    ) -> None:
        self._transfers = transfers
        self._own_titles = config.listener.ae_titles
        self._peers: Sequence[Peer] = config.peers
        self._reporters = Reporters(config.dicom_destinations)
        self._discards = frozenset(config.listener.discard_sop_classes)
        self._spool = spool
        self._registry = registry
        self._hashed = hashed
        self._figures = figures
        self._log = logs.get(__name__)
        self._association_ids: dict[Any, int] = {}
        self._reports_for: dict[Any, frozenset[str]] = {}

    def handlers(self) -> list[tuple[Any, Callable[[evt.Event], Any]]]:
        """What pynetdicom calls for which message."""
        return [
            (evt.EVT_C_ECHO, lambda _event: int(StoreStatus.SUCCESS)),
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_N_EVENT_REPORT, lambda event: (self.report(event), None)),
            (evt.EVT_N_ACTION, lambda _event: (storage_commitment.UNRECOGNISED_OPERATION, None)),
        ]

    def knows(self, address: str) -> bool:
        """Whether a peer or a destination that reports has this address by the configuration."""
        return address in self._reporters or any(peer.admits(address) for peer in self._peers)

    def admit(self, request: AssociationRequest) -> Refusal | None:
        """Refuse whom the configuration does not name (PS3.8 9.3.4)."""
        refusal = self._judge(request)
        if refusal is not None:
            self._transfers.refused(request.calling_ae_title, request.peer_address, refusal.reason)
        return refusal

    def _judge(self, request: AssociationRequest) -> Refusal | None:
        if request.called_ae_title not in self._own_titles:
            return guard.CALLED_AE_TITLE
        title, address = request.calling_ae_title, request.peer_address
        if self._sends(title, address) or self._reporters.of(title, address):
            return None
        known = any(peer.ae_title.strip() == title for peer in self._peers) or self._reporters.know(title)
        return guard.PEER_ADDRESS if known else guard.CALLING_AE_TITLE

    def opened(self, association: Any, request: AssociationRequest) -> None:
        """Offer it what this peer may do, and note the association before it is accepted."""
        title, address = request.calling_ae_title, request.peer_address
        reports_for = self._reporters.of(title, address)
        acceptor = association.acceptor
        if not self._sends(title, address):
            acceptor.supported_contexts = [verification_context()]
        if reports_for:
            acceptor.supported_contexts = [*acceptor.supported_contexts, storage_commitment.report_context()]
        number = self._registry.association_opened(title, request.called_ae_title, address)
        self._association_ids[association] = number
        self._transfers.opened(number, title, address)
        self._reports_for[association] = reports_for

    def _sends(self, title: str, address: str) -> bool:
        return any(peer.ae_title.strip() == title and peer.admits(address) for peer in self._peers)

    def report(self, event: evt.Event) -> int:
        """Answer a report of storage commitment; success once it is committed here (PS3.4 J.3.3)."""
        reports_for = self._reports_for[event.assoc]
        try:
            status = storage_commitment.take_report(
                event, lambda report: self._registry.reported(report, reports_for)
            )
        except SQLAlchemyError as problem:
            status = storage_commitment.PROCESSING_FAILURE
            self._log.error("report_refused", status=f"0x{status:04X}", error=type(problem).__name__)
        else:
            if status != StoreStatus.SUCCESS:
                self._log.warning("report_refused", status=f"0x{status:04X}")
        return status

    def ended(self, association: Any, end: AssociationEnd) -> None:
        """Note how it ended."""
        self._reports_for.pop(association, None)
        association_id = self._association_ids.pop(association)
        self._transfers.ended(association_id)
        self._registry.association_ended(association_id, end)
        self._log.info("association_ended", association=association_id, outcome=end.value)

    def store(self, event: evt.Event) -> int:
        """Answer a C-STORE; whatever goes wrong becomes a failure status."""
        try:
            status = self._store(event)
        except NotTakenError as refusal:
            status = refusal.status
            self._log.warning("instance_refused", status=f"0x{status:04X}", reason=refusal.reason)
        except OutOfSpaceError as full:
            status = StoreStatus.OUT_OF_RESOURCES
            self._log.error("instance_refused", status=f"0x{status:04X}", reason=full.reason)
        except SQLAlchemyError as problem:
            status = StoreStatus.OUT_OF_RESOURCES
            self._log.error(
                "instance_refused", status=f"0x{status:04X}", reason="database", error=type(problem).__name__
            )
        except Exception:
            status = StoreStatus.PROCESSING_FAILURE
            self._log.exception("instance_refused", status=f"0x{status:04X}", reason="defect")
        if status is not StoreStatus.SUCCESS:
            self._figures.instance_refused(status)
        return int(status)

    def _store(self, event: evt.Event) -> StoreStatus:
        request = event.request
        sop_class_uid = str(request.AffectedSOPClassUID)
        if sop_class_uid != event.context.abstract_syntax:
            raise NotTakenError(StoreStatus.MISMATCH, "sop_class_not_of_context")
        data = request.DataSet.getvalue() if request.DataSet is not None else b""
        if sop_class_uid in self._discards:
            self._registry.discarded(sop_class_uid, len(data))
            self._figures.instance_discarded()
            if is_derived(str(request.AffectedSOPInstanceUID)):
                self._figures.own_result_returned()
                self._log.info("own_result_returned", association=self._association_ids[event.assoc])
            return StoreStatus.SUCCESS
        transfer_syntax_uid = str(event.context.transfer_syntax)
        header = read_header(data, transfer_syntax_uid)
        if (header.sop_class_uid, header.sop_instance_uid) != (
            sop_class_uid,
            str(request.AffectedSOPInstanceUID),
        ):
            raise NotTakenError(StoreStatus.MISMATCH, "data_set_is_not_the_command's")
        received = receive(
            sop_class_uid, header.sop_instance_uid, transfer_syntax_uid, header.series_instance_uid, data
        )
        return self._keep(self._association_ids[event.assoc], header, received)

    def _keep(self, association_id: int, header: InstanceHeader, received: Received) -> StoreStatus:
        """Make the bytes durable, then commit their rows; only then is the answer success."""
        file = self._spool.write(received)
        intake = Intake(
            association_id=association_id,
            sop_instance_uid=received.sop_instance_uid,
            sop_class_uid=received.sop_class_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            series_instance_uid=header.series_instance_uid,
            study_instance_uid=header.study_instance_uid,
            patient_key=self._hashed(header.patient_id),
            accession_key=self._hashed(header.accession_number),
            sha256=received.sha256,
            file=file,
            size_bytes=len(received.data),
            geometry=header.geometry,
        )
        while (outcome := self._registry.take(intake)) is Outcome.FILE_GONE:
            self._spool.write(received)
        if outcome is Outcome.OTHER_BYTES:
            self._spool.remove(file)
            raise NotTakenError(StoreStatus.DUPLICATE, "other_bytes")
        self._transfers.came(
            *(association_id, outcome is Outcome.NEW, header.study_instance_uid),
            *(header.patient_id, header.accession_number, received.sop_class_uid),
        )
        if outcome is Outcome.AGAIN:
            self._figures.instance_again()
        else:
            self._figures.instance_stored(len(received.data))
        return StoreStatus.SUCCESS


def application_entity(config: Config) -> AE:
    """The AE with the contexts that it accepts and the timeouts of `guard`.

    Raises:
        ConfigurationError: a class to be thrown away is no storage class, or is CT Image Storage.
    """
    listener = config.listener
    ae = AE(ae_title=listener.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = listener.max_pdu_bytes
    # The guard counts; pynetdicom would count those that it is about to refuse as well.
    ae.maximum_associations = 1_000_000
    ae.supported_contexts = [verification_context()]
    ae.add_supported_context(CTImageStorage, list(LOSSLESS))
    _check_discards(listener.discard_sop_classes)
    for uid in listener.discard_sop_classes:
        ae.add_supported_context(uid, [*LOSSLESS, *LOSSY])
    return ae


def _check_discards(uids: Iterable[str]) -> None:
    problems = []
    for uid in uids:
        service = uid_to_service_class(uid)
        if service is ServiceClass:
            # A private or newer class; pynetdicom must know it as a storage class to ask us at all.
            register_uid(uid, f"Discarded_{uid.replace('.', '_')}", StorageServiceClass)
        elif service is not StorageServiceClass:
            problems.append(f"listener.discard_sop_classes: {uid} is no storage class")
        if uid == CTImageStorage:
            problems.append(f"listener.discard_sop_classes: {uid} is CT Image Storage, which is contoured")
    if problems:
        raise ConfigurationError(tuple(problems))
