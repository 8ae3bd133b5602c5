"""How far two RT Structure Sets of one CT series agree, structure by structure.

Owns the figures, measured on what a receiver would fill: the voxels of the CT whose greater part lies inside.
Speaks two data sets and their `CtSeries` in; Dice, millimetres and cm3 out.
Never says which of the two is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from dicom_node.ct_series import CtSeries
from dicom_node.received import ReceivedRoi, read_rois
from inference.volume import PlaneStack

_HALF = 0.5
_PERCENTILE = 95.0
_MM3_A_CM3 = 1000.0


@dataclass(frozen=True)
class Agreement:
    """One structure in both.

    Attributes:
        name: ROI Name; the same in both.
        dice: 1 where they are the same, 0 where they share nothing, or only one has it.
        hd95_mm: 95 % of the surface of each is no further than this from that of the other; None where only
            one has it. To the voxel.
        furthest_mm: how far the furthest piece of surface is.
        before_cm3, after_cm3: volumes; None where there is none.
    """

    name: str
    dice: float
    hd95_mm: float | None
    furthest_mm: float | None
    before_cm3: float | None
    after_cm3: float | None

    @property
    def in_words(self) -> str:
        """A row: what is the same, gone, new, or by how much it differs."""
        if self.before_cm3 is None:
            return f"{self.name:<16}  new, {self.after_cm3:.2f} cm3"
        if self.after_cm3 is None:
            return f"{self.name:<16}  gone, was {self.before_cm3:.2f} cm3"
        return (
            f"{self.name:<16}  Dice {self.dice:.3f}  HD95 {self.hd95_mm:5.1f} mm  "
            f"furthest {self.furthest_mm:5.1f} mm  {self.before_cm3:.2f} -> {self.after_cm3:.2f} cm3"
        )


def compare(before: Dataset, after: Dataset, series: CtSeries) -> tuple[Agreement, ...]:
    """Every structure that either has contours of, in the order of the first, then of the second.

    Raises:
        KeyError: a contour references a slice that is not in the series.
    """
    old = {roi.name: roi for roi in read_rois(before, series)}
    new = {roi.name: roi for roi in read_rois(after, series)}
    names = [*old, *(name for name in new if name not in old)]
    return tuple(_of(name, old.get(name), new.get(name), series.volume.planes) for name in names)


def _of(name: str, old: ReceivedRoi | None, new: ReceivedRoi | None, planes: PlaneStack) -> Agreement:
    if old is None or new is None:
        return Agreement(name, 0.0, None, None, _cm3_of(old, planes), _cm3_of(new, planes))
    start, one, other = _in_one_box(old, new)
    sizes = [_cm3(mask, start, planes) for mask in (one, other)]
    shared, both = _cm3(one & other, start, planes), sum(sizes)
    away = np.array([_distances_mm(one, other, start, planes), _distances_mm(other, one, start, planes)])
    hd95, furthest = away.max(axis=0)
    return Agreement(name, 2 * shared / both if both else 0.0, float(hd95), float(furthest), *sizes)


def _in_one_box(
    old: ReceivedRoi, new: ReceivedRoi
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Both masks on the smallest box of the CT that holds them; the CT index of its first voxel."""
    starts = np.array([old.start, new.start])
    ends = starts + np.array([old.shares.shape, new.shares.shape])
    low, shape = starts.min(axis=0), ends.max(axis=0) - starts.min(axis=0)
    masks = []
    for roi, start in ((old, starts[0]), (new, starts[1])):
        mask = np.zeros(shape, bool)
        mask[_box(start - low, roi.shares.shape)] = _inside(roi)
        masks.append(mask)
    return low, masks[0], masks[1]


def _box(start: NDArray[np.intp], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(int(first), int(first) + extent) for first, extent in zip(start, shape, strict=True))


def _inside(roi: ReceivedRoi) -> NDArray[np.bool_]:
    """The voxels of which the greater part is inside; of a structure finer than a voxel the fullest ones."""
    inside: NDArray[np.bool_] = roi.shares >= min(_HALF, float(roi.shares.max()))
    return inside


def _cm3_of(roi: ReceivedRoi | None, planes: PlaneStack) -> float | None:
    return None if roi is None else _cm3(_inside(roi), np.array(roi.start), planes)


def _cm3(mask: NDArray[np.bool_], start: NDArray[np.intp], planes: PlaneStack) -> float:
    """By each slice's own thickness."""
    thick_mm = planes.slice_thickness_mm[start[0] : start[0] + len(mask)]
    area_mm2 = planes.row_spacing_mm * planes.column_spacing_mm
    return float(mask.sum(axis=(1, 2)) @ thick_mm * area_mm2 / _MM3_A_CM3)


def _distances_mm(
    one: NDArray[np.bool_], other: NDArray[np.bool_], start: NDArray[np.intp], planes: PlaneStack
) -> tuple[float, float]:
    """From the surface of `one` to that of `other`: the 95th percentile and the largest."""
    away, _ = cKDTree(_surface_mm(other, start, planes)).query(_surface_mm(one, start, planes))
    return float(np.percentile(away, _PERCENTILE)), float(away.max())


def _surface_mm(mask: NDArray[np.bool_], start: NDArray[np.intp], planes: PlaneStack) -> NDArray[np.float64]:
    """(n, 3) LPS centres of the voxels that have a neighbour outside."""
    edge = np.argwhere(mask & ~binary_erosion(mask)) + start
    return planes.plane_points_mm(edge[:, 0], edge[:, 1:].astype(np.float64))


def in_words(found: Sequence[Agreement]) -> Iterator[str]:
    """A line a structure."""
    return (one.in_words for one in found)
