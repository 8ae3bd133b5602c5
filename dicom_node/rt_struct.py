"""A segmentation as an RT Structure Set (PS3.3 A.19), in the study of the CT that it was drawn on.

Owns the data set, module by module in the standard's order, and its encoding.
Speaks `CtSeries` and `Segmentation` in, the bytes of a Part 10 file out.
Never invents a value that belongs to the patient, the study or the frame of reference: those are the CT's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTStructureSetStorage
from pydicom.valuerep import format_number_as_ds
from rt_utils import ds_helper

from dicom_node.contour_items import ItemEncoder
from dicom_node.ct_identity import ascii_text, date_and_time, local_time, take, take_patient_and_study
from dicom_node.ct_series import CtSeries
from dicom_node.errors import PermanentError, SeriesRejectedError
from dicom_node.profiles import GENERIC, LONGEST_LABEL, Profile, filled_label
from dicom_node.refusals import Refusal
from dicom_node.structure_template import UNCHANGED, Appearance, Template, appearance
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid
from inference.contours import Contour, ContourMode, trace
from inference.flags import LEFT_OUT, NOT_FOUND, flag_words
from inference.postprocessing import volume_cm3
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack
from models.card import Code, ModelDescription, Structure

NOT_A_MEDICAL_DEVICE = "Not a medical device: for research only until a clinic has commissioned it."

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
"""Retired, and still what PS3.3 C.8.8.5 asks to name a study by."""

_ANATOMICAL_STRUCTURE = Code(
    value=codes.SCT.AnatomicalStructure.value, meaning=codes.SCT.AnatomicalStructure.meaning
)
_SIDES = {
    "L": Code(value=codes.SCT.Left.value, meaning=codes.SCT.Left.meaning),
    "R": Code(value=codes.SCT.Right.value, meaning=codes.SCT.Right.meaning),
}

LONGEST_LO, LONGEST_ST = 64, 1024
"""Characters (PS3.5 6.2)."""

_AND_MORE = "; and more, see the job."

_SERIES_NUMBER = 9001
"""Far from the numbers that scanners give, so that the object stands last in its study."""


@dataclass(frozen=True)
class RtStructOptions:
    """Everything besides the series and the segmentation that the object is made of.

    Attributes:
        contour_mode, simplify_mm: see `inference.contours.trace`.
        structure_set_label: may name the fields of `profiles.LABEL_FIELDS`; with them at most 16
            characters, because planning systems cut or refuse longer ones.
        series_description: at most 64 characters.
        created_at: aware; the job's own time, so that a job done again gives the same bytes.
        model: the network whose output this is.
        template: the clinic's names and colours.
        profile: what the destination wants.
        predecessor_sop_instance_uid: the structure set of an earlier revision of the series.
        leave_out: flags; a structure that has one was taken out of the segmentation (`review.without`).
    """

    contour_mode: ContourMode
    simplify_mm: float
    structure_set_label: str
    series_description: str
    created_at: datetime
    model: ModelDescription
    program_version: str
    template: Template = UNCHANGED
    profile: Profile = GENERIC
    predecessor_sop_instance_uid: str | None = None
    leave_out: tuple[str, ...] = ()

    def appearance(self, structure: Structure) -> Appearance | None:
        """The name and colour of a structure; None where the template leaves it out."""
        return appearance(structure, self.template, self.profile)


class IncompleteError(PermanentError):
    """A structure was not found, and the destination takes only structure sets that are complete."""


@dataclass(frozen=True)
class RoiReport:
    """One structure of the model, and what became of it.

    Attributes:
        number: its ROI Number; None where the object does not name it.
        name: the model's.
        volume_cm3: of the mask.
        contours: how many.
        confidence, flags: see `inference.segmentation.StructureMap`.
    """

    number: int | None
    name: str
    volume_cm3: float
    contours: int
    confidence: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class RtStruct:
    """An RT Structure Set, encoded.

    Attributes:
        data: a Part 10 file.
        rois: one a structure of the model, in its order.
    """

    data: bytes
    sop_instance_uid: str
    series_instance_uid: str
    rois: tuple[RoiReport, ...]


@dataclass(frozen=True)
class _Roi:
    number: int
    appearance: Appearance
    found: StructureMap
    contours: tuple[Contour, ...]
    volume_cm3: float


def build(series: CtSeries, segmentation: Segmentation, options: RtStructOptions) -> RtStruct:
    """The RT Structure Set of a segmentation.

    Raises:
        SeriesRejectedError: nothing was found. A structure set without an ROI is no valid object
            (PS3.3 C.8.8.5), and a series without any of the organs is not ours to contour.
        IncompleteError: a structure was not found, and the profile refuses empty ones.
    """
    rois = _drawn(segmentation, series.volume.planes, options)
    if not any(roi.contours for roi in rois):
        raise SeriesRejectedError(
            Refusal.NOTHING_FOUND,
            f"none of the {len(segmentation.structures)} structures of {options.model.name} was found "
            "in this series; is it a head-and-neck CT?",
        )
    if options.profile.empty_structures == "refuse":
        _refuse_empty(segmentation, rois, options)
    uids = _Uids.derive(series, options)
    encoder = ItemEncoder(options.profile.transfer_syntax == "explicit")
    references = [encoder.reference(one.sop_class_uid, one.sop_instance_uid) for one in series.headers]
    dataset = _scaffold()
    take_patient_and_study(dataset, series.reference)
    created_at = local_time(options.created_at, dataset)
    absent = _Absent.of(segmentation, rois, options)
    _rt_series(dataset, uids, options, absent, created_at)
    _general_equipment(dataset, options)
    _frame_of_reference(dataset, series)
    _structure_set(dataset, series, rois, options, absent, created_at)
    _put_items(_referenced_series(dataset), "ContourImageSequence", b"".join(references), encoder)
    _roi_contour(dataset, series, rois, references, encoder)
    _rt_roi_observations(dataset, rois, options)
    _approval(dataset)
    _sop_common(dataset, uids, options, created_at)
    reports = _reports(segmentation, rois, options)
    return RtStruct(_encoded(dataset, encoder), uids.sop_instance, uids.series, reports)


def provenance(model: ModelDescription) -> str:
    """Name, version and the beginning of the sha256 of a model, within the 64 characters of an LO."""
    ending = f" sha256 {model.sha256[:12]}"
    return ascii_text(f"{model.name} {model.version}", 64 - len(ending)) + ending


@dataclass(frozen=True)
class _Uids:
    sop_instance: str
    series: str

    @classmethod
    def derive(cls, series: CtSeries, options: RtStructOptions) -> _Uids:
        """From all that decides what the contours are; not from when they were drawn."""
        made_of = (
            *sorted(series.sha256s),
            options.model.sha256,
            options.model.name,
            options.model.version,
            options.template.model_dump_json(),
            options.profile.model_dump_json(),
            options.contour_mode,
            repr(options.simplify_mm),
            options.structure_set_label,
            options.series_description,
            options.predecessor_sop_instance_uid or "",
            repr(sorted(options.leave_out)),
            options.program_version,
        )
        return cls(derive_uid("SOP Instance", *made_of), derive_uid("Series", *made_of))


def _drawn(segmentation: Segmentation, planes: PlaneStack, options: RtStructOptions) -> tuple[_Roi, ...]:
    """The structures that the object names, numbered by their place in the model, found or not."""
    profile = options.profile
    traced = (
        _Roi(
            number,
            seen,
            found,
            trace(
                found,
                planes,
                options.contour_mode,
                options.simplify_mm,
                profile.holes,
                profile.most_points,
            ),
            volume_cm3(found, planes),
        )
        for number, found in enumerate(segmentation.structures, start=1)
        if (seen := options.appearance(found.structure)) is not None
    )
    return tuple(roi for roi in traced if roi.contours or profile.empty_structures == "include")


def _refuse_empty(segmentation: Segmentation, rois: Iterable[_Roi], options: RtStructOptions) -> None:
    drawn = {roi.number for roi in rois}
    missing = [
        found.structure.name
        for number, found in enumerate(segmentation.structures, start=1)
        if number not in drawn and options.appearance(found.structure) is not None
    ]
    if missing:
        names = ", ".join(missing)
        raise IncompleteError(f"{names}: not found or left out, and empty_structures here is `refuse`")


@dataclass(frozen=True)
class _Absent:
    """What is not drawn, by the names that this destination would read; whoever draws the rest must know.

    Attributes:
        left_out: by `review.leave_out`, each with the flags for which it was.
        not_found: by the network.
        not_wanted: by the template.
    """

    left_out: tuple[str, ...]
    not_found: tuple[str, ...]
    not_wanted: tuple[str, ...]

    @classmethod
    def of(cls, segmentation: Segmentation, rois: Iterable[_Roi], options: RtStructOptions) -> _Absent:
        drawn = {roi.number for roi in rois if roi.contours}
        left_out, not_found, not_wanted = [], [], []
        for number, found in enumerate(segmentation.structures, start=1):
            seen = options.appearance(found.structure)
            if seen is None:
                not_wanted.append(found.structure.name)
            elif LEFT_OUT in found.flags:
                why = flag_words(found.flags, unsaid=(LEFT_OUT,))
                left_out.append(f"{seen.name} ({why})")
            elif number not in drawn:
                not_found.append(seen.name)
        return cls(tuple(left_out), tuple(not_found), tuple(not_wanted))

    def in_words(self, most: int) -> str:
        """What is most urgent first, within so many characters; no name is cut."""
        kinds = {
            "Left out, draw by hand": self.left_out,
            "Not found": self.not_found,
            "Not wanted by the template": self.not_wanted,
        }
        told = ""
        for kind, names in kinds.items():
            for place, name in enumerate(names):
                further = f"{told}; {name}" if place else f"{told} {kind}: {name}".strip()
                if len(further) + len(_AND_MORE) > most:
                    return f"{told}{_AND_MORE}"
                told = further
            told = f"{told}." if names else told
        return told

    def in_series_description(self, configured: str) -> str:
        """The configured words, and how many were left out where that fits into an LO."""
        told = f"{configured}; {len(self.left_out)} left out" if self.left_out else configured
        return told if len(told) <= LONGEST_LO else configured


def _reports(
    segmentation: Segmentation, rois: Iterable[_Roi], options: RtStructOptions
) -> tuple[RoiReport, ...]:
    drawn = {roi.number: roi for roi in rois}
    reports = []
    for number, found in enumerate(segmentation.structures, start=1):
        roi = drawn.get(number)
        is_wanted = options.appearance(found.structure) is not None
        reports.append(
            RoiReport(
                number if roi else None,
                found.structure.name,
                roi.volume_cm3 if roi else 0.0,
                len(roi.contours) if roi else 0,
                found.confidence,
                # Whether it was found is no news to a clinic that does not want it.
                found.flags if is_wanted else _of_unwanted(found.flags),
            )
        )
    return tuple(reports)


def _of_unwanted(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Whether a structure was found is no news to a clinic that does not want it."""
    return (*(flag for flag in flags if flag not in (NOT_FOUND, LEFT_OUT)), LEFT_OUT)


