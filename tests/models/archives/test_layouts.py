"""Each layout of an archive gives the same patient: HU, labels and spacing, LPS with z to the head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

SimpleITK = pytest.importorskip("SimpleITK", reason="needs the extra [train]")

from models.archives.layouts import open_archive  # noqa: E402
from models.archives.patients import ArchiveError  # noqa: E402

SPACING_MM = (3.0, 4.0, 4.0)
SHAPE = (12, 30, 36)
ORIGIN_MM = (-70.0, -60.0, 100.0)
NAMES = ("Parotid_L", "Glnd_Submand_L")
GLAND = (slice(3, 9), slice(8, 16), slice(22, 31))


def head() -> NDArray[np.int16]:
    """No two slices, rows or columns alike, so that no exchange of axes goes unseen."""
    hu = np.full(SHAPE, 20, np.int16)
    hu += np.arange(SHAPE[0], dtype=np.int16)[:, None, None]
    hu[:, 0] += 100
    hu[:, :, -1] += 50
    return hu


def gland() -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[GLAND] = True
    return mask


def write_nrrd(array: NDArray[np.int16], file: Path, orientation: str) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin(ORIGIN_MM)
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, orientation), file)


def ct_slice(index: int, gap_mm: float) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.3.{index + 1}"
    ds.SeriesInstanceUID, ds.Modality = "1.2.826.0.1.3680043.8.498.2.1", "CT"
    x_mm, y_mm, z_mm = ORIGIN_MM
    ds.ImagePositionPatient = [x_mm, y_mm, z_mm + index * gap_mm]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = list(SPACING_MM[1:])
    ds.Rows, ds.Columns = SHAPE[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = (head()[index] + 1024).astype(np.uint16).tobytes()
    return ds


def structure_set(name: str) -> Dataset:
    """The gland's outline along the edges of its voxels, in each of its planes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["structures"])
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2.1"
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    roi, drawn = Dataset(), Dataset()
    roi.ROINumber = drawn.ReferencedROINumber = 7
    roi.ROIName = name
    drawn.ContourSequence = []
    (x_mm, y_mm, z_mm), (slice_mm, row_mm, column_mm) = ORIGIN_MM, SPACING_MM
    for index in range(GLAND[0].start, GLAND[0].stop):
        corners = [
            (x_mm + (column - 0.5) * column_mm, y_mm + (row - 0.5) * row_mm, z_mm + index * slice_mm)
            for row, column in ((8, 22), (8, 31), (16, 31), (16, 22))
        ]
        contour = Dataset()
        contour.ContourData = [f"{value:.4f}" for corner in corners for value in corner]
        drawn.ContourSequence.append(contour)
    ds.StructureSetROISequence, ds.ROIContourSequence = [roi], [drawn]
    return ds


def write_openkbp(folder: Path) -> None:
    np.savez(
        folder / "one.npz",
        ct_hu=head(),
        spacing_mm=np.array(SPACING_MM),
        **{"clinical/Parotid_L": gland()},
    )


def write_pddca(folder: Path) -> None:
    (folder / "one" / "structures").mkdir(parents=True)
    write_nrrd(head(), folder / "one" / "img.nrrd", "RAS")
    write_nrrd(gland().astype(np.int16), folder / "one" / "structures" / "Parotid_L.nrrd", "LPS")


def write_dicom(folder: Path, roi: str = "lt parotid ", gaps_mm: tuple[float, ...] = ()) -> None:
    (folder / "one" / "ct").mkdir(parents=True)
    for index in reversed(range(SHAPE[0])):
        ds = ct_slice(index, SPACING_MM[0])
        if gaps_mm:
            ds.ImagePositionPatient[2] = ORIGIN_MM[2] + sum(gaps_mm[:index])
        ds.save_as(folder / "one" / "ct" / f"{index}.dcm", enforce_file_format=True)
    structure_set(roi).save_as(folder / "one" / "rs.dcm", enforce_file_format=True)
    (folder / "one" / "notes.txt").write_text("no DICOM")


ROI_NAMES = {"Parotid_L": ("LT Parotid",)}


@pytest.mark.parametrize("write", [write_openkbp, write_pddca, write_dicom])
def test_each_layout_gives_the_same_patient(write: object, tmp_path: Path) -> None:
    write(tmp_path)  # type: ignore[operator]
    archive = open_archive(tmp_path, ROI_NAMES)
    assert archive.names() == ["one"]
    patient = archive.read("one", NAMES)
    np.testing.assert_array_equal(patient.hu, head())
    np.testing.assert_array_equal(patient.labels, gland())
    np.testing.assert_allclose(patient.spacing_mm, SPACING_MM)
    assert patient.annotated.tolist() == [True, True, False]


def test_a_folder_of_nothing_known_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"OpenKBP.*PDDCA.*DICOM"):
        open_archive(tmp_path, {})


def test_an_uneven_series_is_refused_with_its_gaps(tmp_path: Path) -> None:
    write_dicom(tmp_path, gaps_mm=(3.0,) * 5 + (6.0,) + (3.0,) * 6)
    with pytest.raises(ArchiveError, match=r"gaps of 3\.00 to 6\.00 mm"):
        open_archive(tmp_path, ROI_NAMES).read("one", NAMES)


def test_two_structure_sets_are_refused_for_no_one_knows_which_to_learn_from(tmp_path: Path) -> None:
    write_dicom(tmp_path)
    structure_set("Parotid_L").save_as(tmp_path / "one" / "second.dcm", enforce_file_format=True)
    with pytest.raises(ArchiveError, match="holds 2 RT Structure Sets"):
        open_archive(tmp_path, ROI_NAMES).read("one", NAMES)


def test_an_organ_under_an_unknown_name_is_unknown(tmp_path: Path) -> None:
    write_dicom(tmp_path, roi="OAR 7")
    assert not open_archive(tmp_path, ROI_NAMES).read("one", NAMES).annotated[1:].any()
