"""A pynetdicom server that a rude, slow or hostile peer can neither stop nor fill.

Owns the limits on connections, PDUs and messages, the TLS handshake, and the refusal of associations.
Speaks pynetdicom's server and request handler (PS3.8 9.3); who may come in is a `Gatekeeper`'s to say.
Never decodes a data set, and never lets one peer hold up another.
"""

from __future__ import annotations

import queue
import select
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

from pynetdicom import _handlers, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ABORT, A_ASSOCIATE, A_P_ABORT
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicom_node import logs
from dicom_node.config import Listener as ListenerConfig
from dicom_node.intake import AssociationEnd
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.tls import ServerTls

PDU_HEADER_BYTES = 6
ASSOCIATION_REQUEST_BYTES = 131_072
"""A request with all 128 presentation contexts of 16 transfer syntaxes each stays below this."""
WAITING_CONNECTIONS = 64
WAITING_CONNECTIONS_PER_ADDRESS = 24
"""Connections beside the associations, such as those on their way to be refused on the wire."""
STRANGERS = 24
STRANGERS_PER_ADDRESS = 8
"""Connections from addresses that no known peer has: places of their own, so that they take no other's."""
LONGEST_WAIT_S = 0.05
"""How long a reactor may sleep; its bell wakes it before that when there is something to do."""
_TALK = (
    (evt.EVT_DIMSE_RECV, _handlers.standard_dimse_recv_handler),
    (evt.EVT_DIMSE_SENT, _handlers.standard_dimse_sent_handler),
    (evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler),
)
"""What pynetdicom would say of each PDU: it prints data sets, and breaks on PDUs that are none."""
A_P_ABORT_INVALID_PARAMETER = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"
"""A-ABORT by the service provider, reason 6: invalid PDU parameter value (PS3.8 9.3.8)."""


@dataclass(frozen=True)
class Limits:
    """How much of the listener one peer, and all of them, may take."""

    associations: int
    associations_per_address: int
    idle_s: float
    pdu_s: float
    message_s: float
    pdu_bytes: int
    message_bytes: int
    outstanding_requests: int

    @classmethod
    def of(cls, listener: ListenerConfig) -> Limits:
        """The limits in the configuration."""
        return cls(
            associations=listener.max_associations,
            associations_per_address=listener.max_associations_per_address,
            idle_s=listener.idle_timeout_s,
            pdu_s=listener.pdu_timeout_s,
            message_s=listener.message_timeout_s,
            pdu_bytes=listener.max_pdu_bytes,
            message_bytes=listener.max_instance_mib << 20,
            outstanding_requests=listener.max_outstanding_requests,
        )


@dataclass(frozen=True)
class Refusal:
    """Why an association is rejected: the A-ASSOCIATE-RJ's fields (PS3.8 9.3.4) and a bounded word."""

    result: int
    source: int
    diagnostic: int
    reason: str


