"""An RT Structure Set is read back and compared with the mask and the CT that it came from.

Owns the checks that every object passes before it may leave.
Speaks the very bytes that will be sent; its problems name the ROI, the slice and the figures.
Never uses what wrote the object: geometry comes from the CT's headers, masks from another fill.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from dicom_node.ct_series import CtSeries
from dicom_node.ct_slice import CtHeader
from dicom_node.errors import PermanentError
from dicom_node.rt_struct import RtStructOptions
from inference.rasterising import fill
from inference.segmentation import Segmentation, StructureMap

FURTHEST_FROM_PLANE_MM = 0.01
LONGEST_DS = 16
LONGEST_NAME = 16

_SAME_MM = 1e-6
_AXIAL = 1e-9
_SHOWN = 8

_IDENTITY = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyDescription", "TimezoneOffsetFromUTC"),
)
_PATIENT_GROUPS = (0x0010, 0x0012)
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesInstanceUID"),
    *("SeriesNumber", "OperatorsName", "Manufacturer", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "StructureSetLabel", "StructureSetDate", "StructureSetTime"),
)
"""Type 1 and 2 of the modules that PS3.3 Table A.19.3-1 makes mandatory."""


class RtStructCheckError(PermanentError):
    """The RT Structure Set is not what it was made from; it must not leave.

    Attributes:
        problems: each in a sentence, with the ROI, the slice and the figures.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        shown = "; ".join(problems[:_SHOWN])
        super().__init__(f"the RT Structure Set failed its own check and was not sent: {shown}{more}")
        self.problems = problems


class _UnreadableError(Exception):
    """A contour whose points are no points."""


@dataclass(frozen=True)
class Bounds:
    """How well contours must agree with a mask of at least this volume and this many voxels.

    Attributes:
        dice: at least, voxel by voxel.
        volume: relative difference at most, between the contours' area times thickness and the mask.
    """

    from_cm3: float
    from_voxels: int
    dice: float
    volume: float


VOXEL_BOUNDS = (Bounds(0.0, 0, 1.0, 1e-3),)
SMOOTH_BOUNDS = (Bounds(1.0, 500, 0.97, 0.08), Bounds(0.1, 40, 0.90, 0.20), Bounds(0.0, 0, 0.60, 0.30))
"""A smooth line may leave out voxels whose centre lies within the simplification of it."""


@dataclass(frozen=True)
class RoiAgreement:
    """How one ROI compares with its mask."""

    name: str
    dice: float
    volume_cm3: float
    mask_volume_cm3: float
    mask_voxels: int
    furthest_from_plane_mm: float


@dataclass(frozen=True)
class CheckReport:
    """What was looked at, all of it in order."""

    checks: tuple[str, ...]
    rois: tuple[RoiAgreement, ...]


@dataclass(frozen=True)
class _ReadContour:
    """One contour as a receiver reads it.

    Attributes:
        place: for messages.
        slice_index: the slice that it references; None where that is none of the series'.
        points_mm: (n, 3) LPS.
    """

    place: str
    geometric_type: str
    stated_points: int
    references: tuple[tuple[str, str], ...]
    slice_index: int | None
    points_mm: NDArray[np.float64]
    longest_ds: int


@dataclass(frozen=True)
class _ReadRoi:
    number: int
    name: str
    contours: tuple[_ReadContour, ...]


@dataclass(frozen=True)
class _Case:
    """The object as read, and what it must agree with."""

    dataset: FileDataset
    rois: tuple[_ReadRoi, ...]
    series: CtSeries
    segmentation: Segmentation
    options: RtStructOptions

    @cached_property
    def expected(self) -> dict[str, StructureMap]:
        """The structures with a mask, by name."""
        return {found.structure.name: found for found in self.segmentation.structures if found.mask.any()}

    @cached_property
    def contours(self) -> tuple[_ReadContour, ...]:
        """Of all ROIs."""
        return tuple(contour for roi in self.rois for contour in roi.contours)

    @cached_property
    def agreements(self) -> tuple[RoiAgreement, ...]:
        """Of the ROIs that can be compared; what hinders the others is told by other checks."""
        return tuple(
            _agreement(self, roi, self.expected[roi.name])
            for roi in self.rois
            if roi.name in self.expected and all(one.slice_index is not None for one in roi.contours)
        )


