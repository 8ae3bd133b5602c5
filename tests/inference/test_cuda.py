"""What is wrong with a CUDA installation is said in words, by what the machine shows."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference import cuda
from inference.cuda import CUDNN, CudaSeen, look, why_not

WELL = CudaSeen(
    build_major=13,
    has_gpu=True,
    driver="580.95.05",
    has_libcuda=True,
    driver_cuda=(13, 0),
    missing=(),
    other_majors=(),
    has_devices=True,
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"has_gpu": False, "driver": None}, "this machine has no NVIDIA GPU"),
        ({"build_major": None}, "the build for CPUs: install the gpu bundle"),
        ({"driver": None, "has_libcuda": False}, "no driver is loaded: install driver 580 or newer"),
        ({"has_libcuda": False}, "libcuda.so.1 is missing"),
        (
            {"driver": "535.183.01", "driver_cuda": (12, 2)},
            "535.183.01 is too old: it supports CUDA 12.2, and",
        ),
        ({"missing": ("libcudart.so.13",)}, "CUDA 13 is missing (libcudart.so.13 cannot be opened):"),
        (
            {"missing": ("libcudart.so.13", CUDNN), "other_majors": (12,)},
            "CUDA 12 is here, which does not help",
        ),
        ({"missing": (CUDNN,)}, "cuDNN is missing (libcudnn.so.9"),
        ({"has_devices": False}, "/dev/nvidia-uvm is missing: enable nvidia-persistenced"),
        ({}, "nvidia-smi"),
        # What lies deeper is told first: a driver that is too old before a library that is missing.
        ({"driver_cuda": (12, 2), "missing": (CUDNN,), "has_devices": False}, "is too old"),
    ],
)
def test_the_first_cause_is_named_with_what_to_do(changes: dict[str, Any], told: str) -> None:
    assert told in why_not(replace(WELL, **changes))


class _Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, version: int, status: int = 0) -> None:
        self._version, self._status = version, status

    def cuDriverGetVersion(self, where: Any) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int)).contents.value = self._version
        return self._status


def machine(root: Path, driver: str | None, on_the_bus: bool, devices: Iterable[str]) -> Path:
    if driver is not None:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text(driver)
    if on_the_bus:
        (root / "sys/bus/pci/devices/0000:01:00.0").mkdir(parents=True)
        (root / "sys/bus/pci/devices/0000:01:00.0/vendor").write_text("0x10de\n")
        (root / "sys/bus/pci/devices/0000:01:00.0/class").write_text("0x030200\n")
    (root / "dev").mkdir()
    for name in devices:
        (root / "dev" / name).touch()
    return root


def runtime(folder: Path, cuda_version: str | None) -> Path:
    (folder / "capi").mkdir(parents=True)
    if cuda_version is not None:
        (folder / "capi/libonnxruntime_providers_cuda.so").touch()
        (folder / "capi/build_and_package_info.py").write_text(f"cuda_version = '{cuda_version}'\n")
    return folder


def libraries(driver: _Driver | None, *names: str) -> cuda.Load:
    def load(name: str) -> Any:
        if name == "libcuda.so.1" and driver is not None:
            return driver
        if name in names:
            return object()
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    return load


OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 13.3.0"
)
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC version: 12.2.0"
CUDA_13 = ("libcudart.so.13", "libcublas.so.13", CUDNN)
DEVICES = ("nvidia0", "nvidia-uvm")


def test_a_machine_on_which_all_is_there(tmp_path: Path) -> None:
    root = machine(tmp_path, OPEN, True, DEVICES)

    assert look(root, libraries(_Driver(13000), *CUDA_13), runtime(tmp_path / "ort", "13.0")) == WELL


def test_an_older_driver_with_another_cuda(tmp_path: Path) -> None:
    root = machine(tmp_path, CLOSED, True, DEVICES)
    there = libraries(_Driver(12020), "libcudart.so.12", "libcublas.so.12", CUDNN)

    seen = look(root, there, runtime(tmp_path / "ort", "13.0"))

    assert (seen.driver, seen.driver_cuda) == ("535.183.01", (12, 2))
    assert (seen.missing, seen.other_majors) == (("libcudart.so.13", "libcublas.so.13"), (12,))


def test_a_gpu_without_its_driver_and_a_machine_without_gpu(tmp_path: Path) -> None:
    build = runtime(tmp_path / "ort", None)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bare = look(machine(tmp_path / "a", None, True, ()), libraries(None), build)
    none = look(machine(tmp_path / "b", None, False, ()), libraries(None), build)

    assert (bare.has_gpu, bare.driver, bare.has_libcuda, bare.build_major) == (True, None, False, None)
    assert not none.has_gpu


def test_a_driver_that_does_not_answer_is_no_version(tmp_path: Path) -> None:
    root = machine(tmp_path, OPEN, True, DEVICES)

    assert (
        look(root, libraries(_Driver(0, status=999)), runtime(tmp_path / "ort", "13.0")).driver_cuda is None
    )