CALLED_AE_TITLE = Refusal(1, 1, 7, "called_ae_title")
CALLING_AE_TITLE = Refusal(1, 1, 3, "calling_ae_title")
PEER_ADDRESS = Refusal(1, 1, 3, "peer_address")
"""The title is known, but not from this address: to the peer the same as an unknown title."""
CONGESTION = Refusal(2, 3, 1, "congestion")
LOCAL_LIMIT = Refusal(2, 3, 2, "local_limit")


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ and its connection say about the peer."""

    calling_ae_title: str
    called_ae_title: str
    peer_address: str


class Gatekeeper(Protocol):
    """Who may come in, and who wants to know when an association begins and ends."""

    def knows(self, address: str) -> bool:
        """Whether somebody who may come in has this address; asked in the accept loop, so never slow."""

    def admit(self, request: AssociationRequest) -> Refusal | None:
        """Why the peer is refused, or None."""

    def opened(self, association: Any, request: AssociationRequest) -> None:
        """The association will be accepted; an exception refuses it for now instead."""

    def ended(self, association: Any, end: AssociationEnd) -> None:
        """The association has ended, however it did; called once for each that was `opened`."""


class Places:
    """A number of places, of which each address may hold only so many."""

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, address: str) -> bool:
        """Take a place; False when there is none."""
        with self._lock:
            if self._held.total() >= self._total or self._held[address] >= self._per_address:
                return False
            self._held[address] += 1
            return True

    def leave(self, address: str) -> None:
        """Give a place back."""
        with self._lock:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]

    @property
    def held(self) -> int:
        """How many places are taken."""
        with self._lock:
            return self._held.total()


class GuardedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Accepts connections and does nothing else in the accept loop.

    pynetdicom does the TLS handshake there, so that one silent peer stops everybody; here a
    connection's own thread does it.

    Attributes:
        came_around_at: monotonic seconds at which the accept loop last came around.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        *arguments: Any,
        tls: ServerTls | None,
        limits: Limits,
        gatekeeper: Gatekeeper,
        figures: ReceptionFigures,
        **keywords: Any,
    ) -> None:
        self.tls = tls
        self.limits = limits
        self.gatekeeper = gatekeeper
        self.figures = figures
        self.log = logs.get(__name__)
        self.associations = Places(limits.associations, limits.associations_per_address)
        self._connections = Places(
            limits.associations + WAITING_CONNECTIONS,
            limits.associations_per_address + WAITING_CONNECTIONS_PER_ADDRESS,
        )
        self._strangers = Places(STRANGERS, STRANGERS_PER_ADDRESS)
        self._sockets: set[socket.socket] = set()
        self.came_around_at = time.monotonic()
        super().__init__(*arguments, request_handler=_Connection, **keywords)

    def _bind_defaults(self) -> None:
        """Bind pynetdicom's default answers, but not its per-PDU logging, which prints data sets."""
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def service_actions(self) -> None:
        """What socketserver calls each time the accept loop comes around."""
        super().service_actions()
        self.came_around_at = time.monotonic()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, without the TLS handshake."""
        connection, address = self.socket.accept()
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, if there is a place for it."""
        address = client_address[0]
        if not self._places(address).enter(address):
            self.dropped("connections", address)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places(address).leave(address)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end, in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places(client_address[0]).leave(client_address[0])

    def _places(self, address: str) -> Places:
        """Where a connection from this address is counted."""
        return self._connections if self.gatekeeper.knows(address) else self._strangers

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what broke a connection's thread instead of printing it."""
        self.log.exception("connection_failed", peer_address=client_address[0])

    def dropped(self, reason: str, peer_address: str) -> None:
        """Count and log a connection that the guard ended."""
        self.figures.connection_dropped(reason)
        self.log.warning("connection_dropped", reason=reason, peer_address=peer_address)

    @contextmanager
    def tracking(self, connection: socket.socket) -> Iterator[None]:
        """Know a connection as long as the block runs, so that `drain` can end it; then close it."""
        self._sockets.add(connection)
        try:
            yield
        finally:
            self._sockets.discard(connection)
            with suppress(OSError):
                connection.close()

    def stop_accepting(self) -> None:
        """End the accept loop and close the listening socket; open associations go on."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()

    def drain(self, limit_s: float) -> int:
        """Wait for the open associations, then break the rest; how many were broken."""
        deadline = time.monotonic() + limit_s
        while self.associations.held and time.monotonic() < deadline:
            time.sleep(0.02)
        broken = self.associations.held
        for connection in [*self._sockets]:
            # socket.socket's own shutdown: SSLSocket's would pull the TLS state from under its reader.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        deadline = time.monotonic() + 2 * LONGEST_WAIT_S + 5
        while self._connections.held + self._strangers.held and time.monotonic() < deadline:
            time.sleep(0.01)
        return broken


class _Connection(RequestHandler):  # type: ignore[misc]
    """One connection from its first byte to its last, in a thread of its own."""

    server: GuardedServer
    request: Any

    def handle(self) -> None:
        """Handshake, wait for the peer's first word, run the association, and see it to its end."""
        peer_address = self.client_address[0]
        with self.server.tracking(self.request):
            _tune(self.request)
            if not self._secured():
                self.server.dropped("tls", peer_address)
            elif not self._peer_speaks():
                self.server.dropped("silent", peer_address)
            else:
                with self.server.tracking(self.request):
                    self._serve()

    def _secured(self) -> bool:
        """Do the TLS handshake, if there is to be one, within the time of a PDU."""
        if self.server.tls is None:
            return True
        context = self.server.tls.context()
        self.request.settimeout(self.server.limits.pdu_s)
        try:
            self.request = context.wrap_socket(self.request, server_side=True)
        except OSError:
            return False
        return True

    def _peer_speaks(self) -> bool:
        """Wait for the first byte here, where a silent peer costs one sleeping thread."""
        return _readable(self.request, None, self.server.limits.pdu_s)

    def _serve(self) -> None:
        """Run pynetdicom's association; whatever ends it, its end is told once."""
        association = self._create_association()
        visit = _Visit(self.server, association)
        association.bind(evt.EVT_REQUESTED, visit.requested)
        association.bind(evt.EVT_ACSE_RECV, visit.heard)
        association.bind(evt.EVT_RELEASED, visit.released)
        try:
            association.start()
            association.join()
            association.dul.kill_dul()
            association.dul.join()
        finally:
            visit.over()

    def _create_association(self) -> Association:
        """An association with guarded parts in place of pynetdicom's own."""
        limits = self.server.limits
        association = super()._create_association()
        for event, tell in _TALK:
            association.unbind(event, tell)
        association.dimse = _Messages(association, limits)
        association.dul = _Reactor(association)
        association.dul.socket = _GuardedSocket(association, self.request, self.server)
        association.acse_timeout = limits.pdu_s
        association.dimse_timeout = limits.idle_s
        association.network_timeout = limits.idle_s
        return association


