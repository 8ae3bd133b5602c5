"""The locked dependencies are what setup.cfg asks for, each with its hashes."""

from __future__ import annotations

import re
from configparser import ConfigParser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tools import ROOT

PINNED = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


INSTEAD = {"opencv-python": "opencv-python-headless"}
"""What a desktop has and a server lacks, and what is locked instead (locks/overrides.txt)."""


def _wanted(extra: str) -> list[Requirement]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    lines += setup["options.extras_require"][extra].splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_every_requirement_is_pinned_within_its_bounds_and_every_pin_has_hashes(extra: str) -> None:
    text = (ROOT / "locks" / f"{extra}.txt").read_text()
    pinned = {canonicalize_name(name): version for name, version, _ in PINNED.findall(text)}
    assert len(pinned) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    for requirement in _wanted(extra):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked"


def test_no_lock_has_both_builds_of_onnx_runtime() -> None:
    named = {extra: (ROOT / "locks" / f"{extra}.txt").read_text() for extra in ("cpu", "gpu")}
    assert "\nonnxruntime-gpu==" not in named["cpu"]
    assert "\nonnxruntime==" not in named["gpu"]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_a_lock_wants_no_library_of_a_desktop(extra: str) -> None:
    text = (ROOT / "locks" / f"{extra}.txt").read_text()
    for desktop, headless in INSTEAD.items():
        assert f"\n{desktop}==" not in text
        assert f"\n{headless}==" in text


def test_the_lock_for_a_gpu_brings_cuda_and_cudnn_so_that_the_machine_needs_the_driver_only() -> None:
    text = (ROOT / "locks" / "gpu.txt").read_text()
    for name in ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft"):
        assert f"\n{name}==" in text
