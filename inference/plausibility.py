"""Whether what was found can be what it is called: by volume, side, pieces and place among its neighbours.

Owns the flags that tell a person where to look first, and the verdict that this is no head and neck.
Speaks `StructureMap` on the CT's grid, cm3, and LPS millimetres.
Never changes a structure: it only says what is odd about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.errors import OutsideModelError
from inference.flags import (
    CUT_BY_FIELD_OF_VIEW,
    CUT_BY_MODEL_EXTENT,
    FLAGS,
    IMPLAUSIBLE_SIDE,
    IN_PIECES,
    LOW_CONFIDENCE,
    NOT_FOUND,
    OUT_OF_PLACE,
    UNEQUAL_SIDES,
    VOLUME_OUT_OF_RANGE,
)
from inference.morphology import bounds, count_components
from inference.postprocessing import volume_cm3
from inference.segmentation import StructureMap
from inference.volume import PlaneStack
from models.card import ModelDescription

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Seen:
    """What is measured of one structure that was found.

    Attributes:
        cut: whether the scan, or the model's extent, ends within it.
        centroid_mm: (x, y, z) LPS.
    """

    found: StructureMap
    volume_cm3: float
    cut_by_view: bool
    cut_by_model: bool
    centroid_mm: Vector

    @property
    def is_cut(self) -> bool:
        """Of a structure that is cut, no one can say that it is too small."""
        return self.cut_by_view or self.cut_by_model

    @property
    def has_plausible_volume(self) -> bool:
        """Within the package's range; one that is cut may have less."""
        low, high = self.found.structure.volume_cm3
        return self.volume_cm3 <= high and (self.is_cut or self.volume_cm3 >= low)


def judged(
    maps: Sequence[StructureMap],
    planes: PlaneStack,
    cut_by_model: Sequence[bool],
    model: ModelDescription,
) -> list[StructureMap]:
    """Each map with what a person should look at first.

    Args:
        maps: one a structure.
        planes: the CT's.
        cut_by_model: for each map, whether it ends where the model's extent does and the body goes on.
        model: the ranges, the neighbours, and how many structures must be in place.

    Raises:
        OutsideModelError: `no_structures`, where none was found; `not_this_anatomy`, where too few have a
            plausible volume and lie where their neighbours say.
    """
    seen = {
        found.structure.name: _see(found, planes, cut)
        for found, cut in zip(maps, cut_by_model, strict=True)
        if found.probability.size
    }
    if not seen:
        names = ", ".join(structure.name for structure in model.structures)
        raise OutsideModelError(
            "no_structures", f"the model {model.name} found none of its structures ({names})"
        )
    in_place = {name: _is_in_place(name, seen) for name in seen}
    _refuse_other_anatomy(seen, in_place, model)
    odd = {name: set(_oddities(one, seen, in_place, model)) for name, one in seen.items()}
    return [
        replace(
            found, flags=tuple(flag for flag in FLAGS if flag in odd.get(found.structure.name, {NOT_FOUND}))
        )
        for found in maps
    ]


def _see(found: StructureMap, planes: PlaneStack, cut_by_model: bool) -> _Seen:
    box = bounds(found.mask)
    assert box is not None
    cut_by_view = any(
        origin + side.start == 0 or origin + side.stop == extent
        for origin, side, extent in zip(found.start, box, planes.shape, strict=True)
    )
    return _Seen(found, volume_cm3(found, planes), cut_by_view, cut_by_model, _centroid_mm(found, planes))


def _oddities(
    one: _Seen, seen: Mapping[str, _Seen], in_place: Mapping[str, bool | None], model: ModelDescription
) -> Iterator[str]:
    structure = one.found.structure
    if one.cut_by_view:
        yield CUT_BY_FIELD_OF_VIEW
    if one.cut_by_model:
        yield CUT_BY_MODEL_EXTENT
    if not one.has_plausible_volume:
        yield VOLUME_OUT_OF_RANGE
    twin = _twin(one, seen)
    if twin is not None:
        if _is_crossed(one, twin):
            yield IMPLAUSIBLE_SIDE
        if _ratio(one, twin) > model.largest_side_ratio and not (one.is_cut or twin.is_cut):
            yield UNEQUAL_SIDES
    if in_place[structure.name] is False:
        yield OUT_OF_PLACE
    if count_components(one.found.mask) > 1:
        yield IN_PIECES
    if one.found.confidence is not None and one.found.confidence < structure.least_confidence:
        yield LOW_CONFIDENCE


def _twin(one: _Seen, seen: Mapping[str, _Seen]) -> _Seen | None:
    """The same organ of the other side."""
    structure = one.found.structure
    if structure.laterality is None:
        return None
    for other in seen.values():
        theirs = other.found.structure
        if theirs.code == structure.code and theirs.laterality not in (None, structure.laterality):
            return other
    return None


def _is_crossed(one: _Seen, twin: _Seen) -> bool:
    """Whether the left one does not lie to the patient's left (LPS +x) of the right one."""
    sides = {each.found.structure.laterality: each.centroid_mm[0] for each in (one, twin)}
    return bool(sides["L"] <= sides["R"])


def _ratio(one: _Seen, twin: _Seen) -> float:
    small, large = sorted((one.volume_cm3, twin.volume_cm3))
    return large / small


def _is_in_place(name: str, seen: Mapping[str, _Seen]) -> bool | None:
    """Whether at least half of the neighbours that were found lie where the training data had them.

    One that strayed is wrong to all of its neighbours, while each of those is wrong to one only. None where
    no neighbour was found.
    """
    one = seen[name]
    right = [
        bool(
            np.all(
                np.abs(seen[near.name].centroid_mm - one.centroid_mm - near.offset_mm) <= near.tolerance_mm
            )
        )
        for near in one.found.structure.neighbours
        if near.name in seen
    ]
    return None if not right else 2 * sum(right) >= len(right)


def _refuse_other_anatomy(
    seen: Mapping[str, _Seen], in_place: Mapping[str, bool | None], model: ModelDescription
) -> None:
    trusted = [name for name, one in seen.items() if in_place[name] and one.has_plausible_volume]
    if len(trusted) >= model.least_in_place:
        return
    told = ", ".join(f"{name} {one.volume_cm3:.1f} cm3" for name, one in seen.items())
    raise OutsideModelError(
        "not_this_anatomy",
        f"this does not look like what {model.name} was made for: of what it found ({told}), {len(trusted)} "
        f"have a plausible volume and lie where their neighbours are, and {model.least_in_place} must; "
        "check that the series is a planning CT of the right region",
    )


def _centroid_mm(found: StructureMap, planes: PlaneStack) -> Vector:
    """(x, y, z) LPS."""
    slices, rows, columns = (
        np.count_nonzero(found.mask, axis=others) / np.count_nonzero(found.mask)
        for others in ((1, 2), (0, 2), (0, 1))
    )
    in_slices, in_rows, in_columns = found.box
    centre: Vector = (
        slices @ planes.origins_mm[in_slices]
        + rows @ np.arange(in_rows.start, in_rows.stop) * planes.row_step_mm
        + columns @ np.arange(in_columns.start, in_columns.stop) * planes.column_step_mm
    )
    return centre
