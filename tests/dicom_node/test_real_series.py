"""Real series that break readers end in a volume or a named refusal, each in the one that it deserves.

Owns the table of what becomes of them; where the data is not here, its tests skip and say so.
Speaks folders of other people's files, by `anatomynode contour --json` and by the reader of folders.
Never writes beside them, and names nobody: they are test data, and still somebody's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pydicom.data
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from dicom_node import cli
from dicom_node.config import SeriesRules
from dicom_node.ct_folder import read_folder
from dicom_node.errors import SeriesRejectedError
from dicom_node.refusals import Refusal
from tests import phantoms
from tests.phantoms import Phantom

ODD_CT = Path(__file__).parents[3] / "shared" / "data" / "odd_ct"
PYDICOM = Path(pydicom.data.__file__).parent / "test_files"
VOLUME = "a volume"
CODES = {code.value for code in Refusal}

needs_odd_ct = pytest.mark.skipif(not ODD_CT.is_dir(), reason="../shared/data/odd_ct is not here")

ODD: dict[str, tuple[str, str, str]] = {
    "gantrytilting/001": ("missing_attribute", "absurd_hu", "0.00 % of the voxels"),
    "notavolume/001": ("missing_attribute", "duplicate_position", "3 of 4 slices lie where another one"),
    "sliceincrement/001": ("missing_attribute", "missing_slice", "10.00 mm between slices 3 and 4"),
    "sliceincrement/002": ("missing_attribute", "missing_slice", "1.50 mm between slices 3 and 4"),
    "slicecount/001": ("not_ct", "not_ct", "MR Image Storage"),
    "sliceorientation/001": ("not_ct", "not_ct", "MR Image Storage"),
}
"""What becomes of each as it is, and once the frame of reference is back that its anonymiser took."""

PYDICOM_SERIES = {
    "dicomdirtests/77654033/CR1": "not_ct",
    "dicomdirtests/77654033/CT2": "missing_slice",
    "dicomdirtests/98892001/CT2N": "localizer",
    "dicomdirtests/98892001/CT5N": VOLUME,
    "dicomdirtests/98892003/MR1": "not_ct",
    "dicomdirtests/TINY_ALPHA": "missing_attribute",
}


def became(folder: Path) -> tuple[str, str]:
    """The code and the words; `VOLUME` where it could be contoured, were it long enough."""
    try:
        series, _ = read_folder(folder, SeriesRules(min_slices=2), 2.5)
    except SeriesRejectedError as refused:
        return refused.code, refused.reason
    return VOLUME, str(series.volume.hu.shape)


@needs_odd_ct
@pytest.mark.parametrize("name", ODD)
def test_an_odd_series_is_refused_by_the_command_for_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["contour", ODD_CT / name, "--output", tmp_path / "rs.dcm", "--json"]
    monkeypatch.setattr(sys, "argv", ["anatomynode", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    report = json.loads(capsys.readouterr().out)
    assert (ended.value.code, report["reason_code"]) == (3, ODD[name][0])


@needs_odd_ct
@pytest.mark.parametrize("name", ODD)
def test_an_odd_series_that_has_its_frame_of_reference_back_is_refused_with_its_numbers(
    name: str, tmp_path: Path
) -> None:
    for file in (ODD_CT / name).glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.FrameOfReferenceUID = "2.25.1"
        dataset.save_as(tmp_path / file.name)
    code, reason = became(tmp_path)
    assert (code, ODD[name][2] in reason) == (ODD[name][1], True), reason


@pytest.mark.skipif(not PYDICOM.is_dir(), reason="pydicom's test files are not installed")
@pytest.mark.filterwarnings("ignore")
def test_each_of_pydicoms_own_files_is_taken_or_refused_by_name(tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    for number, file in enumerate(sorted(path for path in PYDICOM.rglob("*") if path.is_file())):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").symlink_to(file)
        code, reason = became(folder)
        assert code in CODES, file.name
        assert 0 < len(reason) < 600
        ends[code] += 1
    assert {"not_ct", "not_dicom", "localizer", "lossy", "missing_attribute", "too_few_slices"} <= ends.keys()


@pytest.mark.skipif(not PYDICOM.is_dir(), reason="pydicom's test files are not installed")
@pytest.mark.parametrize("name", PYDICOM_SERIES)
def test_each_series_of_pydicoms_own_disc_becomes_what_it_is(name: str) -> None:
    assert became(PYDICOM / name)[0] == PYDICOM_SERIES[name]


def test_a_dicomdir_beside_the_slices_is_ignored_and_counted(tmp_path: Path) -> None:
    phantoms.write(Phantom(rows=20, columns=16), tmp_path)
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.FileSetID, directory.DirectoryRecordSequence = "DISC", []
    written = BytesIO()
    directory.save_as(written, enforce_file_format=True)
    (tmp_path / "DICOMDIR").write_bytes(written.getvalue())
    _, notes = read_folder(tmp_path, SeriesRules(), 2.5)
    assert notes == ("ignored 1 file(s): not_ct",)
