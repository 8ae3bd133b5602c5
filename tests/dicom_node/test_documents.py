"""The documents: their commands exist and run, their links lead somewhere, their tables are true."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from dicom_node import migrate
from dicom_node.cli import app
from dicom_node.states import JobState
from tests.tools import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "models" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(r"(?:^|\s)(?:\.venv/bin/)?anatomynode ((?:[a-z]|-).*)$")


def blocks(document: Path, kind: str) -> Iterator[str]:
    """The fenced blocks of a document whose info string is `kind`."""
    for found in re.finditer(r"^ *```(.*)\n((?:.*\n)*?) *```", document.read_text(), re.MULTILINE):
        if found.group(1).strip() == kind:
            yield "\n".join(line.strip() for line in found.group(2).splitlines())


def shell_lines() -> list[tuple[str, str]]:
    return [
        (document.name, line.partition("    #")[0].strip())
        for document in DOCUMENTS
        for kind in ("bash", "bash run", "bash node")
        for block in blocks(document, kind)
        for line in block.splitlines()
        if line and not line.startswith("#")
    ]


@pytest.mark.parametrize(("document", "line"), shell_lines())
def test_each_command_in_a_document_exists_with_its_options(document: str, line: str) -> None:
    made = re.match(r"(?:sudo )?make (?:-C \S+ )?([a-z]+)", line)
    if made is not None:
        assert re.search(rf"^{made.group(1)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    found = COMMAND.search(line.removesuffix("|| true").strip())
    if found is None:
        return
    command = typer.main.get_command(app)
    words = shlex.split(found.group(1))
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), line
    assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_blocks_that_are_marked_safe_run(document: Path, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "anatomynode"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m dicom_node "$@"\n')
    command.chmod(0o755)
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    migrate.upgrade(tmp_path / "data" / "anatomynode.sqlite")

    for block in blocks(document, "bash run"):
        ended = subprocess.run(
            ["bash", "-euc", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


def test_operations_explains_every_state_of_a_job() -> None:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()

    assert set(re.findall(r"^\| ([A-Z]+) \|", text, re.MULTILINE)) == set(map(str, JobState))


def test_the_doors_of_the_architecture_are_those_that_are_kept() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    kept = {
        contracts[name]["forbidden_modules"].strip(): {
            line.partition(" -> ")[0] for line in contracts[name]["ignore_imports"].strip().splitlines()
        }
        for name in contracts.sections()
        if ":door-" in name
    }
    table = (ROOT / "docs" / "ARCHITECTURE.md").read_text().partition("## Doors")[2].partition("## States")[0]
    told = {
        library: set(re.findall(r"`([^`]+)`", modules))
        for library, modules in re.findall(r"^\| (\w+) \| (`.*) \|$", table, re.MULTILINE)
    }

    assert told == kept


def test_the_flow_of_the_architecture_names_modules_that_are_there() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:dicom_node|inference|models)/\w+\.py)`", text)

    assert [path for path in named if not (ROOT / path).exists()] == []
