"""A device whose memory is too small for the network: ONNX Runtime's own arena, kept small.

Owns the arena; what it says and raises when it is full is what the arena of a GPU says and raises.
Speaks the product's session and its error.
Never is part of the product.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from inference.errors import InferenceFailedError
from inference.session import Session
from models.card import PACKAGES

ONNX = PACKAGES / "anatomynet-hn" / "model.onnx"
ROOM_BYTES = 1 << 20


@cache
def exhausted() -> InferenceFailedError:
    """What the session makes of the runtime's error, for a real forward pass of the shipped network."""
    onnxruntime: Any = import_module("onnxruntime")
    session = Session(ONNX, "cpu", allow_cpu=True, threads=1)
    arena = onnxruntime.OrtArenaCfg(ROOM_BYTES, 1, ROOM_BYTES, -1)
    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    # For the whole process, but only sessions that ask for it use it.
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kinds), arena)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    session._session = onnxruntime.InferenceSession(ONNX, options, providers=["CPUExecutionProvider"])
    try:
        session.run(np.zeros((1, 1, 32, 32, 32), np.float32))
    except InferenceFailedError as problem:
        return problem
    raise AssertionError("the arena was not too small")
