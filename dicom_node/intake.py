"""What the database learns of reception: associations, series, instances, arrivals, discards, reports.

Owns the rows that reception writes, and the rule for an instance that comes twice.
Speaks frozen values in, one committed transaction out; times are UTC epoch seconds.
Never changes the state of a series (late slices are the worker's to notice), and never returns before
the commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from dicom_node import commitments
from dicom_node.commitment_status import Report
from dicom_node.database import transaction
from dicom_node.schema import Arrival, Association, Discarded, Instance, Series
from dicom_node.states import SeriesState

Clock = Callable[[], float]

OTHER_BYTES = (
    "an instance came again with other bytes under the same SOP Instance UID; "
    "it was refused (0x0111) and the first bytes were kept"
)


class Outcome(Enum):
    """What became of an instance that was committed."""

    NEW = "new"
    AGAIN = "again"
    """It was here already, byte for byte; only its arrival was noted."""
    OTHER_BYTES = "other_bytes"
    """The same SOP Instance UID is here with other bytes: not taken, and the series is flagged."""
    FILE_GONE = "file_gone"
    """Its file, written a moment ago, was removed with its series: not taken; write it and try again."""


class AssociationEnd(Enum):
    """How an association ended."""

    RELEASED = "released"
    ABORTED = "aborted"
    """The peer said that it breaks off."""
    LOST = "lost"
    """Without a word: the connection broke, the guard ended it, or this program crashed."""


@dataclass(frozen=True)
class Intake:
    """One instance whose bytes are durable in the spool and which now gets its rows.

    Attributes:
        patient_key: keyed hash of PatientID.
        accession_key: keyed hash of AccessionNumber.
        sha256: of the data set's bytes as received.
        file: relative to the spool folder.
        geometry: the plane's attributes by keyword, as far as they are there.
    """

    association_id: int
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_key: str
    accession_key: str
    sha256: str
    file: str
    size_bytes: int
    geometry: Mapping[str, Any]


@dataclass
class _Ticket:
    """An instance that waits for the next commit, and then what became of it."""

    intake: Intake
    outcome: Outcome | None = None
    error: Exception | None = field(default=None, repr=False)


class Registry:
    """Writes the rows of reception; many threads may call it at once.

    Instances that wait at the same time share one transaction: the first thread to get its turn commits
    for all that wait, so that ten associations cost hardly more fsyncs than one.
    """

    def __init__(self, engine: Engine, clock: Clock, is_spooled: Callable[[str], bool]) -> None:
        """Write to a migrated database.

        Args:
            clock: UTC epoch seconds.
            is_spooled: whether a file is in the spool. Retention removes files under the database's write
                lock, so what is there while this writes stays.
        """
        self._engine = engine
        self._clock = clock
        self._is_spooled = is_spooled
        self._waiting: list[_Ticket] = []
        self._waiting_lock = threading.Lock()
        self._turn = threading.Lock()

    def close_lost_associations(self) -> int:
        """At start: what a crash left open has been lost; how many those were."""
        with self._turn, self._engine.begin() as connection:
            return connection.execute(
                update(Association)
                .where(Association.ended_at.is_(None))
                .values(ended_at=self._clock(), outcome=AssociationEnd.LOST.value)
            ).rowcount

    def association_opened(self, calling_ae_title: str, called_ae_title: str, peer_address: str) -> int:
        """Note a peer that was let in; the association's id."""
        with self._turn, self._engine.begin() as connection:
            key = connection.execute(
                insert(Association).values(
                    calling_ae_title=calling_ae_title,
                    called_ae_title=called_ae_title,
                    peer_address=peer_address,
                    opened_at=self._clock(),
                )
            ).inserted_primary_key
            assert key is not None
            return int(key[0])

    def association_ended(self, association_id: int, end: AssociationEnd) -> None:
        """Note how an association ended; the first end counts."""
        with self._turn, self._engine.begin() as connection:
            connection.execute(
                update(Association)
                .where(Association.id == association_id, Association.ended_at.is_(None))
                .values(ended_at=self._clock(), outcome=end.value)
            )

    def discarded(self, sop_class_uid: str, size_bytes: int) -> None:
        """Count an instance that was accepted and thrown away."""
        statement = upsert(Discarded).values(sop_class_uid=sop_class_uid, instances=1, size_bytes=size_bytes)
        statement = statement.on_conflict_do_update(
            index_elements=[Discarded.sop_class_uid],
            set_={
                "instances": Discarded.instances + 1,
                "size_bytes": Discarded.size_bytes + size_bytes,
            },
        )
        with self._turn, self._engine.begin() as connection:
            connection.execute(statement)

    def reported(self, report: Report, destinations: Collection[str]) -> bool:
        """Commit what one of `destinations` reported; whether it answers what this node asked it."""
        with self._turn, transaction(self._engine) as session:
            return commitments.note(session, report, destinations, self._clock())

    def take(self, intake: Intake) -> Outcome:
        """Commit an instance, its arrival and its series together; the commit is on the disk on return.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: nothing was committed, neither this nor those that shared the
                transaction; each of their senders is told so.
        """
        ticket = _Ticket(intake)
        with self._waiting_lock:
            self._waiting.append(ticket)
        with self._turn:
            if ticket.outcome is None and ticket.error is None:
                self._commit_waiting()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.outcome is not None
        return ticket.outcome

    def _commit_waiting(self) -> None:
        with self._waiting_lock:
            batch, self._waiting = self._waiting, []
        try:
            with self._engine.begin() as connection:
                now = self._clock()
                outcomes = [self._take(connection, ticket.intake, now) for ticket in batch]
        except Exception as error:
            for ticket in batch:
                ticket.error = error
            return
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.outcome = outcome

    def _take(self, connection: Connection, intake: Intake, now: float) -> Outcome:
        """The rows of one instance, inside the caller's transaction."""
        if not self._is_spooled(intake.file):
            return Outcome.FILE_GONE
        present = connection.execute(FIND_INSTANCE, {"uid": intake.sop_instance_uid}).one_or_none()
        if present is None:
            series_id = connection.execute(TOUCH_SERIES, _series_values(intake, now)).scalar_one()
            values = _instance_values(intake, series_id, now)
            instance_id = connection.execute(ADD_INSTANCE, values).scalar_one()
            _arrive(connection, instance_id, intake.association_id, now)
            return Outcome.NEW
        of_series = update(Series).where(Series.id == present.series_id)
        if present.sha256 != intake.sha256:
            connection.execute(of_series.values(flag=OTHER_BYTES))
            return Outcome.OTHER_BYTES
        connection.execute(of_series.values(pushed_again_at=now, slices_removed_at=None))
        _arrive(connection, present.id, intake.association_id, now)
        return Outcome.AGAIN


