"""The door to storage commitment: the request for one (N-ACTION), and the report that answers it.

Owns both messages as a user of the service (PS3.4 J.3): the question out, the N-EVENT-REPORT in.
Speaks pynetdicom; a report comes on the association that asked or on one that the peer opens later.
Never offers a commitment of its own: this node is no archive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicom_node.commitment_status import Report
from dicom_node.config import Destination
from dicom_node.scu import SUCCESS, association, status_of

SOP_CLASS_UID = str(StorageCommitmentPushModel)
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
REQUEST_COMMITMENT = 1
"""The one Action Type (PS3.4 Table J.3.2-1)."""
NO_SUCH_EVENT_TYPE, INVALID_ARGUMENT, UNRECOGNISED_OPERATION = 0x0113, 0x0115, 0x0211
PROCESSING_FAILURE = 0x0110
ALL_COMMITTED, SOME_FAILED = 1, 2
"""Event Types (PS3.4 Table J.3.3-1)."""
UNKNOWN_FAILURE = 0x0110
"""For a failed object whose Failure Reason is missing."""


Noted = Callable[[Report], bool]
"""Makes a report durable; false where it answers nothing that this node asked."""


def ask(
    destination: Destination,
    calling: str,
    sop_class_uid: str,
    sop_instance_uid: str,
    transaction_uid: str,
    noted: Noted,
    wait_s: float,
) -> int | None:
    """Ask to commit to one object (N-ACTION, PS3.4 J.3.2), and wait a little for a report on it.

    Returns:
        the answer's status, or None where there was none.

    Raises:
        UnreachableError: there is no association now.
        AssociationRefusedError: the peer does not let us in, or offers no storage commitment.
    """
    taken, answered = threading.Event(), threading.Event()

    def take(event: evt.Event) -> tuple[int, None]:
        status = take_report(event, noted)
        taken.set()
        return status, None

    def sent(event: evt.Event) -> None:
        # The answer to the report: a release must not overtake it.
        if taken.is_set() and isinstance(event.pdu, P_DATA_TF):
            answered.set()

    contexts = [build_context(SOP_CLASS_UID, SYNTAXES)]
    handlers = [(evt.EVT_N_EVENT_REPORT, take), (evt.EVT_PDU_SENT, sent)]
    with association(destination, calling, contexts, handlers) as peer:
        answer, _ = peer.send_n_action(
            _request(sop_class_uid, sop_instance_uid, transaction_uid),
            REQUEST_COMMITMENT,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        status = status_of(answer)
        if status == SUCCESS and wait_s:
            answered.wait(wait_s)
    return status


def report_context() -> PresentationContext:
    """What is offered to a peer that comes to report: it provides the service, we use it (PS3.4 J.3.3)."""
    context = build_context(SOP_CLASS_UID, SYNTAXES)
    context.scu_role, context.scp_role = False, True
    return context


def take_report(event: evt.Event, noted: Noted) -> int:
    """The status of the answer to an N-EVENT-REPORT: success only once the report is durable."""
    if event.event_type not in {ALL_COMMITTED, SOME_FAILED}:
        return NO_SUCH_EVENT_TYPE
    try:
        report = read_report(event.event_information)
    except Exception:  # whatever hostile bytes make pydicom raise
        return INVALID_ARGUMENT
    return SUCCESS if noted(report) else INVALID_ARGUMENT


def read_report(information: Dataset) -> Report:
    """The Event Information of a report (PS3.4 Table J.3.3-1).

    Raises:
        AttributeError, TypeError, ValueError: it lacks its identifiers.
    """
    failures = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", UNKNOWN_FAILURE))
        for item in information.get("FailedSOPSequence") or ()
    }
    kept = {str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or ()}
    return Report(str(information.TransactionUID), frozenset(kept - failures.keys()), failures)


def _request(sop_class_uid: str, sop_instance_uid: str, transaction_uid: str) -> Dataset:
    """The Action Information (PS3.4 Table J.3.2-1)."""
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [item]
    return request
