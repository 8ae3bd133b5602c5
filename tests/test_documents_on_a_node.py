"""The documents' commands on a node that has contoured: each block marked `bash node` runs as it stands.

Owns what stands for the reader's own numbers and places: the job, the accession number, ports and folders.
Speaks bash; a phantom's series, the shipped model, a stand-in PACS.
Never changes a command otherwise: one that a reader could not run must fail here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.phantom import write_phantom
from dicom_node.rehearsal import NODE, SCANNER, Rehearsal
from tests.dicom_node.test_documents import DOCUMENTS, blocks
from tests.tools import ROOT, needs, run

BLOCKS = [(document.name, block) for document in DOCUMENTS for block in blocks(document, "bash node")]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """A node that has sent one job, called by PACS as the documents' scanner and archive."""
    folder = tmp_path_factory.mktemp("documents")
    write_phantom(folder / "DIR", 40, 128, (4.0, 4.0, 4.0))
    overrides = {
        "series": {"grace_s": 0.3},
        "inference": {"device": "cpu", "allow_cpu": True},
        "peers": [{"ae_title": name, "addresses": ["127.0.0.1"]} for name in (SCANNER, "PACS")],
    }
    with Rehearsal(folder / "node", overrides=overrides) as started:
        to = ["--to", f"127.0.0.1:{started.port}", "--aet", NODE, "--calling", SCANNER]
        sent = run([sys.executable, "-m", "dicom_node", "send", folder / "DIR", *to])
        assert sent.returncode == 0, sent.stdout
        started.wait(started.is_idle, 120, "the job did not end")
        yield started


@needs("curl")
@pytest.mark.parametrize(("document", "block"), BLOCKS)
def test_the_blocks_that_need_a_node_run_on_one(
    node: Rehearsal, document: str, block: str, tmp_path: Path
) -> None:
    command = tmp_path / "anatomynode"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m dicom_node "$@"\n')
    command.chmod(0o755)
    the_readers = {
        r"\b4711\b": "PHANTOM",
        r"(?<= )12\b(?!\.)": "1",
        r"job-12\.html": f"{tmp_path}/job.html",
        r"\bDIR\b": str(node.folder.parent / "DIR"),
        r"\brs\.": f"{tmp_path}/rs.",
        "127.0.0.1:9104": f"127.0.0.1:{node.http_port}",
        "127.0.0.1:11112": f"127.0.0.1:{node.port}",
        "/backup/": f"{tmp_path}/",
        "/var/lib/anatomynode": str(node.folder / "storage"),
    }
    for written, own in the_readers.items():
        block = re.sub(written, own, block)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", block.replace("curl -s", "curl -sSf")],
        cwd=node.folder,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{document}: {block}\n{done.stdout}\n{done.stderr}"
