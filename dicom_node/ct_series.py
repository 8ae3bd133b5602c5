"""Slices become a volume: placed as they arrive, judged and sorted once at the end.

Owns the growing store of HU and every refusal that needs more than one slice.
Speaks `CtSlice` in, `CtSeries` out: int16 HU (slices, rows, columns), LPS millimetres.
Never fills a gap, drops a slice or moves one: a series that is not whole is refused with its numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.ct_slice import CtHeader, CtSlice, SliceRejectedError
from dicom_node.errors import SeriesRejectedError
from dicom_node.refusals import Refusal
from dicom_node.stack import Gap, GapReport, gap_report
from inference.volume import PlaneStack, Volume

_GROWTH_SLICES = 256
"""More than most planning CTs have. What is not filled takes no memory; a store that never grows lies in huge
pages, which fill in a third of the time, and are given back in half a millisecond instead of twelve."""
_MOST_VOXELS = 1 << 30
"""2 GiB of HU: twice what 2000 slices of 512 x 512 need; more is no planning CT."""
_SAME_DIRECTION = 1e-4
_SAME_SPACING_MM = 1e-4
_LEAST_AXIAL = np.cos(np.deg2rad(45))
_AIR_BELOW_HU = -500
_TISSUE_HU = (-200, 200)
_LEAST_TISSUE = 0.001

_ONE_OF_EACH: tuple[tuple[str, Callable[[CtHeader], str]], ...] = (
    ("SeriesInstanceUID", lambda header: header.series_instance_uid),
    ("StudyInstanceUID", lambda header: header.study_instance_uid),
    ("PatientID", lambda header: header.patient_id),
    ("FrameOfReferenceUID", lambda header: header.frame_of_reference_uid),
)


@dataclass(frozen=True)
class CtSeries:
    """A CT series that can be contoured.

    Attributes:
        headers, sha256s: one a slice, in the volume's order.
        reference: the first slice's data set without its pixels: Patient, Study and Equipment.
        is_uneven: the slice spacing changes and stays so; each plane still lies where it is.
    """

    volume: Volume
    headers: tuple[CtHeader, ...]
    sha256s: tuple[str, ...]
    reference: Dataset = field(repr=False)
    is_uneven: bool = False


@dataclass(frozen=True)
class _Placed:
    """What is kept of a slice whose HU are in the store.

    Attributes:
        place: its index in the store; None where its matrix did not fit.
        lowest, highest: its HU.
        sample: what its HU look like.
    """

    header: CtHeader
    sha256: str
    place: int | None
    lowest: int
    highest: int
    sample: _Sample


@dataclass(frozen=True)
class _Sample:
    """Every eighth voxel of a slice, which is enough to see air and tissue.

    Attributes:
        lowest: HU.
        tissue, voxels: how many have the HU of tissue, and how many there are.
    """

    lowest: int
    tissue: int
    voxels: int

    @classmethod
    def of(cls, hu: NDArray[np.int16]) -> _Sample:
        """Of one slice (rows, columns)."""
        some = hu[::4, ::2]
        tissue = int(np.count_nonzero((some >= _TISSUE_HU[0]) & (some <= _TISSUE_HU[1])))
        return cls(int(some.min()), tissue, some.size)


class SeriesBuilder:
    """Takes the slices of one series in any order, from any thread, and makes a volume of them.

    There is one int16 store, which grows in place and is sorted in place, so that a series never lies
    in memory twice. `add` never refuses: what contradicts is kept and told by `build`, in an order that
    does not depend on the slices' arrival.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: NDArray[np.int16] = np.empty((0, 0, 0), np.int16)
        self._filled = 0
        self._is_lent = False
        self._slices: dict[tuple[str, str], _Placed] = {}
        self._refused: list[SliceRejectedError] = []
        self._reference: tuple[tuple[float, str], Dataset] | None = None

    def __len__(self) -> int:
        """How many different slices are here."""
        return len(self._slices)

    def add(self, piece: CtSlice) -> None:
        """Place one slice; an identical one that is already here is passed over."""
        key = (piece.header.sop_instance_uid, piece.sha256)
        lowest, highest, sample = int(piece.hu.min()), int(piece.hu.max()), _Sample.of(piece.hu)
        with self._lock:
            if key in self._slices:
                return
            place = self._put(piece.hu)
            self._slices[key] = _Placed(piece.header, piece.sha256, place, lowest, highest, sample)
            rank = (_offset_mm(piece.header), piece.header.sop_instance_uid)
            if self._reference is None or rank < self._reference[0]:
                self._reference = (rank, piece.dataset)

    def refuse(self, problem: SliceRejectedError) -> None:
        """Note why an instance of this series is no slice; `build` will say so.

        What is foreign, such as a localizer under the series' own UID, counts only where there is no slice.
        """
        with self._lock:
            self._refused.append(problem)

    def build(self, min_slices: int) -> CtSeries:
        """The volume of all slices so far; more may be added afterwards, and `build` called again.

        Raises:
            SeriesRejectedError: the slices are no whole planning CT; the code says which rule they break.
        """
        with self._lock:
            placed = sorted(self._slices.values(), key=lambda one: (one.header.sop_instance_uid, one.sha256))
            self._refuse_unreadable()
            headers = [one.header for one in placed]
            _refuse_too_few(len(placed), min_slices)
            _refuse_mixture(headers)
            _refuse_other_geometry(headers)
            report = gap_report(
                [header.image_position_patient for header in headers], headers[0].image_orientation_patient
            )
            _refuse_gaps(report, headers)
            ordered = [placed[index] for index in report.order]
            _refuse_blank(ordered)
            hu = self._sorted(ordered)
            _refuse_absurd_hu([one.sample for one in ordered])
            assert self._reference is not None  # there is at least one slice
            return CtSeries(
                Volume(hu, _planes([one.header for one in ordered])),
                tuple(one.header for one in ordered),
                tuple(one.sha256 for one in ordered),
                self._reference[1],
                report.is_uneven,
            )

    def _put(self, hu: NDArray[np.int16]) -> int | None:
        """Copy one slice to the end of the store; None where it does not fit its matrix."""
        if not self._filled:
            self._store = np.empty((_GROWTH_SLICES, *hu.shape), np.int16)
        if hu.shape != self._store.shape[1:] or (self._filled + 1) * hu.size > _MOST_VOXELS:
            return None
        if self._is_lent:
            self._store, self._is_lent = self._store.copy(), False
        if self._filled == len(self._store):
            # realloc moves pages instead of bytes; no view of the store is alive here (see _is_lent).
            self._store.resize((self._filled + _GROWTH_SLICES, *hu.shape), refcheck=False)
        self._store[self._filled] = hu
        self._filled += 1
        return self._filled - 1

    def _refuse_unreadable(self) -> None:
        """The first refusal by its words, with how many there were."""
        told = [problem for problem in self._refused if not (problem.is_foreign and self._slices)]
        if told:
            first = min(told, key=lambda problem: (problem.code, problem.reason))
            count = len(told)
            raise SeriesRejectedError(
                first.code,
                first.reason if count == 1 else f"{first.reason} (and {count - 1} more such slices)",
            )

    def _sorted(self, ordered: Sequence[_Placed]) -> NDArray[np.int16]:
        """A view of the store with the slices in this order, permuted in place, cycle by cycle."""
        source = [one.place for one in ordered]
        if None in source:
            _refuse(Refusal.MIXED_GEOMETRY, f"more than {_MOST_VOXELS} voxels")
        if self._is_lent:
            self._store = self._store.copy()
        moved = _permute([place for place in source if place is not None], self._store)
        if moved:
            places = {id(one): index for index, one in enumerate(ordered)}
            self._slices = {key: replace(one, place=places[id(one)]) for key, one in self._slices.items()}
        self._is_lent = True
        return self._store[: self._filled]


