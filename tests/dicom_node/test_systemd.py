"""The systemd units: valid, hardened, and in step with the program."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from dicom_node.cli import Exit
from tests.tools import ROOT, needs, run

COMMAND = "/opt/anatomynode/current/bin/anatomynode"
UNITS = ROOT / "systemd"
SERVICES = ["anatomynode-listener.service", "anatomynode-worker.service"]
MOST_EXPOSED = {
    "anatomynode-listener.service": 1.2,
    "anatomynode-worker.service": 1.7,  # the GPU: devices, /proc/driver, memory that CUDA compiles into
    "anatomynode-constancy.service": 1.0,
}
"""On systemd's scale of 0 (locked away) to 10 (may do anything)."""
MOST_EXPOSED_WITH_PORT_104 = 1.6


@needs("systemd-analyze")
def test_systemd_finds_no_mistake_in_the_units(tmp_path: Path) -> None:
    for unit in UNITS.glob("anatomynode*"):
        # The command is not installed here; everything else is as shipped.
        (tmp_path / unit.name).write_text(unit.read_text().replace(COMMAND, "/bin/true"))
    drop_in = tmp_path / "anatomynode-listener.service.d"
    drop_in.mkdir()
    shutil.copy(UNITS / "port-104.conf", drop_in)

    checked = run(["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.glob("anatomynode*.*[er]"))])

    ours = [line for line in checked.stdout.splitlines() if "anatomynode" in line]
    assert (checked.returncode, ours) == (0, [])


@needs("systemd-analyze")
@pytest.mark.parametrize("service", MOST_EXPOSED)
def test_a_service_that_is_broken_into_can_do_little(service: str) -> None:
    assert _exposure(UNITS / service) <= MOST_EXPOSED[service]


@needs("systemd-analyze")
def test_a_port_below_1024_costs_one_right_and_no_more(tmp_path: Path) -> None:
    unit = tmp_path / "anatomynode-listener.service"
    shutil.copy(UNITS / unit.name, unit)
    (tmp_path / f"{unit.name}.d").mkdir()
    shutil.copy(UNITS / "port-104.conf", tmp_path / f"{unit.name}.d")

    assert _exposure(UNITS / unit.name) < _exposure(unit) <= MOST_EXPOSED_WITH_PORT_104


def _exposure(unit: Path) -> float:
    told = run(["systemd-analyze", "security", "--offline=true", "--no-pager", unit]).stdout
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert score is not None, told
    return float(score.group(1))


@pytest.mark.parametrize("service", SERVICES)
def test_the_units_agree_with_the_program(service: str) -> None:
    text = (UNITS / service).read_text()

    assert f"ExecStart={COMMAND} " in text
    assert f"RestartPreventExitStatus={Exit.CONFIGURATION:d}" in text
    command = re.search(r"bin/anatomynode (\w+) --config", text)
    assert command is not None
    assert command.group(1) in ("listen", "work")
    assert "Type=notify" in text
    assert "User=root" not in text


@pytest.mark.parametrize("service", MOST_EXPOSED)
def test_every_setting_has_its_reason_above(service: str) -> None:
    lines = (UNITS / service).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    bare = [
        line
        for above, line in pairwise(lines)
        if "=" in line
        and not line.startswith("#")
        # Several values of one setting share its reason.
        and not (above.startswith("# ") or above.partition("=")[0] == line.partition("=")[0])
    ]

    assert bare == []
