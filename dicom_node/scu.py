"""The door to other DICOM applications: C-ECHO, C-STORE, and C-FIND of how many instances a series has.

Owns the association as requestor: its timeouts, its TLS, and what each way of failing is called.
Speaks pynetdicom; a file's data set goes out byte for byte as it lies on the disk, never decoded.
Never waits without an end, and never takes an association's end for an answer.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_node.config import Destination
from dicom_node.errors import AnatomyNodeError, ConfigurationError, PermanentError, TransientError
from dicom_node.store_status import StoreKind, StoreOutcome, in_words, meaning
from dicom_node.tls import client_context
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

# A file's data set is streamed as it is; without this pynetdicom decodes it and encodes it anew. The setting
# concerns only `send_c_store` of a path, which nothing outside this module calls.
_config.STORE_SEND_CHUNKED_DATASET = True

SUCCESS = 0x0000
MAX_PROPOSED_CONTEXTS = 128
"""Context IDs are the odd numbers of one byte (PS3.8 9.3.2.2)."""
PENDING = frozenset({0xFF00, 0xFF01})
"""A C-FIND response that carries a match (PS3.4 C.4.1.1.4)."""


class UnreachableError(TransientError):
    """No association, for a cause that may pass: no connection, no answer, an abort, a busy peer."""


class AssociationRefusedError(PermanentError):
    """The peer will not associate, or not for this storage class, until a person changes something."""


@dataclass(frozen=True)
class FileIdentity:
    """What a Part 10 file's meta group says of it (PS3.10 7.1)."""

    file: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class UnreadableFileError(PermanentError):
    """The file cannot be sent."""


class NotDicomError(UnreadableFileError):
    """The file is no DICOM Part 10 file, or its meta group lacks what C-STORE needs."""


# PS3.8 Table 9-21: (source, reason) -> whether a person has to change something, and the words. Permanent is
# only what the peer also calls so (result 1). A permanent rejection without a reason is tried again all the
# same: overloaded archives send it, and it names nothing that a person could change.
_REJECTIONS: dict[tuple[int, int], tuple[bool, str]] = {
    (1, 1): (False, "gave no reason"),
    (1, 2): (True, "does not support the DICOM application context; is it a DICOM port?"),
    (1, 3): (True, "does not know the calling AE title {calling}; add it there, with this machine's address"),
    (1, 7): (True, "is not called {called}; correct the destination's ae_title"),
    (2, 1): (False, "gave no reason"),
    (2, 2): (True, "does not support this protocol version; is it a DICOM port?"),
    (3, 1): (False, "is congested"),
    (3, 2): (False, "has too many associations open"),
}


def echo(destination: Destination, calling: str) -> None:
    """Ask whether `destination` is there and lets us in (C-ECHO, PS3.7 9.1.5).

    Raises:
        UnreachableError: no connection, no answer, or an answer other than success.
        AssociationRefusedError: it does not let `calling` in, or knows no C-ECHO.
    """
    with association(destination, calling, [build_context(Verification)]) as peer:
        answer = peer.send_c_echo()
    status = status_of(answer)
    if status != SUCCESS:
        said = "gave no answer to" if status is None else f"answered 0x{status:04X} to"
        raise UnreachableError(f"{address_of(destination)} {said} C-ECHO")


def accepts(destination: Destination, calling: str, sop_class_uid: str) -> None:
    """Ask whether `destination` would take instances of a storage class, as this node encodes its own.

    Raises:
        UnreachableError: there is no association now.
        AssociationRefusedError: it does not take them, or does not let `calling` in.
    """
    with association(destination, calling, [build_context(sop_class_uid, ImplicitVRLittleEndian)]):
        pass


@contextmanager
def storing(destination: Destination, calling: str, file: Path) -> Iterator[StoreOutcome]:
    """Send one Part 10 file on an association of its own; its data set's bytes go out as they are.

    Only the file's own transfer syntax is proposed, so that nothing has to be converted. The block knows
    the outcome as soon as the answer is here: the association is released after it, which takes longer
    than many an answer.
    """
    with ExitStack() as until_told:
        try:
            identity = identify(file)
            context = build_context(identity.sop_class_uid, identity.transfer_syntax_uid)
            peer = until_told.enter_context(association(destination, calling, [context]))
            outcome = send(peer, identity)
        except TransientError as problem:
            outcome = StoreOutcome(StoreKind.UNREACHABLE, None, problem.reason)
        except PermanentError as problem:
            outcome = StoreOutcome(StoreKind.REFUSED, None, problem.reason)
        yield outcome