_Check = Callable[[_Case], Iterator[str]]


def check(data: bytes, series: CtSeries, segmentation: Segmentation, options: RtStructOptions) -> CheckReport:
    """Read an RT Structure Set back and compare it with what it was made from.

    Args:
        data: the Part 10 file, as it will be kept and sent.
        series, segmentation, options: what it was built from.

    Raises:
        RtStructCheckError: with every problem found.
    """
    try:
        dataset = dcmread(BytesIO(data))
        case = _Case(dataset, _read_rois(dataset, series), series, segmentation, options)
        problems = tuple(problem for _, find in _CHECKS for problem in find(case))
    except (_UnreadableError, AttributeError, KeyError) as broken:
        raise RtStructCheckError((f"it cannot be read back: {broken}",)) from broken
    except (InvalidDicomError, struct.error, IndexError, TypeError, ValueError, EOFError) as broken:
        # Their texts may repeat a value of the data set; the class has to do.
        raise RtStructCheckError((f"it cannot be read back: {type(broken).__name__}",)) from broken
    if problems:
        raise RtStructCheckError(problems)
    return CheckReport(tuple(name for name, _ in _CHECKS), case.agreements)


def _read_rois(dataset: Dataset, series: CtSeries) -> tuple[_ReadRoi, ...]:
    slices = {header.sop_instance_uid: index for index, header in enumerate(series.headers)}
    contours = {
        int(item.ReferencedROINumber): item.get("ContourSequence", ()) for item in dataset.ROIContourSequence
    }
    rois = []
    for item in dataset.StructureSetROISequence:
        number, name = int(item.ROINumber), str(item.ROIName)
        read = tuple(
            _read_contour(f"{name}, contour {index}", contour, slices)
            for index, contour in enumerate(contours.get(number, ()), start=1)
        )
        rois.append(_ReadRoi(number, name, read))
    return tuple(rois)


def _read_contour(place: str, item: Dataset, slices: dict[str, int]) -> _ReadContour:
    references = tuple(
        (str(image.ReferencedSOPClassUID), str(image.ReferencedSOPInstanceUID))
        for image in item.get("ContourImageSequence", ())
    )
    raw = item.get_item(Tag("ContourData")).value  # parsing each DS by itself would take seconds
    numbers = bytes(raw).split(b"\\")
    if len(numbers) % 3:
        raise _UnreadableError(f"{place} has {len(numbers)} coordinates, not a multiple of 3")
    return _ReadContour(
        place,
        str(item.ContourGeometricType),
        int(item.NumberOfContourPoints),
        references,
        slices.get(references[0][1]) if references else None,
        np.array(numbers, np.float64).reshape(-1, 3),
        max(len(number) for number in (*numbers[:-1], numbers[-1].rstrip(b" "))),
    )


def _file(case: _Case) -> Iterator[str]:
    meta, dataset = case.dataset.file_meta, case.dataset
    if meta.TransferSyntaxUID != ImplicitVRLittleEndian:
        yield f"transfer syntax {meta.TransferSyntaxUID}, not Implicit VR Little Endian"
    if dataset.SOPClassUID != RTStructureSetStorage or dataset.Modality != "RTSTRUCT":
        yield f"SOP class {dataset.SOPClassUID}, modality {dataset.Modality}: no RT Structure Set"
    if meta.MediaStorageSOPInstanceUID != dataset.SOPInstanceUID:
        yield "group 0002 and the data set name different SOP Instance UIDs"


def _required(case: _Case) -> Iterator[str]:
    for keyword in _REQUIRED:
        if keyword not in case.dataset:
            yield f"{keyword} is missing"


def _same_patient_and_study(case: _Case) -> Iterator[str]:
    """Values stay out of the messages: they are the patient's."""
    mine, theirs = case.dataset, case.series.reference
    own = {element.tag for element in mine.elements() if element.tag.group in _PATIENT_GROUPS}
    for tag in sorted(own | {Tag(keyword) for keyword in _IDENTITY}):
        if not _same_element(mine, theirs, tag):
            yield f"{tag} differs from the CT's"


