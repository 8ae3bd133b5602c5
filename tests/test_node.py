"""The whole node from outside: real processes, real peers, kill -9.

Owns the promises that no room can keep alone: exactly one RT-STRUCT, whatever happens.
Speaks storescu, Orthanc's REST and Lua, dciodvfy; CT series of a small phantom.
Never looks into the node: what counts is what the PACS holds.
"""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RTStructureSetStorage, SecondaryCaptureImageStorage

from dicom_node.phantom import Phantom, write_phantom
from dicom_node.rehearsal import NODE, SCANNER, Rehearsal
from dicom_node.stand_in_pacs import StandInPacs
from tests.tools import free_port, needs, run, running, wait_until

SLICES, MATRIX, SPACING_MM = 40, 128, (4.0, 4.0, 4.0)
ENDS_WITHIN_S = 120.0
QUICK = {
    "series": {"grace_s": 0.3},
    "retry": {"first_delay_s": 0.5},
    "inference": {"device": "cpu", "allow_cpu": True},
}


@dataclass(frozen=True)
class Sent:
    """A phantom's series on disk."""

    folder: Path
    phantom: Phantom


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    folder = tmp_path_factory.mktemp("series")
    return Sent(folder, write_phantom(folder, SLICES, MATRIX, SPACING_MM))


def storescu(series: Sent, node: Rehearsal) -> None:
    files = sorted(series.folder.iterdir())
    done = run(
        ["storescu", "--no-halt", "-aet", SCANNER, "-aec", NODE, "127.0.0.1", str(node.port), *files],
        environment={"TCP_NODELAY": "1"},
    )
    assert done.returncode == 0, done.stdout


class Orthanc:
    """An Orthanc on loopback that knows the node as a modality."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dicom_port, self.http_port = free_port(), free_port()
        folder.mkdir(parents=True)

    @contextmanager
    def serving(self, node_port: int, auto_route: bool) -> Iterator[None]:
        """Run it; with `auto_route` each stable CT series goes to the node."""
        route = self.folder / "route.lua"
        route.write_text(
            "function OnStableSeries(id, tags, metadata)\n"
            "  if tags['Modality'] == 'CT' then RestApiPost('/modalities/node/store', id) end\n"
            "end\n"
        )
        settings = {
            "Name": "PACS",
            "DicomAet": "PACS",
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(self.folder / "storage"),
            "StableAge": 1,
            "DicomCheckModalityHost": False,
            "OverwriteInstances": True,
            "LuaScripts": [str(route)] if auto_route else [],
            "DicomModalities": {
                "node": [NODE, "127.0.0.1", node_port],
                "self": [NODE, "127.0.0.1", self.dicom_port],
            },
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        with running(["Orthanc", path], self.folder / "orthanc.log", port=self.http_port):
            yield

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def upload(self, file: Path) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/instances", data=file.read_bytes(), method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def delete(self, instance: str) -> None:
        """Forget an instance, by Orthanc's own name of it."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/instances/{instance}", method="DELETE"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def instances(self, modality: str) -> list[str]:
        """Orthanc's own names of the instances of a modality that it holds."""
        series = self.get("/series?expand")
        return [
            instance
            for one in series
            if one["MainDicomTags"].get("Modality") == modality
            for instance in one["Instances"]
        ]

    def shown(self, instance: str) -> bytes:
        """The picture that its viewer makes of an instance."""
        url = f"http://127.0.0.1:{self.http_port}/instances/{instance}/preview"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())

    def rt_structs(self) -> list[Dataset]:
        """Every RT Structure Set that it holds."""
        found = []
        for instance in self.instances("RTSTRUCT"):
            path = self.folder / f"{instance}.dcm"
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http_port}/instances/{instance}/file", timeout=10
            ) as answer:
                path.write_bytes(answer.read())
            found.append(dcmread(path))
        return found


def assert_only_one_ever_came(node: Rehearsal) -> Path:
    """What the stand-in PACS holds: one RT Structure Set; the same bytes may have come again."""
    kept = node.archive.instances(RTStructureSetStorage)
    assert len(kept) == 1
    return kept[0].file


