"""What the rules of routing look at, from where it stands.

Owns the reading of the attributes that a rule may ask for, and which slice speaks for its series.
Speaks rows of reception and DICOM files in, `routing.Facts` out.
Never logs or keeps what it read: a description may say who the patient is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pydicom
from pydicom import Dataset
from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.routing import TEXTS, Facts
from dicom_node.schema import Arrival, Association, Instance, Series

KEYWORDS = {name: "".join(word.capitalize() for word in name.split("_")) for name in TEXTS}
"""`protocol_name` is ProtocolName."""
THICKNESS = "SliceThickness"


def of_received(session: Session, series: Series, spool: Path) -> Facts:
    """The facts of a received series."""
    files = session.execute(
        select(Instance.sop_instance_uid, Instance.file).where(Instance.series_id == series.id)
    ).all()
    peers = session.execute(
        select(Association.calling_ae_title, Association.called_ae_title)
        .join(Arrival, Arrival.association_id == Association.id)
        .join(Instance, Instance.id == Arrival.instance_id)
        .where(Instance.series_id == series.id)
        .distinct()
    ).all()
    return of_slices(
        [(uid, spool / file) for uid, file in files],
        [peer.calling_ae_title for peer in peers],
        [peer.called_ae_title for peer in peers],
    )


def of_slices(
    slices: Sequence[tuple[str, Path]], calling_ae_titles: Iterable[str], called_ae_titles: Iterable[str]
) -> Facts:
    """The facts of slices that lie on the disk.

    The one in the middle by SOP Instance UID speaks for all: whatever the order of their arrival it is the
    same one, and seldom a localizer that came under the series' own UID.

    Args:
        slices: SOP Instance UID and file of each.
    """
    spokesman = sorted(slices)[len(slices) // 2][1] if slices else None
    stated = Dataset() if spokesman is None else _read(spokesman)
    return Facts(
        calling_ae_titles=tuple(sorted(set(calling_ae_titles))),
        called_ae_titles=tuple(sorted(set(called_ae_titles))),
        texts={name: _text(stated, keyword) for name, keyword in KEYWORDS.items()},
        slice_thickness_mm=_number(stated, THICKNESS),
    )


def _read(file: Path) -> Dataset:
    """What cannot be read states nothing: why it cannot, the job will say."""
    try:
        return pydicom.dcmread(file, specific_tags=[*KEYWORDS.values(), THICKNESS], stop_before_pixels=True)
    except Exception:  # pydicom has no common root for what malformed bytes can raise
        return Dataset()


def _text(stated: Dataset, keyword: str) -> str:
    """Several values with a blank between; empty where it is absent or cannot be read."""
    try:
        value = stated.get(keyword)
    except Exception:
        return ""
    if value is None:
        return ""
    many = value if not isinstance(value, str | bytes) and hasattr(value, "__iter__") else [value]
    return " ".join(str(one).strip() for one in many).strip()


def _number(stated: Dataset, keyword: str) -> float | None:
    try:
        value = stated.get(keyword)
        return None if value is None or value == "" else float(value)
    except Exception:
        return None
