"""The network runs where it was told to, or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from inference.errors import DeviceLostError, DeviceMemoryError, DeviceUnavailableError, InferenceFailedError
from inference.session import Device, Session, check_runtimes, device_in_use, installed_runtimes
from models.card import PACKAGES
from tests.small_device import exhausted

ONNX = PACKAGES / "anatomynet-hn" / "model.onnx"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("providers", "wanted", "allow_cpu", "actual"),
    [
        ([CUDA, CPU], "cuda", False, "cuda"),
        ([CUDA, CPU], "cuda", True, "cuda"),
        ([CPU], "cuda", True, "cpu"),
        ([CPU], "cpu", False, "cpu"),
        ([CPU], "cpu", True, "cpu"),
    ],
)
def test_the_first_provider_is_the_device(
    providers: list[str], wanted: Device, allow_cpu: bool, actual: str
) -> None:
    assert device_in_use(providers, wanted, allow_cpu) == actual


@pytest.mark.parametrize(
    ("providers", "wanted", "allow_cpu"),
    [([CPU], "cuda", False), ([CUDA, CPU], "cpu", True), (["Other"], "cpu", True), ([], "cuda", True)],
)
def test_any_other_device_is_refused(providers: list[str], wanted: Device, allow_cpu: bool) -> None:
    with pytest.raises(DeviceUnavailableError):
        device_in_use(providers, wanted, allow_cpu)


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ((), "ONNX Runtime is not installed"),
        (("onnxruntime", "onnxruntime-gpu"), "pip uninstall -y onnxruntime onnxruntime-gpu"),
    ],
)
def test_none_or_two_runtimes_are_refused_with_the_command_that_mends_it(
    installed: tuple[str, ...], words: str
) -> None:
    with pytest.raises(DeviceUnavailableError, match=re.escape(words)):
        check_runtimes(installed)


def test_this_environment_has_exactly_one_runtime() -> None:
    check_runtimes(installed_runtimes())


def test_cuda_that_is_missing_is_refused_unless_the_cpu_may_stand_in() -> None:
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(DeviceUnavailableError, match="runs on cpu"):
        Session(ONNX, "cuda", allow_cpu=False, threads=1)
    assert Session(ONNX, "cuda", allow_cpu=True, threads=1).device == "cpu"


def test_probabilities_of_what_is_drawn_share_out_at_most_one_for_any_even_extent() -> None:
    session = Session(ONNX, "cpu", allow_cpu=True, threads=1)
    for shape in ((2, 2, 2), (16, 8, 22)):
        probabilities = session.run(np.random.default_rng(0).random((1, 1, *shape), np.float32))
        assert probabilities.shape == (1, session.classes, *shape)
        # What the package keeps back has its share too, and no channel.
        assert probabilities.min() >= 0
        assert 0 < probabilities.sum(axis=1).max() <= 1 + 1e-5


def test_what_the_runtime_refuses_comes_as_our_own_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(InferenceFailedError, match="cannot be loaded"):
        Session(tmp_path / "model.onnx", "cpu", allow_cpu=True, threads=1)
    with pytest.raises(InferenceFailedError, match="forward pass"):
        Session(ONNX, "cpu", allow_cpu=True, threads=1).run(np.zeros((1, 1, 3, 3, 3), np.float32))


def test_a_device_without_memory_is_told_from_any_other_failure() -> None:
    assert isinstance(exhausted(), DeviceMemoryError)
    assert "(32, 32, 32) voxels failed on cpu for want of memory" in exhausted().reason


@pytest.mark.parametrize(
    "said",
    [
        "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 4585490",
        "CudaCall CUDA failure 2: out of memory ; GPU=0 ; file=cuda_stream_handle.cc ; line=175",
        "CUDNN failure 4000: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);",
    ],
)
def test_the_words_of_cuda_for_it_are_known_whatever_class_carries_them(said: str) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

    session = Session(ONNX, "cpu", allow_cpu=True, threads=1)
    for kind in (RuntimeException, Fail):
        session._session = _Raising(kind(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {said}"))
        with pytest.raises(DeviceMemoryError, match="for want of memory"):
            session.run(np.zeros((1, 1, 2, 2, 2), np.float32))
    for said, kind in (
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceLostError),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", DeviceLostError),
        ("CUDA failure 1: invalid argument ; GPU=0", InferenceFailedError),
    ):
        session._session = _Raising(RuntimeException(said))
        with pytest.raises(InferenceFailedError) as other:
            session.run(np.zeros((1, 1, 2, 2, 2), np.float32))
        assert type(other.value) is kind


class _Raising:
    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def run(self, *_arguments: object) -> None:
        raise self._problem
