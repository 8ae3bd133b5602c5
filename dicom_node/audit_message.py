"""DICOM audit messages (PS3.15 A.5): what an audit record repository is told.

Owns their XML, event by event, by the schema of PS3.15 A.5.1 and the tables of A.5.3.
Speaks values in, the UTF-8 bytes of one message out.
Never carries a patient's name or birth date; his ID it does, since the standard wants it (A.5.3.6, A.5.3.7).
"""

from __future__ import annotations

import base64
import os
import re
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from xml.etree.ElementTree import Element, SubElement, tostring

_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot carry; peers choose their AE titles and UIDs."""

_DCM, _RFC_3881 = "DCM", "RFC-3881"
_IP_ADDRESS = "2"
_PERSON, _SYSTEM_OBJECT = "1", "2"
_PATIENT, _REPORT, _SECURITY_RESOURCE = "1", "3", "13"


@dataclass(frozen=True)
class _Code:
    value: str
    system: str
    meaning: str


APPLICATION_ACTIVITY = _Code("110100", _DCM, "Application Activity")
BEGIN_TRANSFERRING = _Code("110102", _DCM, "Begin Transferring DICOM Instances")
INSTANCES_TRANSFERRED = _Code("110104", _DCM, "DICOM Instances Transferred")
SECURITY_ALERT = _Code("110113", _DCM, "Security Alert")
APPLICATION_START = _Code("110120", _DCM, "Application Start")
APPLICATION_STOP = _Code("110121", _DCM, "Application Stop")
NODE_AUTHENTICATION = _Code("110126", _DCM, "Node Authentication")
_APPLICATION = _Code("110150", _DCM, "Application")
_DESTINATION = _Code("110152", _DCM, "Destination Role ID")
_SOURCE = _Code("110153", _DCM, "Source Role ID")
_STUDY = _Code("110180", _DCM, "Study Instance UID")
_NODE = _Code("110182", _DCM, "Node ID")
_PATIENT_NUMBER = _Code("2", _RFC_3881, "Patient Number")


class Outcome(StrEnum):
    """EventOutcomeIndicator."""

    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"


class Action(StrEnum):
    """EventActionCode."""

    CREATE = "C"
    """What was received was not here before."""
    READ = "R"
    """It was, or is sent from here."""
    EXECUTE = "E"


@dataclass(frozen=True)
class Node:
    """One end of a transfer.

    Attributes:
        host: an IP address or a name.
        is_requestor: whether it asked for the association.
    """

    ae_title: str
    host: str
    is_requestor: bool


@dataclass(frozen=True)
class Study:
    """What of one study was transferred.

    Attributes:
        instances: how many, by SOP Class UID.
    """

    study_instance_uid: str
    patient_id: str
    accession_number: str
    instances: dict[str, int] = field(default_factory=dict)


def application(ae_title: str, program: str, starts: bool, at: float) -> bytes:
    """Application Activity (A.5.3.1): a process of the node starts or stops."""
    message = _message(APPLICATION_ACTIVITY, Action.EXECUTE, Outcome.SUCCESS, at)
    _type(message, APPLICATION_START if starts else APPLICATION_STOP)
    who = _participant(message, f"{program}@{ae_title}", False, _APPLICATION)
    who.set("AlternativeUserID", str(os.getpid()))
    return _closed(message, ae_title)


def begins(own_title: str, source: Node, destination: Node, study: Study, at: float) -> bytes:
    """Begin Transferring DICOM Instances (A.5.3.3)."""
    message = _message(BEGIN_TRANSFERRING, Action.EXECUTE, Outcome.SUCCESS, at)
    _ends(message, source, destination)
    return _closed(message, own_title, study)


def transferred(
    own_title: str,
    source: Node,
    destination: Node,
    study: Study,
    at: float,
    action: Action,
    outcome: Outcome = Outcome.SUCCESS,
    why: str | None = None,
) -> bytes:
    """DICOM Instances Transferred (A.5.3.7): they have arrived, or have not."""
    message = _message(INSTANCES_TRANSFERRED, action, outcome, at)
    if why is not None:
        SubElement(message[0], "EventOutcomeDescription").text = _clean(why)
    _ends(message, source, destination)
    return _closed(message, own_title, study)


def refused(own_title: str, peer: Node, reason: str, at: float) -> bytes:
    """Security Alert (A.5.3.11): somebody asked for an association whom the configuration does not name."""
    message = _message(SECURITY_ALERT, Action.EXECUTE, Outcome.MINOR_FAILURE, at)
    _type(message, NODE_AUTHENTICATION)
    own = _participant(message, own_title, False, _APPLICATION)
    own.set("NetworkAccessPointTypeCode", "1")
    own.set("NetworkAccessPointID", socket.gethostname())
    _node(message, peer, _SOURCE)
    _source(message, own_title)
    alert = SubElement(message, "ParticipantObjectIdentification")
    alert.set("ParticipantObjectID", _clean(peer.host))
    alert.set("ParticipantObjectTypeCode", _SYSTEM_OBJECT)
    alert.set("ParticipantObjectTypeCodeRole", _SECURITY_RESOURCE)
    _coded(alert, "ParticipantObjectIDTypeCode", _NODE)
    _detail(alert, "Alert Description", f"association refused: {reason}")
    return _bytes(message)


# --- the parts ---------------------------------------------------------------------------------


def _message(event: _Code, action: Action, outcome: Outcome, at: float) -> Element:
    message = Element("AuditMessage")
    identification = SubElement(message, "EventIdentification")
    identification.set("EventActionCode", action)
    identification.set("EventDateTime", datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"))
    identification.set("EventOutcomeIndicator", outcome)
    _coded(identification, "EventID", event)
    return message


def _type(message: Element, code: _Code) -> None:
    _coded(message[0], "EventTypeCode", code)


def _ends(message: Element, source: Node, destination: Node) -> None:
    _node(message, source, _SOURCE)
    _node(message, destination, _DESTINATION)


def _node(message: Element, node: Node, role: _Code) -> None:
    participant = _participant(message, node.ae_title, node.is_requestor, role)
    participant.set("AlternativeUserID", f"AETITLES={_clean(node.ae_title)}")
    participant.set("NetworkAccessPointTypeCode", _IP_ADDRESS if _is_address(node.host) else "1")
    participant.set("NetworkAccessPointID", _clean(node.host))


def _participant(message: Element, user: str, is_requestor: bool, role: _Code) -> Element:
    participant = SubElement(message, "ActiveParticipant")
    participant.set("UserID", _clean(user))
    participant.set("UserIsRequestor", str(is_requestor).lower())
    _coded(participant, "RoleIDCode", role)
    return participant


def _closed(message: Element, own_title: str, study: Study | None = None) -> bytes:
    """The source, and the study with its patient, which come last."""
    _source(message, own_title)
    if study is not None:
        _study(message, study)
        patient = SubElement(message, "ParticipantObjectIdentification")
        patient.set("ParticipantObjectID", _clean(study.patient_id))
        patient.set("ParticipantObjectTypeCode", _PERSON)
        patient.set("ParticipantObjectTypeCodeRole", _PATIENT)
        _coded(patient, "ParticipantObjectIDTypeCode", _PATIENT_NUMBER)
    return _bytes(message)


def _source(message: Element, own_title: str) -> None:
    SubElement(message, "AuditSourceIdentification").set("AuditSourceID", own_title)


def _study(message: Element, study: Study) -> None:
    item = SubElement(message, "ParticipantObjectIdentification")
    item.set("ParticipantObjectID", _clean(study.study_instance_uid))
    item.set("ParticipantObjectTypeCode", _SYSTEM_OBJECT)
    item.set("ParticipantObjectTypeCodeRole", _REPORT)
    _coded(item, "ParticipantObjectIDTypeCode", _STUDY)
    if study.accession_number:
        SubElement(item, "Accession").set("Number", _clean(study.accession_number))
    for uid, count in study.instances.items():
        sop_class = SubElement(item, "SOPClass")
        sop_class.set("UID", _clean(uid))
        sop_class.set("NumberOfInstances", str(count))


def _detail(item: Element, kind: str, text: str) -> None:
    detail = SubElement(item, "ParticipantObjectDetail")
    detail.set("type", kind)
    detail.set("value", base64.b64encode(_clean(text).encode()).decode())


def _coded(parent: Element, name: str, code: _Code) -> None:
    element = SubElement(parent, name)
    element.set("csd-code", code.value)
    element.set("codeSystemName", code.system)
    element.set("displayName", code.meaning)
    element.set("originalText", code.meaning)


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def _clean(text: str) -> str:
    return _NO_XML.sub("?", text)


def _bytes(message: Element) -> bytes:
    return bytes(tostring(message, encoding="utf-8", xml_declaration=True))
