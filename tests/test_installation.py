"""A bundle installs, upgrades and goes back under systemd, without network, and loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicom_node.config import read_config
from dicom_node.migrate import newest
from dicom_node.phantom import write_phantom
from models.card import PACKAGES, read_package
from tests.clean_machine import Machine, cannot_boot, clean_machine
from tests.tools import ROOT, needs, run, wait_until

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DOWNLOADS = ROOT / "build" / "downloads" / f"cpu-py{PYTHON}"
BUILD = ROOT / "packaging" / "build-bundle.sh"

needs_wheels = pytest.mark.skipif(
    not any(DOWNLOADS.glob("pip-*.whl")),
    reason=f"{DOWNLOADS.relative_to(ROOT)} is empty; make bundle fills it once, with network",
)
needs_a_machine = pytest.mark.skipif(cannot_boot() is not None, reason=str(cannot_boot()))

LATER_STEP = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "{number}", "{before}", None, None
def upgrade():
    op.add_column("jobs", sa.Column("mood", sa.String(), nullable=False, server_default="calm"))
def downgrade():
    op.drop_column("jobs", "mood")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of this program, as it is carried to a hospital."""
    output = tmp_path_factory.mktemp("dist")
    built = run([BUILD, "--extra", "cpu", "--offline", "--python", sys.executable, "--output", output], 300)
    assert built.returncode == 0, built.stdout
    (archive,) = output.glob("*.tar.gz")
    return archive


def later(bundle: Path, folder: Path) -> Path:
    """The bundle of a later version, whose schema has moved."""
    subprocess.run(["tar", "-xf", bundle, "-C", folder], check=True)
    (unpacked,) = folder.iterdir()
    (wheel,) = unpacked.glob("wheels/anatomynode-*.whl")
    before, number = newest(), f"{int(newest()) + 1:04d}"
    with zipfile.ZipFile(wheel, "a") as contents:
        name = f"dicom_node/migrations/versions/v{number}_mood.py"
        contents.writestr(name, LATER_STEP.format(number=number, before=before))
    described = unpacked / "requirements.txt"
    lines = [
        f"anatomynode=={wheel.name.split('-')[1]} --hash=sha256:{_sha256(wheel)}"
        if line.startswith("anatomynode==")
        else line
        for line in described.read_text().splitlines()
    ]
    described.write_text("\n".join(lines) + "\n")
    facts = (unpacked / "BUNDLE").read_text().splitlines()
    (unpacked / "BUNDLE").write_text("\n".join(["version=99.0-cpu", *facts[1:]]) + "\n")
    sums(unpacked)
    archive = folder / "anatomynode-99.0-cpu.tar"
    subprocess.run(["tar", "-cf", archive, "-C", folder, unpacked.name], check=True)
    return archive


