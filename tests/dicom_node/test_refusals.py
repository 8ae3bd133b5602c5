"""Whatever is no head-and-neck planning CT ends with status 3, its code and its numbers, and no file.

Owns the table of refusals, from files in a folder to the report of `anatomynode contour --json`.
Speaks slices made from geometry, the command's arguments, its exit status and its JSON.
Never asks the refusing function itself: what counts is what the person at the terminal sees.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from dicom_node import cli
from dicom_node.other_anatomies import write_other_anatomy
from tests.phantoms import Phantom, encode, slices

BASE = Phantom(rows=20, columns=16)
GAPLESS = BASE.offsets_mm
TURNED = ["1", "0", "0", "0", "0.9998", "0.01999"]

Writer = Callable[[Path], object]


def written(folder: Path, datasets: list[Dataset]) -> None:
    for index, dataset in enumerate(datasets):
        (folder / f"{index:03d}.dcm").write_bytes(encode(dataset))


def of(**fields: object) -> Writer:
    """A whole series of another make."""
    return lambda folder: written(folder, slices(BASE.but(**fields)))


def all_with(**overrides: object) -> Writer:
    """A series whose every slice says so."""
    return of(overrides=overrides)


def one_with(**overrides: object) -> Writer:
    """A series whose fourth slice alone says so."""
    others = slices(BASE.but(overrides=overrides))
    return lambda folder: written(folder, [*slices(BASE)[:3], others[3], *slices(BASE)[4:]])


def and_one_more(phantom: Phantom) -> Writer:
    """A whole series, and one slice of another make beside it under its UID."""
    further = phantom.but(overrides={"SOPInstanceUID": "2.25.7", **phantom.overrides})
    return lambda folder: written(folder, slices(BASE) + slices(further)[:1])


def cut_short(folder: Path) -> None:
    """The last slice lost its last hundred bytes on the way."""
    written(folder, slices(BASE))
    last = max(folder.iterdir())
    last.write_bytes(last.read_bytes()[:-100])


def without_a_number(folder: Path) -> None:
    written(folder, slices(BASE.but(overrides={"ImagePositionPatient": ["11111", "0", "0"]}))[:1])
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"11111\\0", b"nan  \\0"))


def filled_with(hu: int) -> np.ndarray:
    return np.full((len(GAPLESS), BASE.rows, BASE.columns), hu, np.int16)


REFUSALS: dict[str, tuple[Writer, str, str]] = {
    "missing slice": (
        of(offsets_mm=GAPLESS[:9] + GAPLESS[10:]),
        "missing_slice",
        "6.00 mm between slices 9 and 10",
    ),
    "irregular spacing": (
        of(offsets_mm=(*(6.0 * index for index in range(20)), 117.0, 123.0, 129.0, 135.0, 141.0)),
        "irregular_spacing",
        "3.00 mm between slices 20 and 21",
    ),
    "two contents at one position": (
        and_one_more(BASE.but(overrides={"InstanceNumber": 99})),
        "duplicate_position",
        "1 of 25 slices lie where another one does, first at -120\\-130.5\\-300.25 mm",
    ),
    "one instance with two contents": (
        lambda folder: written(
            folder, [*slices(BASE), slices(BASE.but(overrides={"InstanceNumber": 99}))[3]]
        ),
        "conflicting_instances",
        "25 contents under 24 SOP Instance UIDs",
    ),
    "mixed orientation": (one_with(ImageOrientationPatient=TURNED), "mixed_geometry", "up to 0.0200"),
    "mixed pixel spacing": (one_with(PixelSpacing=["4", "4.1"]), "mixed_geometry", "(4 to 4.1 mm)"),
    "mixed matrix": (
        and_one_more(BASE.but(offsets_mm=(72.0,), columns=18)),
        "mixed_geometry",
        "20 x 16 and 20 x 18",
    ),
    "mixed frame of reference": (
        one_with(FrameOfReferenceUID="2.25.7"),
        "mixed_series",
        "2 different values of FrameOfReferenceUID in 24 slices",
    ),
    "mixed patient": (one_with(PatientID="ANOTHER"), "mixed_series", "CT of 2 patient(s) and 1 studies"),
    "mixed study": (one_with(StudyInstanceUID="2.25.7"), "mixed_series", "1 patient(s) and 2 studies"),
    "no frame of reference": (
        all_with(FrameOfReferenceUID=None),
        "missing_attribute",
        "FrameOfReferenceUID is missing (and 23 more such slices)",
    ),
    "localizer": (
        all_with(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "localizer",
        "24 localizer; a localizer: ImageType has LOCALIZER",
    ),
    "sagittal reformat": (of(orientation=(0, 1, 0, 0, 0, -1)), "not_axial", "by 90 degrees"),
    "axial reformat": (all_with(ImageType=["DERIVED", "SECONDARY", "MPR"]), "no_planning_image", "MPR"),
    "maximum intensity projection": (
        all_with(ImageType=["DERIVED", "SECONDARY", "MIP"]),
        "no_planning_image",
        "ImageType has MIP",
    ),
    "screenshot": (
        all_with(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
        "no_planning_image",
        "SCREEN SAVE",
    ),
    "derived, no stated unit": (
        all_with(ImageType=["DERIVED", "PRIMARY", "AXIAL"], RescaleType="US"),
        "no_planning_image",
        "'US'",
    ),
    "material map": (
        all_with(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"], RescaleType="MGML"),
        "multi_energy",
        "MAT_SPECIFIC",
    ),
    "atomic numbers": (all_with(RescaleType="Z_EFF"), "multi_energy", "effective atomic numbers"),
    "other modality": (
        all_with(SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"),
        "not_ct",
        "MR Image Storage, modality MR",
    ),
    "Enhanced CT": (
        all_with(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"),
        "enhanced_ct",
        "Enhanced CT Image Storage: only single-frame",
    ),
    "too few slices": (
        of(offsets_mm=GAPLESS[:7]),
        "too_few_slices",
        "7 CT slices; a planning CT has at least 20",
    ),
    "constant": (of(hu=filled_with(0)), "absurd_hu", "all 24 slices are constant (0 HU in the first)"),
    "no air": (of(hu=np.maximum(BASE.voxels, 0)), "absurd_hu", "lowest value 0 HU"),
    "no tissue": (of(hu=np.minimum(BASE.voxels, -900)), "absurd_hu", "0.00 % of the voxels"),
    "absurd intercept": (all_with(RescaleIntercept="-1e7"), "absurd_attribute", "intercept -1e+07"),
    "pixels cut short": (cut_short, "truncated", "540 bytes of pixels; 20 rows of 16 need 640"),
    "matrix that lies": (all_with(Rows=480), "truncated", "480 rows of 16 need 15360"),
    "position that is no number": (without_a_number, "absurd_attribute", "nan\\0\\0 is not finite"),
    "lossy": (all_with(LossyImageCompression="01"), "lossy", "LossyImageCompression is 01"),
    "water phantom": (
        lambda folder: write_other_anatomy("water phantom", folder, 24, 64, (3.0, 6.0, 6.0)),
        "no_structures or not_this_anatomy",  # which, depends on the model
        "found",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_planning_ct_of_a_head_and_neck_is_refused_by_the_command_with_its_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, code, numbers = REFUSALS[name]
    (tmp_path / "ct").mkdir()
    write(tmp_path / "ct")
    arguments = ["contour", tmp_path / "ct", "--output", tmp_path / "rs.dcm", "--json"]
    monkeypatch.setattr(sys, "argv", ["anatomynode", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert (ended.value.code, report["status"]) == (3, "rejected")
    assert report["reason_code"] in code.split(" or ")
    assert numbers in report["reason"]
    assert report["reason"] in told.err
    assert "Phantom^Test" not in told.out + told.err
    assert "PHANTOM-1" not in told.out + told.err
    assert not (tmp_path / "rs.dcm").exists()
