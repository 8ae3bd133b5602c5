"""What the spool promises about bytes, names and power cuts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.spool import OutOfSpaceError, Received, Spool, SpoolError, file_head, file_name, receive

DATA = b"\x08\x00\x60\x00CS\x02\x00CT"


def received(data: bytes = DATA, series: str = "2.25.7") -> Received:
    return receive("1.2.840.10008.5.1.4.1.1.2", "2.25.3", "1.2.840.10008.1.2.1", series, data)


def opened(folder: Path, reserve_bytes: int = 0) -> Spool:
    spool = Spool(folder / "spool", reserve_bytes)
    spool.open()
    return spool


def test_the_file_is_dicom_and_ends_with_the_bytes_as_received(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    path = spool.path(spool.write(received()))
    assert path.read_bytes().endswith(DATA)
    ds = pydicom.dcmread(path)
    assert (ds.Modality, ds.file_meta.MediaStorageSOPInstanceUID) == ("CT", "2.25.3")


@given(st.from_regex(r"[1-9][0-9]{0,9}(\.[1-9][0-9]{0,8}){1,5}", fullmatch=True))
def test_every_uid_gives_a_readable_group_0002(uid: str) -> None:
    head = file_head(receive(uid, uid, "1.2.840.10008.1.2.1", uid, b""))
    assert pydicom.dcmread(BytesIO(head + DATA)).file_meta.MediaStorageSOPInstanceUID == uid


@given(st.text(max_size=80))
def test_no_uid_becomes_a_path(series: str) -> None:
    name = file_name(received(series=series))
    assert set(name) <= set("0123456789abcdef/.dcm")
    assert len(Path(name).parts) == 3
    assert ".." not in name


def test_bytes_are_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    steps: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            steps.append("fsync folder" if folder else name)
            return call(*arguments, **keywords)

        return noted

    for name in ("fsync", "rename", "mkdir"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    spool.write(received())
    assert steps == [
        *("mkdir", "fsync folder", "mkdir", "fsync folder"),  # the series' folders, each in the one above
        *("fsync", "rename", "fsync folder"),
    ]
    steps.clear()
    spool.write(received(DATA + b"\0\0"))
    assert steps == ["fsync", "rename", "fsync folder"]


def test_the_same_bytes_again_are_the_same_file(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.write(received()) == spool.write(received())
    assert len([*spool.folder.rglob("*.dcm")]) == 1


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.write(received())
    modes = {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.rglob("*")}
    assert modes == {0o600, 0o700}


def test_what_a_crash_left_half_written_is_swept_and_whole_files_stay(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    whole = spool.path(spool.write(received()))
    (whole.parent / "abc.part").write_bytes(b"half")
    assert Spool(spool.folder, 0).open() == 1
    assert [*whole.parent.iterdir()] == [whole]


def test_below_the_reserve_nothing_is_written(tmp_path: Path) -> None:
    spool = opened(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(OutOfSpaceError, match="kept in reserve"):
        spool.write(received())
    assert not [*spool.folder.rglob("*.dcm")]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutOfSpaceError):
        spool.write(received())
    assert not [path for path in spool.folder.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_used_is_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file stands where the folder should be")
    with pytest.raises(SpoolError, match="cannot be used"):
        opened(tmp_path)