@needs("storescu", "dciodvfy")
def test_a_series_from_storescu_comes_back_as_one_valid_rt_struct_in_its_slices_planes(
    series: Sent, tmp_path: Path
) -> None:
    with Rehearsal(tmp_path / "node", overrides=QUICK) as node:
        storescu(series, node)
        node.wait(node.is_idle, ENDS_WITHIN_S, "the job did not end")
        file = assert_only_one_ever_came(node)
        assert node.archive.duplicates == 0
        assert "PHANTOM" not in node.log.read_text(errors="replace")
    validated = run(["dciodvfy", "-new", file])
    assert validated.returncode == 0, validated.stdout
    assert "Error" not in validated.stdout
    rt_struct = dcmread(file)
    z_mm = {
        ct.SOPInstanceUID: float(ct.ImagePositionPatient[2]) for ct in map(dcmread, series.folder.iterdir())
    }
    contours = [contour for roi in rt_struct.ROIContourSequence for contour in roi.get("ContourSequence", ())]
    assert contours
    for contour in contours:
        own_z_mm = z_mm[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert np.all(np.array(contour.ContourData[2::3], float) == own_z_mm)


@needs("storescu", "Orthanc")
def test_orthanc_routes_a_series_and_gets_exactly_one_rt_struct(series: Sent, tmp_path: Path) -> None:
    orthanc = Orthanc(tmp_path / "orthanc")
    destination = {"name": "pacs", "host": "127.0.0.1", "ae_title": "PACS", "port": orthanc.dicom_port}
    overrides = {
        **QUICK,
        "peers": [{"ae_title": "PACS", "addresses": ["127.0.0.1"]}],
        "destinations": [{**destination, "preview": True}],
    }
    node = Rehearsal(tmp_path / "node", pacs=("PACS", orthanc.dicom_port), overrides=overrides)
    with orthanc.serving(node.port, auto_route=True), node:
        for file in series.folder.iterdir():
            orthanc.upload(file)
        wait_until(lambda: bool(orthanc.rt_structs()), ENDS_WITHIN_S, "an RT-STRUCT in Orthanc")
        wait_until(lambda: len(orthanc.instances("OT")) > 1, ENDS_WITHIN_S, "its pictures in Orthanc")
        node.wait(node.is_idle, ENDS_WITHIN_S, "the job did not end")
        assert orthanc.shown(orthanc.instances("OT")[0]).startswith(b"\x89PNG")
        # Orthanc finds the series of RT-STRUCT and pictures stable too; nothing more may come of that.
        time.sleep(3)
        assert len(node.jobs()) == 1
        (rt_struct,) = orthanc.rt_structs()
        assert rt_struct.StudyInstanceUID == dcmread(next(series.folder.iterdir())).StudyInstanceUID


@needs("storescu")
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_it_still_delivers_exactly_one(
    series: Sent, tmp_path: Path, seed: int
) -> None:
    moments = random.Random(seed)
    with Rehearsal(tmp_path / "node", overrides=QUICK) as node:
        storescu(series, node)
        for _ in range(3):
            time.sleep(moments.uniform(0.0, 3.0))
            node.kill_node()
            node.start_node()
        node.wait(node.is_idle, ENDS_WITHIN_S, "the job did not end")
        file = assert_only_one_ever_came(node)
        (job,) = node.jobs()
        assert dcmread(file).SOPInstanceUID == job.sop_instance_uid


@needs("storescu")
def test_the_same_series_pushed_again_makes_no_second_object(series: Sent, tmp_path: Path) -> None:
    with Rehearsal(tmp_path / "node", overrides=QUICK) as node:
        storescu(series, node)
        node.wait(node.is_idle, ENDS_WITHIN_S, "the job did not end")
        first = assert_only_one_ever_came(node).read_bytes()
        storescu(series, node)
        node.wait(
            lambda: node.archive.duplicates > 0, ENDS_WITHIN_S, "the stored RT-STRUCT did not come again"
        )
        assert assert_only_one_ever_came(node).read_bytes() == first
        assert len(node.jobs()) == 1


def incomplete(series: Sent, folder: Path) -> Sent:
    """The series as another one of the same study, with a slice missing in the middle."""
    folder.mkdir()
    for number, file in enumerate(sorted(series.folder.iterdir())):
        slice_ = dcmread(file)
        slice_.SeriesInstanceUID += ".2"
        slice_.SOPInstanceUID += ".2"
        slice_.FrameOfReferenceUID += ".2"
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
        if number != SLICES // 2:
            slice_.save_as(folder / file.name)
    return Sent(folder, series.phantom)


@needs("storescu", "dciodvfy")
def test_the_study_shows_the_contours_and_why_there_are_none_even_after_kill_9(
    series: Sent, tmp_path: Path
) -> None:
    broken = incomplete(series, tmp_path / "broken")
    with StandInPacs(tmp_path / "pacs", "PACS") as pacs:
        destination = {"name": "pacs", "host": "127.0.0.1", "ae_title": "PACS", "port": pacs.port}
        overrides = {**QUICK, "destinations": [{**destination, "preview": True}]}

        def captures(word: str = "") -> list[Dataset]:
            kept = [dcmread(one.file) for one in pacs.instances(SecondaryCaptureImageStorage)]
            return [one for one in kept if word in one.SeriesDescription]

        with Rehearsal(tmp_path / "node", pacs=("PACS", pacs.port), overrides=overrides) as node:
            storescu(series, node)
            storescu(broken, node)
            node.wait(lambda: bool(pacs.instances(RTStructureSetStorage)), ENDS_WITHIN_S, "no RT-STRUCT")
            node.kill_node()
            node.start_node()
            node.wait(lambda: bool(captures("NOT CONTOURED")), ENDS_WITHIN_S, "no notice")
            node.wait(lambda: len(captures("pictures")) > 1, ENDS_WITHIN_S, "no pictures")
        (notice,), pictures = captures("NOT CONTOURED"), captures("pictures")
        assert "a slice is missing" in notice.ImageComments
        assert sorted(int(one.InstanceNumber) for one in pictures) == [*range(1, len(pictures) + 1)]
        assert len({one.SeriesInstanceUID for one in pictures}) == 1
        (rt_struct,) = pacs.instances(RTStructureSetStorage)
        assert {one.StudyInstanceUID for one in captures()} == {rt_struct.study_instance_uid}
        for one in pacs.instances(SecondaryCaptureImageStorage):
            assert "Error" not in run(["dciodvfy", "-new", one.file]).stdout


def test_the_demo_contours_a_series_of_your_own_and_draws_it(series: Sent, tmp_path: Path) -> None:
    shown = run(
        [sys.executable, "-m", "dicom_node", "demo", "--ct", series.folder, "--output", tmp_path / "shown"],
        200,
    )
    assert shown.returncode == 0, shown.stdout
    assert "Not a medical device" in shown.stdout
    assert dcmread(tmp_path / "shown" / "rt_struct.dcm").Modality == "RTSTRUCT"
    assert (tmp_path / "shown" / "contours.png").read_bytes().startswith(b"\x89PNG")
