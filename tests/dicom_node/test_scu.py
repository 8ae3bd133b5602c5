"""Each way in which an archive can answer, or fail to, has its own outcome within a known time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, RTStructureSetStorage

from dicom_node import scu
from dicom_node.config import Tls
from dicom_node.store_status import StoreKind
from tests import certificates, fault_pacs
from tests.fault_pacs import destination, store
from tests.instances import SERIES, STUDY, data_set_bytes, write_instance
from tests.tools import free_port, needs, running

PATIENCE_S = 3.0
"""Timeouts of `destination` are 1 s; pynetdicom's abort adds some tenths."""


@pytest.fixture
def file(tmp_path):
    return write_instance(tmp_path / "result.dcm")


ANSWERS = {
    0x0000: StoreKind.STORED,
    0x0107: StoreKind.WARNING,
    0xB000: StoreKind.WARNING,
    0xB123: StoreKind.WARNING,
    0x0111: StoreKind.DUPLICATE,
    0xA700: StoreKind.TRANSIENT,
    0x0110: StoreKind.TRANSIENT,
    0xA900: StoreKind.REFUSED,
    0xC000: StoreKind.REFUSED,
    0x0122: StoreKind.REFUSED,
}


def test_the_status_on_the_wire_decides(file):
    with fault_pacs.answering(*ANSWERS) as port:
        outcomes = [store(destination(port), "NODE", file) for _ in ANSWERS]
    assert {outcome.status: outcome.kind for outcome in outcomes} == ANSWERS