class _Visit:
    """One association between the request to come in and the end, told to the gatekeeper."""

    def __init__(self, server: GuardedServer, association: Association) -> None:
        self._server = server
        self._association = association
        self._address = association.requestor.address_info.address
        self._is_in = False
        self._end = AssociationEnd.LOST

    def requested(self, event: evt.Event) -> None:
        """Let the peer in or refuse it on the wire (PS3.8 9.3.4)."""
        asked = event.assoc.requestor.primitive
        request = AssociationRequest(
            str(asked.calling_ae_title).strip(), str(asked.called_ae_title).strip(), self._address
        )
        refusal = self._server.gatekeeper.admit(request) or self._enter(request)
        if refusal is None:
            self._server.figures.association_accepted()
            return
        self._server.figures.association_refused(refusal.reason)
        self._server.log.warning("association_refused", reason=refusal.reason, peer_address=self._address)
        event.assoc.acse.send_reject(refusal.result, refusal.source, refusal.diagnostic)
        # Returns once the rejection is on the wire; without it the socket may be closed before.
        event.assoc.kill()

    def _enter(self, request: AssociationRequest) -> Refusal | None:
        if not self._server.associations.enter(self._address):
            return LOCAL_LIMIT
        try:
            self._server.gatekeeper.opened(self._association, request)
        except Exception:
            self._server.associations.leave(self._address)
            self._server.log.exception("association_not_opened", peer_address=self._address)
            return CONGESTION
        self._is_in = True
        return None

    def heard(self, event: evt.Event) -> None:
        """Tell a peer that breaks off (A-ABORT) from a connection that breaks (A-P-ABORT)."""
        if isinstance(event.primitive, A_ABORT):
            self._end = AssociationEnd.ABORTED

    def released(self, _event: evt.Event) -> None:
        """Tell the release at once: the evidence that a series is complete waits for it."""
        self._end = AssociationEnd.RELEASED
        self.over()

    def over(self) -> None:
        """Tell the end, once."""
        if not self._is_in:
            return
        self._is_in = False
        try:
            self._server.gatekeeper.ended(self._association, self._end)
        except Exception:
            self._server.log.exception("association_end_not_noted", peer_address=self._address)
        finally:
            self._server.associations.leave(self._address)
            self._server.figures.association_ended()


