"""What is told of each transfer to the audit stream: what came in by association, what went out by attempt.

Owns the counting of what one association brought, and the way from a file that was sent to its study.
Speaks the events of reception and the outcome of a sending in; audit messages out.
Never changes or delays either.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydicom import Dataset, dcmread

from dicom_node import audit_message
from dicom_node.audit_message import Action, Node, Outcome, Study
from dicom_node.audit_stream import AuditStream
from dicom_node.config import AnyDestination, Destination, FolderDestination
from dicom_node.store_status import DELIVERED, StoreOutcome

if TYPE_CHECKING:  # whoever receives does not load what sends
    from dicom_node.deliverer import Store

STUDIES_AN_ASSOCIATION = 1_000
"""More are not told of one by one: a peer that sends so many studies at once is no scanner."""


@dataclass
class _Brought:
    peer: Node
    studies: dict[tuple[str, Action], Study] = field(default_factory=dict)


class Arrivals:
    """Counts what each open association brought, and tells it at its end; many threads may call it.

    Args:
        stream: None where nobody wants to know.
    """

    def __init__(self, stream: AuditStream | None) -> None:
        self._stream = stream if stream is not None and stream.is_on else None
        self._lock = threading.Lock()
        self._open: dict[int, _Brought] = {}

    def opened(self, association: int, ae_title: str, address: str) -> None:
        """A peer was let in."""
        if self._stream is not None:
            with self._lock:
                self._open[association] = _Brought(Node(ae_title, address, is_requestor=True))

    def came(
        self, association: int, is_new: bool, study: str, patient_id: str, accession: str, sop_class: str
    ) -> None:
        """An instance was acknowledged."""
        if self._stream is None:
            return
        key = study, Action.CREATE if is_new else Action.READ
        with self._lock:
            brought = self._open.get(association)
            if brought is None:  # ended meanwhile
                return
            studies = brought.studies
            if key not in studies and len(studies) >= STUDIES_AN_ASSOCIATION:
                return
            counts = studies.setdefault(key, Study(study, patient_id, accession, {})).instances
            counts[sop_class] = counts.get(sop_class, 0) + 1

    def ended(self, association: int) -> None:
        """The association is over, however it ended: what was acknowledged has arrived."""
        if self._stream is None:
            return
        with self._lock:
            brought = self._open.pop(association, None)
        if brought is None:
            return
        own, at = self._stream.own_title, self._stream.clock()
        here = Node(own, "localhost", is_requestor=False)
        for (_, action), study in brought.studies.items():
            self._stream.emit(partial(audit_message.transferred, own, brought.peer, here, study, at, action))

    def refused(self, ae_title: str, address: str, reason: str) -> None:
        """Somebody was not let in whom the configuration does not name."""
        if self._stream is None:
            return
        own, at, peer = self._stream.own_title, self._stream.clock(), Node(ae_title, address, True)
        self._stream.emit(lambda: audit_message.refused(own, peer, reason, at))


def audited(store: Store, stream: AuditStream) -> Store:
    """The same sending, told to the stream before and after."""
    if not stream.is_on:
        return store

    @contextmanager
    def telling(destination: AnyDestination, own_ae_title: str, file: Path) -> Iterator[StoreOutcome]:
        own, clock = stream.own_title, stream.clock
        here, there = _ends(destination, own_ae_title)
        stream.emit(lambda: audit_message.begins(own, here, there, _study(file), clock()))
        with store(destination, own_ae_title, file) as outcome:
            is_there = outcome.kind in DELIVERED
            stream.emit(
                lambda: audit_message.transferred(
                    *(own, here, there, _study(file), clock(), Action.READ),
                    outcome=Outcome.SUCCESS if is_there else Outcome.MINOR_FAILURE,
                    why=None if is_there else outcome.reason,
                )
            )
            yield outcome

    return telling


def _ends(destination: AnyDestination, own_ae_title: str) -> tuple[Node, Node]:
    """Who sends and who receives; what has no AE title goes by its name in the configuration."""
    if isinstance(destination, Destination):
        calling, title, host = destination.calling_ae_title, destination.ae_title, destination.host
    elif isinstance(destination, FolderDestination):
        calling, title, host = None, destination.name, "localhost"
    else:
        calling, title, host = None, destination.name, urlsplit(destination.url).hostname or ""
    here = Node(calling or own_ae_title, "localhost", is_requestor=True)
    return here, Node(title, host, is_requestor=False)


def _study(file: Path) -> Study:
    tags = ["SOPClassUID", "StudyInstanceUID", "PatientID", "AccessionNumber"]
    header: Dataset = dcmread(file, specific_tags=tags, stop_before_pixels=True)
    return Study(
        str(header.StudyInstanceUID),
        str(header.get("PatientID") or ""),
        str(header.get("AccessionNumber") or ""),
        {str(header.SOPClassUID): 1},
    )
