"""An RT Structure Set is read back and compared with the mask and the CT that it came from.

Owns the checks that every object passes before it may leave.
Speaks the very bytes that will be sent; its problems name the ROI, the slice and the figures.
Never uses what wrote the object: geometry comes from the CT's headers, masks from another fill.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from inference.volume import PlaneStack

FURTHEST_FROM_PLANE_MM = 0.01
LONGEST_DS = 16
LONGEST_NAME = 16

Vectors = NDArray[np.float64]

_ITEM = 0xFFFEE000
_SOP_CLASS = 0x00081150
_SOP_INSTANCE = 0x00081155
_CONTOUR_IMAGE_SEQUENCE = 0x30060016
_CONTOUR_SEQUENCE = 0x30060040
_CONTOUR_GEOMETRIC_TYPE = 0x30060042
_NUMBER_OF_CONTOUR_POINTS = 0x30060046
_CONTOUR_DATA = 0x30060050

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
    """Bytes that are no contours."""


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
        references: SOP Class and SOP Instance UID of each image in its Contour Image Sequence.
        slice_index: the slice that it references; None where that is none of the series'.
        points_mm: (n, 3) LPS.
    """

    place: str
    geometric_type: str
    stated_points: int
    references: tuple[tuple[str, str], ...]
    slice_index: int | None
    points_mm: Vectors
    distinct_points: int
    longest_ds: int


@dataclass(frozen=True)
class _ReadRoi:
    number: int
    name: str
    contours: tuple[_ReadContour, ...]

    @property
    def is_placed(self) -> bool:
        """Whether each contour lies on a slice of the series."""
        return bool(self.contours) and all(one.slice_index is not None for one in self.contours)