class _Bell:
    """Wakes a thread that waits for a socket.

    A socket pair and not an event descriptor: after its end, ringing a closed socket object is an error
    that is known, while a closed descriptor's number may belong to a file by then.
    """

    def __init__(self) -> None:
        self.ear, self._hand = socket.socketpair()
        self.ear.setblocking(False)
        self._hand.setblocking(False)

    def ring(self) -> None:
        with suppress(OSError):
            self._hand.send(b"\0")

    def quiet(self) -> None:
        with suppress(OSError):
            self.ear.recv(4096)

    def close(self) -> None:
        self.ear.close()
        self._hand.close()


class _RingingQueue(queue.Queue):  # type: ignore[type-arg]
    """A queue that says when something was put into it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class _MessageQueue(queue.Queue):  # type: ignore[type-arg]
    """Received messages that wait for their turn, and how many bytes of data sets they hold."""

    data_bytes = 0

    def _put(self, item: Any) -> None:
        super()._put(item)
        self.data_bytes += _data_bytes(item)

    def _get(self) -> Any:
        item = super()._get()
        self.data_bytes -= _data_bytes(item)
        return item


def _data_bytes(item: tuple[Any, Any]) -> int:
    """Of the data set, whatever the message calls it (DataSet, EventInformation, ...)."""
    parts = vars(item[1]).values() if item[1] is not None else ()
    return sum(part.getbuffer().nbytes for part in parts if isinstance(part, BytesIO))


class _Stopwatch(Timer):  # type: ignore[misc]
    """pynetdicom's timer by a clock that nobody sets; once stopped it does not expire any more."""

    _since: float | None = None

    def start(self) -> None:
        """Begin to count anew."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Count no more."""
        self._since = None

    @property
    def expired(self) -> bool:
        """Whether it runs, and has run for longer than its timeout."""
        since = self._since  # read once: another thread may stop it
        if since is None or self.timeout is None:
            return False
        return bool(time.monotonic() - since > self.timeout)


class _Reactor(DULServiceProvider):  # type: ignore[misc]
    """pynetdicom's upper layer, asleep until the peer or our own side has something to say.

    pynetdicom looks a thousand times a second: ten idle associations burn 64 % of a core.
    """

    def __init__(self, association: Association) -> None:
        super().__init__(association)
        self.bell = _Bell()
        self.to_provider_queue = _RingingQueue(self.bell.ring)
        self.to_user_queue = _RingingQueue(association.dimse.wake)
        self.has_given_up = False
        self._run_loop_delay = 0
        self._idle_timer = _Stopwatch(None)
        self.artim_timer = _Stopwatch(None)
        self.daemon = True

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """The next primitive; first an association request or nothing, or pynetdicom's thread would break.

        Without one the connection ends here: a request that is decoded a moment later would wait for an
        answer that nobody gives, and hold its place for as long as the peer likes.
        """
        primitive = super().receive_pdu(wait, timeout)
        if self.assoc.requestor.primitive is not None or isinstance(primitive, A_ASSOCIATE):
            return primitive
        self.has_given_up = True
        return None

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        """Decode a PDU, and count one that is none; pynetdicom then sends an A-ABORT."""
        try:
            return super()._decode_pdu(bytestream)
        except Exception:
            self._dropped("invalid_pdu")
            raise

    def _dropped(self, reason: str) -> None:
        self.assoc._server.dropped(reason, self.assoc.requestor.address_info.address)

    def run_reactor(self) -> None:
        """Run until the connection ends; an exception ends it too, and the association hears of it."""
        try:
            super().run_reactor()
        except Exception:
            # An event that PS3.8 Table 9-10 does not foresee, such as fuzzed PDUs can bring about.
            self._dropped("out_of_order")
            self.to_user_queue.put(_provider_abort())
        finally:
            if self.socket is not None:
                self.socket.close()
            self.bell.close()
            # Whoever still waits for a primitive, such as the association request, need not any more.
            self.to_user_queue.put(None)

    def idle_timer_expired(self) -> bool:
        """Whether the peer has been silent too long; what waits for us to read it is no silence."""
        return bool(super().idle_timer_expired()) and not (self.socket and self.socket.is_heard)

    def kill_dul(self) -> None:
        """Stop, and wake up to do so."""
        super().kill_dul()
        self.bell.ring()