def _scaffold() -> FileDataset:
    """rt-utils' empty structure set file: group 0002 and the three sequences of ROIs.

    Its `generate_base_dataset` would add invented dates, UIDs, a manufacturer, an institution and a
    character set; of it we take the two parts that are right, and say the rest ourselves.
    """
    dataset = FileDataset(BytesIO(), {}, file_meta=ds_helper.get_file_meta(), preamble=b"\0" * 128)
    ds_helper.add_sequence_lists_to_ds(dataset)
    return dataset


def _rt_series(
    dataset: Dataset, uids: _Uids, options: RtStructOptions, absent: _Absent, created_at: datetime
) -> None:
    """PS3.3 C.8.8.1."""
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = uids.series
    dataset.SeriesNumber = _SERIES_NUMBER
    dataset.SeriesDate, dataset.SeriesTime = date_and_time(created_at)
    described = absent.in_series_description(options.series_description)
    dataset.SeriesDescription = ascii_text(described, LONGEST_LO)
    dataset.OperatorsName = ""


def _general_equipment(dataset: Dataset, options: RtStructOptions) -> None:
    """PS3.3 C.7.5.1."""
    dataset.Manufacturer = ascii_text(options.model.manufacturer, 64)
    dataset.ManufacturerModelName = "AnatomyNode"
    dataset.SoftwareVersions = [ascii_text(options.program_version, 64), provenance(options.model)]