def count_instances(
    destination: Destination, calling: str, study_instance_uid: str, series_instance_uid: str
) -> int | None:
    """How many instances of the series `destination` has (C-FIND, Study Root, PS3.4 C.6.2).

    NumberOfSeriesRelatedInstances at the SERIES level, which is optional there; else the matches at the
    IMAGE level are counted. None where the peer cannot be asked, or its answer is no number to rely on.
    """
    context = build_context(StudyRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian)
    try:
        with association(destination, calling, [context]) as peer:
            series = _find(peer, "SERIES", study_instance_uid, series_instance_uid)
            if series is None:
                return None
            told = [answer.get("NumberOfSeriesRelatedInstances") for answer in series]
            if len(told) == 1 and told[0] is not None:
                return int(told[0])
            images = _find(peer, "IMAGE", study_instance_uid, series_instance_uid)
            return None if images is None else len({str(image.get("SOPInstanceUID")) for image in images})
    except (TransientError, PermanentError):
        return None


def identify(file: Path) -> FileIdentity:
    """Read the meta group of a Part 10 file.

    Raises:
        NotDicomError: there is none, or it does not say what the file holds.
        UnreadableFileError: the disk, or a right, is in the way.
    """
    try:
        meta, _ = split_dataset(file)
        return FileIdentity(
            file=file,
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
        )
    except (InvalidDicomError, AttributeError, EOFError) as problem:
        raise NotDicomError(f"{file.name} is no DICOM Part 10 file") from problem
    except OSError as problem:
        raise UnreadableFileError(f"{file.name} cannot be read: {problem.strerror}") from problem


def contexts_for(files: Sequence[FileIdentity]) -> list[PresentationContext]:
    """One presentation context for each pair of storage class and transfer syntax, the files' own.

    Raises:
        UnreadableFileError: one association cannot propose that many.
    """
    pairs = sorted({(file.sop_class_uid, file.transfer_syntax_uid) for file in files})
    if len(pairs) > MAX_PROPOSED_CONTEXTS:
        raise UnreadableFileError(
            f"{len(pairs)} pairs of storage class and transfer syntax do not fit into one association"
        )
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs]


def send(peer: Association, identity: FileIdentity, message_id: int = 1) -> StoreOutcome:
    """Send one file on an open association (C-STORE, PS3.7 9.1.1)."""
    if not peer.is_established:
        return StoreOutcome(StoreKind.TRANSIENT, None, "the association ended before this instance was sent")
    try:
        answer = peer.send_c_store(identity.file, msg_id=message_id, priority=0)
    except ValueError:
        return StoreOutcome(StoreKind.REFUSED, None, _no_context(identity))
    except OSError as problem:
        peer.abort()  # the instance may be half sent
        return StoreOutcome(StoreKind.REFUSED, None, f"the file cannot be read: {problem.strerror}")
    except RuntimeError:  # the association ended in the instant between the question above and the sending
        return StoreOutcome(StoreKind.TRANSIENT, None, "the association ended before this instance was sent")
    status = status_of(answer)
    return StoreOutcome(meaning(status).kind, status, in_words(status))


@contextmanager
def association(
    destination: Destination,
    calling: str,
    contexts: list[PresentationContext],
    handlers: Sequence[tuple[Any, Callable[[Event], Any]]] = (),
) -> Iterator[Association]:
    """An association with `destination`, released at the end, or aborted where the block raises.

    The called AE title is always named: archives check it. Every wait has an end: the connection and the
    TLS handshake after `connect_timeout_s`, each answer and stalled read or write after `response_timeout_s`.

    Args:
        handlers: what the peer may ask of us meanwhile.

    Raises:
        UnreachableError: there is none now, but may be later.
        AssociationRefusedError: a person has to change something first.
    """
    connection = _Connection(destination.response_timeout_s)
    started = time.monotonic()
    try:
        peer = _entity(destination, calling).associate(
            destination.host,
            destination.port,
            contexts=contexts,
            ae_title=destination.ae_title,
            tls_args=_tls(destination),
            evt_handlers=[(evt.EVT_CONN_OPEN, connection.on_open), *handlers],
        )
    except socket.gaierror as problem:
        raise UnreachableError(
            f"the name {destination.host} cannot be resolved to an address: {problem.strerror}"
        ) from problem
    if not peer.is_established:
        raise _why_not(peer, destination, calling, connection.opened, time.monotonic() - started)
    try:
        yield peer
    except BaseException:
        peer.abort()
        raise
    peer.release()


class _Connection:
    """What happens to the socket once it is open: pynetdicom itself would then let it block for ever."""

    def __init__(self, stall_s: float) -> None:
        self.opened = False
        self._stall_s = stall_s

    def on_open(self, event: Event) -> None:
        """Give each read and write an end, and send small messages at once."""
        self.opened = True
        wrapper = event.assoc.dul.socket
        assert wrapper is not None
        assert wrapper.socket is not None
        wrapper.socket.settimeout(self._stall_s)
        wrapper.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _entity(destination: Destination, calling: str) -> AE:
    entity = AE(ae_title=calling)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = destination.connect_timeout_s
    entity.acse_timeout = destination.response_timeout_s
    entity.dimse_timeout = destination.response_timeout_s
    entity.network_timeout = destination.response_timeout_s
    return entity


