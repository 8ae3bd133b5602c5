"""Routing from outside: a real node with rules, a scanner that pushes, and what each receiver then holds.

Owns one whole run over sockets: ignored by description, two results, the rest, back to the sender.
Speaks `anatomynode serve`, C-STORE as a scanner, stand-in archives and a folder.
Never looks into the node but for the jobs' ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import RTStructureSetStorage

from dicom_node.config import Destination
from dicom_node.phantom import write_phantom
from dicom_node.rehearsal import NODE, SCANNER, Rehearsal
from dicom_node.send import send_folder
from dicom_node.stand_in_pacs import StandInPacs
from dicom_node.states import JobState

SLICES, MATRIX, SPACING_MM = 40, 128, (4.0, 4.0, 4.0)
ENDS_WITHIN_S = 180.0
RESEARCH = "AN_RESEARCH"


@dataclass(frozen=True)
class Receivers:
    """Who waits for results."""

    archive: StandInPacs
    planning: StandInPacs
    folder: Path


@pytest.fixture
def receivers(tmp_path: Path) -> Iterator[Receivers]:
    folder = tmp_path / "share"
    folder.mkdir()
    with ExitStack() as running:
        names = ("archive", "planning")
        archive, planning = (running.enter_context(StandInPacs(tmp_path / n, n.upper())) for n in names)
        yield Receivers(archive, planning, folder)


def template(folder: Path, name: str) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"structures": {"Brainstem": {"name": name}}}))
    return str(file)


def series(folder: Path, number: int, description: str) -> Path:
    """A phantom's slices as a series and a study of their own."""
    write_phantom(folder, SLICES, MATRIX, SPACING_MM)
    for file in folder.iterdir():
        ct = dcmread(file)
        ct.SeriesDescription = description
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(ct, keyword, f"{ct[keyword].value}.{number}")
        ct.file_meta.MediaStorageSOPInstanceUID = ct.SOPInstanceUID
        ct.save_as(file)
    return folder


def push(folder: Path, node: Rehearsal, called: str = NODE) -> None:
    to = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=called)
    assert not send_folder(folder, to, SCANNER).failed


def brainstems(archive: StandInPacs) -> list[str]:
    """What the brainstem is called in each object, the oldest first."""
    held = [dcmread(one.file) for one in archive.instances(RTStructureSetStorage)]
    return [
        roi.ROIName
        for one in held
        for roi in one.StructureSetROISequence
        if roi.ROIName.lower().startswith(("brainstem", "stem"))
    ]


def test_each_series_goes_where_the_first_rule_that_it_meets_says(
    tmp_path: Path, receivers: Receivers
) -> None:
    both = [
        {"template": template(tmp_path, "Stem_Clinic"), "destinations": ["archive"]},
        {"template": template(tmp_path, "Stem_Plan"), "destinations": ["planning", "share"]},
    ]
    rules = [
        {
            "name": "bone",
            "when": {"series_description": "*bone*"},
            "ignore": "sharp kernel",
        },
        {"name": "research", "when": {"called_ae_title": RESEARCH}, "results": both},
        {"name": "rest", "results": [{"destinations": ["archive", "return_to_sender"]}]},
    ]
    known = [
        {"name": one.ae_title.lower(), "host": "127.0.0.1", "port": one.port, "ae_title": one.ae_title}
        for one in (receivers.archive, receivers.planning)
    ]
    console = {**known[1], "name": "console", "senders": [SCANNER]}
    share = {"name": "share", "kind": "folder", "folder": str(receivers.folder)}
    overrides = {
        "series": {"grace_s": 0.3},
        "inference": {"device": "cpu", "allow_cpu": True},
        "listener": {"more_ae_titles": [RESEARCH]},
        "destinations": [*known, console, share],
        "routing": rules,
    }
    with Rehearsal(tmp_path / "node", pacs=("UNUSED", 1), overrides=overrides) as node:
        push(series(tmp_path / "bone", 1, "H/N BONE 1.0"), node)
        push(series(tmp_path / "research", 2, "H/N soft"), node, RESEARCH)
        push(series(tmp_path / "rest", 3, "H/N soft"), node)
        node.wait(lambda: node.is_idle() and len(node.jobs()) == 4, ENDS_WITHIN_S, "the jobs did not end")
        ends = [(job.state, job.reason_code) for job in node.jobs()]
        said = node.log.read_text(errors="replace")

    assert sorted(ends, key=str) == sorted(
        [(JobState.IGNORED, "routing_rule"), *[(JobState.SENT, None)] * 3], key=str
    )
    assert sorted(brainstems(receivers.archive)) == ["Brainstem", "Stem_Clinic"]
    assert sorted(brainstems(receivers.planning)) == ["Brainstem", "Stem_Plan"]
    (file,) = receivers.folder.iterdir()
    (planned,) = [
        one
        for one in receivers.planning.instances(RTStructureSetStorage)
        if one.sop_instance_uid == file.stem
    ]
    assert dcmread(file) == dcmread(planned.file)
    assert "H/N" not in said