def _frame_of_reference(dataset: Dataset, series: CtSeries) -> None:
    """PS3.3 C.7.4.1."""
    dataset.FrameOfReferenceUID = series.headers[0].frame_of_reference_uid
    take(dataset, series.reference, ("PositionReferenceIndicator",))
    if "PositionReferenceIndicator" not in dataset:
        dataset.PositionReferenceIndicator = ""


def _structure_set(
    dataset: Dataset,
    series: CtSeries,
    rois: tuple[_Roi, ...],
    options: RtStructOptions,
    absent: _Absent,
    created_at: datetime,
) -> None:
    """PS3.3 C.8.8.5."""
    label = filled_label(
        options.structure_set_label,
        model=options.model.name,
        version=options.model.version,
        program=options.program_version,
        date=date_and_time(created_at)[0],
    )
    dataset.StructureSetLabel = ascii_text(label, LONGEST_LABEL)
    dataset.StructureSetName = ascii_text(options.series_description, 64)
    drawn_by = f"Drawn by {provenance(options.model)}, AnatomyNode {options.program_version}."
    room = LONGEST_ST - len(drawn_by) - len(NOT_A_MEDICAL_DEVICE) - 2
    described = " ".join(filter(None, (absent.in_words(room), drawn_by, NOT_A_MEDICAL_DEVICE)))
    dataset.StructureSetDescription = ascii_text(described, LONGEST_ST)
    dataset.InstanceNumber = 1
    dataset.StructureSetDate, dataset.StructureSetTime = date_and_time(created_at)
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame_of_reference(series)]
    if options.predecessor_sop_instance_uid is not None:
        predecessor = _item()
        predecessor.ReferencedSOPClassUID = RTStructureSetStorage
        predecessor.ReferencedSOPInstanceUID = options.predecessor_sop_instance_uid
        dataset.PredecessorStructureSetSequence = [predecessor]
    algorithm = _algorithm(options)
    dataset.StructureSetROISequence.extend(
        _structure_set_roi(roi, series, options, algorithm) for roi in rois
    )


