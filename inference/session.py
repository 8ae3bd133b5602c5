"""The one door to ONNX Runtime.

Owns opening a network on the wanted device, and the proof of where it really runs.
Speaks float32 arrays: image (1, 1, slices, rows, columns) in, probabilities (1, classes, ...) out.
Never falls back to the CPU unless it is told that it may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inference import cuda
from inference.errors import (
    DeviceLostError,
    DeviceMemoryError,
    DeviceUnavailableError,
    InferenceFailedError,
)

Device = Literal["cuda", "cpu"]

# ONNX Runtime, CUDA, cuDNN and cuBLAS say it in different words, and the exception's class does not tell.
_OUT_OF_MEMORY = re.compile(
    r"BFCArena|Failed to allocate memory|CUDA failure 2:|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED"
)
# CUDA's errors after which each call of the process fails (cudaError): an illegal address or
# instruction, a launch that failed or took too long, an assertion, memory with errors.
_DEVICE_LOST = re.compile(r"CUDA failure (?:46|214|700|702|710|71[4-9]|999):")

_DEVICE_OF_PROVIDER: dict[str, Device] = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}

# Crops differ from patient to patient, so an exhaustive search would be repeated for every new shape.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


def installed_runtimes() -> tuple[str, ...]:
    """The distributions that own the import `onnxruntime`, such as `onnxruntime-gpu`."""
    owners = metadata.packages_distributions().get("onnxruntime", [])
    return tuple(sorted(set(owners)))


def check_runtimes(installed: Sequence[str]) -> None:
    """Refuse an environment with no ONNX Runtime, or with two that overwrite each other's files.

    Raises:
        DeviceUnavailableError: with the command that mends it.
    """
    if not installed:
        raise DeviceUnavailableError(
            "ONNX Runtime is not installed; install anatomynode[gpu], or anatomynode[cpu] without a GPU"
        )
    if len(installed) > 1:
        raise DeviceUnavailableError(
            f"{' and '.join(installed)} are installed together and overwrite each other, which leaves "
            f"the CPU only; run: pip uninstall -y {' '.join(installed)}, and install [gpu] or [cpu] again"
        )


def device_in_use(providers: Sequence[str], wanted: Device, allow_cpu: bool) -> Device:
    """The device that a session's first provider stands for.

    Args:
        providers: `session.get_providers()`, in the order of their use.
        wanted: what was asked for.
        allow_cpu: whether the CPU may stand in for CUDA.

    Raises:
        DeviceUnavailableError: where the session runs elsewhere than it may.
    """
    actual = _DEVICE_OF_PROVIDER.get(providers[0]) if providers else None
    if actual is None:
        raise DeviceUnavailableError(f"ONNX Runtime chose the providers {list(providers)}, none that we know")
    if actual != wanted and not (actual == "cpu" and allow_cpu):
        why = f": {cuda.why_not(cuda.look())}" if wanted == "cuda" else ""
        raise DeviceUnavailableError(
            f"{wanted} was asked for, but ONNX Runtime runs on {actual} (its providers are "
            f"{', '.join(providers)}){why}"
        )
    return actual


class Session:
    """A network that is loaded and ready.

    Args:
        onnx: the network's file, checked by its package.
        device: where it shall run.
        allow_cpu: whether the CPU may stand in where CUDA is missing.
        threads: CPU threads; 0 takes one a core that this process may use.

    Attributes:
        device: where it really runs.
        classes: channels of the output, the background among them.

    Raises:
        DeviceUnavailableError: no usable ONNX Runtime or device.
        InferenceFailedError: the file cannot be loaded.
    """

    def __init__(self, onnx: Path, device: Device, allow_cpu: bool, threads: int) -> None:
        check_runtimes(installed_runtimes())
        self._session = _open(onnx, device, threads or len(os.sched_getaffinity(0)))
        self.device: Device = device_in_use(self._session.get_providers(), device, allow_cpu)
        self._input: str = self._session.get_inputs()[0].name
        self.classes = int(self._session.get_outputs()[0].shape[1])

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (1, classes, slices, rows, columns) of an image (1, 1, slices, rows, columns).

        Raises:
            DeviceMemoryError: the device has too little memory left for it.
            DeviceLostError: this process can use the device no more.
            InferenceFailedError: anything else, with ONNX Runtime's own words.
        """
        probabilities: NDArray[np.float32] = _translated(
            lambda: self._session.run(None, {self._input: image})[0],
            f"the forward pass of an image of {image.shape[2:]} voxels failed on {self.device}",
        )
        return probabilities


def _open(onnx: Path, device: Device, threads: int) -> Any:
    # Imported here, so that a missing runtime is our sentence and not a traceback.
    onnxruntime: Any = import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    # Without the arena the peak is 165 bytes a voxel instead of 425, at no measurable cost in time.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A provider that cannot be loaded: `device_in_use` says it in words, and why.
    onnxruntime.set_default_logger_severity(4)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels, where they came that way
        providers.insert(0, ("CUDAExecutionProvider", _CUDA_OPTIONS))
    return _translated(
        lambda: onnxruntime.InferenceSession(onnx, options, providers=providers), f"{onnx} cannot be loaded"
    )


def _translated(call: Callable[[], Any], what: str) -> Any:
    """Call into ONNX Runtime, whose errors have no common root of their own, in this room's words."""
    try:
        return call()
    except MemoryError:  # Python's own; nothing that ONNX Runtime says
        raise
    except Exception as problem:
        if _OUT_OF_MEMORY.search(str(problem)):
            raise DeviceMemoryError(f"{what} for want of memory: {problem}") from problem
        if _DEVICE_LOST.search(str(problem)):
            raise DeviceLostError(f"{what}, and the device is lost to this process: {problem}") from problem
        raise InferenceFailedError(f"{what}: {problem}") from problem
