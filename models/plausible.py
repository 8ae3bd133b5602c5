"""What is plausible of each organ, as the training patients have it: how large, and where among the others.

Owns the measuring, and how much margin it gets.
Speaks `Patient` in; cm3 and LPS millimetres out, as `model.yaml` keeps them.
Never measures what the package does not draw: the node could not compare it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.anatomy import ANATOMY
from models.archives.layouts import open_archive
from models.archives.patients import Patient
from models.card import Neighbour
from models.training.config import TrainingConfig

_ENOUGH = 5
"""So many whole organs say more about volumes than many cut ones; fewer patients say nothing of a place."""
_MOST_NEIGHBOURS = 5
_PLACE_MARGIN = 1.5
_LEAST_MARGIN_MM = 8.0


@dataclass(frozen=True)
class Plausible:
    """Of one organ.

    Attributes:
        volume_cm3: the range that is no reason to look twice.
        neighbours: those whose place says most about this one's.
    """

    volume_cm3: tuple[float, float]
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True)
class _Organ:
    """One organ of one patient: whether the scan cuts it, and its centroid (x, y, z) in LPS mm."""

    volume_cm3: float
    is_cut: bool
    centroid_mm: NDArray[np.float64]


def measure(config: TrainingConfig, data: Path | None) -> dict[str, Plausible]:
    """By structure; without data the volumes that training itself accepts, and no places."""
    if data is None:
        return {name: Plausible(ANATOMY[name].volume_cm3) for name in config.drawn}
    archive = open_archive(data, config.roi_names)
    patients = [_organs(archive.read(name, config.structures), config.structures) for name in archive.names()]
    return {
        name: Plausible(
            _volumes([organs[name] for organs in patients if name in organs], ANATOMY[name].volume_cm3),
            _neighbours(name, config.drawn, patients),
        )
        for name in config.drawn
    }


def _organs(patient: Patient, structures: Sequence[str]) -> dict[str, _Organ]:
    organs = {}
    for label in np.flatnonzero(patient.annotated[1:]) + 1:
        mask = patient.labels == label
        if mask.any():
            volume_cm3 = float(mask.sum() * patient.spacing_mm.prod() / 1000)
            is_cut = bool(mask[0].any() or mask[-1].any())
            centroid = np.argwhere(mask).mean(axis=0) * patient.spacing_mm
            organs[structures[int(label) - 1]] = _Organ(volume_cm3, is_cut, centroid[::-1])
    return organs


def _volumes(organs: Sequence[_Organ], otherwise: tuple[float, float]) -> tuple[float, float]:
    """2nd and 98th percentile of those that are whole, widened by a quarter; of all where few are whole."""
    whole = [organ.volume_cm3 for organ in organs if not organ.is_cut]
    volumes = whole if len(whole) >= _ENOUGH else [organ.volume_cm3 for organ in organs]
    if not volumes:
        return otherwise
    low, high = np.percentile(volumes, (2, 98))
    return round(float(low) * 0.75, 1), round(float(high) * 1.25, 1)


def _neighbours(
    name: str, others: Sequence[str], patients: Sequence[dict[str, _Organ]]
) -> tuple[Neighbour, ...]:
    """The organs that lie most faithfully where they do, seen from this one."""
    found = []
    for one, other in permutations(others, 2):
        both = [organs for organs in patients if one in organs and other in organs]
        if one == name and len(both) >= _ENOUGH:
            found.append(_neighbour(other, [o[other].centroid_mm - o[one].centroid_mm for o in both]))
    return tuple(sorted(found, key=lambda near: sum(near.tolerance_mm))[:_MOST_NEIGHBOURS])


def _neighbour(name: str, offsets_mm: Sequence[NDArray[np.float64]]) -> Neighbour:
    low, middle, high = np.percentile(offsets_mm, (2, 50, 98), axis=0)
    tolerance = np.maximum(high - middle, middle - low) * _PLACE_MARGIN + _LEAST_MARGIN_MM
    x, y, z = (round(float(value), 1) for value in middle)
    across, along, up = (round(float(value), 1) for value in tolerance)
    return Neighbour(name=name, offset_mm=(x, y, z), tolerance_mm=(across, along, up))
