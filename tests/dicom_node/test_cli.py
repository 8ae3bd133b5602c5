"""The command line: its exit statuses, and how little it loads to say what it can do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dicom_node import cli, migrate
from dicom_node.errors import ConfigurationError, PermanentError, SeriesRejectedError
from models.card import PACKAGES
from tests.tools import ROOT, free_port


def anatomynode(*arguments: Path | str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicom_node", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
    )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ANATOMYNODE_HASH_KEY", raising=False)
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "peers": [],
                "destinations": [],
                "storage": {"folder": str(tmp_path / "data"), "reserve_mib": 1},
                "listener": {"port": free_port()},
                "http": {"port": free_port()},
                "inference": {"device": "cpu", "allow_cpu": True},
            }
        )
    )
    return path


def test_help_loads_no_heavy_room() -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from dicom_node import cli; print(*sorted(sys.modules))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    heavy = {"numpy", "pynetdicom", "pydicom", "onnxruntime", "torch", "sqlalchemy", "scipy", "rich.progress"}
    assert heavy.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SeriesRejectedError("missing_slice", "a slice is missing"), 3),
        (PermanentError("the disk is gone"), 1),
        (ConfigurationError(("listener.port: taken", "model: missing")), 78),
    ],
)
def test_the_class_of_an_error_decides_the_exit_status(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == status
    reasons = error.problems if isinstance(error, ConfigurationError) else (str(error),)
    assert capsys.readouterr().err.splitlines() == [f"anatomynode: {reason}" for reason in reasons]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["contour"],
        ["contour", "no-such-folder", "--output", "x.dcm"],
        ["send", ".", "--to", "nowhere", "--aet", "PACS"],
        ["send", ".", "--to", "host:70000", "--aet", "PACS"],
        ["jobs", "show", "seven"],
    ],
    ids=" ".join,
)
def test_a_wrong_use_exits_with_2(arguments: list[str]) -> None:
    assert anatomynode(*arguments).returncode == 2


@pytest.mark.parametrize("command", [["serve"], ["listen"], ["work"], ["check"], ["jobs"], ["jobs", "list"]])
def test_a_wrong_configuration_exits_with_78_and_names_every_problem(
    command: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("listener: {port: 0}\nhttp: {port: 0}\npeers: []\ndestinations: []\n")
    where = (
        ["jobs", "--config", config, *command[1:]] if command[0] == "jobs" else [*command, "--config", config]
    )

    ended = anatomynode(*where)

    assert ended.returncode == 78
    told = ended.stdout + ended.stderr
    assert "listener.port" in told
    assert "http.port" in told
    assert "Traceback" not in told


def test_jobs_are_listed_and_a_missing_one_is_no_crash(config: Path, tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "data" / "anatomynode.sqlite")

    listed = anatomynode("jobs", "--config", config, "--json")
    missing = anatomynode("jobs", "--config", config, "show", "7")
    found = anatomynode("jobs", "--config", config, "find", "12345", "--json")

    assert (listed.returncode, json.loads(listed.stdout)) == (0, [])
    assert (found.returncode, json.loads(found.stdout)) == (0, [])
    assert missing.returncode == 1
    assert "no job 7" in missing.stderr


@pytest.mark.parametrize(
    "command",
    [["list"], ["find", "12345"], ["show", "7"], ["retry", "7"], ["release", "7"], ["cancel", "7"]],
    ids=" ".join,
)
def test_the_configuration_of_jobs_may_stand_before_or_after_the_command(
    command: list[str], config: Path, tmp_path: Path
) -> None:
    migrate.upgrade(tmp_path / "data" / "anatomynode.sqlite")
    elsewhere = ["--config", tmp_path / "none.yaml"]

    before = anatomynode("jobs", "--config", config, *command)
    after = anatomynode("jobs", *command, "--config", config)
    both = anatomynode("jobs", *elsewhere, *command, "--config", config)

    assert before.returncode in (0, 1)
    assert (after.returncode, after.stdout, after.stderr) == (before.returncode, before.stdout, before.stderr)
    assert both.returncode == before.returncode  # the nearer one counts
    assert anatomynode("jobs", *command, *elsewhere).returncode == 78


def test_models_are_listed_without_torch() -> None:
    listed = anatomynode("models", "list", "--json")

    packages = {found["package"] for found in json.loads(listed.stdout)["packages"]}
    assert packages == {card.parent.name for card in PACKAGES.glob("*/model.yaml")}
    assert listed.returncode == 0


def test_a_damaged_model_package_is_named(tmp_path: Path) -> None:
    package = tmp_path / "broken"
    package.mkdir()
    (package / "model.yaml").write_text("name: x\n")

    listed = anatomynode("models", "list", "--folder", tmp_path)

    assert listed.returncode == 1
    assert "model.onnx is missing" in listed.stderr


def test_check_names_every_problem_at_once(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["destinations"] = [
        {"name": name, "host": "127.0.0.1", "port": free_port(), "ae_title": "PACS"}
        for name in ("one", "two")
    ]
    settings["model"] = {"package": "no-such-model"}
    settings["storage"]["reserve_mib"] = 1 << 40
    config.write_text(yaml.safe_dump(settings))

    ended = anatomynode("check", "--config", config, "--json")

    findings = json.loads(ended.stdout)["findings"]
    wrong = {finding["check"] for finding in findings if finding["problem"]}
    assert wrong == {"disk", "model", "destination one", "destination two"}
    assert ended.returncode == 78
    assert ended.stderr == "", "what the DICOM library complains of is told as a finding"


def test_check_passes_a_machine_that_can_be_a_node(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    (package,) = json.loads(anatomynode("models", "list", "--json").stdout)["packages"]
    settings["model"] = {"package": package["package"], "approved_sha256": package["sha256"]}
    config.write_text(yaml.safe_dump(settings))

    ended = anatomynode("check", "--config", config)

    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("question", [("jobs",), ("jobs", "show", "1"), ("audit",)])
def test_a_damaged_database_is_told_without_a_traceback(
    config: Path, tmp_path: Path, question: tuple[str, ...]
) -> None:
    database = tmp_path / "data" / "anatomynode.sqlite"
    database.parent.mkdir()
    database.write_bytes(b"\x00\xff" * 4096)
    done = anatomynode(*question, "--config", config)
    assert done.returncode == 78
    assert "is damaged" in done.stderr
    assert "restore the last backup" in done.stderr
    assert "Traceback" not in done.stderr