class _Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """pynetdicom's message layer, with a bound on the message under way and on those that wait."""

    message: Any
    """The one under way; None between two."""

    def __init__(self, association: Association, limits: Limits) -> None:
        super().__init__(association)
        self._limits = limits
        self._arriving_bytes = 0
        self._waited_before_s = 0.0
        self.msg_queue = _MessageQueue()

    @property
    def is_full(self) -> bool:
        """Whether the peer must wait: TCP's own flow control then holds it back."""
        return (
            self.msg_queue.qsize() >= self._limits.outstanding_requests
            or self.msg_queue.data_bytes >= self._limits.message_bytes
        )

    def wake(self) -> None:
        """Let `get_msg` return, so that the association looks at what else there is."""
        self.msg_queue.put((None, None))

    def receive_primitive(self, primitive: Any) -> None:
        """Take a fragment; a message beyond the limits, or one that is none, ends the association."""
        waited_s = self.dul.socket.waited_s
        if self.message is None:
            self._waited_before_s = waited_s
        elif waited_s - self._waited_before_s > self._limits.message_s:
            self._give_up("message_too_slow")
            return
        self._arriving_bytes += sum(len(data) for _, data in primitive.presentation_data_value_list)
        if self._arriving_bytes > self._limits.message_bytes:
            self._give_up("message_too_long")
            return
        try:
            super().receive_primitive(primitive)
        except Exception:
            self._give_up("invalid_message")
            return
        if self.message is None:
            self._arriving_bytes = 0

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Answer; the peer's idle time begins now, not before a handler that took its time."""
        self.dul._idle_timer.restart()
        super().send_msg(primitive, context_id)

    def _give_up(self, reason: str) -> None:
        """Drop what has arrived and have the state machine send an A-ABORT (PS3.8 Evt19)."""
        self.message = None
        self._arriving_bytes = 0
        self.assoc._server.dropped(reason, self.assoc.requestor.address_info.address)
        self.dul.event_queue.put("Evt19")

    def get_msg(self, block: bool = False) -> Any:
        """The next message, asleep until there is one or the association has something else to do."""
        try:
            return self.msg_queue.get(timeout=self.dimse_timeout if block else LONGEST_WAIT_S)
        except queue.Empty:
            return None, None


