"""A folder gets each object as a whole file, once, and says what is wrong when it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dicom_node import folder_output
from dicom_node.config import FolderDestination
from dicom_node.store_status import StoreKind
from tests.instances import SERIES, STUDY, write_instance

UID = "2.25.77"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_instance(tmp_path / "result.dcm", UID)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def destination(folder: Path, **more: object) -> FolderDestination:
    return FolderDestination.model_validate({"name": "share", "kind": "folder", "folder": folder, **more})


def test_the_very_bytes_stand_there_under_a_name_without_a_patient(file: Path, out: Path) -> None:
    pattern = "{modality}{study_instance_uid}-{series_instance_uid}-{sop_instance_uid}.dcm"
    first = folder_output.store(destination(out), file)
    other = folder_output.store(destination(out, file_name=pattern), file)

    assert (first.kind, other.kind) == (StoreKind.STORED, StoreKind.STORED)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{UID}.dcm", f"{STUDY}-{SERIES}-{UID}.dcm"]
    )
    assert {path.read_bytes() for path in out.iterdir()} == {file.read_bytes()}


@pytest.mark.parametrize(("group_may_read", "mode"), [(True, 0o640), (False, 0o600)])
def test_who_may_read_it_does_not_depend_on_the_services_umask(
    file: Path, out: Path, group_may_read: bool, mode: int
) -> None:
    before = os.umask(0o077)
    try:
        folder_output.store(destination(out, group_may_read=group_may_read), file)
    finally:
        os.umask(before)

    assert [path.stat().st_mode & 0o777 for path in out.iterdir()] == [mode]


def test_a_try_after_a_crash_at_any_step_leaves_one_whole_file(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PulledPlugError(BaseException):
        pass

    def pull(*_: object) -> None:
        raise PulledPlugError

    for crashed_at in ("pathlib.Path.rename", "dicom_node.folder_output.sync_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(crashed_at, pull)
            with pytest.raises(PulledPlugError):
                folder_output.store(destination(out), file)
        assert all(path.read_bytes() == file.read_bytes() for path in out.glob("*.dcm"))
        assert folder_output.store(destination(out), file).kind is StoreKind.STORED
        assert [path.read_bytes() for path in out.iterdir()] == [file.read_bytes()]


def test_another_file_of_that_name_stays_as_it_is(file: Path, out: Path) -> None:
    (out / f"{UID}.dcm").write_bytes(b"theirs")

    outcome = folder_output.store(destination(out), file)

    assert outcome.kind is StoreKind.DUPLICATE
    assert (out / f"{UID}.dcm").read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errno.ENOSPC, StoreKind.TRANSIENT),
        (errno.EIO, StoreKind.TRANSIENT),
        (errno.EDQUOT, StoreKind.TRANSIENT),
        (errno.ESTALE, StoreKind.UNREACHABLE),
        (errno.ENOENT, StoreKind.UNREACHABLE),
        (errno.EACCES, StoreKind.REFUSED),
        (errno.EROFS, StoreKind.REFUSED),
    ],
)
def test_the_error_of_the_disk_says_whether_it_is_tried_again(
    file: Path, out: Path, error: int, kind: StoreKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", fail)
        outcome = folder_output.store(destination(out), file)

    assert (outcome.kind, outcome.status) == (kind, None)
    assert os.strerror(error) in outcome.reason
    assert list(out.iterdir()) == []


def test_a_share_that_cannot_fsync_a_folder_is_written_all_the_same(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("dicom_node.folder_output.sync_folder", refuse)

    assert folder_output.store(destination(out), file).kind is StoreKind.STORED


def test_nothing_in_an_object_leads_out_of_the_folder(out: Path, tmp_path: Path) -> None:
    hostile = write_instance(tmp_path / "hostile.dcm", "2.25.1", series_instance_uid="../../../escaped")
    pattern = "{series_instance_uid}-{sop_instance_uid}"

    assert folder_output.store(destination(out, file_name=pattern), hostile).kind is StoreKind.REFUSED
    assert list(out.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_made(file: Path, tmp_path: Path) -> None:
    away = tmp_path / "not mounted"

    assert folder_output.store(destination(away), file).kind is StoreKind.UNREACHABLE
    assert not away.exists()