def assemble(slices: Iterable[CtSlice], min_slices: int) -> CtSeries:
    """A series from slices that are all here.

    Raises:
        SeriesRejectedError: the slices are no whole planning CT.
    """
    builder = SeriesBuilder()
    for piece in slices:
        builder.add(piece)
    return builder.build(min_slices)


def _permute(source: list[int], store: NDArray[np.int16]) -> bool:
    """Make `store[i]` what `store[source[i]]` was, with one spare slice; whether anything moved."""
    done = [origin == place for place, origin in enumerate(source)]
    if all(done):
        return False
    spare = np.empty(store.shape[1:], np.int16)
    for first in range(len(source)):
        if done[first]:
            continue
        spare[:] = store[first]
        place = first
        while source[place] != first:
            store[place] = store[source[place]]
            done[place] = True
            place = source[place]
        store[place] = spare
        done[place] = True
    return True


def _refuse(code: Refusal, reason: str) -> NoReturn:
    raise SeriesRejectedError(code.value, reason)


def _refuse_too_few(count: int, min_slices: int) -> None:
    if count < max(min_slices, 2):
        _refuse(Refusal.TOO_FEW_SLICES, f"{count} CT slices; a planning CT has at least {max(min_slices, 2)}")


def _refuse_mixture(headers: Sequence[CtHeader]) -> None:
    """One series, study, patient and frame of reference; one content an instance."""
    for keyword, value_of in _ONE_OF_EACH:
        different = len({value_of(header) for header in headers})
        if different > 1:
            _refuse(
                Refusal.MIXED_SERIES, f"{different} different values of {keyword} in {len(headers)} slices"
            )
    instances = len({header.sop_instance_uid for header in headers})
    if instances < len(headers):
        _refuse(
            Refusal.CONFLICTING_INSTANCES,
            f"{len(headers)} contents under {instances} SOP Instance UIDs: one came twice, with other bytes",
        )