class _GuardedSocket(AssociationSocket):  # type: ignore[misc]
    """pynetdicom's socket, with a cap on a PDU's length and a deadline for all of it.

    Attributes:
        waited_s: how long the peer has kept us waiting so far; what we ourselves took is not in it.
    """

    def __init__(self, association: Association, connection: socket.socket, server: GuardedServer) -> None:
        super().__init__(association, client_socket=connection)
        self._server = server
        self.waited_s = 0.0
        self._is_reading = False
        self._deadline = 0.0

    @property
    def is_heard(self) -> bool:
        """Whether a PDU is arriving, or one waits that this machine was too busy to read."""
        connection = self.socket
        if self._is_reading or connection is None:
            return self._is_reading
        poll = select.poll()
        try:
            # Not `_readable`: another thread than the reader's may not ask the TLS layer.
            poll.register(connection, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return False  # closed a moment ago

    @property
    def ready(self) -> bool:
        """Whether there is something to read; sleeps until there is, or until the reactor's bell."""
        if self.socket is None or not self._is_connected:
            time.sleep(0.001)
            return False
        if self.assoc.dul.has_given_up:
            self.event_queue.put("Evt17")  # as if the peer had hung up: foreseen in every state
            return False
        if self.assoc.dimse.is_full:
            time.sleep(0.001)
            return False
        wait_s = LONGEST_WAIT_S if self.event_queue.empty() else 0.0
        began = time.monotonic()
        try:
            return _readable(self.socket, self.assoc.dul.bell, wait_s)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False
        finally:
            # No more than what was meant to be slept: what lies beyond is this machine's own lateness.
            self.waited_s += min(time.monotonic() - began, wait_s)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read a PDU's header or body, all of it or to the end of the connection.

        Raises:
            OSError: the PDU is too long or too slow; pynetdicom then closes the connection.
        """
        assert self.socket is not None
        if not self._is_reading:
            self._is_reading = True
            self._deadline = time.monotonic() + self._server.limits.pdu_s
            _acknowledge_at_once(self.socket)
            header = self._read(PDU_HEADER_BYTES)
            self._check_length(header)
            return header
        body = self._read(nr_bytes)
        self._is_reading = False
        return body

    def _check_length(self, header: bytearray) -> None:
        length = int.from_bytes(header[2:], "big")
        limits = self._server.limits
        longest = limits.pdu_bytes if self.assoc.is_established else ASSOCIATION_REQUEST_BYTES
        if length > longest:
            self._server.dropped("pdu_too_long", self.assoc.requestor.address_info.address)
            self.send(A_P_ABORT_INVALID_PARAMETER)
            raise OSError(f"a PDU of {length} bytes; at most {longest} were agreed")

    def _read(self, size: int) -> bytearray:
        """`size` bytes before the deadline; fewer when the connection ends before.

        What is here already when the deadline passes counts: it was this machine that was late.
        """
        assert self.socket is not None
        received = bytearray(size)
        view = memoryview(received)
        done = 0
        while done < size:
            began = time.monotonic()
            wait_s = max(self._deadline - began, 0.0)
            self.socket.settimeout(wait_s)
            try:
                count = self.socket.recv_into(view[done:])
            except TimeoutError:
                continue  # and look once more, without waiting
            except (BlockingIOError, ssl.SSLWantReadError) as nothing:
                raise self._too_slow() from nothing
            finally:
                self.waited_s += min(time.monotonic() - began, wait_s)
            if not count:
                break
            done += count
        view.release()
        del received[done:]
        return received

    def _too_slow(self) -> OSError:
        self._server.dropped("pdu_too_slow", self.assoc.requestor.address_info.address)
        return TimeoutError("the PDU was not complete in time")

    def send(self, bytestream: bytes) -> None:
        """Send, within the time of a PDU."""
        if self.socket is None:
            return
        self.socket.settimeout(self._server.limits.pdu_s)
        super().send(bytestream)


def _provider_abort() -> A_P_ABORT:
    primitive = A_P_ABORT()
    primitive.provider_reason = 0x00
    return primitive


def _tune(connection: socket.socket) -> None:
    """Answers leave at once, and a peer that vanished is noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _acknowledge_at_once(connection: socket.socket) -> None:
    """Senders with Nagle's algorithm wait for our TCP acknowledgement; Linux forgets this after a while."""
    with suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _readable(connection: socket.socket, bell: _Bell | None, wait_s: float) -> bool:
    """Whether `connection` has data (or its end) to read within `wait_s`, or before `bell` rings."""
    if isinstance(connection, ssl.SSLSocket) and connection.pending():
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if bell is not None:
        poll.register(bell.ear, select.POLLIN)
    found = {descriptor for descriptor, _ in poll.poll(wait_s * 1000)}
    if bell is not None and bell.ear.fileno() in found:
        bell.quiet()
    return connection.fileno() in found
