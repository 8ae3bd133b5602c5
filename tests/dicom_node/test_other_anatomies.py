"""What is no head and neck comes back without parotids, and a slab of one with what is cut marked.

Owns whole runs of `anatomynode contour` with the shipped package on painted bodies.
Speaks small matrices, exit statuses and the JSON report.
Never asks more of a package than any must give: a better one has to pass too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom_node.other_anatomies import OTHER_ANATOMIES, write_other_anatomy
from dicom_node.phantom import write_phantom
from tests.tools import run

SPACING_MM = (3.0, 5.0, 5.0)


def contour(folder: Path, output: Path) -> tuple[int, dict[str, Any]]:
    done = run([sys.executable, "-m", "dicom_node", "contour", folder, "--output", output, "--json"], 120)
    start = done.stdout.index("{")
    report: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start:])[0]
    return done.returncode, report


@pytest.mark.parametrize("name", OTHER_ANATOMIES)
def test_another_anatomy_is_refused_or_comes_back_without_parotids(name: str, tmp_path: Path) -> None:
    write_other_anatomy(name, tmp_path / "ct", 32, 80, SPACING_MM)
    status, report = contour(tmp_path / "ct", tmp_path / "rs.dcm")
    if status == 0:
        drawn = [roi["name"] for roi in report["rois"] if roi["contours"]]
        assert not [one for one in drawn if one.startswith("Parotid")]
    else:
        assert (status, report["status"]) == (3, "rejected")
        assert report["reason_code"] in ("no_structures", "not_this_anatomy")
        assert not (tmp_path / "rs.dcm").exists()


def test_in_a_slab_what_the_first_or_the_last_slice_cuts_is_marked(tmp_path: Path) -> None:
    write_phantom(tmp_path / "ct", 40, 80, SPACING_MM)
    status, report = contour(tmp_path / "ct", tmp_path / "rs.dcm")
    assert status == 0, report["reason"]
    heights_mm = sorted(float(dcmread(path).ImagePositionPatient[2]) for path in (tmp_path / "ct").iterdir())
    ends_mm = {heights_mm[0], heights_mm[-1]}
    written = dcmread(tmp_path / "rs.dcm")
    names = {roi.ROINumber: roi.ROIName for roi in written.StructureSetROISequence}
    flags = {roi["name"]: roi["flags"] for roi in report["rois"]}
    told = {
        names[one.ReferencedROINumber]: one.ROIObservationDescription
        for one in written.RTROIObservationsSequence
    }
    cut = [
        names[roi.ReferencedROINumber]
        for roi in written.ROIContourSequence
        if any(float(contour.ContourData[2]) in ends_mm for contour in roi.ContourSequence)
    ]
    assert cut
    assert all("cut_by_field_of_view" in flags[name] for name in cut)
    assert all("cut_by_field_of_view" in told[name] for name in cut)
