"""A canary patient runs through every path of the whole node, and is seen nowhere but where he belongs.

Owns the list of what must stay silent: logs, figures, pages, commands, file names, the database.
Speaks to real processes; the patient's words are unlike any other in the program.
Never counts the spool, the RT-STRUCT and the pictures: those are the patient's own.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.events import Event

from dicom_node.phantom import write_phantom
from dicom_node.rehearsal import NODE, SCANNER, Rehearsal
from dicom_node.states import JobState
from tests import fault_pacs

NAME, ID, BIRTH, ACCESSION = "Zebrafink^Quirin", "ZQ-83710", "19370213", "AX-5521-Q"
WORDS = ("zebrafink", "quirin", "zq-83710", "19370213", "1937-02-13", "ax-5521")
ENDS_WITHIN_S = 150.0


pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """A node after the patient has met every kind of end in it."""
    folder = tmp_path_factory.mktemp("privacy")
    with ExitStack() as at_end:
        refusing = at_end.enter_context(fault_pacs.serving(_refuses_by_name))
        node = Rehearsal(folder / "node", overrides=_overrides(refusing))
        node.archive.start()
        at_end.callback(node.archive.stop)
        node.pacs = (node.archive.ae_title, node.archive.port)
        node.overrides["destinations"][0]["port"] = node.archive.port  # type: ignore[index]
        at_end.enter_context(node)
        whole = _whole(folder / "whole")
        _send(node, whole)
        _send(node, _with_a_gap(whole))
        _send(node, _unlike_any_ct(whole))
        for broken in _broken(whole[0]):
            _send(node, [broken])
        node.wait(node.is_idle, ENDS_WITHIN_S, "the jobs did not end")
        yield node


def _overrides(refusing: int) -> dict[str, Any]:
    where = {"host": "127.0.0.1"}
    return {
        "series": {"grace_s": 0.3, "quiet_period_s": 2.0},
        "retry": {"first_delay_s": 0.5},
        "inference": {"device": "cpu", "allow_cpu": True},
        "logging": {"level": "debug", "format": "json"},
        "destinations": [
            {"name": "pacs", **where, "port": 1, "ae_title": "PACS", "preview": True},
            {"name": "refusing", **where, "port": refusing, "ae_title": "ARCHIVE"},
        ],
    }


def _refuses_by_name(_event: Event) -> Dataset:
    """As archives do that tell in Error Comment (0000,0902) whom they do not know."""
    answer = Dataset()
    answer.Status, answer.ErrorComment = 0xC001, f"unknown patient {NAME} {ID}"
    return answer


def _whole(folder: Path) -> list[Dataset]:
    write_phantom(folder, 40, 128, (4.0, 4.0, 4.0))
    slices = [dcmread(file) for file in sorted(folder.iterdir())]
    for one in slices:
        one.PatientName, one.PatientID, one.PatientBirthDate = NAME, ID, BIRTH
        one.AccessionNumber, one.PatientComments = ACCESSION, f"{NAME} came by tram"
    return slices


def _changed(slices: list[Dataset], suffix: str, change: Callable[[Dataset], None]) -> list[Dataset]:
    """Copies under other UIDs, each changed."""
    copies = []
    for one in slices:
        copy = deepcopy(one)
        copy.SeriesInstanceUID += suffix
        copy.SOPInstanceUID += suffix
        copy.FrameOfReferenceUID += suffix
        change(copy)
        copies.append(copy)
    return copies


def _with_a_gap(slices: list[Dataset]) -> list[Dataset]:
    return _changed(slices[:15] + slices[16:], ".2", lambda _copy: None)


def _unlike_any_ct(slices: list[Dataset]) -> list[Dataset]:
    def mark(copy: Dataset) -> None:
        copy.PixelSpacing = [0.0, 0.0]
        copy.ImageType = ["DERIVED", "SECONDARY", NAME.upper()[:16]]

    return _changed(slices, ".3", mark)


def _broken(whole: Dataset) -> list[Dataset]:
    """Single instances that are refused on the wire, or whose series is rejected."""

    def with_(**values: Any) -> Dataset:
        (copy,) = _changed([whole], f".4.{len(broken)}", lambda one: None)
        for keyword, value in values.items():
            setattr(copy, keyword, value)
        return copy

    broken: list[Dataset] = []
    broken.append(with_(ImagePositionPatient=None))
    broken.append(with_(SeriesInstanceUID=NAME))
    broken.append(with_(StudyInstanceUID=""))
    broken.append(with_(SOPInstanceUID=whole.SOPInstanceUID, ImageComments="other bytes"))
    broken.append(with_(SpecificCharacterSet=f"ISO {NAME}"))
    broken.append(with_(PixelData=b"\0\0"))
    return broken


def _send(node: Rehearsal, slices: list[Dataset]) -> None:
    entity = AE(ae_title=SCANNER)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    peer = entity.associate("127.0.0.1", node.port, ae_title=NODE)
    assert peer.is_established
    for one in slices:
        if peer.is_established:
            peer.send_c_store(one)
    peer.release()


def _command(node: Rehearsal, *arguments: str) -> str:
    """What a command says on both its streams."""
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", *arguments], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def _page(node: Rehearsal, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.http_port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        return refusal.read().decode()


def _silent(text: str) -> None:
    heard = [word for word in WORDS if word in text.lower()]
    assert not heard, f"{len(heard)} of the patient's words in {len(text)} characters"


def test_every_kind_of_end_was_met(ran: Rehearsal) -> None:
    """Else the silence below would prove little."""
    states = {job.state for job in ran.jobs()}
    assert {JobState.FAILED, JobState.REJECTED} <= states
    codes = {job.reason_code for job in ran.jobs()}
    assert {"refused", "missing_slice"} <= codes
    log = ran.log.read_text()
    assert all(word in log for word in ("instance_refused", "rejected", "contoured"))
    assert ran.archive.instances()


def test_the_patient_is_in_no_log(ran: Rehearsal) -> None:
    _silent(ran.log.read_text(errors="replace"))


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/healthz", f"/{ID}", f"/metrics?name={NAME}"])
def test_the_patient_is_on_no_page(ran: Rehearsal, path: str) -> None:
    _silent(_page(ran, path))


def test_the_patient_is_on_no_page_of_a_job(ran: Rehearsal) -> None:
    paths = [
        "/",
        *(f"/jobs/{number}{what}" for number in range(1, len(ran.jobs()) + 1) for what in ("", "/preview")),
    ]
    pages = [_page(ran, path) for path in paths]
    for text in pages:
        _silent(text)
    pictures = [path for text in pages for path in re.findall(r'<img src="([^"]+)"', text)]
    assert pictures
    with urllib.request.urlopen(f"http://127.0.0.1:{ran.http_port}{pictures[0]}", timeout=10) as answer:
        _silent(answer.read().decode("latin-1"))


def test_the_patient_is_in_no_column_of_the_database(ran: Rehearsal) -> None:
    with closing(sqlite3.connect(ran.database)) as connection:
        _silent("\n".join(connection.iterdump()))
    for file in ran.database.parent.glob("anatomynode.sqlite*"):
        _silent(file.read_bytes().decode("latin-1"))


def test_the_patient_is_in_no_file_name_and_in_no_file_but_the_slices_and_results(ran: Rehearsal) -> None:
    storage = ran.database.parent
    files = [path for path in storage.rglob("*") if path.is_file()]
    _silent("\n".join(str(path.relative_to(storage)) for path in files))
    own = {"spool", "results"}
    for path in files:
        if path.relative_to(storage).parts[0] not in own:
            _silent(path.read_bytes().decode("latin-1"))


def test_the_patient_is_in_no_answer_of_a_command(ran: Rehearsal) -> None:
    config = ("--config", str(ran.config))
    _silent(_command(ran, "check", *config))
    _silent(_command(ran, "audit", "--json", *config))
    _silent(_command(ran, "jobs", *config))
    for number, _ in enumerate(ran.jobs(), start=1):
        _silent(_command(ran, "jobs", "show", str(number), *config))
        _silent(_command(ran, "jobs", "show", str(number), "--json", *config))
    found = _command(ran, "jobs", "find", ID, *config)
    assert "no jobs" not in found, "found by the keyed hash of the number"
    _silent(found)


def test_contour_and_send_tell_nothing_of_the_patient_either(ran: Rehearsal, tmp_path: Path) -> None:
    whole = _whole(tmp_path / "whole")
    for name, slices in (
        ("gap", _with_a_gap(whole)),
        ("odd", _unlike_any_ct(whole)),
        ("broken", _broken(whole[0])),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for index, one in enumerate(slices):
            one.save_as(folder / f"{index}.dcm", enforce_file_format=False)
        _silent(_command(ran, "contour", str(folder), "--output", str(tmp_path / "rs.dcm"), "--json"))
        to = f"127.0.0.1:{ran.port}"
        _silent(_command(ran, "send", str(folder), "--to", to, "--aet", NODE, "--calling", SCANNER))
