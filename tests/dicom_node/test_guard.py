"""What rude, slow and hostile peers cannot do to the listener, on real sockets."""

from __future__ import annotations

import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_RQ

from dicom_node.guard import LONGEST_WAIT_S, STRANGERS, _Reactor
from dicom_node.listener import Listener
from dicom_node.spool import Received, Spool
from tests import certificates
from tests.dicom_node.reception_rig import (
    CALLED,
    CALLING,
    answered_status,
    associated,
    association_request,
    configuration,
    ct_slice,
    ends,
    fragment,
    listening,
    pdu,
    raw_association,
    rows,
    serving,
    store_request,
)
from tests.tools import needs, run, wait_until


def connect(reception: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", reception.port), timeout=10)


def still_serves(reception: Listener) -> bool:
    with associated(reception.port) as association:
        return bool(association.send_c_store(ct_slice()).Status == 0x0000)


@contextmanager
def visited(folder: Path, **limits: Any) -> Iterator[tuple[Listener, socket.socket]]:
    """A listener with `limits`, and an association with it on a plain socket."""
    with listening(configuration(folder, **limits)) as reception, raw_association(reception.port) as peer:
        yield reception, peer


def is_cut(peer: socket.socket, pieces: Iterable[bytes], pause_s: float = 0.0) -> bool:
    """Whether the listener ends the connection while `pieces` are sent, or soon after."""
    with suppress(OSError):
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(pause_s)
    return ends(peer, 5)


def dropped(reception: Listener, reason: str) -> int:
    return reception.figures.snapshot().connections_dropped.get(reason, 0)


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the spool take so long for each instance."""
    write = Spool.write

    def slowly(spool: Spool, received: Received) -> str:
        time.sleep(seconds)
        return write(spool, received)

    monkeypatch.setattr(Spool, "write", slowly)


def is_steady(growing: list[int]) -> bool:
    """Whether nothing is added within half a second."""
    before = len(growing)
    time.sleep(0.5)
    return len(growing) == before


def test_a_peer_that_never_speaks_is_sent_away(tmp_path: Path) -> None:
    with listening(configuration(tmp_path, pdu_timeout_s=0.3)) as reception, connect(reception) as peer:
        assert ends(peer, 5)
        assert dropped(reception, "silent") == 1


@pytest.mark.parametrize("sent", [1, 6, 40])
def test_half_an_association_request_ends_at_the_deadline(tmp_path: Path, sent: int) -> None:
    with listening(configuration(tmp_path, pdu_timeout_s=0.3)) as reception, connect(reception) as peer:
        peer.sendall(association_request()[:sent])
        assert ends(peer, 5)
        assert dropped(reception, "pdu_too_slow") == 1
        assert still_serves(reception)


def test_half_a_pdu_ends_at_the_deadline_however_slowly_it_drips(tmp_path: Path) -> None:
    with visited(tmp_path, pdu_timeout_s=0.5) as (reception, peer):
        assert is_cut(peer, (bytes([one]) for one in pdu(4, bytes(100))), pause_s=0.1)
        assert dropped(reception, "pdu_too_slow") == 1
        wait_until(lambda: rows(configuration(tmp_path), "SELECT outcome FROM associations") == [("lost",)])


@pytest.mark.parametrize("is_associated", [False, True])
def test_a_header_that_claims_4_gib_is_refused_at_once(tmp_path: Path, is_associated: bool) -> None:
    with listening(configuration(tmp_path)) as reception:
        with raw_association(reception.port) if is_associated else connect(reception) as peer:
            peer.sendall(struct.pack(">BBL", 4 if is_associated else 1, 0, 0xFFFFFFFF) + bytes(100))
            assert ends(peer, 5)
        assert dropped(reception, "pdu_too_long") == 1
        assert still_serves(reception)


def test_endless_fragments_end_at_the_message_cap(tmp_path: Path) -> None:
    with visited(tmp_path, max_instance_mib=1) as (reception, peer):
        assert is_cut(peer, [fragment(bytes(16_000), control=0)] * 200)
        assert dropped(reception, "message_too_long") == 1
        assert still_serves(reception)


def test_whole_small_pdus_that_trickle_end_at_the_message_deadline(tmp_path: Path) -> None:
    limits = {"idle_timeout_s": 20, "pdu_timeout_s": 20, "message_timeout_s": 0.5}
    with visited(tmp_path, **limits) as (reception, peer):
        assert is_cut(peer, [fragment(b"\0\0", control=0)] * 50, pause_s=0.1)
        assert dropped(reception, "message_too_slow") == 1
        assert still_serves(reception)


def test_a_message_deadline_counts_neither_our_own_time_nor_pauses_between_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, 1)
    with visited(tmp_path, message_timeout_s=0.8, max_outstanding_requests=1) as (_, peer):
        for number in range(3):  # the last one must wait amid its PDUs until there is a place for it
            for piece in store_request(ct_slice(number, pixels=bytes(200_000))):
                peer.sendall(piece)
        assert [answered_status(peer) for _ in range(3)] == [0x0000] * 3
        time.sleep(1)
        peer.sendall(b"".join(store_request(ct_slice(4))))
        assert answered_status(peer) == 0x0000


def test_requests_ahead_of_their_answers_stay_in_the_peers_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, allowed = 120, 4
    gate, write = threading.Event(), Spool.write

    def behind_the_gate(spool: Spool, received: Received) -> str:
        if received.series_instance_uid == "2.25.8":
            gate.wait(30)
        return write(spool, received)

    monkeypatch.setattr(Spool, "write", behind_the_gate)
    pixels = bytes(1 << 19)
    requests = [b"".join(store_request(ct_slice(number, "2.25.8", pixels))) for number in range(count)]
    sent: list[int] = []

    def push(peer: socket.socket) -> None:
        for request in requests:
            peer.sendall(request)
            sent.append(len(request))

    config = configuration(tmp_path, max_outstanding_requests=allowed)
    with listening(config) as reception, raw_association(reception.port) as peer:
        # Small and fixed, or the kernel's own buffers, which grow on loopback, would hide the effect.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        peer.settimeout(60)
        pushing = threading.Thread(target=push, args=(peer,), daemon=True)
        pushing.start()
        wait_until(lambda: len(sent) > allowed and is_steady(sent), what="that the peer is held back")
        with associated(reception.port) as association:
            statuses = [association.send_c_store(ct_slice(number)).Status for number in range(5)]
        assert statuses == [0x0000] * 5
        assert len(sent) < count // 3  # one handled, `allowed` waiting, the rest in the kernel's buffers
        gate.set()
        assert [answered_status(peer) for _ in range(count)] == [0x0000] * count
        pushing.join(10)
    assert rows(config, "SELECT count(*) FROM instances") == [(count + 5,)]


def test_an_idle_association_is_closed(tmp_path: Path) -> None:
    with visited(tmp_path, idle_timeout_s=0.3) as (reception, peer):
        assert ends(peer, 5)
        assert still_serves(reception)


def test_a_handler_slower_than_every_timeout_cuts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, 1)
    with visited(tmp_path, idle_timeout_s=0.3, pdu_timeout_s=0.3) as (_, peer):
        for number in (1, 2):
            peer.sendall(b"".join(store_request(ct_slice(number))))
        assert [answered_status(peer), answered_status(peer)] == [0x0000, 0x0000]


def test_a_slow_sender_whose_pauses_stay_below_the_limits_is_served(tmp_path: Path) -> None:
    with visited(tmp_path, idle_timeout_s=1.5, pdu_timeout_s=1.5) as (_, peer):
        for piece in store_request(ct_slice(pixels=bytes(40_000))):
            for part in (piece[:3], piece[3:500], piece[500:]):
                peer.sendall(part)
                time.sleep(0.2)
        assert answered_status(peer) == 0x0000


@pytest.mark.parametrize("cut", [3, 100])
def test_a_listener_that_could_not_run_for_longer_than_its_limits_cuts_nobody(
    tmp_path: Path, cut: int
) -> None:
    config = configuration(tmp_path / "node", idle_timeout_s=0.5, pdu_timeout_s=0.5)
    message = b"".join(store_request(ct_slice()))
    with serving(config, tmp_path / "log") as process, raw_association(config.listener.port) as peer:
        for number in range(3):
            peer.sendall(message[:cut])
            time.sleep(0.1)
            process.send_signal(signal.SIGSTOP)
            try:
                peer.sendall(message[cut:])
                time.sleep(1)
            finally:
                process.send_signal(signal.SIGCONT)
            assert answered_status(peer) == 0x0000, number


def test_idle_associations_are_looked_at_some_twenty_times_a_second_and_not_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look(reactor: Any) -> bool:
        looks.append(reactor)
        return original(reactor)

    original = _Reactor.idle_timer_expired
    monkeypatch.setattr(_Reactor, "idle_timer_expired", look)
    with listening(configuration(tmp_path)) as reception, ExitStack() as peers:
        for _ in range(8):
            peers.enter_context(raw_association(reception.port))
        looks.clear()
        time.sleep(1)
        seen = len(looks)
    # A slow machine looks less often, never more.
    assert 0 < seen <= 8 * 2 / LONGEST_WAIT_S


def test_one_address_gets_no_more_than_its_associations_and_is_told_so(tmp_path: Path) -> None:
    with visited(tmp_path, max_associations_per_address=1) as (reception, first):
        with connect(reception) as second:
            second.sendall(association_request())
            # A-ASSOCIATE-RJ: transient, presentation, local limit exceeded (PS3.8 9.3.4)
            assert second.recv(100) == b"\x03\0\0\0\0\x04\0\x02\x03\x02"
        first.close()
        wait_until(lambda: reception.figures.snapshot().associations_open == 0)
        assert still_serves(reception)


def test_strangers_in_any_number_take_no_place_of_a_known_peer(tmp_path: Path) -> None:
    with listening(configuration(tmp_path)) as reception, ExitStack() as strangers:
        for number in range(100):
            stranger = socket.create_connection(
                ("127.0.0.1", reception.port), 10, (f"127.0.2.{number + 1}", 0)
            )
            strangers.enter_context(stranger)
        wait_until(lambda: dropped(reception, "connections") == 100 - STRANGERS)
        assert still_serves(reception)


@pytest.mark.parametrize("first", [pdu(4, bytes(10)), pdu(1, association_request()[6:60]), pdu(9, b"")])
def test_what_begins_with_no_association_request_breaks_no_thread(tmp_path: Path, first: bytes) -> None:
    with listening(configuration(tmp_path)) as reception:  # pytest fails on a thread that breaks
        with connect(reception) as peer:
            peer.sendall(first)
            peer.shutdown(socket.SHUT_WR)
            assert ends(peer, 10)
        assert still_serves(reception)


def test_a_request_that_is_decoded_only_after_its_deadline_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    understand = A_ASSOCIATE_RQ.to_primitive

    def slowly(request: A_ASSOCIATE_RQ) -> Any:
        time.sleep(0.6)
        return understand(request)

    with listening(configuration(tmp_path, pdu_timeout_s=0.3)) as reception, connect(reception) as peer:
        monkeypatch.setattr(A_ASSOCIATE_RQ, "to_primitive", slowly)
        peer.sendall(association_request())
        assert ends(peer, 5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=60)), min_size=1, max_size=4))
def test_noise_after_the_handshake_hurts_nobody_else(
    reception: Listener, noise: list[tuple[int, bytes]]
) -> None:
    with raw_association(reception.port) as peer:
        with suppress(OSError):
            peer.sendall(b"".join(pdu(kind, body) for kind, body in noise))
            peer.shutdown(socket.SHUT_WR)
        assert ends(peer, 10)
    wait_until(lambda: reception.figures.snapshot().associations_open == 0)


def test_stopping_leaves_no_thread_and_no_port(tmp_path: Path) -> None:
    before = threading.active_count()
    with listening(configuration(tmp_path)) as reception:
        port = reception.port
        with raw_association(port):
            started = time.monotonic()
            reception.stop(drain_s=0.2)
        assert time.monotonic() - started < 5
    wait_until(lambda: threading.active_count() == before, what="the end of every thread")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@needs("echoscu")
def test_tls_wants_a_certificate_and_a_silent_handshake_holds_up_nobody(tmp_path: Path) -> None:
    tls = certificates.make(tmp_path / "tls")
    config = configuration(tmp_path / "node", tls=tls, pdu_timeout_s=5)
    with listening(config) as reception, connect(reception) as silent:
        silent.sendall(b"\x16")  # the beginning of a handshake
        echo = ["echoscu", "-aet", CALLING, "-aec", CALLED]
        keys = ["+tls", tls.key, tls.certificate, "+cf", tls.ca, "-ic"]
        started = time.monotonic()
        done = run([*echo, *keys, "127.0.0.1", str(reception.port)])
        assert done.returncode == 0, done.stdout
        assert time.monotonic() - started < 4
        refused = run([*echo, "+tla", "-ic", "127.0.0.1", str(reception.port)])
        assert refused.returncode != 0
        wait_until(lambda: dropped(reception, "tls") >= 1)


def test_tls_1_1_is_not_spoken(tmp_path: Path) -> None:
    tls = certificates.make(tmp_path / "tls")
    with listening(configuration(tmp_path / "node", tls=tls)) as reception, connect(reception) as peer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(peer)


@pytest.fixture(scope="module")
def reception(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with listening(configuration(tmp_path_factory.mktemp("node"))) as running:
        yield running
