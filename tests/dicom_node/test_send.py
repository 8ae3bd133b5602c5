"""A folder goes out as from a scanner, and nothing counts as sent that the receiver did not keep."""

import sys

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, MediaStorageDirectoryStorage

from dicom_node import scu, send
from dicom_node.stand_in_pacs import StandInPacs
from tests import fault_pacs
from tests.fault_pacs import destination
from tests.instances import data_set_bytes, write_instance
from tests.tools import run


@pytest.fixture
def folder(tmp_path):
    """Three files in three transfer syntaxes and two storage classes, below two folders, and two others."""
    folder = tmp_path / "series"
    (folder / "below").mkdir(parents=True)
    write_instance(folder / "1.dcm", "2.25.1")
    write_instance(folder / "2.dcm", "2.25.2", CTImageStorage, ExplicitVRLittleEndian)
    write_instance(folder / "below" / "3", "2.25.3", CTImageStorage, JPEGLSLossless)
    write_instance(folder / "DICOMDIR", "2.25.4", MediaStorageDirectoryStorage)
    (folder / "readme.txt").write_text("not DICOM")
    return folder


def test_each_file_goes_out_in_its_own_transfer_syntax_byte_for_byte_on_one_association(folder, tmp_path):
    progress = []
    with StandInPacs(tmp_path / "archive") as archive:
        summary = send.send_folder(
            folder, destination(archive.port), "SCANNER", lambda done, total: progress.append((done, total))
        )
        kept = {kept.sop_instance_uid: data_set_bytes(kept.file) for kept in archive.instances()}
    assert summary == send.Summary(sent=3, warned=0, failed=(), ignored=2)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    files = {"2.25.1": "1.dcm", "2.25.2": "2.dcm", "2.25.3": "below/3"}
    assert kept == {uid: data_set_bytes(folder / name) for uid, name in files.items()}


def test_warnings_and_failures_are_counted_with_their_statuses(tmp_path):
    for number in range(4):
        write_instance(tmp_path / f"{number}.dcm", f"2.25.{number}")
    with fault_pacs.answering(0x0000, 0xB000, 0xA700, 0x0111) as port:
        summary = send.send_folder(tmp_path, destination(port), "SCANNER")
    assert (summary.sent, summary.warned) == (2, 1)
    assert [(failure.file.name, failure.status) for failure in summary.failed] == [
        ("2.dcm", 0xA700),
        ("3.dcm", 0x0111),
    ]
    assert "1 failed, the first is 2.dcm: 0xA700" in summary.in_words()


def test_a_storage_class_that_is_not_accepted_fails_alone(folder):
    with fault_pacs.without_rt_structure_sets() as port:
        write_instance(folder / "4.dcm", "2.25.5", CTImageStorage)
        summary = send.send_folder(folder, destination(port), "SCANNER")
    assert summary.sent == 1
    assert all("the peer accepts no" in failure.reason for failure in summary.failed)


def test_when_the_association_ends_the_rest_counts_as_failed(tmp_path):
    for number in range(3):
        write_instance(tmp_path / f"{number}.dcm", f"2.25.{number}")
    with fault_pacs.aborting() as port:
        summary = send.send_folder(tmp_path, destination(port), "SCANNER")
    assert (summary.sent, len(summary.failed)) == (0, 3)


def test_an_empty_folder_and_an_absent_receiver_are_said(tmp_path, folder):
    with pytest.raises(send.NothingToSendError, match="no DICOM instance"):
        send.send_folder(tmp_path / "none", destination(1), "SCANNER")
    with fault_pacs.closed_port() as port, pytest.raises(scu.UnreachableError, match="Connection refused"):
        send.send_folder(folder, destination(port), "SCANNER")


def test_the_command_says_what_it_sent_and_fails_when_something_was_not_kept(folder, tmp_path):
    command = [sys.executable, "-m", "dicom_node", "send", folder, "--aet", "ARCHIVE", "--to"]
    with StandInPacs(tmp_path / "archive") as archive:
        done = run([*command, f"127.0.0.1:{archive.port}"])
    with fault_pacs.without_rt_structure_sets() as port:
        failed = run([*command, f"127.0.0.1:{port}"])
    usage = run([*command[:-3], "--aet", "A TITLE THAT IS TOO LONG", "--to", "127.0.0.1:104"])
    assert (done.returncode, failed.returncode, usage.returncode) == (0, 1, 2)
    assert "sent 3" in done.stdout
    assert "not DICOM 2" in done.stdout
