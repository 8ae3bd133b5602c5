"""The systemd units: valid, hardened, and in step with the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicom_node.cli import Exit
from tests.tools import ROOT, needs, run

UNITS = ROOT / "systemd"
SERVICES = ["anatomynode-listener.service", "anatomynode-worker.service"]
ALL_SERVICES = [*SERVICES, "anatomynode-constancy.service"]
MOST_EXPOSED = 3.0
"""On systemd's scale of 0 (locked away) to 10 (may do anything)."""


@needs("systemd-analyze")
def test_systemd_finds_no_mistake_in_the_units(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = unit.read_text()
        # The command is not installed here; everything else is as shipped.
        text = re.sub(r"/opt/anatomynode/\.venv/bin/anatomynode", "/bin/true", text)
        (tmp_path / unit.name).write_text(text)

    checked = run(["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())])

    ours = [line for line in checked.stdout.splitlines() if "anatomynode" in line]
    assert (checked.returncode, ours) == (0, [])


@needs("systemd-analyze")
@pytest.mark.parametrize("service", ALL_SERVICES)
def test_a_service_that_is_broken_into_can_do_little(service: str) -> None:
    told = run(["systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / service]).stdout

    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert score is not None, told
    assert float(score.group(1)) <= MOST_EXPOSED


@pytest.mark.parametrize("service", SERVICES)
def test_the_units_agree_with_the_program(service: str) -> None:
    text = (UNITS / service).read_text()

    assert f"RestartPreventExitStatus={Exit.CONFIGURATION:d}" in text
    command = re.search(r"bin/anatomynode (\w+) --config", text)
    assert command is not None
    assert command.group(1) in ("listen", "work")
    assert "Type=notify" in text
    assert "User=root" not in text


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_every_group_of_settings_has_its_reason_above(service: str) -> None:
    settings = (UNITS / service).read_text().partition("[Service]")[2].partition("[Install]")[0]
    for block in settings.split("\n#")[1:]:
        assert len(block.splitlines()[0].split()) > 2