def _series_values(intake: Intake, now: float) -> dict[str, Any]:
    return {
        "series_instance_uid": intake.series_instance_uid,
        "study_instance_uid": intake.study_instance_uid,
        "patient_key": intake.patient_key,
        "accession_key": intake.accession_key,
        "state": SeriesState.RECEIVING,
        "revision": 1,
        "first_instance_at": now,
        "last_instance_at": now,
    }


def _instance_values(intake: Intake, series_id: int, now: float) -> dict[str, Any]:
    return {
        "series_id": series_id,
        "sop_instance_uid": intake.sop_instance_uid,
        "sop_class_uid": intake.sop_class_uid,
        "transfer_syntax_uid": intake.transfer_syntax_uid,
        "sha256": intake.sha256,
        "file": intake.file,
        "size_bytes": intake.size_bytes,
        "received_at": now,
        "geometry": dict(intake.geometry),
    }


def _arrive(connection: Connection, instance_id: int, association_id: int, now: float) -> None:
    connection.execute(ADD_ARRIVAL, {"instance_id": instance_id, "association_id": association_id, "at": now})


def _touch_series() -> Any:
    """Make a new instance's series or note when the instance came; the series' id.

    A clock that was set back must not make the last instance older than it was, nor a late one seem to be
    one of those that the series was complete with.
    """
    statement = upsert(Series)
    completed_at = func.coalesce(Series.completed_at, 0.0)
    last = func.max(Series.last_instance_at, statement.excluded.last_instance_at, completed_at)
    return statement.on_conflict_do_update(
        index_elements=[Series.series_instance_uid],
        set_={"last_instance_at": last, "slices_removed_at": None},
    ).returning(Series.id)


# Built once: building them anew for each instance takes longer than SQLite takes to run them.
FIND_INSTANCE = select(Instance.id, Instance.series_id, Instance.sha256).where(
    Instance.sop_instance_uid == bindparam("uid")
)
TOUCH_SERIES = _touch_series()
ADD_INSTANCE = insert(Instance).returning(Instance.id)
ADD_ARRIVAL = insert(Arrival)
