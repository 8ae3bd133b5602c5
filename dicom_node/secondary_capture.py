"""Sheets as a Secondary Capture series (PS3.3 A.8.1), in the study of the CT that they speak of.

Owns the data sets, module by module: a single-frame RGB image a sheet, which every archive and viewer takes.
Speaks uint8 (height, width, 3) arrays in, the bytes of Part 10 files (Implicit VR LE) out.
Never burns in who the patient is, and never invents a value that belongs to the patient or the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ImplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom_node import __version__
from dicom_node.ct_identity import ascii_text, date_and_time, local_time, take_patient_and_study
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid

MANUFACTURER = MODEL_NAME = "AnatomyNode"


@dataclass(frozen=True)
class Caption:
    """What is said of a series of sheets.

    Attributes:
        made_of: everything that decides what the sheets show; the UIDs are derived from it.
        created_at: aware; the job's own time, so that the same sheets are the same bytes.
        series_number, series_description: far from the scanner's own, and seen in every list of series.
        comments: what a person should read even where no picture is shown.
        derivation: from which objects the sheets were made.
    """

    made_of: tuple[str, ...]
    created_at: datetime
    series_number: int
    series_description: str
    comments: str
    derivation: str


@dataclass(frozen=True)
class Capture:
    """One sheet, encoded.

    Attributes:
        data: a Part 10 file.
    """

    data: bytes
    sop_instance_uid: str


def build(reference: Dataset, sheets: Sequence[NDArray[np.uint8]], caption: Caption) -> tuple[Capture, ...]:
    """One instance a sheet, all of one series.

    Args:
        reference: a slice of the CT, without its pixels: Patient and Study are its own.
        sheets: in their order; uint8 (height, width, 3), red, green and blue.
    """
    return tuple(_capture(reference, sheet, number, caption) for number, sheet in enumerate(sheets, start=1))


def _capture(reference: Dataset, sheet: NDArray[np.uint8], number: int, caption: Caption) -> Capture:
    made_of = ("Secondary Capture", *caption.made_of, __version__)
    sop_instance_uid = derive_uid("SOP Instance", *made_of, str(number))
    dataset = FileDataset(BytesIO(), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    take_patient_and_study(dataset, reference)
    created_at = local_time(caption.created_at, dataset)
    _general_series(dataset, derive_uid("Series", *made_of), caption, created_at)
    _equipment(dataset)
    _general_image(dataset, number, caption, created_at)
    _image_pixel(dataset, sheet)
    _sop_common(dataset, sop_instance_uid, created_at)
    return Capture(_encoded(dataset), sop_instance_uid)


def _general_series(dataset: Dataset, uid: str, caption: Caption, created_at: datetime) -> None:
    """PS3.3 C.7.3.1. Modality OT: a rule that routes CT must not send the pictures back to the node."""
    dataset.Modality = "OT"
    dataset.SeriesInstanceUID = uid
    dataset.SeriesNumber = caption.series_number
    dataset.SeriesDate, dataset.SeriesTime = date_and_time(created_at)
    dataset.SeriesDescription = ascii_text(caption.series_description, 64)
    dataset.Laterality = ""  # of a series that shows no paired part, or both


def _equipment(dataset: Dataset) -> None:
    """PS3.3 C.7.5.1, and of Secondary Capture C.8.6.1."""
    dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    dataset.ManufacturerModelName = dataset.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    dataset.SoftwareVersions = dataset.SecondaryCaptureDeviceSoftwareVersions = __version__
    dataset.ConversionType = "WSD"


def _general_image(dataset: Dataset, number: int, caption: Caption, created_at: datetime) -> None:
    """PS3.3 C.7.6.1, and of Secondary Capture C.8.6.2.

    Burned In Annotation is about the patient's identity (C.7.6.3.1): none is in the picture, only that it
    is not for diagnosis.
    """
    dataset.InstanceNumber = number
    dataset.PatientOrientation = ""
    dataset.ContentDate, dataset.ContentTime = date_and_time(created_at)
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = ascii_text(caption.derivation, 1024)
    dataset.ImageComments = ascii_text(caption.comments, 10240)
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date_and_time(created_at)


def _image_pixel(dataset: Dataset, sheet: NDArray[np.uint8]) -> None:
    """PS3.3 C.7.6.3."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = sheet.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    data = np.ascontiguousarray(sheet).tobytes()
    dataset.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))


def _sop_common(dataset: FileDataset, sop_instance_uid: str, created_at: datetime) -> None:
    """PS3.3 C.12.1, and group 0002 (PS3.10 7.1)."""
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = sop_instance_uid
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date_and_time(created_at)
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def _encoded(dataset: FileDataset) -> bytes:
    charset = dataset.get("SpecificCharacterSet")
    # What is raw, the CT's own text, is written as it is.
    dataset.set_original_encoding(True, True, convert_encodings(charset) if charset else default_encoding)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
