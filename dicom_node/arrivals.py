"""What the database knows of a series' arrival, as the values that completeness is judged by.

Owns these questions to the tables of reception.
Speaks rows in, `SeriesFacts` out.
Never writes.
"""

from __future__ import annotations

from sqlalchemy import distinct, func, select
from sqlalchemy.orm import Session

from dicom_node import jobs
from dicom_node.completeness import AssociationFacts, Geometry, SeriesFacts
from dicom_node.schema import Arrival, Association, Instance, Series


def facts(session: Session, series: Series, peer_count: int | None = None) -> SeriesFacts:
    """All that came of a series."""
    associations, last_at = _associations(session, series, 0.0)
    open_ones = any(association.outcome is None for association in associations)
    return SeriesFacts(
        instances=jobs.instances_of(session, series),
        last_arrival_at=max(series.last_instance_at, series.pushed_again_at or 0.0, last_at),
        associations=associations,
        # While an association is open nobody asks for the stack: no need to read it at every look.
        geometries=() if open_ones else _geometries(session, series),
        peer_count=peer_count,
    )


def facts_since_completion(session: Session, series: Series) -> SeriesFacts:
    """What came of a series after it was taken for complete: a repeated push."""
    associations, last_at = _associations(session, series, series.completed_at or 0.0)
    return SeriesFacts(
        instances=jobs.instances_of(session, series),
        last_arrival_at=max(series.pushed_again_at or 0.0, last_at),
        associations=associations,
    )


def _associations(
    session: Session, series: Series, since: float
) -> tuple[tuple[AssociationFacts, ...], float]:
    """The associations that brought something after `since`, by their ends, and the last arrival."""
    rows = session.execute(
        select(
            Association.id,
            Association.calling_ae_title,
            Association.ended_at,
            Association.outcome,
            func.count(distinct(Arrival.instance_id)).label("instances"),
            func.max(Arrival.at).label("last_at"),
        )
        .join(Arrival, Arrival.association_id == Association.id)
        .join(Instance, Instance.id == Arrival.instance_id)
        .where(Instance.series_id == series.id, Arrival.at > since)
        .group_by(Association.id)
        .order_by(Association.ended_at, Association.id)
    ).all()
    associations = tuple(
        AssociationFacts(row.id, row.calling_ae_title, row.instances, row.ended_at, row.outcome)
        for row in rows
    )
    return associations, max((row.last_at for row in rows), default=0.0)


def _geometries(session: Session, series: Series) -> tuple[Geometry, ...]:
    return tuple(session.scalars(select(Instance.geometry).where(Instance.series_id == series.id)))
