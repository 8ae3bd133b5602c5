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
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import rt_struct
from dicom_node.ct_series import CtSeries
from dicom_node.errors import PermanentError
from dicom_node.rt_struct_check import RtStructCheckError, check
from inference.segmentation import Segmentation, StructureMap
from tests import organs, phantoms

Damage = Callable[[FileDataset], None]


@dataclass(frozen=True)
class Case:
    series: CtSeries
    segmentation: Segmentation
    options: rt_struct.RtStructOptions
    data: bytes


@cache
def case(mode: str = "voxel") -> Case:
    series = phantoms.series()
    segmentation = organs.segmentation(series.volume.planes)
    options = organs.options("voxel" if mode == "voxel" else "smooth")
    return Case(series, segmentation, options, rt_struct.build(series, segmentation, options).data)


def damaged(data: bytes, damage: Damage) -> bytes:
    dataset = dcmread(BytesIO(data))
    damage(dataset)
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


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
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    image: Dataset = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence[0]
    return image


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
        "not CLOSED_PLANAR",
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
}


@pytest.mark.parametrize("mode", ["smooth", "voxel"])
def test_the_true_object_passes_every_check(mode):
    whole = case(mode)
    report = check(whole.data, whole.series, whole.segmentation, whole.options)
    assert len(report.rois) == 5
    assert all(roi.dice == 1.0 for roi in report.rois if mode == "voxel")
    assert all(roi.furthest_from_plane_mm <= 0.01 for roi in report.rois)
    assert len(report.checks) == 14


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_refused_with_what_is_wrong(damage):
    whole = case()
    harm, said = DAMAGES[damage]
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
