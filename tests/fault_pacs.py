"""Archives that misbehave, each in one way, on loopback.

Owns what a real archive does on its worst day: any status, rejections, silence, aborts, dropped lines.
Speaks pynetdicom where the peer still speaks DICOM, and bare sockets where it does not.
Never is part of the product.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian, RTStructureSetStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from dicom_node import scu
from dicom_node.config import Destination, Tls
from dicom_node.store_status import StoreOutcome

STORED = 0x0000


def destination(port: int, name: str = "archive", **changes: object) -> Destination:
    """A destination on loopback with timeouts short enough for a test."""
    settings = {
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "ae_title": "ARCHIVE",
        "connect_timeout_s": 1.0,
        "response_timeout_s": 1.0,
    }
    return Destination.model_validate({**settings, **changes})


def store(target: Destination, calling: str, file: Path) -> StoreOutcome:
    """The outcome of one C-STORE, after the association's end."""
    with scu.storing(target, calling, file) as outcome:
        return outcome


def _tls_context(tls: Tls | None) -> ssl.SSLContext | None:
    """The archive's side of a connection on which both show certificates."""
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    return context


class Received:
    """What reached the archive: the SOP Instance UID and the data set's bytes of each C-STORE."""

    def __init__(self) -> None:
        self.instances: list[tuple[str, bytes]] = []

    def note(self, event: Event) -> None:
        self.instances.append(
            (str(event.request.AffectedSOPInstanceUID), event.encoded_dataset(include_meta=False))
        )


@contextmanager
def serving(
    on_store: Callable[[Event], int],
    contexts: Sequence[str] = (Verification, RTStructureSetStorage, CTImageStorage),
    on_request: Callable[[Event], None] | None = None,
    on_pdu: Callable[[Event], None] | None = None,
    tls: Tls | None = None,
    port: int = 0,
    on_action: Callable[[Event], tuple[int, None]] | None = None,
) -> Iterator[int]:
    """An archive whose answers are given by functions; yields its port."""
    entity = AE(ae_title="ARCHIVE")
    entity.maximum_pdu_size = 65_536
    for context in contexts:
        entity.add_supported_context(context, ImplicitVRLittleEndian)
    handlers = [(evt.EVT_C_STORE, on_store)]
    if on_request is not None:
        handlers.append((evt.EVT_REQUESTED, on_request))
    if on_pdu is not None:
        handlers.append((evt.EVT_PDU_RECV, on_pdu))
    if on_action is not None:
        entity.add_supported_context(StorageCommitmentPushModel)
        handlers.append((evt.EVT_N_ACTION, on_action))
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=_tls_context(tls)
    )
    try:
        yield server.server_address[1]
    finally:
        entity.shutdown()


@contextmanager
def answering(
    *statuses: int, received: Received | None = None, tls: Tls | None = None, port: int = 0
) -> Iterator[int]:
    """Answers each C-STORE with the next of `statuses`; the last one for ever."""
    left = list(statuses)

    def on_store(event: Event) -> int:
        if received is not None:
            received.note(event)
        return left.pop(0) if len(left) > 1 else left[0]

    with serving(on_store, tls=tls, port=port) as taken:
        yield taken