def sums(unpacked: Path) -> None:
    """Say anew what the files of an unpacked bundle are."""
    files = sorted(path for path in unpacked.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{_sha256(file)}  {file.relative_to(unpacked)}" for file in files]
    (unpacked / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with clean_machine(tmp_path) as booted:
        yield booted


class Node:
    """The installed node, as whoever runs that machine sees it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def send(self, *folders: str) -> None:
        for folder in folders:
            self.machine.does(
                f"anatomynode send /srv/{folder} --to 127.0.0.1:11112 --aet ANATOMYNODE --calling PACS"
            )

    def states(self) -> list[str]:
        with closing(sqlite3.connect(self._database)) as connection:
            return sorted(state for (state,) in connection.execute("SELECT state FROM jobs"))

    def comes_to(self, *states: str) -> None:
        wait_until(lambda: self.states() == [*states], 120, f"jobs that are {states}")

    def slices(self) -> int:
        with closing(sqlite3.connect(self._database)) as connection:
            return int(connection.execute("SELECT count(*) FROM instances").fetchone()[0])

    def schema(self) -> str:
        with closing(sqlite3.connect(self._database)) as connection:
            return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])

    def results(self) -> dict[str, str]:
        folder = self.machine.root / "var" / "lib" / "anatomynode" / "results"
        return {file.name: _sha256(file) for file in folder.glob("*.dcm")}

    def installed(self) -> str:
        return (self.machine.root / "opt" / "anatomynode" / "current").readlink().name

    @property
    def _database(self) -> Path:
        return self.machine.root / "var" / "lib" / "anatomynode" / "anatomynode.sqlite"


@needs_wheels
@needs_a_machine
@needs("storescp")
@pytest.mark.timeout(900)
def test_installed_upgraded_and_taken_back_with_a_queue_in_flight_nothing_is_lost(
    bundle: Path, machine: Machine, tmp_path: Path
) -> None:
    node = Node(machine)
    (tmp_path / "later").mkdir()
    shutil.copy(bundle, machine.root / "root" / "first.tar.gz")
    shutil.move(later(bundle, tmp_path / "later"), machine.root / "root" / "second.tar")
    for seed in range(3):
        write_phantom(machine.root / "srv" / str(seed), 40, 128, (4.0, 4.0, 4.0), seed)
    half = machine.root / "srv" / "half"
    half.mkdir()
    for file in sorted((machine.root / "srv" / "1").iterdir())[:12]:
        file.rename(half / file.name)

    # Installed, and it starts with the configuration that it was given.
    assert machine.does("ls /sys/class/net") == "lo\n"
    machine.does("cd /root && mkdir first && tar -xf first.tar.gz --strip-components 1 -C first")
    assert "Next:" in machine.does("/root/first/anatomynode-install install")
    first = node.installed()
    checked = machine.tries("anatomynode check --json")
    assert checked.returncode == 1, checked.stdout
    problems = {
        one["check"]
        for one in json.loads(checked.stdout[checked.stdout.index("{\n") :])["findings"]
        if one["problem"]
    }
    assert problems == {"model approval", "destination pacs"}
    modes = machine.does(
        "stat -c '%a %U:%G %n' /etc/anatomynode{,/config.yaml,/secrets} /var/lib/anatomynode"
    )
    assert modes.splitlines() == [
        "750 root:anatomynode /etc/anatomynode",
        "640 root:anatomynode /etc/anatomynode/config.yaml",
        "600 root:root /etc/anatomynode/secrets",
        "700 anatomynode:anatomynode /var/lib/anatomynode",
    ]
    approved = read_package(PACKAGES / "anatomynet-hn").description.sha256
    # Half a series shall wait for its other half however slow this machine is.
    changes = (
        f"s/approved_sha256: null/approved_sha256: {approved}/; s/quiet_period_s: 30.0/quiet_period_s: 900.0/"
    )
    machine.does(f"sed -i '{changes}' /etc/anatomynode/config.yaml")
    configured = (machine.root / "etc" / "anatomynode" / "config.yaml").read_bytes()
    machine.does(
        "systemctl enable --now anatomynode.target && systemctl start anatomynode-listener anatomynode-worker"
    )
    assert "anatomynode" in machine.does("ps -o user= -p $(systemctl show -P MainPID anatomynode-listener)")

    # A job is READY and cannot be sent, and half a series has come.
    node.send("0", "half")
    node.comes_to("READY")
    assert node.slices() == 52
    stored = node.results()

    # The later version does not start: the machine goes back by itself.
    machine.does("""
        mkdir /etc/systemd/system/anatomynode-worker.service.d
        printf '[Service]\nExecStartPre=/bin/sh -c "! readlink /opt/anatomynode/current | grep -q ^99"\n' \
            >/etc/systemd/system/anatomynode-worker.service.d/broken.conf
        systemctl daemon-reload""")
    failed = machine.tries("anatomynode-install upgrade /root/second.tar")
    assert failed.returncode == 1
    assert "99.0-cpu does not start: going back" in failed.stdout, failed.stdout
    assert "runs again and nothing is lost" in failed.stdout
    machine.does("rm -r /etc/systemd/system/anatomynode-worker.service.d && systemctl daemon-reload")
    machine.does("systemctl is-active anatomynode-listener anatomynode-worker")
    assert (node.installed(), node.schema()) == (first, newest())
    assert (node.slices(), node.states(), node.results()) == (52, ["READY"], stored)

    # Then it does, and the rest of the series, and another one, come to the later version.
    assert "99.0-cpu is installed and runs" in machine.does("anatomynode-install upgrade /root/second.tar")
    assert (node.installed(), node.schema()) == ("99.0-cpu", f"{int(newest()) + 1:04d}")
    assert (machine.root / "etc" / "anatomynode" / "config.yaml").read_bytes() == configured
    node.send("1", "2")
    node.comes_to("READY", "READY")
    assert node.slices() == 120
    made = node.results()
    assert stored.items() <= made.items()

    # Back again: what the later version received and contoured is there, and all goes out from here, once.
    assert "all that was received since is there" in machine.does("anatomynode-install rollback")
    assert (node.installed(), node.schema()) == (first, newest())
    assert (node.slices(), node.results()) == (120, made)
    assert machine.tries("anatomynode-install rollback").returncode == 1
    machine.does(
        "mkdir /srv/pacs && systemd-run --quiet storescp --unique-filenames -aet PACS -od /srv/pacs 11113"
    )
    machine.does("sed -i 's/quiet_period_s: 900.0/quiet_period_s: 2.0/' /etc/anatomynode/config.yaml")
    machine.does("systemctl restart anatomynode-worker")
    node.comes_to("SENT", "SENT", "SENT")
    assert len(list((machine.root / "srv" / "pacs").iterdir())) == 3

    # A listener that hangs is started again; a wrong configuration waits for a person.
    machine.does("""
        mkdir /etc/systemd/system/anatomynode-listener.service.d
        printf '[Service]\nWatchdogSec=2\n' >/etc/systemd/system/anatomynode-listener.service.d/soon.conf
        systemctl daemon-reload && systemctl restart anatomynode-listener""")
    machine.does("kill -STOP $(systemctl show -P MainPID anatomynode-listener)")
    machine.sees("test $(systemctl show -P NRestarts anatomynode-listener) = 1")
    machine.sees("systemctl is-active anatomynode-listener")
    machine.does("echo 'nonsense: 1' >>/etc/anatomynode/config.yaml")
    machine.tries("systemctl restart anatomynode-listener")
    machine.sees("systemctl is-failed anatomynode-listener")
    shown = machine.does(
        "sleep 3; systemctl show -P ExecMainStatus -P NRestarts -P ActiveState anatomynode-listener"
    )
    assert set(shown.split()) >= {"78", "failed", "0"}, shown


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """An unpacked bundle of the program alone, without what it needs: enough to see where things go."""
    unpacked = tmp_path / "bundle"
    (unpacked / "wheels").mkdir(parents=True)
    shutil.copytree(
        DOWNLOADS, unpacked / "pip", ignore=lambda _, names: [n for n in names if not n.startswith("pip-")]
    )
    for name in ("anatomynode-install", "anatomynode-command"):
        shutil.copy(ROOT / "packaging" / name, unpacked)
    with zipfile.ZipFile(unpacked / "wheels" / "anatomynode-1-py3-none-any.whl", "w") as wheel:
        for name in ("METADATA", "WHEEL", "RECORD"):
            text = "Metadata-Version: 2.1\nName: anatomynode\nVersion: 1\n" if name == "METADATA" else ""
            text = (
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n" if name == "WHEEL" else text
            )
            wheel.writestr(f"anatomynode-1.dist-info/{name}", text)
        for file in (ROOT / "config.yaml", *(ROOT / "systemd").iterdir()):
            wheel.write(file, f"anatomynode-1.data/data/share/anatomynode/{file.relative_to(ROOT)}")
    (wheel_file,) = (unpacked / "wheels").iterdir()
    (unpacked / "requirements.txt").write_text(f"anatomynode==1 --hash=sha256:{_sha256(wheel_file)}\n")
    facts = {"version": "1-gpu", "extra": "gpu", "python": PYTHON, "machine": os.uname().machine}
    (unpacked / "BUNDLE").write_text("".join(f"{key}={value}\n" for key, value in facts.items()))
    sums(unpacked)
    return unpacked


def install(unpacked: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """`python3.X` is looked for on the PATH: let it be this one."""
    found = Path(sys.base_prefix) / "bin"
    return run(
        [unpacked / "anatomynode-install", "--root", root, "install"],
        environment={"PATH": f"{found}:{os.environ['PATH']}"},
    )


@needs_wheels
def test_in_a_folder_everything_lies_below_it_and_no_configuration_is_overwritten(
    small_bundle: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "etc" / "anatomynode").mkdir(parents=True)
    (root / "etc" / "anatomynode" / "secrets").write_text("mine")

    assert install(small_bundle, root).returncode == 0

    config = root / "etc" / "anatomynode" / "config.yaml"
    read = read_config(config)
    assert read.storage.folder == root / "var" / "lib" / "anatomynode"
    assert (read.storage.reserve_mib, read.retention.room_mib, read.logging.format) == (2048, 8192, "json")
    assert (read.inference.device, read.inference.allow_cpu) == ("cuda", False)
    assert read.model.approved_sha256 is None
    assert (root / "etc" / "anatomynode" / "secrets").read_text() == "mine"
    assert stat.S_IMODE((root / "var" / "lib" / "anatomynode").stat().st_mode) == 0o700
    units = root / "etc" / "systemd" / "system"
    assert {path.name for path in units.iterdir()} == {
        path.name for path in (ROOT / "systemd").glob("anatomynode*")
    }
    for unit in units.glob("*.service"):
        assert f"ExecStart={root}/opt/anatomynode/current/bin/anatomynode " in unit.read_text()
    assert "is installed" in install(small_bundle, root).stdout, "a second time it refers to upgrade"


def _damage(unpacked: Path) -> None:
    (unpacked / "requirements.txt").write_text("something-else==1\n")


def _for_another_python(unpacked: Path) -> None:
    (unpacked / "BUNDLE").write_text(f"version=1-cpu\nextra=cpu\npython=2.9\nmachine={os.uname().machine}\n")
    sums(unpacked)


def _for_another_processor(unpacked: Path) -> None:
    (unpacked / "BUNDLE").write_text(f"version=1-cpu\nextra=cpu\npython={PYTHON}\nmachine=s390x\n")
    sums(unpacked)


def _exchange_a_wheel(unpacked: Path) -> None:
    (wheel,) = (unpacked / "wheels").iterdir()
    with zipfile.ZipFile(wheel, "a") as contents:
        contents.writestr("sitecustomize.py", "print('not ours')")
    sums(unpacked)


@needs_wheels
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_damage, "the bundle is damaged"),
        (_for_another_python, "is for Python 2.9, which this machine lacks"),
        (_for_another_processor, "is for s390x; this machine is"),
        (_exchange_a_wheel, "the packages cannot be installed; nothing was changed"),
    ],
)
def test_a_bundle_that_does_not_fit_or_was_changed_leaves_nothing_behind(
    small_bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(small_bundle)

    refused = install(small_bundle, tmp_path / "root")

    assert refused.returncode == 1
    assert told in refused.stdout
    assert [path for path in (tmp_path / "root").rglob("*") if not path.is_dir()] == []


@needs("shellcheck")
def test_the_scripts_have_no_weakness_that_shellcheck_knows() -> None:
    checked = run(["shellcheck", *sorted((ROOT / "packaging").iterdir())])

    assert (checked.returncode, checked.stdout) == (0, "")