def _same_element(mine: Dataset, theirs: Dataset, tag: BaseTag) -> bool:
    if tag not in theirs:
        return tag not in mine or mine[tag].is_empty
    if tag not in mine:
        return False
    first, second = mine.get_item(tag), theirs.get_item(tag)
    if first.is_raw and second.is_raw and second.VR != "SQ":
        return bytes(first.value or b"").rstrip(b" \0") == bytes(second.value or b"").rstrip(b" \0")
    return bool(mine[tag].value == theirs[tag].value) or (mine[tag].is_empty and theirs[tag].is_empty)


def _new_uids(case: _Case) -> Iterator[str]:
    theirs = {header.series_instance_uid for header in case.series.headers}
    theirs |= {header.sop_instance_uid for header in case.series.headers}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uid = case.dataset[keyword].value
        if not uid.is_valid or uid in theirs:
            yield f"{keyword} {uid} is invalid or the CT's own"


def _frame_of_reference(case: _Case) -> Iterator[str]:
    expected = case.series.headers[0].frame_of_reference_uid
    found = [("the data set", case.dataset.FrameOfReferenceUID)]
    found += [
        ("a reference", item.FrameOfReferenceUID) for item in case.dataset.ReferencedFrameOfReferenceSequence
    ]
    found += [
        (item.ROIName, item.ReferencedFrameOfReferenceUID) for item in case.dataset.StructureSetROISequence
    ]
    for place, uid in found:
        if uid != expected:
            yield f"{place}: Frame of Reference UID {uid}, the CT's is {expected}"


def _referenced_series(case: _Case) -> Iterator[str]:
    header = case.series.headers[0]
    frames = case.dataset.ReferencedFrameOfReferenceSequence
    studies = [study for frame in frames for study in frame.RTReferencedStudySequence]
    series = [item for study in studies for item in study.RTReferencedSeriesSequence]
    images = [
        (str(image.ReferencedSOPClassUID), str(image.ReferencedSOPInstanceUID))
        for item in series
        for image in item.ContourImageSequence
    ]
    if [study.ReferencedSOPInstanceUID for study in studies] != [header.study_instance_uid]:
        yield "the referenced study is not the CT's"
    if [item.SeriesInstanceUID for item in series] != [header.series_instance_uid]:
        yield "the referenced series is not the CT's"
    if Counter(images) != Counter((one.sop_class_uid, one.sop_instance_uid) for one in case.series.headers):
        yield f"it references {len(images)} images, not each of the {len(case.series.headers)} slices once"


def _predecessor(case: _Case) -> Iterator[str]:
    named = [
        item.ReferencedSOPInstanceUID for item in case.dataset.get("PredecessorStructureSetSequence", ())
    ]
    wanted = case.options.predecessor_sop_instance_uid
    if named != ([] if wanted is None else [wanted]):
        yield f"predecessor {named}, expected {wanted}"


def _numbers(case: _Case) -> Iterator[str]:
    rois = Counter(roi.number for roi in case.rois)
    contours = Counter(int(item.ReferencedROINumber) for item in case.dataset.ROIContourSequence)
    observed = Counter(int(item.ReferencedROINumber) for item in case.dataset.RTROIObservationsSequence)
    for number, times in rois.items():
        if times > 1:
            yield f"ROI number {number} is given {times} times"
    for place, counted in (("contours", contours), ("observations", observed)):
        for number in sorted(counted.keys() | rois.keys()):
            if (number in rois, counted[number]) != (True, 1):
                yield f"ROI number {number}: {rois[number]} ROIs, {counted[number]} {place}"


def _names(case: _Case) -> Iterator[str]:
    names = [roi.name for roi in case.rois]
    folded = Counter(name.casefold() for name in names)
    for name in names:
        if len(name) > LONGEST_NAME or folded[name.casefold()] > 1:
            yield f"ROI name {name!r} is longer than {LONGEST_NAME} characters or not unique"
    for name in sorted(case.expected.keys() - set(names)):
        yield f"{name} was found but is not in the object"
    for name in sorted(set(names) - case.expected.keys()):
        yield f"{name} is in the object but was not found"