def _referenced_frame_of_reference(series: CtSeries) -> Dataset:
    """The CT's frame of reference: its study and its series, whose slices are put in later."""
    header = series.headers[0]
    referenced_series = _item()
    referenced_series.SeriesInstanceUID = header.series_instance_uid
    study = _item()
    study.ReferencedSOPClassUID = _DETACHED_STUDY
    study.ReferencedSOPInstanceUID = header.study_instance_uid
    study.RTReferencedSeriesSequence = [referenced_series]
    item = _item()
    item.FrameOfReferenceUID = header.frame_of_reference_uid
    item.RTReferencedStudySequence = [study]
    return item


def _referenced_series(dataset: Dataset) -> Dataset:
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    series: Dataset = study.RTReferencedSeriesSequence[0]
    return series


def _structure_set_roi(roi: _Roi, series: CtSeries, options: RtStructOptions, algorithm: Dataset) -> Dataset:
    item = _item()
    item.ROINumber = roi.number
    item.ReferencedFrameOfReferenceUID = series.headers[0].frame_of_reference_uid
    item.ROIName = roi.appearance.name
    item.ROIDescription = _remarks(roi.found)
    item.ROIVolume = format_number_as_ds(round(roi.volume_cm3, 4))
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = provenance(options.model)
    item.ROIDerivationAlgorithmIdentificationSequence = [algorithm]
    return item


def _algorithm(options: RtStructOptions) -> Dataset:
    """Algorithm Identification macro, PS3.3 10.16."""
    item = _item()
    item.AlgorithmFamilyCodeSequence = [
        _coded(Code(value="123110", scheme="DCM", meaning="Artificial Intelligence"))
    ]
    item.AlgorithmName = ascii_text(options.model.name, 64)
    item.AlgorithmVersion = ascii_text(options.model.version, 64)
    item.AlgorithmParameters = (
        f"sha256={options.model.sha256}; contours={options.contour_mode}; simplify_mm={options.simplify_mm:g}"
    )
    item.AlgorithmSource = ascii_text(options.model.manufacturer, 64)
    return item


