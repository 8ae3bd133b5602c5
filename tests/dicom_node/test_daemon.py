"""The processes as the system sees them: ready when they say so, drained when asked, never orphaned."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from dicom_node import notify
from dicom_node.backup import BackupError, copy_database
from tests.phantoms import Phantom, encode, slices
from tests.tools import free_port, running, start, stop, wait_until

SETTINGS: dict[str, Any] = {
    "peers": [{"ae_title": "SCANNER", "addresses": ["127.0.0.1"]}],
    "destinations": [],
    "inference": {"device": "cpu", "allow_cpu": True},
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        **SETTINGS,
        "storage": {"folder": str(tmp_path / "data"), "reserve_mib": 1},
        "listener": {"port": free_port()},
        "http": {"port": free_port()},
    }


@contextmanager
def node(folder: Path, settings: dict[str, Any], command: str) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    arguments = [sys.executable, "-m", "dicom_node", command, "--config", config]
    with running(arguments, folder / f"{command}.log", settings["http"]["port"], timeout_s=60) as process:
        yield process


def get(settings: dict[str, Any], path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{settings['http']['port']}{path}", timeout=5
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


def failing_checks(settings: dict[str, Any]) -> list[str]:
    checks = json.loads(get(settings, "/readyz")[1])["checks"]
    return [name for name, check in checks.items() if not check["ok"]]


def echo(settings: dict[str, Any]) -> bool:
    ae = AE("SCANNER")
    ae.add_requested_context(Verification)
    peer = ae.associate("127.0.0.1", settings["listener"]["port"], ae_title="ANATOMYNODE")
    if not peer.is_established:
        return False
    answer = peer.send_c_echo()
    peer.release()
    return bool(answer) and answer.Status == 0x0000


def test_the_listener_answers_shows_its_figures_and_drains(tmp_path: Path, settings: dict[str, Any]) -> None:
    with node(tmp_path, settings, "listen") as process:
        assert get(settings, "/healthz")[0] == 200  # answers once the listener listens, its port before
        assert echo(settings)
        assert "anatomynode_associations_accepted_total 1.0" in get(settings, "/metrics")[1]
        assert failing_checks(settings) == ["worker"], "without a worker the node is not ready"
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0


def test_a_listener_tells_its_keeper_when_it_is_ready_and_that_it_lives(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    heard: set[str] = set()
    with notify.Channel(watchdog_s=0.6) as keeper:
        process = start(
            [sys.executable, "-m", "dicom_node", "listen", "--config", config],
            tmp_path / "log",
            keeper.environment(),
        )
        try:
            wait_until(lambda: heard.update(keeper.heard()) or {"READY=1", "WATCHDOG=1"} <= heard, 30)
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            heard.update(keeper.heard())
        finally:
            stop(process)

    assert "STOPPING=1" in heard


def test_a_taken_port_ends_the_listener_with_78(tmp_path: Path, settings: dict[str, Any]) -> None:
    other = {**settings, "storage": {"folder": str(tmp_path / "other"), "reserve_mib": 1}}
    with node(tmp_path, settings, "listen"):
        config = tmp_path / "second.yaml"
        config.write_text(yaml.safe_dump(other))
        second = start([sys.executable, "-m", "dicom_node", "listen", "--config", config], tmp_path / "log")
        try:
            assert second.wait(30) == 78
        finally:
            stop(second)


def test_the_whole_node_becomes_ready_restarts_a_killed_half_and_leaves_nothing(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with node(tmp_path, settings, "serve") as process:
        wait_until(lambda: failing_checks(settings) == [], 60, "the node's readiness")
        before = worker_pid(tmp_path)
        subprocess.run(["kill", "-9", str(before)], check=True)
        wait_until(lambda: worker_pid(tmp_path) != before, 60, "the worker's restart")
        assert echo(settings), "the listener never noticed"
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0
    assert not Path(f"/proc/{worker_pid(tmp_path)}").exists()


def test_the_halves_end_when_their_supervisor_is_killed(tmp_path: Path, settings: dict[str, Any]) -> None:
    with node(tmp_path, settings, "serve") as process:
        wait_until(lambda: failing_checks(settings) == [], 60, "the node's readiness")
        worker = worker_pid(tmp_path)
        process.kill()
        process.wait()

        wait_until(lambda: not Path(f"/proc/{worker}").exists(), 30, "the worker's end")


def worker_pid(folder: Path) -> int:
    """The process that last gave a sign of life as the worker."""
    with sqlite3.connect(folder / "data" / "anatomynode.sqlite") as database:
        (pid,) = database.execute("SELECT pid FROM worker_status").fetchone()
    return int(pid)


def test_a_database_restored_from_its_backup_learns_from_the_spool_what_came_later(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config, database = tmp_path / "config.yaml", tmp_path / "data" / "anatomynode.sqlite"
    first, second = Phantom(offsets_mm=(0.0, 3.0)), Phantom(series="2", offsets_mm=(0.0, 3.0, 6.0))
    with node(tmp_path, settings, "listen"):
        _send(tmp_path / "first", first, settings)
        copied = subprocess.run(
            [sys.executable, "-m", "dicom_node", "backup", tmp_path / "copy.sqlite", "--config", config],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "MB" in copied.stdout
        _send(tmp_path / "second", second, settings)
    for companion in tmp_path.glob("data/anatomynode.sqlite-*"):
        companion.unlink()
    (tmp_path / "copy.sqlite").replace(database)
    assert _slices(database) == 2
    with node(tmp_path, settings, "listen"):
        _send(tmp_path / "data" / "spool", None, settings)
    assert _slices(database) == 5


def _send(folder: Path, phantom: Phantom | None, settings: dict[str, Any]) -> None:
    """Push a folder, with a phantom's slices in it where one is given."""
    if phantom is not None:
        folder.mkdir()
        for index, dataset in enumerate(slices(phantom)):
            (folder / f"{index}.dcm").write_bytes(encode(dataset))
    to = ["--to", f"127.0.0.1:{settings['listener']['port']}", "--aet", "ANATOMYNODE", "--calling", "SCANNER"]
    subprocess.run([sys.executable, "-m", "dicom_node", "send", folder, *to], check=True, capture_output=True)


def _slices(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM instances").fetchone()[0])


def test_a_backup_of_no_database_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="there is no database"):
        copy_database(tmp_path / "missing.sqlite", tmp_path / "copy.sqlite")
    (tmp_path / "torn.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(BackupError, match="cannot be copied"):
        copy_database(tmp_path / "torn.sqlite", tmp_path / "copy.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["torn.sqlite"]