@dataclass(frozen=True)
class _Placed:
    """The points of one ROI, seen from the slices that they reference.

    Attributes:
        rows_columns: (points, 2) index coordinates.
        distances_mm: (points,) from the slice's plane.
        z_errors_mm: (points,) from the slice's own z; 0 where the slice is not axial.
        slices: (points,) the slice of each point.
        starts: where each contour's points begin.
    """

    rows_columns: Vectors
    distances_mm: Vectors
    z_errors_mm: Vectors
    slices: NDArray[np.intp]
    starts: NDArray[np.intp]


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
        return {found.structure.name: found for found in self.segmentation.structures if found.voxels.any()}

    @cached_property
    def contours(self) -> tuple[_ReadContour, ...]:
        """Of all ROIs."""
        return tuple(contour for roi in self.rois for contour in roi.contours)

    @cached_property
    def placed(self) -> tuple[tuple[_ReadRoi, _Placed], ...]:
        """The ROIs that can be placed; what hinders the others is told by other checks."""
        geometry = _Geometry.of(self.series.headers)
        return tuple((roi, geometry.place(roi)) for roi in self.rois if roi.is_placed)

    @cached_property
    def agreements(self) -> tuple[RoiAgreement, ...]:
        """Of the placed ROIs that have a mask."""
        return tuple(
            _agreement(roi.name, placed, self.expected[roi.name], self.series.volume.planes)
            for roi, placed in self.placed
            if roi.name in self.expected
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


def _read_rois(dataset: FileDataset, series: CtSeries) -> tuple[_ReadRoi, ...]:
    if dataset.file_meta.TransferSyntaxUID != ImplicitVRLittleEndian:
        raise _UnreadableError(f"{dataset.file_meta.TransferSyntaxUID} is not Implicit VR Little Endian")
    slices = {header.sop_instance_uid: index for index, header in enumerate(series.headers)}
    contours = {
        int(item.ReferencedROINumber): _encoded_items(item, _CONTOUR_SEQUENCE)
        for item in dataset.ROIContourSequence
    }
    rois = []
    for item in dataset.StructureSetROISequence:
        number, name = int(item.ROINumber), str(item.ROIName)
        read = tuple(
            _read_contour(f"{name}, contour {index}", contour, slices)
            for index, contour in enumerate(_read_items(contours.get(number, b"")), start=1)
        )
        rois.append(_ReadRoi(number, name, read))
    return tuple(rois)


def _read_contour(place: str, item: Mapping[int, bytes], slices: dict[str, int]) -> _ReadContour:
    references = _read_references(item.get(_CONTOUR_IMAGE_SEQUENCE, b""))
    numbers = item[_CONTOUR_DATA].rstrip(b" ").split(b"\\")
    if len(numbers) % 3:
        raise _UnreadableError(f"{place} has {len(numbers)} coordinates, not a multiple of 3")
    return _ReadContour(
        place,
        item[_CONTOUR_GEOMETRIC_TYPE].decode().strip(),
        int(item[_NUMBER_OF_CONTOUR_POINTS]),
        references,
        slices.get(references[0][1]) if references else None,
        np.array(numbers, np.float64).reshape(-1, 3),
        len(set(zip(*(numbers[axis::3] for axis in range(3)), strict=True))),
        max(map(len, numbers)),
    )


def _read_references(sequence: bytes) -> tuple[tuple[str, str], ...]:
    return tuple(
        (item[_SOP_CLASS].rstrip(b"\0").decode(), item[_SOP_INSTANCE].rstrip(b"\0").decode())
        for item in _read_items(sequence)
    )


def _encoded_items(dataset: Dataset, tag: int) -> bytes:
    """The bytes of a sequence that pydicom has not taken apart yet."""
    element = dataset.get_item(tag)
    return bytes(element.value) if element is not None and element.is_raw else b""


def _read_items(sequence: bytes) -> Iterator[dict[int, bytes]]:
    """The items of a sequence in Implicit VR Little Endian with lengths given (PS3.5 7.5): tag to value.

    By hand, because pydicom takes a fifth of a second for what is only ever these few elements.
    """
    for tag, content in _read_elements(sequence):
        if tag != _ITEM:
            raise _UnreadableError(f"a sequence holds the tag {Tag(tag)} instead of an item")
        yield dict(_read_elements(content))


def _read_elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(content):
        group, number, length = struct.unpack_from("<HHI", content, place)
        place += 8 + length
        if place > len(content):
            raise _UnreadableError(f"{Tag(group, number)} is longer than what holds it")
        yield group << 16 | number, content[place - length : place]


def _file(case: _Case) -> Iterator[str]:
    meta, dataset = case.dataset.file_meta, case.dataset
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
        image for item in series for image in _read_references(_encoded_items(item, _CONTOUR_IMAGE_SEQUENCE))
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
        if contour.distinct_points < 3:
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
    for roi, placed in case.placed:
        distances = np.maximum.reduceat(np.abs(placed.distances_mm), placed.starts)
        z_errors = np.maximum.reduceat(np.abs(placed.z_errors_mm), placed.starts)
        for contour, distance, z_error in zip(roi.contours, distances, z_errors, strict=True):
            if not distance <= FURTHEST_FROM_PLANE_MM:
                yield f"{contour.place}: {distance:.3f} mm from the plane of slice {contour.slice_index}"
            if not z_error <= _SAME_MM:
                yield f"{contour.place}: z is {z_error:g} mm off its slice {contour.slice_index}"
        extent = (case.series.volume.planes.rows, case.series.volume.planes.columns)
        if np.any(placed.rows_columns < -1) or np.any(placed.rows_columns > extent):
            yield f"{roi.name} leaves the matrix of the CT"


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


@dataclass(frozen=True)
class _Geometry:
    """Where the pixels of each slice lie, from its own header.

    Attributes:
        origins_mm: (slices, 3).
        normals: (slices, 3), unit vectors.
        inverses: (slices, 2, 3), from a displacement in mm to (row, column).
        is_axial: (slices,).
    """

    origins_mm: Vectors
    normals: Vectors
    inverses: Vectors
    is_axial: NDArray[np.bool_]

    @classmethod
    def of(cls, headers: Sequence[CtHeader]) -> _Geometry:
        """By PS3.3 Equation C.7.6.2.1-1, solved for the indices."""
        orientations = np.array([header.image_orientation_patient for header in headers])
        along_row, along_column = orientations[:, :3], orientations[:, 3:]
        row_mm, column_mm = np.array([header.pixel_spacing for header in headers]).T
        steps = np.stack((along_column * row_mm[:, None], along_row * column_mm[:, None]), axis=2)
        normals = np.cross(along_row, along_column)
        return cls(
            np.array([header.image_position_patient for header in headers]),
            normals / np.linalg.norm(normals, axis=1, keepdims=True),
            np.linalg.pinv(steps),
            (np.abs(orientations[:, [2, 5]]) < _AXIAL).all(axis=1),
        )

    def place(self, roi: _ReadRoi) -> _Placed:
        """The points of an ROI, each contour of which references a slice."""
        counts = [len(contour.points_mm) for contour in roi.contours]
        slices = np.repeat([contour.slice_index for contour in roi.contours], counts).astype(np.intp)
        ways = np.concatenate([contour.points_mm for contour in roi.contours]) - self.origins_mm[slices]
        return _Placed(
            np.einsum("nij,nj->ni", self.inverses[slices], ways),
            np.einsum("nj,nj->n", self.normals[slices], ways),
            np.where(self.is_axial[slices], ways[:, 2], 0.0),
            slices,
            np.cumsum([0, *counts[:-1]]),
        )


def _agreement(name: str, placed: _Placed, found: StructureMap, planes: PlaneStack) -> RoiAgreement:
    """Fill the contours and compare, within the smallest box that holds them and the mask."""
    mask, start = found.mask, np.array(found.start)
    points = np.clip(placed.rows_columns, -1, (planes.rows, planes.columns))
    low = np.minimum([placed.slices.min(), *np.floor(points.min(axis=0))], start).astype(np.intp)
    high = [placed.slices.max() + 1, *(np.ceil(points.max(axis=0)) + 1)]
    slices, rows, columns = (np.maximum(high, start + mask.shape).astype(np.intp) - low).tolist()
    # The planes lie one below the other, so that one fill serves all.
    below = (placed.slices - low[0]) * rows
    stacked = np.stack((points[:, 0] - low[1] + below, points[:, 1] - low[2]), axis=1)
    polygons = np.split(stacked, placed.starts[1:])
    filled = fill(polygons, slices * rows, columns).reshape(slices, rows, columns)
    inner = tuple(slice(first, first + size) for first, size in zip(start - low, mask.shape, strict=True))
    common = np.count_nonzero(filled[inner] & mask)
    areas = np.bincount(placed.slices[placed.starts], _areas(points, placed.starts), planes.shape[0])
    thickness_mm = planes.slice_thickness_mm
    pixel_cm3 = planes.row_spacing_mm * planes.column_spacing_mm / 1000  # a millimetre thick
    return RoiAgreement(
        name,
        float(2 * common / (np.count_nonzero(filled) + found.voxels.sum())),
        float(np.abs(areas) @ thickness_mm) * pixel_cm3,
        float(found.voxels @ thickness_mm[found.box[0]]) * pixel_cm3,
        int(found.voxels.sum()),
        float(np.abs(placed.distances_mm).max()),
    )


def _areas(points: Vectors, starts: NDArray[np.intp]) -> Vectors:
    """Of each polygon by the shoelace formula, square pixels; `starts` tells where its points begin."""
    lengths = np.diff(starts, append=len(points))
    rows, columns = (points - np.repeat(points[starts], lengths, axis=0)).T
    # Between two polygons both terms are zero: one begins at the point that it is seen from.
    across = columns[:-1] * rows[1:] - rows[:-1] * columns[1:]
    return np.asarray(np.add.reduceat(np.append(across, 0.0), starts) / 2)
