"""Why the network does not run on the GPU, in words.

Owns the questions that are asked of the machine, their order, and the advice that follows from the answers.
Speaks paths of /proc and /dev, names of shared libraries, and one sentence for an administrator.
Never changes anything, and never decides where the network runs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NVIDIA_PCI_VENDOR = "0x10de"
CUDNN = "libcudnn.so.9"
OLDEST_DRIVER = {12: 525, 13: 580}
"""The first driver of each CUDA major version (NVIDIA, CUDA Compatibility, minor version compatibility)."""
OTHER_MAJORS = range(11, 16)

Load = Callable[[str], Any]
"""Opens a shared library as the loader would; raises OSError where it is not found."""


@dataclass(frozen=True)
class CudaSeen:
    """What was found on the machine.

    Attributes:
        build_major: CUDA's major version that the installed ONNX Runtime wants; None is a build without CUDA.
        has_gpu: whether an NVIDIA device is on the PCI bus.
        driver: version of the kernel's driver, such as `580.95.05`; None if none is loaded.
        has_libcuda: whether the driver's library for programs can be opened.
        driver_cuda: the newest CUDA that the driver supports, as (major, minor); None if it did not say.
        missing: libraries of CUDA and cuDNN that cannot be opened.
        other_majors: major versions of CUDA that are here instead.
        has_devices: whether /dev/nvidia0 and /dev/nvidia-uvm are there.
    """

    build_major: int | None
    has_gpu: bool
    driver: str | None
    has_libcuda: bool
    driver_cuda: tuple[int, int] | None
    missing: tuple[str, ...]
    other_majors: tuple[int, ...]
    has_devices: bool


def why_not(seen: CudaSeen) -> str:
    """The first thing that keeps ONNX Runtime off the GPU, and what to do about it."""
    major = seen.build_major
    oldest = OLDEST_DRIVER.get(major or 0, "of that CUDA")
    if not seen.has_gpu and seen.driver is None:
        return "this machine has no NVIDIA GPU, or it is not passed through to this virtual machine"
    if major is None:
        return "the installed ONNX Runtime is the build for CPUs: install the gpu bundle, or the extra [gpu]"
    if seen.driver is None:
        return f"an NVIDIA GPU is there, but no driver is loaded: install driver {oldest} or newer"
    if not seen.has_libcuda:
        return (
            f"the driver {seen.driver} is loaded, but its library libcuda.so.1 is missing: install the same "
            "version's libraries (Debian: libcuda1, nvidia-driver-libs)"
        )
    if seen.driver_cuda is not None and seen.driver_cuda[0] < major:
        newest = ".".join(map(str, seen.driver_cuda))
        return (
            f"the driver {seen.driver} is too old: it supports CUDA {newest}, and ONNX Runtime wants CUDA "
            f"{major}: install driver {oldest} or newer"
        )
    cuda = [name for name in seen.missing if name != CUDNN]
    if cuda:
        instead = " and ".join(map(str, seen.other_majors))
        here = f"; CUDA {instead} is here, which does not help" if instead else ""
        return (
            f"CUDA {major} is missing ({', '.join(cuda)} cannot be opened{here}): install the gpu bundle, "
            f"which brings it, or CUDA {major}"
        )
    if seen.missing:
        brings = "install the gpu bundle, which brings it, or cuDNN 9"
        return f"cuDNN is missing ({CUDNN} cannot be opened): {brings}"
    if not seen.has_devices:
        return (
            "/dev/nvidia0 or /dev/nvidia-uvm is missing: enable nvidia-persistenced, or run "
            "nvidia-modprobe -u at each start, before the worker"
        )
    return "driver, CUDA and cuDNN are there: look at what `nvidia-smi` says of the GPU and its memory"


def look(root: Path = Path("/"), load: Load = ctypes.CDLL, runtime: Path | None = None) -> CudaSeen:
    """Look at this machine.

    Args:
        root: where its /proc, /sys and /dev are.
        load: opens a shared library.
        runtime: ONNX Runtime's folder; None finds the installed one, without importing it.
    """
    major = _build_major(_installed() if runtime is None else runtime)
    driver = _driver(root)
    libcuda = _opened(load, "libcuda.so.1")
    wanted = [] if major is None else [*(f"{name}.so.{major}" for name in ("libcudart", "libcublas")), CUDNN]
    others = (other for other in OTHER_MAJORS if other != major)
    return CudaSeen(
        build_major=major,
        has_gpu=driver is not None or _on_the_bus(root),
        driver=driver,
        has_libcuda=libcuda is not None,
        driver_cuda=_driver_cuda(libcuda),
        missing=tuple(name for name in wanted if _opened(load, name) is None),
        other_majors=tuple(other for other in others if _opened(load, f"libcudart.so.{other}") is not None),
        has_devices=all((root / "dev" / name).exists() for name in ("nvidia0", "nvidia-uvm")),
    )


def _installed() -> Path | None:
    found = importlib.util.find_spec("onnxruntime")
    return Path(found.origin).parent if found is not None and found.origin else None


def _build_major(runtime: Path | None) -> int | None:
    """What the build says of itself, in `capi/build_and_package_info.py`."""
    if runtime is None or not (runtime / "capi" / "libonnxruntime_providers_cuda.so").exists():
        return None
    try:
        said = (runtime / "capi" / "build_and_package_info.py").read_text()
    except OSError:
        said = ""
    found = re.search(r"cuda_version = '(\d+)", said)
    return int(found.group(1)) if found else max(OLDEST_DRIVER)


def _driver(root: Path) -> str | None:
    try:
        said = (root / "proc" / "driver" / "nvidia" / "version").read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s", said)
    return found.group(1) if found else "of unknown version"


def _on_the_bus(root: Path) -> bool:
    for device in (root / "sys" / "bus" / "pci" / "devices").glob("*/vendor"):
        display = device.with_name("class")
        if device.read_text().strip() == NVIDIA_PCI_VENDOR and display.read_text().startswith("0x03"):
            return True
    return False


def _opened(load: Load, name: str) -> Any:
    try:
        return load(name)
    except OSError:
        return None


def _driver_cuda(libcuda: Any) -> tuple[int, int] | None:
    """cuDriverGetVersion: 1000 * major + 10 * minor."""
    if libcuda is None:
        return None
    version = ctypes.c_int(0)
    if libcuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10
