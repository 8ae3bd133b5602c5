"""A file is there whole or not at all, whoever writes it."""

import os
import stat
import threading
from pathlib import Path

import pytest

from dicom_node.durable import DRAFT, write_durably


def test_a_file_is_replaced_whole_and_readable_by_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for parts in ((b"before",), (b"af", b"", b"ter")):
        write_durably(path, *parts)
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_disk_that_fails_leaves_what_was_there_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError("broken")

    path = tmp_path / "file"
    write_durably(path, b"before")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        write_durably(path, b"after")
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (b"before", [path])


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, rest: write(descriptor, rest[:7]))
    write_durably(tmp_path / "file", bytes(range(256)), b"end")
    assert (tmp_path / "file").read_bytes() == bytes(range(256)) + b"end"


def test_threads_that_write_one_path_at_once_leave_the_bytes_of_one(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_durably, args=(tmp_path / "file", one)) for one in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert not [*tmp_path.glob(f"*{DRAFT}")]