def _tls(destination: Destination) -> tuple[ssl.SSLContext, str] | None:
    """The TLS context and the peer's name, or None for a plain connection."""
    if destination.tls is None:
        return None
    try:
        return client_context(destination.tls, f"{destination.name}.tls"), destination.host
    except ConfigurationError as problem:  # a renewal may be under way
        raise UnreachableError(
            f"the TLS key, certificate or CA for {destination.name} cannot be used: {problem.reason}"
        ) from problem


def _why_not(
    peer: Association, destination: Destination, calling: str, opened: bool, elapsed_s: float
) -> AnatomyNodeError:
    """What to call it that there is no association."""
    answer = peer.acceptor.primitive
    if not opened:
        return _why_no_connection(destination, elapsed_s)
    if isinstance(answer, A_ASSOCIATE):
        if peer.is_rejected:
            return _rejection(answer, destination, calling)
        if peer.rejected_contexts:
            wanted = peer.rejected_contexts[0]
            return AssociationRefusedError(
                f"{address_of(destination)} accepts no {_named(str(wanted.abstract_syntax))} in "
                f"{_named(str(wanted.transfer_syntax[0]))}; enable it there, then retry"
            )
    if elapsed_s >= destination.response_timeout_s:
        said = f"did not answer the association request within {destination.response_timeout_s:g} s"
    else:
        said = "aborted or closed the connection instead of answering the association request"
    return UnreachableError(f"{address_of(destination)} {said}")


def _rejection(answer: A_ASSOCIATE, destination: Destination, calling: str) -> AnatomyNodeError:
    """PS3.8 9.3.4: a rejection in words."""
    numbers = (answer.result, answer.result_source, answer.diagnostic)
    permanent, words = _REJECTIONS.get(
        (answer.result_source or 0, answer.diagnostic or 0), (False, "gave a reason that no standard knows")
    )
    reason = (
        f"{address_of(destination)} rejected the association (result, source, reason "
        f"{'/'.join(str(number) for number in numbers)}): it "
        + words.format(calling=calling, called=destination.ae_title)
    )
    return AssociationRefusedError(reason) if permanent and answer.result == 1 else UnreachableError(reason)


def _why_no_connection(destination: Destination, elapsed_s: float) -> UnreachableError:
    """Word a failed connection. pynetdicom only logs the cause, so a quick failure is asked for once more."""
    where = address_of(destination)
    if elapsed_s >= destination.connect_timeout_s:
        return UnreachableError(
            f"{where} did not take the connection within {destination.connect_timeout_s:g} s"
        )
    tls = _tls(destination)
    try:
        with socket.create_connection(
            (destination.host, destination.port), destination.connect_timeout_s
        ) as raw:
            if tls is not None:
                tls[0].wrap_socket(raw, server_hostname=tls[1]).close()
    except ssl.SSLCertVerificationError as problem:
        return UnreachableError(f"{where} shows a certificate that is not trusted: {problem.verify_message}")
    except ssl.SSLError as problem:
        return UnreachableError(f"{where} and this node found no TLS in common: {problem.reason}")
    except OSError as problem:
        return UnreachableError(f"{where} does not take connections: {problem.strerror or problem}")
    return UnreachableError(f"{where} closed the connection at once")


def _find(peer: Association, level: str, study: str, series: str) -> list[Dataset] | None:
    """All matches of a C-FIND, or None where it did not end with success."""
    query = Dataset()
    query.QueryRetrieveLevel = level
    query.StudyInstanceUID = study
    query.SeriesInstanceUID = series
    if level == "SERIES":
        query.NumberOfSeriesRelatedInstances = None
    else:
        query.SOPInstanceUID = ""
    matches: list[Dataset] = []
    for answer, identifier in peer.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
        status = status_of(answer)
        if status in PENDING and identifier is not None:
            matches.append(identifier)
        elif status == SUCCESS:
            return matches
        elif status not in PENDING:
            return None
    return None


def status_of(answer: Dataset) -> int | None:
    """The status, or None: pynetdicom returns an empty data set for no, a late or an invalid answer."""
    return int(answer.Status) if "Status" in answer else None


def _no_context(identity: FileIdentity) -> str:
    return (
        f"the peer accepts no {_named(identity.sop_class_uid)} in "
        f"{_named(identity.transfer_syntax_uid)}; enable it there, then retry"
    )


def _named(uid: str) -> str:
    """A UID's name in the standard's dictionary, or itself."""
    return UID(uid).name


def address_of(destination: Destination) -> str:
    """The destination in words."""
    return f"{destination.ae_title} at {destination.host}:{destination.port}"
