"""`anatomynode check` says in words where the network runs, and why not elsewhere."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dicom_node import check, migrate
from dicom_node.config import Config, Inference
from inference.cuda import CudaSeen
from models.card import PACKAGES, read_package

NO_GPU = CudaSeen(13, False, None, False, None, (), (), False)
NO_CUDNN = CudaSeen(13, True, "580.95.05", True, (13, 0), ("libcudnn.so.9",), (), True)


@pytest.mark.parametrize(
    ("wanted", "allow_cpu", "runs_on", "seen", "problem", "fatal", "detail"),
    [
        ("cpu", False, "cpu", NO_GPU, None, True, "runs on cpu"),
        ("cpu", False, "cpu", NO_CUDNN, None, True, "which inference.device: cuda would use"),
        ("cuda", True, "cuda", NO_CUDNN, None, True, "runs on cuda"),
        ("cuda", True, "cpu", NO_CUDNN, "the CPU stands in: cuDNN is missing", False, "runs on cpu"),
        (
            "cuda",
            True,
            "cpu",
            NO_GPU,
            "the CPU stands in: this machine has no NVIDIA GPU",
            False,
            "runs on cpu",
        ),
    ],
)
def test_check_tells_where_the_network_runs(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Any,
    allow_cpu: bool,
    runs_on: str,
    seen: CudaSeen,
    problem: str | None,
    fatal: bool,
    detail: str,
) -> None:
    monkeypatch.setattr(check, "Session", lambda *_: SimpleNamespace(device=runs_on))
    monkeypatch.setattr(check.cuda, "look", lambda: seen)
    config = Config(peers=(), destinations=(), inference=Inference(device=wanted, allow_cpu=allow_cpu))

    found, device = check._device(config, read_package(PACKAGES / "anatomynet-hn"))

    assert device == runs_on
    assert detail in found.detail
    assert (found.problem is None) == (problem is None)
    assert problem is None or problem in str(found.problem)
    assert found.fatal == fatal


def test_cuda_that_may_not_be_replaced_is_fatal_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.cuda, "look", lambda: NO_GPU)
    config = Config(peers=(), destinations=(), inference=Inference(device="cuda", allow_cpu=False))

    found, device = check._device(config, read_package(PACKAGES / "anatomynet-hn"))

    assert device == "none"
    assert found.fatal
    assert "this machine has no NVIDIA GPU" in str(found.problem)


def test_a_database_of_a_newer_version_is_named(tmp_path: Path) -> None:
    config = Config.model_validate({"peers": [], "destinations": [], "storage": {"folder": tmp_path}})
    migrate.upgrade(config.storage.database)
    assert check._database(config).problem is None
    with closing(sqlite3.connect(config.storage.database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()

    found = check._database(config)

    assert found.fatal
    assert "has schema 9999, made by a newer version" in str(found.problem)


def test_a_checksum_is_shown_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    sha256 = "0123456789abcdef" * 4

    check._print([check.Finding("model", f"sha256 {sha256}")])

    cells = [line.split("\u2502")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert sha256 in "".join(cells)