FAULTS = {
    "an abort instead of an answer": (fault_pacs.aborting, StoreKind.TRANSIENT, "no valid answer"),
    "a line cut instead of an answer": (fault_pacs.dropping, StoreKind.TRANSIENT, "no valid answer"),
    "silence after the instance": (
        fault_pacs.silent_after_association,
        StoreKind.TRANSIENT,
        "no valid answer",
    ),
    "no RT-STRUCT context": (
        fault_pacs.without_rt_structure_sets,
        StoreKind.REFUSED,
        "accepts no RT Structure Set Storage in Implicit VR Little Endian",
    ),
    "nobody listens": (fault_pacs.closed_port, StoreKind.UNREACHABLE, "Connection refused"),
    "a connection without a word": (fault_pacs.black_hole, StoreKind.UNREACHABLE, "did not answer"),
    "connections that are never taken": (
        fault_pacs.full_backlog,
        StoreKind.UNREACHABLE,
        "did not take the connection within 1 s",
    ),
    "half an answer": (
        lambda: fault_pacs.raw(fault_pacs.half_an_answer),
        StoreKind.UNREACHABLE,
        "did not answer",
    ),
    "a closed connection": (
        lambda: fault_pacs.raw(fault_pacs.hang_up),
        StoreKind.UNREACHABLE,
        "closed the connection",
    ),
    "an unknown calling AE title": (
        lambda: fault_pacs.rejecting(1, 1, 3),
        StoreKind.REFUSED,
        "1/1/3): it does not know the calling AE title NODE",
    ),
    "an unknown called AE title": (
        lambda: fault_pacs.rejecting(1, 1, 7),
        StoreKind.REFUSED,
        "1/1/7): it is not called ARCHIVE",
    ),
    "a permanent rejection without a reason": (
        lambda: fault_pacs.rejecting(1, 1, 1),
        StoreKind.UNREACHABLE,
        "1/1/1): it gave no reason",
    ),
    "congestion": (
        lambda: fault_pacs.rejecting(2, 3, 1),
        StoreKind.UNREACHABLE,
        "2/3/1): it is congested",
    ),
    "too many associations": (
        lambda: fault_pacs.rejecting(2, 3, 2),
        StoreKind.UNREACHABLE,
        "too many associations",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_outcome_and_its_words_within_the_timeouts(file, fault):
    archive, kind, words = FAULTS[fault]
    with archive() as port:
        started = time.monotonic()
        outcome = store(destination(port), "NODE", file)
        took_s = time.monotonic() - started
    assert (outcome.kind, outcome.status) == (kind, None)
    assert words in outcome.reason
    assert took_s < PATIENCE_S


def test_an_archive_that_stops_reading_does_not_hold_the_sender_for_ever(tmp_path):
    large = write_instance(tmp_path / "large.dcm", payload=bytes(30_000_000))
    with fault_pacs.silent_while_receiving() as port:
        started = time.monotonic()
        outcome = store(destination(port), "NODE", large)
    assert outcome.kind is StoreKind.TRANSIENT
    assert time.monotonic() - started < PATIENCE_S


def test_a_host_name_that_nobody_knows_is_said_so(file):
    outcome = store(destination(104, host="archive.invalid"), "NODE", file)
    assert outcome.kind is StoreKind.UNREACHABLE
    assert "archive.invalid cannot be resolved" in outcome.reason


def test_the_outcome_is_known_before_the_association_is_released(file):
    seen = []
    with fault_pacs.serving(
        lambda event: 0x0000, on_pdu=lambda event: seen.append(type(event.pdu).__name__)
    ) as port:
        with scu.storing(destination(port), "NODE", file) as outcome:
            assert outcome.kind is StoreKind.STORED
            assert "A_RELEASE_RQ" not in seen
        assert seen[-1] == "A_RELEASE_RQ"


@given(garbage=st.binary(max_size=400))
def test_a_file_that_is_no_dicom_is_refused_without_a_call(tmp_path_factory, garbage):
    file = tmp_path_factory.getbasetemp() / "garbage.dcm"
    file.write_bytes(bytes(128) + b"DICM" + garbage)
    with pytest.raises(scu.NotDicomError):
        scu.identify(file)
    assert store(destination(1), "NODE", file).kind is StoreKind.REFUSED


def test_a_storage_class_that_a_peer_does_not_take_is_told_before_anything_is_sent():
    with fault_pacs.without_rt_structure_sets() as port:
        assert scu.accepts(destination(port), "NODE", CTImageStorage) is None
        with pytest.raises(scu.AssociationRefusedError, match="accepts no RT Structure Set Storage"):
            scu.accepts(destination(port), "NODE", RTStructureSetStorage)


def test_echo_returns_or_says_what_is_wrong():
    with fault_pacs.answering(0x0000) as port:
        assert scu.echo(destination(port), "NODE") is None
    with fault_pacs.rejecting(1, 1, 3) as port, pytest.raises(scu.AssociationRefusedError):
        scu.echo(destination(port), "NODE")
    with fault_pacs.closed_port() as port, pytest.raises(scu.UnreachableError):
        scu.echo(destination(port), "NODE")


def test_an_archive_that_cannot_be_asked_gives_no_count():
    with fault_pacs.answering(0x0000) as port:  # it knows no C-FIND
        assert scu.count_instances(destination(port), "NODE", STUDY, SERIES) is None
    with fault_pacs.closed_port() as port:
        assert scu.count_instances(destination(port), "NODE", STUDY, SERIES) is None


def test_tls_needs_a_certificate_of_our_ca_on_both_sides(tmp_path, file):
    ours = certificates.make(tmp_path / "ours")
    theirs = certificates.make(tmp_path / "theirs")
    received = fault_pacs.Received()
    with fault_pacs.answering(0x0000, received=received, tls=ours) as port:
        trusted = store(destination(port, tls=ours), "NODE", file)
        strange_ca = Tls(certificate=ours.certificate, key=ours.key, ca=theirs.ca)
        distrusted = store(destination(port, tls=strange_ca), "NODE", file)
        without = store(destination(port), "NODE", file)
        missing = Tls(certificate=tmp_path / "none.pem", key=ours.key, ca=ours.ca)
        unusable = store(destination(port, tls=missing), "NODE", file)
    assert trusted.kind is StoreKind.STORED
    assert [data for _, data in received.instances] == [data_set_bytes(file)]
    assert distrusted.kind is StoreKind.UNREACHABLE
    assert "certificate that is not trusted" in distrusted.reason
    assert without.kind is StoreKind.UNREACHABLE
    assert unusable.kind is StoreKind.UNREACHABLE
    assert "cannot be used" in unusable.reason


@needs("storescp")
def test_storescp_receives_the_very_bytes(tmp_path, file):
    kept, port = tmp_path / "kept", free_port()
    kept.mkdir()
    arguments = ["storescp", "--bit-preserving", "-aet", "ARCHIVE", "-od", kept, str(port)]
    with running(arguments, tmp_path / "log", port):
        assert store(destination(port), "NODE", file).kind is StoreKind.STORED
        assert store(destination(port), "NODE", file).kind is StoreKind.STORED
    (received,) = kept.iterdir()
    assert data_set_bytes(received) == data_set_bytes(file)
