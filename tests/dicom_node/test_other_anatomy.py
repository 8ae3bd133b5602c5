"""What is no head and neck comes back without contours that somebody could take for an organ of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.cli import Exit
from tests import phantoms
from tests.other_bodies import OTHER_BODIES


@pytest.mark.parametrize("name", OTHER_BODIES)
def test_another_anatomy_is_refused_with_what_was_found_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    phantoms.write(OTHER_BODIES[name]().scanned(), tmp_path / "ct")
    output = tmp_path / "rs.dcm"
    command = [sys.executable, "-m", "dicom_node", "contour", tmp_path / "ct", "--output", output, "--json"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(told.stdout)
    assert (told.returncode, answer["status"]) == (Exit.REJECTED, "rejected"), answer
    assert any(word in answer["reason"] for word in ("found none", "does not look like")), answer["reason"]
    assert not output.exists()