def _status(case: _Case) -> Iterator[str]:
    if case.dataset.ApprovalStatus != "UNAPPROVED":
        yield f"approval status {case.dataset.ApprovalStatus}: only a person approves"
    hash_start = case.options.model.sha256[:12]
    for item in case.dataset.StructureSetROISequence:
        if item.ROIGenerationAlgorithm != "AUTOMATIC":
            yield f"{item.ROIName}: generated {item.ROIGenerationAlgorithm}, not AUTOMATIC"
        if hash_start not in item.get("ROIGenerationDescription", ""):
            yield f"{item.ROIName}: its description does not name the model {hash_start}"
    for item in case.dataset.RTROIObservationsSequence:
        if item.RTROIInterpretedType != "ORGAN":
            yield f"ROI number {item.ReferencedROINumber}: type {item.RTROIInterpretedType}, not ORGAN"


def _contour_form(case: _Case) -> Iterator[str]:
    for roi in case.rois:
        if not roi.contours:
            yield f"{roi.name} has no contours"
    for contour in case.contours:
        if contour.geometric_type != "CLOSED_PLANAR":
            yield f"{contour.place}: {contour.geometric_type}, not CLOSED_PLANAR"
        if contour.stated_points != len(contour.points_mm):
            yield f"{contour.place}: {contour.stated_points} points stated, {len(contour.points_mm)} written"
        if len(np.unique(contour.points_mm, axis=0)) < 3:
            yield f"{contour.place}: fewer than 3 distinct points"
        if contour.longest_ds > LONGEST_DS:
            yield f"{contour.place}: a coordinate has {contour.longest_ds} characters, not {LONGEST_DS}"


def _contour_image(case: _Case) -> Iterator[str]:
    for contour in case.contours:
        if len(contour.references) != 1 or contour.slice_index is None:
            yield f"{contour.place}: references {len(contour.references)} images, none or not one of the CT's"
        elif contour.references[0][0] != case.series.headers[contour.slice_index].sop_class_uid:
            yield f"{contour.place}: references its slice with another SOP class"


def _in_plane(case: _Case) -> Iterator[str]:
    for contour in case.contours:
        if contour.slice_index is None:
            continue
        header = case.series.headers[contour.slice_index]
        distance = float(np.abs(_plane_distances(header, contour.points_mm)).max())
        if not distance <= FURTHEST_FROM_PLANE_MM:
            yield f"{contour.place}: {distance:.3f} mm from the plane of slice {contour.slice_index}"
        z, own = contour.points_mm[:, 2], header.image_position_patient[2]
        if _is_axial(header) and np.abs(z - own).max() > _SAME_MM:
            yield f"{contour.place}: z {z[0]:g} mm, its slice {contour.slice_index} lies at {own:g} mm"


def _masks(case: _Case) -> Iterator[str]:
    bounds = VOXEL_BOUNDS if case.options.contour_mode == "voxel" else SMOOTH_BOUNDS
    for roi in case.agreements:
        size, voxels = roi.mask_volume_cm3, roi.mask_voxels
        bound = next(one for one in bounds if size >= one.from_cm3 and voxels >= one.from_voxels)
        if roi.dice < bound.dice:
            yield (
                f"{roi.name}: Dice {roi.dice:.4f} with its mask of {size:.2f} cm3, "
                f"the least allowed is {bound.dice}"
            )
        if abs(roi.volume_cm3 - size) > bound.volume * size:
            yield f"{roi.name}: {roi.volume_cm3:.3f} cm3 in the contours, {size:.3f} cm3 in the mask"


_CHECKS: tuple[tuple[str, _Check], ...] = (
    ("file", _file),
    ("patient and study are the CT's", _same_patient_and_study),
    ("required attributes", _required),
    ("new UIDs", _new_uids),
    ("frame of reference", _frame_of_reference),
    ("referenced series", _referenced_series),
    ("predecessor", _predecessor),
    ("ROI numbers", _numbers),
    ("ROI names", _names),
    ("status and origin", _status),
    ("form of contours", _contour_form),
    ("referenced slices", _contour_image),
    ("points lie in their slice's plane", _in_plane),
    ("contours are the mask", _masks),
)


