"""An RT Structure Set is read back and compared with the mask and the CT that it came from.

Owns the checks that every object passes before it may leave.
Speaks the very bytes that will be sent; its problems name the ROI, the slice and the figures.
Never uses what wrote the object: geometry comes from the CT's headers, masks from another fill.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTStructureSetStorage

from dicom_node.ct_series import CtSeries
from dicom_node.ct_slice import CtHeader
from dicom_node.errors import PermanentError
from dicom_node.rt_struct import RtStructOptions
from dicom_node.rt_struct_reading import (
    ReadContour,
    ReadRoi,
    UnreadableError,
    Vectors,
    read_rois,
    referenced_images,
)
from inference.rasterising import fill
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack

FURTHEST_FROM_PLANE_MM = 0.01
LONGEST_DS = 16
LONGEST_NAME = 64
LONGEST_EXPLICIT_BYTES = 65_534
LONGEST_LABEL = 16

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
_REQUIRED_VALUES = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Manufacturer", "FrameOfReferenceUID"),
    *("StructureSetLabel", "StructureSetDate", "StructureSetTime", "InstanceNumber"),
)
"""Those of them that may not be empty, and what planning systems ask for beyond."""

_SYNTAXES = {"implicit": ImplicitVRLittleEndian, "explicit": ExplicitVRLittleEndian}
_SIDES = {"L": "7771000", "R": "24028007"}
"""SNOMED CT (PS3.16 CID 244)."""
_SAME_CM3, _SAME_SHARE = 1e-3, 1e-3


class RtStructCheckError(PermanentError):
    """The RT Structure Set is not what it was made from; it must not leave.

    Attributes:
        problems: each in a sentence, with the ROI, the slice and the figures.
        data: the very bytes, for whoever looks for the cause.
    """

    def __init__(self, problems: tuple[str, ...], data: bytes, evidence: Path | None = None) -> None:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        shown = "; ".join(problems[:_SHOWN])
        kept = "" if evidence is None else f"; the object is kept for you in {evidence}"
        super().__init__(f"the RT Structure Set failed its own check and was not sent: {shown}{more}{kept}")
        self.problems = problems
        self.data = data

    def kept_at(self, evidence: Path) -> RtStructCheckError:
        """The same, naming the file in which the object was kept."""
        return RtStructCheckError(self.problems, self.data, evidence)


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
    rois: tuple[ReadRoi, ...]
    series: CtSeries
    segmentation: Segmentation
    options: RtStructOptions

    @cached_property
    def named(self) -> dict[str, StructureMap]:
        """The structures that the template does not leave out, by the names that they must have."""
        return {
            seen.name: found
            for found in self.segmentation.structures
            if (seen := self.options.appearance(found.structure)) is not None
        }

    @cached_property
    def masked(self) -> dict[str, StructureMap]:
        """Those of them that have a mask."""
        return {name: found for name, found in self.named.items() if found.voxels.any()}

    @cached_property
    def expected(self) -> dict[str, StructureMap]:
        """Those of them that the object must have, and no other."""
        return self.named if self.options.profile.empty_structures == "include" else self.masked

    @cached_property
    def contours(self) -> tuple[ReadContour, ...]:
        """Of all ROIs."""
        return tuple(contour for roi in self.rois for contour in roi.contours)

    @cached_property
    def placed(self) -> tuple[tuple[ReadRoi, _Placed], ...]:
        """The ROIs that can be placed; what hinders the others is told by other checks."""
        geometry = _Geometry.of(self.series.headers)
        return tuple((roi, geometry.place(roi)) for roi in self.rois if roi.is_placed)

    @cached_property
    def agreements(self) -> tuple[RoiAgreement, ...]:
        """Of the placed ROIs that have a mask."""
        return tuple(
            _agreement(roi.name, placed, self.masked[roi.name], self.series.volume.planes)
            for roi, placed in self.placed
            if roi.name in self.masked
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
        slices = {header.sop_instance_uid: index for index, header in enumerate(series.headers)}
        case = _Case(dataset, read_rois(dataset, slices), series, segmentation, options)
        problems = tuple(problem for _, find in _CHECKS for problem in find(case))
    except (UnreadableError, AttributeError, KeyError) as broken:
        raise RtStructCheckError((f"it cannot be read back: {broken}",), data) from broken
    except (InvalidDicomError, struct.error, IndexError, TypeError, ValueError, EOFError) as broken:
        # Their texts may repeat a value of the data set; the class has to do.
        raise RtStructCheckError((f"it cannot be read back: {type(broken).__name__}",), data) from broken
    if problems:
        raise RtStructCheckError(problems, data)
    return CheckReport(tuple(name for name, _ in _CHECKS), case.agreements)


def _file(case: _Case) -> Iterator[str]:
    meta, dataset = case.dataset.file_meta, case.dataset
    if dataset.SOPClassUID != RTStructureSetStorage or dataset.Modality != "RTSTRUCT":
        yield f"SOP class {dataset.SOPClassUID}, modality {dataset.Modality}: no RT Structure Set"
    if meta.MediaStorageSOPClassUID != dataset.SOPClassUID:
        yield "group 0002 and the data set name different SOP classes"
    if meta.MediaStorageSOPInstanceUID != dataset.SOPInstanceUID:
        yield "group 0002 and the data set name different SOP Instance UIDs"
    wanted = _SYNTAXES[case.options.profile.transfer_syntax]
    if meta.TransferSyntaxUID != wanted:
        yield f"transfer syntax {meta.TransferSyntaxUID.name}, not {wanted.name}"
    private = [str(element.tag) for element in dataset.elements() if element.tag.is_private]
    if private or "PixelData" in dataset:
        yield f"elements that do not belong into a structure set: {', '.join(private) or 'pixel data'}"


def _required(case: _Case) -> Iterator[str]:
    for keyword in _REQUIRED:
        if keyword not in case.dataset:
            yield f"{keyword} is missing"
    for keyword in _REQUIRED_VALUES:
        if keyword in case.dataset and case.dataset[keyword].is_empty:
            yield f"{keyword} is empty"
    label = str(case.dataset.get("StructureSetLabel", ""))
    if len(label) > LONGEST_LABEL:
        yield f"the structure set label has {len(label)} characters, not {LONGEST_LABEL}"


def _equipment(case: _Case) -> Iterator[str]:
    hash_start = case.options.model.sha256[:12]
    contributed = case.dataset.get("ContributingEquipmentSequence", ())
    named = [str(version) for item in contributed for version in _values(item, "SoftwareVersions")]
    for place, versions in (
        ("Software Versions", _values(case.dataset, "SoftwareVersions")),
        ("Contributing Equipment", named),
    ):
        if not any(hash_start in str(version) for version in versions):
            yield f"{place} does not name the model {hash_start}"
    if "Not a medical device" not in case.dataset.get("StructureSetDescription", ""):
        yield "its description does not say that this is no medical device"


def _absences(case: _Case) -> Iterator[str]:
    """What the clinic wants and the object does not draw is named where people read."""
    described = str(case.dataset.get("StructureSetDescription", ""))
    for name in sorted(case.named.keys() - case.masked.keys()):
        is_told = re.search(rf"[:;] {re.escape(name)}(?=[;. ])", described)
        if not is_told and "and more, see the job" not in described:
            yield f"its description does not say that {name} is not drawn"


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = dataset.get(keyword)
    return list(value) if isinstance(value, MultiValue) else [] if value is None else [value]


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
    images = referenced_images(case.dataset, series)
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
    observations = Counter(int(item.ObservationNumber) for item in case.dataset.RTROIObservationsSequence)
    for number, times in observations.items():
        if times > 1:
            yield f"observation number {number} is given {times} times"


def _names(case: _Case) -> Iterator[str]:
    names = [roi.name for roi in case.rois]
    folded = Counter(name.casefold() for name in names)
    longest = min(case.options.profile.name_length, LONGEST_NAME)
    for name in names:
        if len(name) > longest or folded[name.casefold()] > 1:
            yield f"ROI name {name!r} is longer than {longest} characters or not unique"
    for name in sorted(case.expected.keys() - set(names)):
        yield f"{name} was found but is not in the object"
    for name in sorted(set(names) - case.expected.keys()):
        yield f"{name} is in the object but was not found"


def _status(case: _Case) -> Iterator[str]:
    if case.dataset.ApprovalStatus != "UNAPPROVED":
        yield f"approval status {case.dataset.ApprovalStatus}: only a person approves"
    model = case.options.model
    for item in case.dataset.StructureSetROISequence:
        if item.ROIGenerationAlgorithm != "AUTOMATIC":
            yield f"{item.ROIName}: generated {item.ROIGenerationAlgorithm}, not AUTOMATIC"
        if model.sha256[:12] not in item.get("ROIGenerationDescription", ""):
            yield f"{item.ROIName}: its description does not name the model {model.sha256[:12]}"
        algorithms = item.get("ROIDerivationAlgorithmIdentificationSequence", ())
        if [model.sha256 in one.get("AlgorithmParameters", "") for one in algorithms] != [True]:
            yield f"{item.ROIName}: its algorithm identification does not name the model's sha256"


def _meaning(case: _Case) -> Iterator[str]:
    """What each ROI stands for: number to name, then type, code, side and colour by that name."""
    names = {roi.number: roi.name for roi in case.rois}
    roi_type = case.options.profile.roi_type
    for item in case.dataset.RTROIObservationsSequence:
        if item.RTROIInterpretedType != roi_type:
            yield f"ROI number {item.ReferencedROINumber}: type {item.RTROIInterpretedType}, not {roi_type}"
        found = case.named.get(names.get(int(item.ReferencedROINumber), ""))
        coded = _coded_anatomy(item)
        if found is not None and coded != _expected_anatomy(found):
            yield f"ROI number {item.ReferencedROINumber}: coded {coded}, not {found.structure.name}"
    for item in case.dataset.ROIContourSequence:
        found = case.named.get(names.get(int(item.ReferencedROINumber), ""))
        seen = None if found is None else case.options.appearance(found.structure)
        color = tuple(map(int, item.get("ROIDisplayColor") or ()))
        if seen is not None and color != seen.color:
            yield f"{seen.name}: colour {color}, not {seen.color}"
    for item in case.dataset.StructureSetROISequence:
        found = case.masked.get(str(item.ROIName))
        if found is None:
            continue
        stated, own = float(item.get("ROIVolume") or 0), _mask_volume_cm3(found, case.series.volume.planes)
        if abs(stated - own) > _SAME_CM3 + _SAME_SHARE * own:
            yield f"{item.ROIName}: ROI Volume {stated:.3f} cm3, the mask has {own:.3f}"


def _coded_anatomy(observation: Dataset) -> list[tuple[str, ...]]:
    """Code, scheme, and the codes of modifiers, of each item."""
    return [
        (
            str(item.CodeValue),
            str(item.CodingSchemeDesignator),
            *(str(one.CodeValue) for one in item.get("SegmentedPropertyTypeModifierCodeSequence", ())),
        )
        for item in observation.get("RTROIIdentificationCodeSequence", ())
    ]


def _expected_anatomy(found: StructureMap) -> list[tuple[str, ...]]:
    code, side = found.structure.code, found.structure.laterality
    return [(code.value, code.scheme, *(() if side is None else (_SIDES[side],)))]


def _contour_form(case: _Case) -> Iterator[str]:
    profile = case.options.profile
    for roi in case.rois:
        if not roi.contours and roi.name in case.masked:
            yield f"{roi.name} has no contours"
        types = {contour.geometric_type for contour in roi.contours}
        allowed = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"} if profile.holes == "xor" else {"CLOSED_PLANAR"}
        if len(types) > 1 or not types <= allowed:
            yield f"{roi.name}: {', '.join(sorted(types))}, not {' or '.join(sorted(allowed))} alone"
        numbers = [contour.number for contour in roi.contours]
        if len(set(numbers)) < len(numbers):
            yield f"{roi.name}: a contour number is given twice"
    for contour in case.contours:
        if contour.stated_points != len(contour.points_mm):
            yield f"{contour.place}: {contour.stated_points} points stated, {len(contour.points_mm)} written"
        if not contour.has_three_points:
            yield f"{contour.place}: fewer than 3 distinct points"
        if contour.longest_ds > LONGEST_DS:
            yield f"{contour.place}: a coordinate has {contour.longest_ds} characters, not {LONGEST_DS}"
        if profile.most_points is not None and len(contour.points_mm) > profile.most_points:
            yield f"{contour.place}: {len(contour.points_mm)} points, the most are {profile.most_points}"
        if profile.transfer_syntax == "explicit" and contour.size_bytes > LONGEST_EXPLICIT_BYTES:
            yield f"{contour.place}: {contour.size_bytes} bytes do not fit Explicit VR"


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
        areas = _areas(placed.rows_columns, placed.starts)
        for contour, area in zip(roi.contours, areas, strict=True):
            if contour.geometric_type == "CLOSED_PLANAR" and not area > 0:
                yield f"{contour.place}: runs the wrong way round, or encloses nothing"
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
    ("equipment", _equipment),
    ("what is not drawn is told", _absences),
    ("new UIDs", _new_uids),
    ("frame of reference", _frame_of_reference),
    ("referenced series", _referenced_series),
    ("predecessor", _predecessor),
    ("ROI numbers", _numbers),
    ("ROI names", _names),
    ("status and origin", _status),
    ("anatomy, colour and volume", _meaning),
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

    def place(self, roi: ReadRoi) -> _Placed:
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
        _mask_volume_cm3(found, planes),
        int(found.voxels.sum()),
        float(np.abs(placed.distances_mm).max()),
    )


def _mask_volume_cm3(found: StructureMap, planes: PlaneStack) -> float:
    pixel_cm3 = planes.row_spacing_mm * planes.column_spacing_mm / 1000  # a millimetre thick
    return float(found.voxels @ planes.slice_thickness_mm[found.box[0]]) * pixel_cm3


def _areas(points: Vectors, starts: NDArray[np.intp]) -> Vectors:
    """Of each polygon by the shoelace formula, square pixels; `starts` tells where its points begin."""
    lengths = np.diff(starts, append=len(points))
    rows, columns = (points - np.repeat(points[starts], lengths, axis=0)).T
    # Between two polygons both terms are zero: one begins at the point that it is seen from.
    across = columns[:-1] * rows[1:] - rows[:-1] * columns[1:]
    return np.asarray(np.add.reduceat(np.append(across, 0.0), starts) / 2)
