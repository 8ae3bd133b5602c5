"""The audit stream tells a repository what the standard wants it told, and nobody ever waits for it."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from pydantic import ValidationError
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from dicom_node import audit_message, audit_stream, tls
from dicom_node.audit_message import Action, Node, Outcome, Study
from dicom_node.audit_stream import AuditStream
from dicom_node.config import AuditStreamChoice, Config, Destination
from dicom_node.database import open_engine
from dicom_node.listener import Listener
from dicom_node.metrics import NodeCollector, exposition
from dicom_node.migrate import upgrade
from dicom_node.scu import StoreOutcome
from dicom_node.store_status import StoreKind
from dicom_node.transfers import STUDIES_AN_ASSOCIATION, Arrivals, audited
from tests import certificates, fault_pacs
from tests.dicom_node.reception_rig import associated, configuration, ct_slice
from tests.tools import wait_until

AT = 1_764_172_800.123
LINE = re.compile(
    rb"<85>1 2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \S+ anatomynode-\w+ \d+ "
    rb"DICOM\+RFC3881 - \xef\xbb\xbf(<\?xml.*)"
)

CODED = {"csd-code", "codeSystemName", "displayName", "originalText"}
SCHEMA: dict[str, tuple[set[str], set[str], list[tuple[str, int, int | None]]]] = {
    # PS3.15 A.5.1 as far as we use it: attributes that must be there, attributes that may, and the children
    # in their order, with how many there may be.
    "AuditMessage": (
        set(),
        set(),
        [
            ("EventIdentification", 1, 1),
            ("ActiveParticipant", 1, None),
            ("AuditSourceIdentification", 1, 1),
            ("ParticipantObjectIdentification", 0, None),
        ],
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        [("EventID", 1, 1), ("EventTypeCode", 0, None), ("EventOutcomeDescription", 0, 1)],
    ),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        [("RoleIDCode", 0, None)],
    ),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, []),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {"ParticipantObjectTypeCode", "ParticipantObjectTypeCodeRole", "ParticipantObjectDataLifeCycle"},
        [
            ("ParticipantObjectIDTypeCode", 1, 1),
            ("ParticipantObjectName", 0, 1),
            ("ParticipantObjectDetail", 0, None),
            ("Accession", 0, None),
            ("SOPClass", 0, None),
        ],
    ),
    "ParticipantObjectDetail": ({"type", "value"}, set(), []),
    "Accession": ({"Number"}, set(), []),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, []),
    "EventOutcomeDescription": (set(), set(), []),
    **dict.fromkeys(
        ("EventID", "EventTypeCode", "RoleIDCode", "ParticipantObjectIDTypeCode"), (CODED, set(), [])
    ),
}
ENUMERATED = {
    "EventActionCode": "CRUDE",
    "EventOutcomeIndicator": ("0", "4", "8", "12"),
    "UserIsRequestor": ("true", "false"),
    "NetworkAccessPointTypeCode": "12345",
    "ParticipantObjectTypeCode": "1234",
}


def valid(message: bytes) -> Element:
    """The message, which holds to the schema."""
    root = fromstring(message)
    _check(root)
    assert root.tag == "AuditMessage"
    return root


def _check(element: Element) -> None:
    needed, possible, children = SCHEMA[element.tag]
    assert needed <= element.attrib.keys() <= needed | possible, element.tag
    for name, values in ENUMERATED.items():
        assert element.get(name, values[0]) in values, name
    assert [child.tag for child in element] == [
        name for name, _, _ in children for child in element if child.tag == name
    ], f"order in {element.tag}"
    for name, least, most in children:
        assert least <= len(element.findall(name)) <= (most or 10_000), f"{name} in {element.tag}"
    for child in element:
        _check(child)


SCANNER, NODE = Node("CT1", "10.1.2.3", True), Node("ANATOMYNODE", "localhost", False)
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = Study("1.2.3", "PID-1", "ACC-1", {CT: 40})
MESSAGES = {
    "start": lambda: audit_message.application("ANATOMYNODE", "listen", True, AT),
    "stop": lambda: audit_message.application("ANATOMYNODE", "work", False, AT),
    "begins": lambda: audit_message.begins("ANATOMYNODE", NODE, SCANNER, STUDY, AT),
    "came": lambda: audit_message.transferred("ANATOMYNODE", SCANNER, NODE, STUDY, AT, Action.CREATE),
    "not sent": lambda: audit_message.transferred(
        "ANATOMYNODE", NODE, SCANNER, STUDY, AT, Action.READ, Outcome.MINOR_FAILURE, "it is away"
    ),
    "refused": lambda: audit_message.refused("ANATOMYNODE", SCANNER, "peer_address", AT),
    "hostile words": lambda: audit_message.refused("ANATOMYNODE", Node("\0<&\x1b", "::1", True), "x", AT),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_holds_to_the_schema(name: str) -> None:
    valid(MESSAGES[name]())


def test_a_transfer_names_both_ends_the_study_and_the_patient_by_his_id() -> None:
    message = valid(MESSAGES["came"]())
    assert message[0].attrib == {
        "EventActionCode": "C",
        "EventDateTime": "2025-11-26T16:00:00.123+00:00",
        "EventOutcomeIndicator": "0",
    }
    roles = {one.get("UserID"): one[0].get("csd-code") for one in message.findall("ActiveParticipant")}
    assert roles == {"CT1": "110153", "ANATOMYNODE": "110152"}
    study, patient = message.findall("ParticipantObjectIdentification")
    assert (study.get("ParticipantObjectID"), study[0].get("csd-code")) == ("1.2.3", "110180")
    assert study.find("SOPClass").attrib == {"UID": CT, "NumberOfInstances": "40"}  # type: ignore[union-attr]
    assert (patient.get("ParticipantObjectID"), patient[0].get("csd-code")) == ("PID-1", "2")
    detail = valid(MESSAGES["refused"]()).find(".//ParticipantObjectDetail")
    assert detail is not None
    assert base64.b64decode(str(detail.get("value"))) == b"association refused: peer_address"


# --- the way out ---------------------------------------------------------------------------------


def _config(**choice: Any) -> Config:
    return Config.model_validate({"peers": [], "destinations": [], "audit_stream": choice})


@contextmanager
def streaming(**choice: Any) -> Iterator[AuditStream]:
    stream = AuditStream(_config(**choice), "listen", lambda: AT)
    stream.start()
    try:
        yield stream
    finally:
        stream.stop()


def read_lines(file: Path) -> list[Element]:
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [valid(LINE.fullmatch(line).group(1)) for line in lines]  # type: ignore[union-attr]


def test_over_udp_each_message_is_a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        with streaming(transport="udp", port=server.getsockname()[1]) as stream:
            stream.emit(MESSAGES["start"])
            found = LINE.fullmatch(server.recv(65_536))
    assert found is not None
    valid(found.group(1))


def test_over_tls_each_message_has_its_length_and_one_that_met_a_closed_connection_comes_over_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_stream, "AGAIN_AFTER_S", 0.1)
    files = certificates.make(tmp_path / "tls")
    context = tls.server_context(files, "test")
    received = b""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        choice = {"transport": "tls", "port": listening.getsockname()[1], "tls": files.model_dump()}
        with streaming(**choice) as stream:
            for name in ("start", "came"):
                stream.emit(MESSAGES[name])
                connection, _ = listening.accept()
                with context.wrap_socket(connection, server_side=True) as secured:
                    received += _frame(secured)
            wait_until(lambda: stream.sent == 2, what="both")
        assert stream.lost == 0
    assert received.count(b"<?xml") == 2


def _frame(secured: Any) -> bytes:
    data = b""
    while b" " not in data:
        data += secured.recv(1)
    length = int(data)
    message = b""
    while len(message) < length:
        message += secured.recv(length - len(message))
    found = LINE.fullmatch(message)
    assert found is not None
    valid(found.group(1))
    return message


def test_nobody_waits_for_a_server_that_is_away_and_what_is_lost_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(audit_stream, "QUEUED", 5)
    monkeypatch.setattr(audit_stream, "LEFT_S", 0.1)
    files = certificates.make(tmp_path / "tls")
    with fault_pacs.closed_port() as port:
        stream = AuditStream(_config(transport="tls", port=port, tls=files.model_dump()), "listen")
        stream.start()
        for _ in range(100):
            stream.emit(MESSAGES["came"])
        stream.emit(lambda: b"x" * 70_000)
        stream.emit(_bug)
        stream.stop()
    assert (stream.sent, stream.lost) == (0, 102)


def _bug() -> bytes:
    raise RuntimeError


def test_without_a_transport_nothing_is_made_and_a_transport_without_what_it_needs_is_refused() -> None:
    with streaming() as stream:
        stream.emit(_bug)
    assert (stream.is_on, stream.sent, stream.lost) == (False, 0, 0)
    for transport in ("tls", "file"):
        with pytest.raises(ValidationError, match=f"audit_stream.{transport}"):
            AuditStreamChoice.model_validate({"transport": transport})


# --- what is told -------------------------------------------------------------------------------


def test_what_an_association_brought_is_told_at_its_end_and_who_was_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    with streaming(transport="file", file=file) as stream:
        config = configuration(tmp_path / "node")
        config.storage.folder.mkdir()
        upgrade(config.storage.database)
        engine = open_engine(config.storage.database)
        listener = Listener(config, engine, audit=stream)
        listener.start()
        try:
            with associated(listener.port) as sender:
                for number in (1, 2, 2):
                    assert sender.send_c_store(ct_slice(number)).Status == 0x0000
            stranger = AE("NOBODY")
            stranger.add_requested_context(Verification)
            assert stranger.associate("127.0.0.1", listener.port, ae_title="NODE").is_rejected
            wait_until(lambda: stream.sent == 3, what="three messages")
        finally:
            listener.stop(5)
        shown = exposition(NodeCollector(engine, config, listener.figures, audit=stream))().decode()
        engine.dispose()
    assert "anatomynode_audit_messages_sent_total 3.0" in shown
    assert "anatomynode_audit_messages_lost_total 0.0" in shown
    events = [(one[0][0].get("csd-code"), one[0].get("EventActionCode")) for one in read_lines(file)]
    assert sorted(events) == [("110104", "C"), ("110104", "R"), ("110113", "E")]
    counts = [one.find(".//SOPClass") for one in read_lines(file)]
    told = [one.get("NumberOfInstances") for one in counts if one is not None]
    assert sorted(map(str, told)) == ["1", "2"]
    text = file.read_text()
    assert "PID-77" in text
    assert "Secret^Name" not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_peer_that_sends_studies_without_end_takes_no_memory_without_end(tmp_path: Path) -> None:
    with streaming(transport="file", file=tmp_path / "audit.log") as stream:
        arrivals = Arrivals(stream)
        arrivals.opened(1, "CT1", "127.0.0.1")
        for number in range(STUDIES_AN_ASSOCIATION + 10):
            arrivals.came(1, True, f"1.2.{number}", "P", "", CT)
        assert len(arrivals._open[1].studies) == STUDIES_AN_ASSOCIATION
        arrivals.ended(1)
        arrivals.ended(1)
        arrivals.came(1, True, "1.2", "P", "", CT)
        assert arrivals._open == {}


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (StoreKind.STORED, "0"),
        (StoreKind.DUPLICATE, "0"),
        (StoreKind.TRANSIENT, "4"),
        (StoreKind.REFUSED, "4"),
    ],
)
def test_what_is_sent_is_told_before_and_after_with_its_outcome(
    tmp_path: Path, kind: StoreKind, outcome: str
) -> None:
    result, file = tmp_path / "rs.dcm", tmp_path / "audit.log"
    ct_slice(1).save_as(result, enforce_file_format=True)

    @contextmanager
    def store(_to: Destination, _calling: str, _file: Path) -> Iterator[StoreOutcome]:
        yield StoreOutcome(kind, 0, "said the archive")

    target = fault_pacs.destination(1)
    with (
        streaming(transport="file", file=file) as stream,
        audited(store, stream)(target, "ANATOMYNODE", result) as answer,
    ):
        assert answer.kind is kind
    begun, ended = read_lines(file)
    assert (begun[0][0].get("csd-code"), ended[0][0].get("csd-code")) == ("110102", "110104")
    assert (begun[0].get("EventOutcomeIndicator"), ended[0].get("EventOutcomeIndicator")) == ("0", outcome)
    assert [one.get("ParticipantObjectID") for one in ended.findall("ParticipantObjectIdentification")] == [
        "2.25.6",
        "PID-77",
    ]