def _refuse_other_geometry(headers: Sequence[CtHeader]) -> None:
    """One matrix, orientation and pixel spacing, and planes that are axial rather than not."""
    matrices = sorted({(header.rows, header.columns) for header in headers})
    if len(matrices) > 1:
        _refuse(
            Refusal.MIXED_GEOMETRY, f"matrices {_joined(f'{r} x {c}' for r, c in matrices)} in one series"
        )
    orientations = np.array([header.image_orientation_patient for header in headers])
    turned = float(np.ptp(orientations, axis=0).max())
    if turned > _SAME_DIRECTION:
        _refuse(
            Refusal.MIXED_GEOMETRY, f"ImageOrientationPatient differs by up to {turned:.4f} between slices"
        )
    spacings = np.array([header.pixel_spacing for header in headers])
    stretched = float(np.ptp(spacings, axis=0).max())
    if stretched > _SAME_SPACING_MM:
        _refuse(
            Refusal.MIXED_GEOMETRY,
            f"PixelSpacing differs by up to {stretched:.4f} mm between slices "
            f"({spacings.min():g} to {spacings.max():g} mm)",
        )
    upright = abs(float(_normal(headers[0])[2]))
    if upright < _LEAST_AXIAL:
        angle = np.rad2deg(np.arccos(min(upright, 1.0)))
        _refuse(
            Refusal.NOT_AXIAL,
            f"the planes are turned by {angle:.0f} degrees from axial; at most 45 are contoured",
        )


def _refuse_gaps(report: GapReport, headers: Sequence[CtHeader]) -> None:
    """Each slice at its own place, and none missing."""
    if report.duplicates:
        first = headers[report.duplicates[0][0]].image_position_patient
        _refuse(
            Refusal.DUPLICATE_POSITION,
            f"{len(report.duplicates)} of {len(headers)} slices lie where another one does, "
            f"first at {first[0]:g}\\{first[1]:g}\\{first[2]:g} mm",
        )
    if report.missing:
        _refuse(
            Refusal.MISSING_SLICE,
            f"{len(report.missing)} gap(s) where a slice is missing: {_told(report.missing[0])}",
        )
    if report.irregular:
        _refuse(
            Refusal.IRREGULAR_SPACING,
            f"the slice spacing changes and does not stay so: {_told(report.irregular[0])}",
        )


def _told(gap: Gap) -> str:
    return (
        f"{gap.width_mm:.2f} mm between slices {gap.index + 1} and {gap.index + 2} "
        f"(at {gap.after_mm:.2f} mm along the normal), beside {gap.neighbour_mm:.2f} mm"
    )


def _refuse_blank(ordered: Sequence[_Placed]) -> None:
    """No slice without content between slices with some; air above the head is none of these."""
    filled = [index for index, one in enumerate(ordered) if one.lowest < one.highest]
    if not filled:
        _refuse(
            Refusal.ABSURD_HU, f"all {len(ordered)} slices are constant ({ordered[0].lowest} HU in the first)"
        )
    blank = [
        index for index in range(filled[0], filled[-1]) if ordered[index].lowest == ordered[index].highest
    ]
    if blank:
        _refuse(
            Refusal.BLANK_SLICE,
            f"{len(blank)} blank slice(s) inside the volume, first slice {blank[0] + 1} "
            f"({ordered[blank[0]].lowest} HU throughout)",
        )


def _refuse_absurd_hu(samples: Sequence[_Sample]) -> None:
    """A head in a scanner has air around it and tissue inside."""
    lowest = min(sample.lowest for sample in samples)
    tissue = sum(sample.tissue for sample in samples) / sum(sample.voxels for sample in samples)
    if lowest > _AIR_BELOW_HU or tissue < _LEAST_TISSUE:
        _refuse(
            Refusal.ABSURD_HU,
            f"no CT of a patient in HU: lowest value {lowest} HU (air is -1000), {100 * tissue:.2f} % of the "
            f"voxels from {_TISSUE_HU[0]} to {_TISSUE_HU[1]} HU; are slope and intercept right?",
        )


def _normal(header: CtHeader) -> NDArray[np.float64]:
    directions = np.array(header.image_orientation_patient)
    return np.cross(directions[:3], directions[3:])


def _offset_mm(header: CtHeader) -> float:
    return float(np.dot(header.image_position_patient, _normal(header)))


def _planes(headers: Sequence[CtHeader]) -> PlaneStack:
    """The stack: orientation and spacing of the first slice, each slice's own position."""
    first = headers[0]
    return PlaneStack(
        origins_mm=np.array([header.image_position_patient for header in headers]),
        row_direction=np.array(first.image_orientation_patient[:3]),
        column_direction=np.array(first.image_orientation_patient[3:]),
        row_spacing_mm=first.pixel_spacing[0],
        column_spacing_mm=first.pixel_spacing[1],
        rows=first.rows,
        columns=first.columns,
    )


def _joined(words: Iterable[str]) -> str:
    return " and ".join(words)