def _roi_contour(
    dataset: Dataset, series: CtSeries, rois: tuple[_Roi, ...], references: list[bytes], encoder: ItemEncoder
) -> None:
    """PS3.3 C.8.8.6."""
    for roi in rois:
        item = _item()
        item.ROIDisplayColor = list(roi.appearance.color)
        item.ReferencedROINumber = roi.number
        contours = encoder.contours(roi.contours, series.volume.planes, references)
        if contours:
            _put_items(item, "ContourSequence", contours, encoder)
        dataset.ROIContourSequence.append(item)


def _rt_roi_observations(dataset: Dataset, rois: tuple[_Roi, ...], options: RtStructOptions) -> None:
    """PS3.3 C.8.8.8."""
    category = _coded(_ANATOMICAL_STRUCTURE)
    for roi in rois:
        item = _item()
        item.ObservationNumber = roi.number
        item.ReferencedROINumber = roi.number
        if len(roi.appearance.name) <= LONGEST_LABEL:  # optional, and a name is never cut
            item.ROIObservationLabel = ascii_text(roi.appearance.name, LONGEST_LABEL)
        item.ROIObservationDescription = _remarks(roi.found)
        item.SegmentedPropertyCategoryCodeSequence = [category]
        item.RTROIIdentificationCodeSequence = [_identification(roi.found.structure)]
        item.RTROIInterpretedType = options.profile.roi_type
        item.ROIInterpreter = ""
        dataset.RTROIObservationsSequence.append(item)


def _identification(structure: Structure) -> Dataset:
    """What it is, and on which side, both coded (PS3.16 CID 244)."""
    item = _coded(structure.code)
    if structure.laterality is not None:
        item.SegmentedPropertyTypeModifierCodeSequence = [_coded(_SIDES[structure.laterality])]
    return item


def _approval(dataset: Dataset) -> None:
    """PS3.3 C.8.8.16: a person has still to look at it."""
    dataset.ApprovalStatus = "UNAPPROVED"


def _sop_common(dataset: FileDataset, uids: _Uids, options: RtStructOptions, created_at: datetime) -> None:
    """PS3.3 C.12.1, and group 0002 (PS3.10 7.1)."""
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = uids.sop_instance
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date_and_time(created_at)
    dataset.ContributingEquipmentSequence = [_contributing_equipment(options)]
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(uids.sop_instance)
    is_explicit = options.profile.transfer_syntax == "explicit"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if is_explicit else ImplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def _contributing_equipment(options: RtStructOptions) -> Dataset:
    item = _item()
    item.PurposeOfReferenceCodeSequence = [
        _coded(Code(value="109102", scheme="DCM", meaning="Processing Equipment"))
    ]
    item.Manufacturer = ascii_text(options.model.manufacturer, 64)
    item.ManufacturerModelName = "AnatomyNode"
    item.SoftwareVersions = [ascii_text(options.program_version, 64), provenance(options.model)]
    item.ContributionDescription = "Contours by a neural network, not reviewed"
    return item


def _coded(code: Code) -> Dataset:
    """Code Sequence macro, PS3.3 8.8."""
    item = _item()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = ascii_text(code.meaning, 64)
    return item


def _remarks(found: StructureMap) -> str:
    """What a person should know before believing a structure."""
    confidence = "" if found.confidence is None else f"Confidence {found.confidence:.2f}. "
    flags = f"Look closely: {', '.join(found.flags)}. " if found.flags else ""
    return ascii_text(f"{flags}{confidence}Automatic, not reviewed.", 1024)


def _item() -> Dataset:
    """An empty data set that pydicom will write without decoding what is encoded already."""
    item = Dataset()
    item.set_original_encoding(True, True, default_encoding)
    return item


def _put_items(dataset: Dataset, keyword: str, items: bytes, encoder: ItemEncoder) -> None:
    """Give a data set a sequence that is encoded already."""
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, "SQ", len(items), items, 0, not encoder.explicit, True)


def _encoded(dataset: FileDataset, encoder: ItemEncoder) -> bytes:
    charset = dataset.get("SpecificCharacterSet")
    # What is raw is written as it is: the CT's text, and the contours.
    encodings = convert_encodings(charset) if charset else default_encoding
    dataset.set_original_encoding(not encoder.explicit, True, encodings)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
