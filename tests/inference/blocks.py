"""Structures as blocks of voxels in a stack of 30 slices of 40 x 40 pixels, a cubic millimetre each.

Owns the shapes that the tests of postprocessing and plausibility share.
Speaks `StructureMap` and `PlaneStack`.
Never needs a network.
"""

from __future__ import annotations

import numpy as np

from inference.segmentation import StructureMap
from inference.volume import PlaneStack
from models.card import Code, Neighbour, Postprocessing, Structure

GLAND = Code(value="45289007", meaning="Parotid gland")
LIMITS = (1.0, 40.0)


def planes(slices: int = 30, spacing_mm: float = 1.0) -> PlaneStack:
    """Axial, head first, supine."""
    origins = np.zeros((slices, 3))
    origins[:, 2] = spacing_mm * np.arange(slices)
    return PlaneStack(origins, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1.0, 1.0, 40, 40)


def organ(name: str = "Organ", neighbours: tuple[Neighbour, ...] = (), **rule: object) -> Structure:
    """A gland of one to forty cm3; a name that ends in L or R has that side."""
    side = {"L": "L", "R": "R"}.get(name[-1])
    return Structure(
        name=name,
        channel=1,
        color=(1, 2, 3),
        code=GLAND,
        laterality=side,
        volume_cm3=LIMITS,
        postprocessing=Postprocessing.model_validate(rule),
        neighbours=neighbours,
    )


def cube(*corner: int, side: int = 12, value: float = 0.9) -> np.ndarray:
    """A probable cube from a corner (slice, row, column) on."""
    probability = np.full((30, 40, 40), 0.05, np.float32)
    z, y, x = corner
    probability[z : z + side, y : y + side, x : x + side] = value
    return probability


def mapped(
    structure: Structure,
    probability: np.ndarray,
    start: tuple[int, int, int] = (0, 0, 0),
    confidence: float = 0.9,
) -> StructureMap:
    """A structure's map whose box begins at `start`."""
    return StructureMap(structure, start, probability, structure.postprocessing.threshold, confidence, ())
