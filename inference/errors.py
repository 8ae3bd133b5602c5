"""What can go wrong between a volume and its segmentation.

Owns the errors of this room; the caller decides what becomes of its work.
Speaks sentences for a person, and bounded words for tables.
Never knows of jobs, patients or networks.
"""

from __future__ import annotations


class InferenceError(Exception):
    """The root of this room's errors.

    Attributes:
        reason: one sentence for a person: what is wrong, and what to do.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeviceUnavailableError(InferenceError):
    """The device that was asked for, or the runtime itself, cannot be used on this machine."""


class InferenceFailedError(InferenceError):
    """The forward pass itself failed, such as for want of memory; trying again may help."""


class DeviceMemoryError(InferenceFailedError):
    """The device had too little free memory for this image: others may free some, or it is too small."""


class DeviceLostError(InferenceFailedError):
    """The device's context is broken: each later run of this process would fail, too. A new one helps."""


class OutsideModelError(InferenceError):
    """The volume is nothing that this model was made for.

    Attributes:
        code: a bounded word: `no_body`, `no_structures` or `not_this_anatomy`.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
