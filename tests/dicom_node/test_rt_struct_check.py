"""The self-check: it lets the true object pass, and refuses each damage by its name."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from dicom_node import rt_struct
from dicom_node.ct_series import CtSeries
from dicom_node.errors import PermanentError
from dicom_node.profiles import Profile
from dicom_node.rt_struct_check import RtStructCheckError, check
from inference.contours import ContourMode
from inference.segmentation import Segmentation, StructureMap
from tests import organs, phantoms

Damage = Callable[[FileDataset], None]


@dataclass(frozen=True)
class Case:
    series: CtSeries
    segmentation: Segmentation
    options: rt_struct.RtStructOptions
    data: bytes


OTHER = Profile(
    holes="xor",
    transfer_syntax="explicit",
    points_per_contour=20,
    name_case="upper",
    name_prefix="AN_",
    name_length=20,
    roi_type="AVOIDANCE",
)


@cache
def case(mode: ContourMode = "voxel", other: bool = False) -> Case:
    """Five organs; with `other` as the other profile wants them, and the mandible hollow."""
    series = phantoms.series()
    segmentation = organs.segmentation(series.volume.planes)
    options = organs.options(mode)
    if other:
        options = replace(options, profile=OTHER)
        *solid, mandible = segmentation.structures
        segmentation = replace(segmentation, structures=(*solid, hollow(mandible)))
    return Case(series, segmentation, options, rt_struct.build(series, segmentation, options).data)


def hollow(found: StructureMap) -> StructureMap:
    """With a channel along all slices."""
    probability = found.probability.copy()
    row, column = (int(axis.mean()) for axis in np.nonzero(found.mask)[1:])
    probability[:, row - 1 : row + 2, column - 2 : column + 1] = 0
    return replace(found, probability=probability)


def damaged(data: bytes, damage: Damage) -> bytes:
    dataset = dcmread(BytesIO(data))
    damage(dataset)
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def observed(dataset: FileDataset, roi: int = 0) -> Dataset:
    observation: Dataset = dataset.RTROIObservationsSequence[roi]
    return observation


def set_coordinate(contour: Dataset, text: bytes) -> None:
    """One coordinate as these very bytes, which pydicom might not write."""
    raw = b"\\".join([text, *(str(value).encode() for value in contour.ContourData[1:])])
    contour["ContourData"] = DataElement(0x30060050, "OB", raw + b" " * (len(raw) % 2))


def reverse(contour: Dataset) -> None:
    points = np.array(contour.ContourData, float).reshape(-1, 3)[::-1]
    contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


def cross(contour: Dataset) -> None:
    """The first quarter of its points in the opposite order: a contour that crosses itself."""
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    quarter = len(points) // 4
    points[:quarter] = points[:quarter][::-1]
    contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


def repeat_contour(dataset: FileDataset) -> None:
    contours = dataset.ROIContourSequence[-1].ContourSequence
    contours.append(deepcopy(contours[0]))


def add_roi(dataset: FileDataset) -> None:
    """A sixth structure that nothing found: a copy of the first, under a name and a number of its own."""
    for sequence, keyword in (
        (dataset.StructureSetROISequence, "ROINumber"),
        (dataset.ROIContourSequence, "ReferencedROINumber"),
        (dataset.RTROIObservationsSequence, "ReferencedROINumber"),
    ):
        sequence.append(deepcopy(sequence[0]))
        setattr(sequence[-1], keyword, 6)
    dataset.StructureSetROISequence[-1].ROIName = "Larynx"


def same_number_twice(dataset: FileDataset) -> None:
    dataset.StructureSetROISequence[1].ROINumber = dataset.StructureSetROISequence[0].ROINumber


def grow(dataset: FileDataset) -> None:
    """By a twentieth of its size, in the plane, about its own middle."""
    for contour in dataset.ROIContourSequence[-1].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        points[:, :2] += 0.05 * (points[:, :2] - points[:, :2].mean(axis=0))
        contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


def first_contour(dataset: FileDataset, roi: int = -1) -> Dataset:
    contour: Dataset = dataset.ROIContourSequence[roi].ContourSequence[0]
    return contour


def move_contours(dataset: FileDataset, *by_mm: float, roi: int = -1) -> None:
    for contour in dataset.ROIContourSequence[roi].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3) + by_mm
        contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


def set_points(contour: Dataset, count: int) -> None:
    contour.ContourData = contour.ContourData[: 3 * count]
    contour.NumberOfContourPoints = count


def reference_next_slice(dataset: FileDataset) -> None:
    contours = dataset.ROIContourSequence[-1].ContourSequence
    contours[0].ContourImageSequence = deepcopy(contours[1].ContourImageSequence)


def exchange_names(dataset: FileDataset) -> None:
    first, second = dataset.StructureSetROISequence[2:4]
    first.ROIName, second.ROIName = second.ROIName, first.ROIName


def first_image(dataset: FileDataset) -> Dataset:
    image: Dataset = first_images(dataset)[0]
    return image


def first_series(dataset: FileDataset) -> Dataset:
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    series: Dataset = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    return series


def first_images(dataset: FileDataset) -> Sequence:
    images: Sequence = first_series(dataset).ContourImageSequence
    return images


def hole_of(dataset: FileDataset) -> int:
    """The number of a contour that is a hole: it runs the other way round."""

    def area(contour: Dataset) -> float:
        x, y = np.array(contour.ContourData, float).reshape(-1, 3)[:, :2].T
        return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))

    areas = [area(contour) for contour in dataset.ROIContourSequence[-1].ContourSequence]
    return next(index for index, one in enumerate(areas) if one * areas[0] < 0)


def double_points(contour: Dataset) -> None:
    """A point between every two: the same shape."""
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    middles = (points + np.roll(points, -1, axis=0)) / 2
    both = np.stack((points, middles), axis=1).reshape(-1, 3)
    contour.ContourData = [f"{value:.4f}" for value in both.ravel()]
    contour.NumberOfContourPoints = len(both)


def drop_contour(dataset: FileDataset) -> None:
    del dataset.ROIContourSequence[-1].ContourSequence[0]


def long_coordinate(dataset: FileDataset) -> None:
    contour = first_contour(dataset)
    raw = b"0" * 17 + b"\\".join(str(value).encode() for value in contour.ContourData).lstrip(b"-")
    contour["ContourData"] = DataElement(0x30060050, "OB", raw + b" " * (len(raw) % 2))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "moved a voxel to the left": (lambda ds: move_contours(ds, 4, 0, 0), "Bone_Mandible: Dice"),
    "moved half a slice up": (lambda ds: move_contours(ds, 0, 0, 1.5), "from the plane of slice"),
    "z rounded away from the slice's own": (lambda ds: move_contours(ds, 0, 0, 0.005), "its slice"),
    "mirrored": (
        lambda ds: [
            setattr(
                one, "ContourData", [-float(v) if i % 3 == 0 else v for i, v in enumerate(one.ContourData)]
            )
            for one in ds.ROIContourSequence[-1].ContourSequence
        ],
        "Bone_Mandible: Dice",
    ),
    "a contour is missing": (drop_contour, "Bone_Mandible: Dice"),
    "references the next slice": (reference_next_slice, "from the plane of slice"),
    "references an unknown slice": (
        lambda ds: setattr(first_contour(ds).ContourImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3"),
        "not one of the CT's",
    ),
    "wrong number of points": (
        lambda ds: setattr(first_contour(ds), "NumberOfContourPoints", 3),
        "points stated",
    ),
    "a contour of two points": (lambda ds: set_points(first_contour(ds), 2), "fewer than 3 distinct points"),
    "coordinates not in threes": (
        lambda ds: setattr(first_contour(ds), "ContourData", first_contour(ds).ContourData[:-1]),
        "not a multiple of 3",
    ),
    "a coordinate of 17 characters and more": (long_coordinate, "characters"),
    "an open contour": (
        lambda ds: setattr(first_contour(ds), "ContourGeometricType", "OPEN_PLANAR"),
        "OPEN_PLANAR, not CLOSED_PLANAR alone",
    ),
    "left and right exchanged": (exchange_names, "Dice"),
    "a dangling ROI number": (
        lambda ds: setattr(ds.ROIContourSequence[0], "ReferencedROINumber", 77),
        "ROI number 77: 0 ROIs",
    ),
    "an observation of no ROI": (
        lambda ds: setattr(ds.RTROIObservationsSequence[0], "ReferencedROINumber", 77),
        "ROI number 77: 0 ROIs",
    ),
    "two ROIs of one name but for case": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ROIName", "parotid_l"),
        "not unique",
    ),
    "a name of 17 characters": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ROIName", "B" * 17),
        "longer than 16",
    ),
    "approved by nobody": (lambda ds: setattr(ds, "ApprovalStatus", "APPROVED"), "only a person approves"),
    "drawn by hand, it says": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ROIGenerationAlgorithm", "MANUAL"),
        "not AUTOMATIC",
    ),
    "no word of the model": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ROIGenerationDescription", ""),
        "does not name the model",
    ),
    "no organ": (
        lambda ds: setattr(ds.RTROIObservationsSequence[0], "RTROIInterpretedType", "PTV"),
        "not ORGAN",
    ),
    "another patient": (lambda ds: setattr(ds, "PatientID", "OTHER"), "(0010,0020) differs"),
    "another patient's name": (lambda ds: setattr(ds, "PatientName", "Other^One"), "(0010,0010) differs"),
    "another study": (lambda ds: setattr(ds, "StudyInstanceUID", "1.2.3"), "(0020,000D) differs"),
    "another frame of reference": (
        lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"),
        "Frame of Reference UID 1.2.3",
    ),
    "an ROI in another frame of reference": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.2.3"),
        "Brainstem: Frame of Reference UID 1.2.3",
    ),
    "a slice of the series is not named": (
        lambda ds: setattr(first_image(ds), "ReferencedSOPInstanceUID", "1.2.3"),
        "slices once",
    ),
    "the CT's own series": (
        lambda ds: setattr(ds, "SeriesInstanceUID", case().series.headers[0].series_instance_uid),
        "the CT's own",
    ),
    "two SOP Instance UIDs": (
        lambda ds: setattr(ds.file_meta, "MediaStorageSOPInstanceUID", "1.2.3"),
        "different SOP Instance UIDs",
    ),
    "a missing Type 2 attribute": (lambda ds: delattr(ds, "OperatorsName"), "OperatorsName is missing"),
    "a predecessor that never was": (
        lambda ds: setattr(ds, "PredecessorStructureSetSequence", [deepcopy(first_image(ds))]),
        "predecessor",
    ),
    "no contours at all": (lambda ds: delattr(ds, "ROIContourSequence"), "cannot be read back"),
    "another transfer syntax": (
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", ExplicitVRLittleEndian),
        "not Implicit VR Little Endian",
    ),
    "deflated": (
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian),
        "neither Implicit nor Explicit",
    ),
    "another storage class in group 0002": (
        lambda ds: setattr(ds.file_meta, "MediaStorageSOPClassUID", CTImageStorage),
        "different SOP classes",
    ),
    "another modality": (lambda ds: setattr(ds, "Modality", "RTPLAN"), "no RT Structure Set"),
    "private elements": (lambda ds: ds.add_new(0x00910010, "LO", "SOMEONE"), "do not belong"),
    "a coordinate that is no number": (
        lambda ds: set_coordinate(first_contour(ds), b"NaN"),
        "no finite number",
    ),
    "a coordinate that is a word": (
        lambda ds: set_coordinate(first_contour(ds), b"left"),
        "cannot be read back",
    ),
    "a coordinate without end": (
        lambda ds: set_coordinate(first_contour(ds), b"1e999"),
        "no finite number",
    ),
    "runs the wrong way round": (lambda ds: reverse(first_contour(ds)), "the wrong way round"),
    "a contour that crosses itself": (
        lambda ds: cross(ds.ROIContourSequence[-1].ContourSequence[5]),
        "Bone_Mandible: Dice",
    ),
    "a contour twice": (repeat_contour, "a contour number is given twice"),
    "a contour is a hole now": (
        lambda ds: setattr(first_contour(ds), "ContourGeometricType", "CLOSEDPLANAR_XOR"),
        "not CLOSED_PLANAR alone",
    ),
    "two images for one contour": (
        lambda ds: first_contour(ds).ContourImageSequence.append(first_image(ds)),
        "references 2 images",
    ),
    "no image for a contour": (
        lambda ds: delattr(first_contour(ds), "ContourImageSequence"),
        "references 0 images",
    ),
    "a slice of another storage class": (
        lambda ds: setattr(
            first_contour(ds).ContourImageSequence[0], "ReferencedSOPClassUID", MRImageStorage
        ),
        "another SOP class",
    ),
    "a slice is named twice": (
        lambda ds: first_images(ds).append(first_image(ds)),
        "slices once",
    ),
    "grown by a twentieth": (grow, "cm3 in the contours"),
    "far outside the CT": (lambda ds: move_contours(ds, 2000, 0, 0), "leaves the matrix"),
    "a number for two ROIs": (same_number_twice, "is given 2 times"),
    "an ROI that nothing found": (add_roi, "Larynx is in the object but was not found"),
    "an ROI without an observation": (
        lambda ds: delattr(ds, "RTROIObservationsSequence"),
        "cannot be read back",
    ),
    "an observation number twice": (
        lambda ds: setattr(observed(ds, 1), "ObservationNumber", 1),
        "observation number 1 is given 2 times",
    ),
    "an empty ROI": (
        lambda ds: delattr(ds.ROIContourSequence[0], "ContourSequence"),
        "Brainstem has no contours",
    ),
    "another organ's code": (
        lambda ds: setattr(observed(ds).RTROIIdentificationCodeSequence[0], "CodeValue", "2748008"),
        "coded",
    ),
    "the other side's code": (
        lambda ds: setattr(
            observed(ds, 2).RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0],
            "CodeValue",
            "24028007",
        ),
        "not Parotid_L",
    ),
    "another organ's colour": (
        lambda ds: setattr(ds.ROIContourSequence[0], "ROIDisplayColor", [1, 2, 3]),
        "colour (1, 2, 3)",
    ),
    "a volume that is not the mask's": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ROIVolume", "99"),
        "ROI Volume 99.000",
    ),
    "no sha256 of the model": (
        lambda ds: delattr(
            ds.StructureSetROISequence[0].ROIDerivationAlgorithmIdentificationSequence[0],
            "AlgorithmParameters",
        ),
        "does not name the model's sha256",
    ),
    "no algorithm": (
        lambda ds: delattr(ds.StructureSetROISequence[0], "ROIDerivationAlgorithmIdentificationSequence"),
        "does not name the model's sha256",
    ),
    "no contributing equipment": (
        lambda ds: delattr(ds, "ContributingEquipmentSequence"),
        "Contributing Equipment does not name",
    ),
    "no word that it is no medical device": (
        lambda ds: setattr(ds, "StructureSetDescription", "Ready for treatment"),
        "no medical device",
    ),
    "a label of 17 characters": (
        lambda ds: setattr(ds, "StructureSetLabel", "L" * 17),
        "17 characters",
    ),
    "no date": (lambda ds: setattr(ds, "StructureSetDate", ""), "StructureSetDate is empty"),
    "another character set": (
        lambda ds: setattr(ds, "SpecificCharacterSet", "ISO_IR 144"),
        "(0008,0005) differs",
    ),
    "another birth date": (lambda ds: setattr(ds, "PatientBirthDate", "19000101"), "(0010,0030) differs"),
    "another referenced study": (
        lambda ds: setattr(
            ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0],
            "ReferencedSOPInstanceUID",
            "1.2.3",
        ),
        "the referenced study is not the CT's",
    ),
    "another referenced series": (
        lambda ds: setattr(first_series(ds), "SeriesInstanceUID", "1.2.3"),
        "the referenced series is not the CT's",
    ),
    "an invalid SOP Instance UID": (
        lambda ds: [
            setattr(ds, "SOPInstanceUID", "1.02.3"),
            setattr(ds.file_meta, "MediaStorageSOPInstanceUID", "1.02.3"),
        ],
        "is invalid",
    ),
}
OTHER_DAMAGES: dict[str, tuple[Damage, str]] = {
    "a hole is filled: its contour is missing": (
        lambda ds: ds.ROIContourSequence[-1].ContourSequence.__delitem__(hole_of(ds)),
        "AN_BONE_MANDIBLE: Dice",
    ),
    "holes are plain contours": (
        lambda ds: [
            setattr(one, "ContourGeometricType", "CLOSED_PLANAR")
            for one in ds.ROIContourSequence[-1].ContourSequence
        ],
        "runs the wrong way round",
    ),
    "half of the contours are XOR": (
        lambda ds: setattr(first_contour(ds), "ContourGeometricType", "CLOSED_PLANAR"),
        "CLOSEDPLANAR_XOR, CLOSED_PLANAR, not",
    ),
    "the model's own name": (
        lambda ds: setattr(ds.StructureSetROISequence[0], "ROIName", "Brainstem"),
        "AN_BRAINSTEM was found but is not in the object",
    ),
    "another type than the destination wants": (
        lambda ds: setattr(observed(ds), "RTROIInterpretedType", "ORGAN"),
        "type ORGAN, not AVOIDANCE",
    ),
    "more points than the destination takes": (
        lambda ds: double_points(ds.ROIContourSequence[-1].ContourSequence[5]),
        "the most are 20",
    ),
    "the other transfer syntax": (
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian),
        "not Explicit VR Little Endian",
    ),
    "moved a voxel to the left": (lambda ds: move_contours(ds, 4, 0, 0), "AN_BONE_MANDIBLE: Dice"),
    "references the next slice": (reference_next_slice, "from the plane of slice"),
    "wrong number of points": (
        lambda ds: setattr(first_contour(ds), "NumberOfContourPoints", 3),
        "points stated",
    ),
}


@pytest.mark.parametrize("other", [False, True], ids=["generic", "other profile"])
@pytest.mark.parametrize("mode", ["smooth", "voxel"])
def test_the_true_object_passes_every_check(mode, other):
    whole = case(mode, other)
    report = check(whole.data, whole.series, whole.segmentation, whole.options)
    assert len(report.rois) == 5
    assert all(roi.dice == 1.0 for roi in report.rois if mode == "voxel")
    assert all(roi.furthest_from_plane_mm <= 0.01 for roi in report.rois)
    assert len(report.checks) == 17


@pytest.mark.parametrize(
    ("other", "name"), [(False, name) for name in DAMAGES] + [(True, name) for name in OTHER_DAMAGES]
)
def test_a_damaged_object_is_refused_with_what_is_wrong(other, name):
    whole = case("voxel", other)
    harm, said = (OTHER_DAMAGES if other else DAMAGES)[name]
    with pytest.raises(RtStructCheckError) as refused:
        check(damaged(whole.data, harm), whole.series, whole.segmentation, whole.options)
    assert any(said in problem for problem in refused.value.problems), refused.value.problems
    assert isinstance(refused.value, PermanentError)


@pytest.mark.parametrize("cut", [0, 100, 500, -1000])
def test_a_truncated_file_is_refused(cut):
    whole = case()
    with pytest.raises(RtStructCheckError):
        check(whole.data[:cut], whole.series, whole.segmentation, whole.options)


def test_a_refusal_never_shows_the_patient():
    whole = case()
    data = damaged(whole.data, lambda ds: setattr(ds, "PatientName", "Secret^Person"))
    with pytest.raises(RtStructCheckError) as refused:
        check(data, whole.series, whole.segmentation, whole.options)
    assert "Secret" not in refused.value.reason
    assert "Phantom" not in refused.value.reason


def without_a_voxel(found: StructureMap) -> StructureMap:
    probability = found.probability.copy()
    probability[tuple(np.argwhere(found.mask)[0])] = 0
    return replace(found, probability=probability)


def test_in_voxel_mode_one_voxel_is_enough_to_refuse():
    whole = case()
    structures = tuple(map(without_a_voxel, whole.segmentation.structures))
    with pytest.raises(RtStructCheckError, match=r"SpinalCord: Dice 0\.99.*the least allowed is 1\.0"):
        check(whole.data, whole.series, Segmentation(structures, "cpu", {}), whole.options)


def test_a_structure_that_was_found_may_not_be_left_out():
    whole = case()
    extra = replace(whole.segmentation.structures[0], structure=organs.structure("Larynx", 6))
    more = Segmentation((*whole.segmentation.structures, extra), "cpu", {})
    with pytest.raises(RtStructCheckError, match="Larynx was found but is not in the object"):
        check(whole.data, whole.series, more, whole.options)
