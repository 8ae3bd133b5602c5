"""Small Part 10 files of chosen size and identity, for tests that only move bytes.

Owns a minimal RT Structure Set and CT slice: identifiers and a block of bytes, no meaning.
Speaks pydicom; the encoding is the transfer syntax that the file names.
Never stands for a real object: what must be valid DICOM comes from the phantoms.
"""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from pynetdicom.dsutils import split_dataset

STUDY = "2.25.1"
SERIES = "2.25.2"


def write_instance(
    file: Path,
    sop_instance_uid: str = "2.25.3",
    sop_class_uid: str = RTStructureSetStorage,
    transfer_syntax_uid: str = ImplicitVRLittleEndian,
    series_instance_uid: str = SERIES,
    payload: bytes = b"\x01\x02" * 500,
) -> Path:
    """Write an instance whose EncapsulatedDocument is `payload`; returns `file`."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID = sop_class_uid
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID = sop_instance_uid
    instance.file_meta.TransferSyntaxUID = transfer_syntax_uid
    instance.StudyInstanceUID = STUDY
    instance.SeriesInstanceUID = series_instance_uid
    instance.add_new("EncapsulatedDocument", "OB", payload)
    instance.save_as(file, enforce_file_format=True)
    return file


def data_set_bytes(file: Path) -> bytes:
    """What follows the preamble and group 0002."""
    _, offset = split_dataset(file)
    return file.read_bytes()[offset:]