class CommittingArchive:
    """Stores, takes requests for a commitment, and reports when and what the test says.

    Attributes:
        stored_as: the status of the answer to each C-STORE.
        requests: the transaction UID and the SOP Instance UID of each request, in their order.
        at_once: the failures of the report that follows a request on its own association; None: no report.
        answer: the status of the answer to a request.
    """

    def __init__(self) -> None:
        self.received = Received()
        self.stored_as = STORED
        self.requests: list[tuple[str, str]] = []
        self.at_once: dict[str, int] | None = None
        self.answer = STORED
        self.answered: list[int] = []
        self._reporting: list[threading.Thread] = []

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[int]:
        """Run it; yields its port."""

        def on_store(event: Event) -> int:
            self.received.note(event)
            return self.stored_as

        with serving(on_store, on_action=self._on_action, port=port) as taken:
            yield taken
        for thread in self._reporting:
            thread.join(5)

    def _on_action(self, event: Event) -> tuple[int, None]:
        asked = event.action_information
        (item,) = asked.ReferencedSOPSequence
        request = str(asked.TransactionUID), str(item.ReferencedSOPInstanceUID)
        self.requests.append(request)
        if self.at_once is not None:
            # After the answer to the request, which this handler returns.
            said = threading.Timer(0.1, self._say, (event.assoc, request, self.at_once))
            said.start()
            self._reporting.append(said)
        return self.answer, None

    def report(
        self,
        node_port: int,
        failures: dict[str, int] | None = None,
        request: tuple[str, str] | None = None,
        calling: str = "ARCHIVE",
        called: str = "ANATOMYNODE",
    ) -> int | None:
        """Report on an association of its own; the node's answer, or None where it does not listen."""
        entity = AE(ae_title=calling)
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        peer = entity.associate("127.0.0.1", node_port, ae_title=called, ext_neg=[role])
        if not peer.is_established:
            return None
        status = self._say(peer, request or self.requests[-1], failures or {})
        peer.release()
        return status

    def _say(self, peer: Association, request: tuple[str, str], failures: dict[str, int]) -> int | None:
        transaction_uid, sop_instance_uid = request
        item = Dataset()
        item.ReferencedSOPClassUID = RTStructureSetStorage
        item.ReferencedSOPInstanceUID = sop_instance_uid
        report = Dataset()
        report.TransactionUID = transaction_uid
        if sop_instance_uid in failures:
            item.FailureReason = failures[sop_instance_uid]
            report.FailedSOPSequence = [item]
        else:
            report.ReferencedSOPSequence = [item]
        answer, _ = peer.send_n_event_report(
            report,
            2 if sop_instance_uid in failures else 1,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        status = int(answer.Status) if "Status" in answer else None
        self.answered.append(-1 if status is None else status)
        return status


@contextmanager
def rejecting(result: int, source: int, reason: int) -> Iterator[int]:
    """Rejects every association with these numbers of PS3.8 Table 9-21."""

    def on_request(event: Event) -> None:
        event.assoc.acse.send_reject(result, source, reason)
        event.assoc.is_rejected = True
        event.assoc.kill()  # returns when the rejection is on the wire and the peer has closed

    with serving(lambda event: STORED, on_request=on_request) as port:
        yield port


@contextmanager
def without_rt_structure_sets() -> Iterator[int]:
    """Associates, but knows only C-ECHO and CT images."""
    with serving(lambda event: STORED, contexts=(Verification, CTImageStorage)) as port:
        yield port


@contextmanager
def aborting(received: Received | None = None) -> Iterator[int]:
    """Takes the instance and then aborts instead of answering."""

    def on_store(event: Event) -> int:
        if received is not None:
            received.note(event)
        event.assoc.abort(block=False)
        return STORED

    with serving(on_store) as port:
        yield port


@contextmanager
def dropping(received: Received | None = None) -> Iterator[int]:
    """Takes the instance and then the line is cut."""

    def on_store(event: Event) -> int:
        if received is not None:
            received.note(event)
        event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        return STORED

    with serving(on_store) as port:
        yield port


@contextmanager
def silent_after_association() -> Iterator[int]:
    """Associates, takes the instance, and never answers."""
    end = threading.Event()

    def on_store(event: Event) -> int:
        end.wait(30)
        return STORED

    with serving(on_store) as port:
        try:
            yield port
        finally:
            end.set()


@contextmanager
def silent_while_receiving() -> Iterator[int]:
    """Associates, and stops reading with the first fragment: the sender's buffers fill up."""
    end = threading.Event()

    def on_pdu(event: Event) -> None:
        if isinstance(event.pdu, P_DATA_TF):
            end.wait(30)

    with serving(lambda event: STORED, on_pdu=on_pdu) as port:
        try:
            yield port
        finally:
            end.set()


@contextmanager
def black_hole() -> Iterator[int]:
    """A listening socket that never answers: the connection stands, and nothing comes back."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextmanager
def full_backlog() -> Iterator[int]:
    """A listening socket whose queue is full: the kernel drops each further request to connect."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@contextmanager
def closed_port() -> Iterator[int]:
    """A port where nobody listens, kept from others meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def raw(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Hands each connection to `behave` in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connections.append(connection)
                threading.Thread(target=behave, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def half_an_answer(connection: socket.socket) -> None:
    """Begins an A-ASSOCIATE-AC that it never ends (PS3.8 9.3.3: type 02, length 200)."""
    connection.recv(65_536)
    connection.sendall(b"\x02\x00\x00\x00\x00\xc8" + b"\x00\x01")


def hang_up(connection: socket.socket) -> None:
    """Closes instead of answering the association request."""
    connection.recv(65_536)
    connection.close()
