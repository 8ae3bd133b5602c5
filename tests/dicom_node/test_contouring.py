"""From a folder of slices to a checked RT Structure Set on disk, its report and its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from dicom_node import contouring, rt_struct
from dicom_node.cli import app
from dicom_node.config import Config, Inference, ModelChoice
from dicom_node.ct_folder import look_through, read_folder
from dicom_node.errors import (
    AnatomyNodeError,
    ConfigurationError,
    PermanentError,
    SeriesRejectedError,
    TransientError,
)
from dicom_node.rt_struct_check import RtStructCheckError
from dicom_node.structure_template import Entry, Template
from inference.errors import DeviceUnavailableError, InferenceFailedError, OutsideModelError
from inference.segmentation import Segmentation, StructureMap
from inference.volume import Volume
from models.card import Structure
from tests.phantoms import Phantom, encode, series, slices, write

PHANTOM = Phantom(rows=48, columns=40)
SETTINGS = Config(peers=(), destinations=(), inference=Inference(device="cpu"))
MODEL = contouring.package_of(ModelChoice()).description


def lump(structure: Structure, volume: Volume, centre: Sequence[float], radius: float) -> StructureMap:
    """A ball with a soft edge, its box with a margin; indices, in voxels."""
    axes = [
        np.arange(extent) - middle * extent for extent, middle in zip(volume.hu.shape, centre, strict=True)
    ]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    probability = np.clip(0.5 + (radius - distance) / 2, 0, 1).astype(np.float32)
    inside = np.argwhere(probability > 0)
    low, high = np.maximum(inside.min(0) - 1, 0), inside.max(0) + 2
    box = probability[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    return StructureMap(structure, (int(low[0]), int(low[1]), int(low[2])), box, 0.5, 0.9, ())


class StandIn:
    """A segmenter that finds balls at known places, or fails as it is told."""

    device = "cpu"

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def segment(self, volume: Volume) -> Segmentation:
        if self.failure:
            raise self.failure
        empty = StructureMap(
            MODEL.structures[-1], (0, 0, 0), np.zeros((0, 0, 0), np.float32), 0.5, None, ("not_found",)
        )
        places = ((0.6, 0.5, 0.5), (0.4, 0.6, 0.5), (0.5, 0.5, 0.75), (0.5, 0.5, 0.25))
        found = [
            lump(structure, volume, place, 4)
            for structure, place in zip(MODEL.structures, places, strict=False)
        ]
        return Segmentation((*found, empty), "cpu", {"preprocess": 0.1, "forward": 0.2, "postprocess": 0.3})


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contouring, "segmenter_of", lambda _package, _settings: StandIn())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(PHANTOM, tmp_path / "study" / "ct")
    return tmp_path / "study"


def options() -> Any:
    return contouring.options_of(SETTINGS, MODEL, datetime(2024, 1, 2, tzinfo=UTC))


def test_the_report_has_what_the_contract_names() -> None:
    done = contouring.contour(series(PHANTOM), StandIn(), options())  # type: ignore[arg-type]
    report = done.report
    assert report["status"] == "done"
    assert report["sop_instance_uid"] == pydicom.dcmread(BytesIO(done.rt_struct.data)).SOPInstanceUID
    assert report["model"] == {"name": MODEL.name, "version": MODEL.version, "sha256": MODEL.sha256}
    assert {"preprocess", "forward", "postprocess", "rt_struct", "check"} <= set(report["seconds"])
    assert [set(roi) for roi in report["rois"]] == [
        {"number", "name", "volume_cm3", "contours", "confidence", "flags"}
    ] * 5
    assert [roi["contours"] > 0 for roi in report["rois"]] == [True] * 4 + [False]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("failure", "becomes"),
    [
        (OutsideModelError("no_body", "there is nobody"), SeriesRejectedError),
        (InferenceFailedError("out of memory"), TransientError),
    ],
)
def test_what_goes_wrong_inside_decides_the_jobs_fate(
    failure: Exception, becomes: type[AnatomyNodeError]
) -> None:
    with pytest.raises(becomes):
        contouring.contour(series(PHANTOM), StandIn(failure), options())  # type: ignore[arg-type]


@pytest.mark.usefixtures("stand_in")
def test_the_same_folder_gives_the_same_bytes_dated_by_the_ct(folder: Path, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        contouring.contour_folder(folder, tmp_path / name, SETTINGS)
    first, second = (tmp_path / name for name in ("a.dcm", "b.dcm"))
    assert first.read_bytes() == second.read_bytes()
    written = pydicom.dcmread(first)
    assert (written.StructureSetDate, written.StructureSetTime[:6]) == ("20240102", "101530")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "b.dcm", "study"]


@pytest.mark.usefixtures("stand_in")
def test_the_report_tells_what_the_node_would_hold_and_for_whom(tmp_path: Path) -> None:
    tilted = PHANTOM.but(
        orientation=(1.0, 0.0, 0.0, 0.0, 0.9659258262890683, -0.25881904510252074),
        step_direction=(0.0, 0.0, 1.0),
    )
    write(tilted, tmp_path / "ct")
    pacs = {"name": "pacs", "host": "h", "port": 1, "ae_title": "A"}
    settings = Config.model_validate(
        {
            **SETTINGS.model_dump(),
            "destinations": [pacs, {**pacs, "name": "tps", "hold": ["tilted"]}],
            "review": {"hold": ["not_found"]},
        }
    )
    told = {
        name: contouring.contour_folder(tmp_path / "ct", tmp_path / "rs.dcm", settings, destination=name)
        for name in ("pacs", "tps")
    }
    for_all = f"the node would hold this until a person releases it: {MODEL.structures[-1].name}: not found"
    assert told["pacs"]["notes"] == [for_all]
    assert told["tps"]["notes"] == [
        for_all,
        "the node would hold this for tps until a person releases it: the gantry was tilted by 15.0 degrees",
    ]


@pytest.mark.usefixtures("stand_in")
def test_a_folder_is_contoured_as_a_destination_of_the_configuration_wants_it(
    folder: Path, tmp_path: Path
) -> None:
    pacs = {"name": "tps", "host": "h", "port": 1, "ae_title": "A", "rt_struct": {"name_case": "upper"}}
    settings = Config.model_validate({**SETTINGS.model_dump(), "destinations": [pacs]})
    contouring.contour_folder(folder, tmp_path / "rs.dcm", settings, destination="tps")
    names = [str(roi.ROIName) for roi in pydicom.dcmread(tmp_path / "rs.dcm").StructureSetROISequence]
    assert names == [one.name.upper() for one in MODEL.structures[:4]]
    template = Template(structures={"SpinalCord": Entry(leave_out=True)})
    done = contouring.contour(series(PHANTOM), StandIn(), replace(options(), template=template))  # type: ignore[arg-type]
    assert "left out" in "\n".join(contouring.in_words(done.report))
    with pytest.raises(ConfigurationError, match="there is no 'other'; known: tps"):
        contouring.contour_folder(folder, tmp_path / "rs.dcm", settings, destination="other")


@pytest.mark.usefixtures("stand_in")
def test_an_object_that_fails_its_check_is_kept_beside_the_output_that_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = rt_struct.build

    def damaged(*given: Any) -> rt_struct.RtStruct:
        made = build(*given)
        return replace(made, data=made.data.replace(b"UNAPPROVED", b"APPROVED  "))

    monkeypatch.setattr(rt_struct, "build", damaged)
    with pytest.raises(RtStructCheckError, match=r"only a person approves.*rs\.dcm\.refused"):
        contouring.contour_folder(folder, tmp_path / "rs.dcm", SETTINGS)
    assert b"APPROVED  " in (tmp_path / "rs.dcm.refused").read_bytes()
    assert not (tmp_path / "rs.dcm").exists()


def test_a_ct_without_a_date_is_dated_as_undated() -> None:
    undated = dict.fromkeys(("ContentDate", "SeriesDate", "StudyDate"), "")
    assert contouring.created_at(series(PHANTOM.but(overrides=undated))) == contouring.UNDATED
    absurd = PHANTOM.but(overrides={**undated, "ContentDate": "20240231"})
    assert contouring.created_at(series(absurd)) == contouring.UNDATED


@pytest.mark.usefixtures("stand_in")
def test_what_lies_beside_the_series_is_ignored_and_said(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("no slice")
    scout = PHANTOM.but(
        offsets_mm=(900.0,), series="9", overrides={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    )
    write(scout, folder / "scout")
    write(PHANTOM.but(series="2", overrides={"ConvolutionKernel": "B70s"}), folder / "bone")
    report = contouring.contour_folder(folder, tmp_path / "rs.dcm", SETTINGS)
    assert report["series_instance_uid"] == slices(PHANTOM)[0].SeriesInstanceUID
    notes = "\n".join(report["notes"])
    assert "ignored 1 file(s): localizer" in notes
    assert "ignored 1 file(s): not_dicom" in notes
    assert "sharp kernel (B70s)" in notes


def test_a_damaged_slice_refuses_the_series_and_a_gap_does(folder: Path) -> None:
    paths = sorted((folder / "ct").iterdir(), key=lambda path: pydicom.dcmread(path).InstanceNumber)
    whole = paths[7].read_bytes()
    paths[7].write_bytes(whole[:2000])
    with pytest.raises(SeriesRejectedError) as caught:
        read_folder(folder, SETTINGS.series, 3.0)
    assert caught.value.code == "truncated"
    paths[7].unlink()
    with pytest.raises(SeriesRejectedError) as caught:
        read_folder(folder, SETTINGS.series, 3.0)
    assert caught.value.code == "missing_slice"


def test_two_studies_in_a_folder_are_not_chosen_between(folder: Path) -> None:
    write(PHANTOM.but(study="2"), folder / "other")
    with pytest.raises(SeriesRejectedError, match=r"1 patient.* and 2 studies"):
        read_folder(folder, SETTINGS.series, 3.0)


def test_a_folder_without_ct_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme").write_text("nothing")
    with pytest.raises(SeriesRejectedError, match="no CT that can be contoured: 1 not_dicom"):
        read_folder(tmp_path, SETTINGS.series, 3.0)


def test_the_walk_tells_how_far_it_is(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    look_through(folder, lambda what, done, total: told.append((what, done, total)))
    assert told[-1] == ("looking through the folder", 24, 24)


def test_the_command_prints_json_and_exits_by_what_became_of_it(
    folder: Path, tmp_path: Path, stand_in: None
) -> None:
    output, picture, page = (tmp_path / name for name in ("rs.dcm", "rs.png", "rs.html"))
    arguments = ["contour", str(folder), "--output", str(output), "--preview"]
    assert CliRunner().invoke(app, [*arguments, "rs.pdf"]).exit_code == 2
    assert not output.exists()
    done = CliRunner().invoke(app, [*arguments, str(page), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rt_struct"] == str(output)
    assert page.read_text().startswith("<!DOCTYPE html>")
    arguments.append(str(picture))
    told = CliRunner().invoke(app, arguments).stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "not found" in told
    assert "Not a medical device" in told
    next((folder / "ct").iterdir()).unlink()
    next((folder / "ct").iterdir()).unlink()
    for path in list((folder / "ct").iterdir())[:10]:
        path.unlink()
    refused = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(refused.stdout)["status"] == "rejected"
    assert isinstance(refused.exception, SeriesRejectedError)


@pytest.mark.usefixtures("stand_in")
def test_a_place_that_cannot_be_written_is_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"no folder to write rs\.dcm into"):
        contouring.contour_folder(folder, tmp_path / "nowhere" / "rs.dcm", SETTINGS)


def test_a_missing_model_or_device_is_a_matter_of_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no-such-model"):
        contouring.package_of(ModelChoice(package="no-such-model"))

    def refuse(*_: object) -> None:
        raise DeviceUnavailableError("no CUDA here")

    monkeypatch.setattr(contouring, "Segmenter", refuse)
    with pytest.raises(ConfigurationError, match="no CUDA here"):
        contouring.segmenter_of(contouring.package_of(ModelChoice()), SETTINGS)


def test_encoded_slices_are_files_that_pydicom_reads() -> None:
    assert pydicom.dcmread(BytesIO(encode(slices(PHANTOM)[0]))).pixel_array.shape == (48, 40)
