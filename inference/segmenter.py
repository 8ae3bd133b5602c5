"""From a CT volume to its structures: the one entrance to this room.

Owns the order of things: frame the body, run the network, bring each structure back to the CT's grid.
Speaks `Volume` in and `Segmentation` out; the model package decides everything else.
Never holds a map of the whole CT in floating point.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from inference.body import Framed, frame
from inference.confidence import confidences
from inference.errors import InferenceFailedError
from inference.plausibility import judged
from inference.postprocessing import Candidate, absent, exclusive, finish, propose, trimmed
from inference.resampling import ct_box, held_at_border, linear, model_coordinates
from inference.segmentation import Segmentation, StructureMap
from inference.session import Device, Session
from inference.volume import PlaneStack, Volume
from models.card import ModelPackage, Structure

# Enough to touch every kernel; on the CPU nothing depends on the shape.
_SMALL_WARM_UP = (32, 32, 32)


class Segmenter:
    """A model that is loaded and ready to contour.

    Args:
        package: read and checked by `models.card.read_package`.
        device: where it shall run.
        allow_cpu: whether the CPU may stand in where CUDA is missing.
        threads: CPU threads; 0 takes one a core.

    Attributes:
        device: where it really runs, as ONNX Runtime says.

    Raises:
        DeviceUnavailableError: the device cannot be used.
        InferenceFailedError: the network cannot be loaded, or has too few channels.
    """

    def __init__(self, package: ModelPackage, device: Device, allow_cpu: bool, threads: int) -> None:
        self._model = package.description
        self._session = Session(package.onnx, device, allow_cpu, threads)
        self.device: Device = self._session.device
        needed = 1 + max(structure.channel for structure in self._model.structures)
        if self._session.classes < needed:
            raise InferenceFailedError(
                f"{package.onnx} has {self._session.classes} output channels; model.yaml names {needed - 1}"
            )

    def warm_up(self) -> float:
        """Run once on air, on CUDA at the largest extent, so that no patient waits for it. Seconds taken."""
        began = time.perf_counter()
        model = self._model.input
        shape = _SMALL_WARM_UP
        if self.device == "cuda":
            largest = [
                int(mm / step) // model.multiple_of * model.multiple_of
                for mm, step in zip(model.max_extent_mm, model.spacing_mm, strict=True)
            ]
            shape = (largest[0], largest[1], largest[2])
        self._session.run(np.zeros((1, 1, *shape), np.float32))
        return time.perf_counter() - began

    def segment(self, volume: Volume) -> Segmentation:
        """Every structure of the model on the CT's own grid.

        Raises:
            OutsideModelError: `no_body`, `no_structures` or `not_this_anatomy`: nothing that this model
                was made for.
            InferenceFailedError: the forward pass failed.
        """
        began = time.perf_counter()
        framed = frame(volume, self._model.input)
        ready = time.perf_counter()
        probabilities = self._session.run(framed.image[None, None])[0]
        passed = time.perf_counter()
        structures = self._structures(probabilities, framed, volume.planes)
        done = time.perf_counter()
        return Segmentation(
            structures=tuple(structures),
            device=self.device,
            seconds={"preprocess": ready - began, "forward": passed - ready, "postprocess": done - passed},
        )

    def _structures(
        self, probabilities: NDArray[np.float32], framed: Framed, planes: PlaneStack
    ) -> list[StructureMap]:
        candidates = [
            propose(probabilities[structure.channel], structure.postprocessing, framed.grid.spacing_mm)
            for structure in self._model.structures
        ]
        found = zip(self._model.structures, candidates, strict=True)
        sure = {one.name: candidate.sureness for one, candidate in found if candidate.sureness is not None}
        trust = confidences(sure, self._model.calibrations)
        maps = [
            _back_on_ct(structure, candidate, trust.get(structure.name), framed, planes)
            for structure, candidate in zip(self._model.structures, candidates, strict=True)
        ]
        maps = [trimmed(found) for found in exclusive(maps)]
        cut = [framed.cut and candidate.at_end for candidate in candidates]
        return judged(maps, planes, cut, self._model)


def _back_on_ct(
    structure: Structure,
    candidate: Candidate,
    confidence: float | None,
    framed: Framed,
    planes: PlaneStack,
) -> StructureMap:
    """Interpolate one structure's probabilities within its own box of the CT."""
    if confidence is None:
        return absent(structure)
    grid = framed.grid.box(candidate.start, candidate.shape)
    start, shape = ct_box(grid, planes)
    coordinates = held_at_border(model_coordinates(planes, start, shape, grid), grid.shape)
    found = StructureMap(
        structure=structure,
        start=start,
        probability=linear(candidate.probability, coordinates),
        threshold=structure.postprocessing.threshold,
        confidence=confidence,
        flags=(),
    )
    return finish(found, planes)