def _directions(header: CtHeader) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    orientation = np.array(header.image_orientation_patient)
    return orientation[:3], orientation[3:]


def _is_axial(header: CtHeader) -> bool:
    along_columns, along_rows = _directions(header)
    return bool(abs(along_columns[2]) < _AXIAL and abs(along_rows[2]) < _AXIAL)


def _plane_distances(header: CtHeader, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    normal = np.cross(*_directions(header))
    return np.asarray((points_mm - np.array(header.image_position_patient)) @ normal / np.linalg.norm(normal))


def _indices(header: CtHeader, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(row, column) of points, by solving PS3.3 Equation C.7.6.2.1-1 for the indices."""
    along_columns, along_rows = _directions(header)
    row_mm, column_mm = header.pixel_spacing
    steps = np.stack((along_rows * row_mm, along_columns * column_mm), axis=1)
    return np.asarray((points_mm - np.array(header.image_position_patient)) @ np.linalg.pinv(steps).T)


def _agreement(case: _Case, roi: _ReadRoi, found: StructureMap) -> RoiAgreement:
    planes = case.series.volume.planes
    pixel_cm2 = planes.row_spacing_mm * planes.column_spacing_mm / 100
    thickness_cm = planes.slice_thickness_mm / 10
    polygons: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(list)
    furthest = 0.0
    for contour in roi.contours:
        assert contour.slice_index is not None
        header = case.series.headers[contour.slice_index]
        polygons[contour.slice_index].append(_indices(header, contour.points_mm))
        furthest = max(furthest, float(np.abs(_plane_distances(header, contour.points_mm)).max()))
    first, mask = found.start[0], found.mask
    box_slices = range(first, first + len(mask))
    both = drawn = masked = 0
    volume = mask_volume = 0.0
    for index in sorted({*polygons, *box_slices}):
        shape = polygons.get(index, [])
        own = mask[index - first] if index in box_slices else np.zeros_like(mask[0])
        common, inside = _overlap(shape, own, found.start[1:], (planes.rows, planes.columns))
        both, drawn, masked = both + common, drawn + inside, masked + int(own.sum())
        volume += abs(sum(_area(polygon) for polygon in shape)) * pixel_cm2 * thickness_cm[index]
        mask_volume += int(own.sum()) * pixel_cm2 * thickness_cm[index]
    dice = 2 * both / (drawn + masked)
    return RoiAgreement(roi.name, dice, float(volume), float(mask_volume), masked, furthest)


def _overlap(
    polygons: list[NDArray[np.float64]],
    mask: NDArray[np.bool_],
    start: tuple[int, int],
    extent: tuple[int, int],
) -> tuple[int, int]:
    """Voxels inside both polygons and mask, and inside the polygons, in one slice.

    Only the part of the slice that holds either is filled, with a border that shows what leaves
    the matrix.
    """
    if not polygons:
        return 0, 0
    points = np.concatenate(polygons)
    low = np.maximum(np.minimum(np.floor(points.min(axis=0)), start), -1).astype(int)
    high = np.minimum(
        np.maximum(np.ceil(points.max(axis=0)) + 1, np.add(start, mask.shape)), np.add(extent, 1)
    )
    rows, columns = (int(size) for size in high - low)
    filled = fill([polygon - low for polygon in polygons], rows, columns)
    top, left = start[0] - low[0], start[1] - low[1]
    part = filled[top : top + mask.shape[0], left : left + mask.shape[1]]
    return int(np.count_nonzero(part & mask)), int(np.count_nonzero(filled))


def _area(polygon: NDArray[np.float64]) -> float:
    """Shoelace formula, square pixels."""
    rows, columns = (polygon - polygon[0]).T
    return float(np.dot(columns, np.roll(rows, -1)) - np.dot(rows, np.roll(columns, -1))) / 2
