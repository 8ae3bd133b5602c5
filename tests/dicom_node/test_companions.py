"""Whoever opens the study sees the contours, or why there are none: where the destination asks for it.

Owns the rules of pictures and notices, from the job's row to what the archive holds.
Speaks a real worker, a real database and archives on loopback.
Never runs a network.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import FileDataset, dcmread
from pydicom.uid import RTStructureSetStorage, SecondaryCaptureImageStorage
from sqlalchemy import Engine, select

from dicom_node import metrics, migrate, painting, preview_sheets, story
from dicom_node.companion_sender import CompanionSender
from dicom_node.config import Config
from dicom_node.database import open_engine, reading
from dicom_node.deliverer import Deliverer
from dicom_node.errors import PermanentError
from dicom_node.jobs import IllegalTransitionError
from dicom_node.preview import preview_of
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.schema import Companion, Job
from dicom_node.stand_in_pacs import StandInPacs
from dicom_node.states import CompanionKind, DeliveryState, JobState
from dicom_node.worker import Worker
from tests import fault_pacs, phantoms
from tests.node_fixtures import BoxSegmenter, configuration, receive, write_package
from tests.phantoms import Phantom
from tests.tools import free_port, needs

PHANTOM = Phantom()
GAP = Phantom(offsets_mm=tuple(3.0 * index for index in range(24) if index != 7))
TILTED = PHANTOM.but(
    orientation=(1.0, 0.0, 0.0, 0.0, 0.9659258262890683, -0.25881904510252074),
    step_direction=(0.0, 0.0, 1.0),
)
JAPANESE = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"}


@dataclass
class Node:
    """A worker, what sends beside it, and a clock that goes when it is told to."""

    config: Config
    engine: Engine
    now: float = 1_000_000.0
    problem: Exception | None = None

    def clock(self) -> float:
        return self.now

    def contour(self, *received: tuple[Phantom, range | None]) -> None:
        """Slices come, and their series is worked on to its end."""
        for phantom, which in received:
            receive(self.engine, self.config, phantom, self.now, which=which)
        self.now += 60
        self.work()

    def work(self) -> None:
        worker = Worker(
            self.config, self.engine, lambda package: BoxSegmenter(package, self.problem), self.clock
        )
        worker.recover()
        worker.step()
        worker.finish()
        worker.close()

    def send(self) -> None:
        Deliverer(self.config, self.engine, self.clock).step()
        CompanionSender(self.config, self.engine, self.clock).step()

    def job(self) -> Job:
        with reading(self.engine) as session:
            return session.scalars(select(Job)).one()

    def companions(self) -> list[Companion]:
        with reading(self.engine) as session:
            return list(session.scalars(select(Companion).order_by(Companion.id)))

    def companion(self) -> Companion:
        (only,) = self.companions()
        return only

    def files(self) -> list[Path]:
        return [self.config.storage.results / file for file in self.companion().files or ()]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    engines = []

    def make(port: int, preview: bool = True, **more: dict[str, Any]) -> Node:
        sha256 = write_package(tmp_path / "packages")
        pacs = {"name": "pacs", "host": "127.0.0.1", "port": port, "ae_title": "ARCHIVE", "preview": preview}
        others = [{**pacs, "name": name, **changes} for name, changes in more.items()]
        config = configuration(tmp_path / "node", sha256, destinations=[pacs, *others])
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"folder": tmp_path / "packages"})}
        )
        migrate.upgrade(config.storage.database)
        engines.append(open_engine(config.storage.database))
        return Node(config, engines[-1])

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[StandInPacs]:
    with StandInPacs(tmp_path / "pacs", "ARCHIVE") as running:
        yield running


def captures(archive: StandInPacs) -> list[FileDataset]:
    """The Secondary Captures in the archive, in their order."""
    kept = [dcmread(one.file) for one in archive.instances(SecondaryCaptureImageStorage)]
    return sorted(kept, key=lambda one: int(one.InstanceNumber))


def errors_of(archive: StandInPacs) -> list[str]:
    """What dciodvfy finds wrong with the Secondary Captures."""
    found = []
    for one in archive.instances(SecondaryCaptureImageStorage):
        judged = subprocess.run(
            ["dciodvfy", "-new", str(one.file)], capture_output=True, text=True, check=False
        )
        found += [line for line in judged.stderr.splitlines() if line.startswith("Error")]
    return found


def test_the_study_gets_pictures_that_show_the_contours_where_they_are(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port)
    node.contour((PHANTOM, None))
    node.send()
    (rt_struct,) = archive.instances(RTStructureSetStorage)
    first, *others = captures(archive)
    assert len(others) == 1
    assert {one.StudyInstanceUID for one in (first, *others)} == {rt_struct.study_instance_uid}
    assert first.SeriesInstanceUID == others[0].SeriesInstanceUID != rt_struct.series_instance_uid
    assert (first.Modality, first.BurnedInAnnotation, first.ConversionType) == ("OT", "NO", "WSD")
    assert first.SeriesDescription == "AnatomyNode pictures"
    assert rt_struct.sop_instance_uid in first.DerivationDescription
    shown = preview_of(phantoms.series(PHANTOM), rt_struct.file.read_bytes(), dict(node.job().report or {}))
    box = shown.rois[0]
    for place, view in enumerate(shown.overview):
        left, top = preview_sheets.overview_corner(place)
        x, y = np.rint(view.pixels(box.voxels_mm.mean(axis=0)[None])[0]).astype(int)
        red, green, blue = first.pixel_array[top + y + 12, left + x + 12].astype(int)
        assert green > red + 20 < green
        assert green > blue + 20
    assert node.companion().state is DeliveryState.STORED
    assert "Pictures to pacs: STORED" in story.show(node.engine, 1).in_words()


def test_each_destination_sees_its_own_edition(make_node: Callable[..., Node], archive: StandInPacs) -> None:
    node = make_node(archive.port, planning={"rt_struct": {"name_prefix": "AI_"}})
    node.contour((PHANTOM, None))
    node.send()
    editions = archive.instances(RTStructureSetStorage)
    assert len(editions) == 2
    first_sheets = [one for one in captures(archive) if one.InstanceNumber == 1]
    for edition in editions:
        assert sum(edition.sop_instance_uid in one.DerivationDescription for one in first_sheets) == 1
    assert len({one.SeriesInstanceUID for one in first_sheets}) == 2
    assert first_sheets[0].PixelData != first_sheets[1].PixelData, "the names differ"


@needs("dciodvfy")
@pytest.mark.parametrize(
    "overrides",
    [dict.fromkeys(("StudyID", "ReferringPhysicianName", "StudyTime")), JAPANESE],
    ids=["without Type 2", "Japanese"],
)
@pytest.mark.parametrize("phantom", [PHANTOM, GAP], ids=["pictures", "notice"])
def test_dciodvfy_finds_no_error_and_the_patient_is_the_cts(
    make_node: Callable[..., Node], archive: StandInPacs, phantom: Phantom, overrides: dict[str, Any]
) -> None:
    phantom = phantom.but(overrides=overrides)
    node = make_node(archive.port)
    node.contour((phantom, None))
    node.send()
    ct = phantoms.slices(phantom)[0]
    assert captures(archive)
    assert errors_of(archive) == []
    for one in captures(archive):
        assert (one.PatientName, one.PatientID) == (ct.PatientName, ct.PatientID)
        assert one.get("SpecificCharacterSet") == ct.get("SpecificCharacterSet")


def test_a_person_sees_what_a_job_came_to(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node(free_port(), preview=False)
    node.contour((PHANTOM, None))
    painting.show(node.engine, 1, node.config.storage, tmp_path / "job.html")
    page = (tmp_path / "job.html").read_text()
    assert str(node.job().sop_instance_uid) in page
    assert "Brainstem" in page
    with pytest.raises(PermanentError, match="there is no job 2"):
        painting.show(node.engine, 2, node.config.storage, tmp_path / "job.html")
    (node.config.storage.results / str(node.job().rt_struct_file)).write_bytes(b"rot")
    with pytest.raises(PermanentError, match="changed on the disk"):
        painting.show(node.engine, 1, node.config.storage, tmp_path / "job.html")


def test_a_destination_that_asks_for_none_gets_none(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port, preview=False)
    node.contour((PHANTOM, None))
    node.send()
    assert node.job().state is JobState.SENT
    assert node.companions() == captures(archive) == []


def test_the_same_bytes_go_out_on_every_try_and_after_they_were_lost(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    port = free_port()
    node = make_node(port)
    node.contour((PHANTOM, None))
    node.send()
    assert node.companion().state is DeliveryState.PENDING
    before = [file.read_bytes() for file in node.files()]
    node.files()[0].unlink()
    node.files()[1].write_bytes(b"rot")
    node.now += 1000
    with StandInPacs(tmp_path / "pacs", "ARCHIVE", port=port) as archive:
        node.send()
        assert node.companion().state is DeliveryState.STORED
        sent = [one.file.read_bytes() for one in archive.instances(SecondaryCaptureImageStorage)]
    assert [file.read_bytes() for file in node.files()] == before
    tails = {data[-4_000_000:] for data in before}
    assert {data[-4_000_000:] for data in sent} == tails


def test_at_the_start_what_a_companion_names_is_not_swept(make_node: Callable[..., Node]) -> None:
    node = make_node(free_port())
    node.contour((PHANTOM, None))
    node.send()
    node.work()
    assert all(file.is_file() for file in node.files())


def test_a_rejected_series_leaves_the_reason_in_its_study(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port)
    node.contour((GAP, None))
    node.send()
    job = node.job()
    assert (job.state, job.reason_code) == (JobState.REJECTED, "missing_slice")
    (notice,) = captures(archive)
    assert notice.StudyInstanceUID == phantoms.slices(GAP)[0].StudyInstanceUID
    assert notice.SeriesDescription == "AnatomyNode: NOT CONTOURED, open for the reason"
    told = story.show(node.engine, 1).in_words()
    assert told.splitlines()[0] in notice.ImageComments
    assert "Notice to pacs: STORED" in told
    assert np.ptp(notice.pixel_array) > 150, "the words are on the sheet"


def test_a_series_that_we_could_not_contour_says_so_without_the_defects_words(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port)
    node.problem = ValueError("a defect")
    node.contour((PHANTOM, None))
    node.send()
    (notice,) = captures(archive)
    assert "could not be contoured" in notice.ImageComments
    assert "a defect" not in notice.ImageComments


def test_contours_that_are_held_for_review_say_so_and_come_when_they_are_released(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port)
    review = node.config.review.model_copy(update={"hold": ("tilted",)})
    node.config = node.config.model_copy(update={"review": review})
    node.contour((TILTED, None))
    node.send()
    (notice,) = captures(archive)
    assert "wait for a person" in notice.ImageComments
    assert "the gantry was tilted by 15.0 degrees" in notice.ImageComments
    story.release(node.engine, 1, node.clock)
    node.work()
    node.send()
    assert node.job().state is JobState.SENT
    assert [one.state for one in node.companions()] == [DeliveryState.STORED] * 2
    assert len(captures(archive)) == 3


def test_where_one_destination_holds_the_contours_its_study_says_so_and_shows_them_once_released(
    make_node: Callable[..., Node], archive: StandInPacs, tmp_path: Path
) -> None:
    with StandInPacs(tmp_path / "tps", "TPS") as planning:
        node = make_node(archive.port, tps={"port": planning.port, "ae_title": "TPS", "hold": ["tilted"]})
        node.contour((TILTED, None))
        node.send()
        assert (len(archive.instances(RTStructureSetStorage)), len(captures(archive))) == (1, 2)
        (notice,) = captures(planning)
        assert "wait for a person" in notice.ImageComments
        assert "before this is sent to tps: the gantry was tilted by 15.0 degrees" in notice.ImageComments
        assert len(planning.instances(RTStructureSetStorage)) == 0
        assert "To tps: HELD" in story.show(node.engine, 1).in_words()
        told = story.release(node.engine, 1, node.clock, "tps")
        assert told == "job 1 was READY and is now READY; 1 delivery(ies) to go out"
        node.send()
        assert (len(planning.instances(RTStructureSetStorage)), len(captures(planning))) == (1, 3)
        assert node.job().state is JobState.SENT
        assert [one.state for one in node.companions()] == [DeliveryState.STORED] * 3
        figures = metrics.NodeCollector(node.engine, node.config, ReceptionFigures(), node.clock)
        shown = metrics.exposition(figures)().decode()
        assert 'anatomynode_deliveries{destination="tps",state="HELD"} 0.0' in shown
        # How long a person took to release it for one destination says nothing about the way to the other.
        measured = re.findall(r'anatomynode_turnaround_seconds_count\{destination="(\w+)"', shown)
        assert set(measured) == {"pacs"}


def test_an_rt_struct_that_was_refused_gives_no_notice(make_node: Callable[..., Node]) -> None:
    with fault_pacs.answering(0xC000) as port:
        node = make_node(port)
        node.contour((PHANTOM, None))
        node.send()
        node.work()
    assert node.job().state is JobState.FAILED
    assert [one.kind for one in node.companions()] == [CompanionKind.PICTURES]


def test_no_notice_is_filed_where_the_slices_name_several_patients(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port)
    other = PHANTOM.but(overrides={"PatientID": "ANOTHER"})
    node.contour((PHANTOM, range(12)), (other, range(12, 24)))
    node.send()
    assert node.job().reason_code == "mixed_series"
    assert captures(archive) == []
    assert node.companion().state is DeliveryState.REFUSED
    assert "2 patients or studies" in (node.companion().reason or "")


def test_pictures_that_are_refused_leave_the_job_sent_and_go_out_again_on_request(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    port = free_port()
    node = make_node(port)
    node.contour((PHANTOM, None))
    with fault_pacs.answering(0x0000, port=port):  # knows no Secondary Capture
        node.send()
    assert (node.job().state, node.companion().state) == (JobState.SENT, DeliveryState.REFUSED)
    assert "accepts no Secondary Capture" in (node.companion().reason or "")
    figures = metrics.NodeCollector(node.engine, node.config, ReceptionFigures(), node.clock)
    line = 'anatomynode_companions{destination="pacs",kind="PICTURES",state="REFUSED"} 1.0'
    assert line in metrics.exposition(figures)().decode()
    story.retry(node.engine, 1, node.clock)
    assert (node.job().state, node.companion().state) == (JobState.SENT, DeliveryState.PENDING)
    story.cancel(node.engine, 1, node.clock)
    assert (node.job().state, node.companion().state) == (JobState.SENT, DeliveryState.CANCELLED)
    with pytest.raises(IllegalTransitionError):
        story.cancel(node.engine, 1, node.clock)
    story.retry(node.engine, 1, node.clock)
    with StandInPacs(tmp_path / "pacs", "ARCHIVE", port=port) as archive:
        node.send()
        assert len(captures(archive)) == 2


def test_a_rejected_job_that_is_done_again_takes_back_the_notice_that_waits(
    make_node: Callable[..., Node], archive: StandInPacs
) -> None:
    node = make_node(archive.port)
    node.contour((GAP, None))
    story.retry(node.engine, 1, node.clock)
    assert node.companion().state is DeliveryState.CANCELLED
    node.work()
    node.send()
    assert (node.job().state, node.companion().state) == (JobState.REJECTED, DeliveryState.STORED)
    story.retry(node.engine, 1, node.clock)
    node.work()
    node.send()
    assert (node.companion().state, len(captures(archive)), archive.duplicates) == (
        DeliveryState.STORED,
        1,
        1,
    ), "the same reason is the same object"
