"""What is no head and neck: a pelvis, a thorax, and two phantoms of the physicist's cupboard.

Owns their solids and HU; `phantom.py` paints them and writes the series.
Speaks LPS millimetres and files of CT Image Storage.
Never says in its header what it is: these claim to be a head and neck, so that only the image can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dicom_node.phantom import AIR_HU, Grid, Layer, Phantom, painted, write
from dicom_node.solids import Solid, ellipsoid, tube

_MIDDLE_Y_MM = 32.0  # of the field of view
_MIDDLE_Z_MM = -10.0


def _cylinder(x: float, y: float, radius: float, flatten: float = 1.0) -> Solid:
    """From end to end of the scan; `flatten` is how much wider it is along x."""
    ends = [(x, _MIDDLE_Y_MM + y, -1000), (x, _MIDDLE_Y_MM + y, 1000)]
    return tube(ends, radius, (flatten, 1, 1))


def _egg(x: float, y: float, z: float, *radii: float) -> Solid:
    return ellipsoid((x, _MIDDLE_Y_MM + y, _MIDDLE_Z_MM + z), radii)


def _rib(z: float) -> Solid:
    """Half round the chest, falling towards the front."""
    angles = np.linspace(0.15, 2.9, 9)
    path = [(145 * np.sin(a), _MIDDLE_Y_MM + 95 * np.cos(a), z - 18 * a) for a in angles]
    return tube(path, 5)


_WATER = (Layer(_cylinder(0, 0, 120), 0),)

_INSERTS_HU = (AIR_HU, -196, -104, -47, 115, 365, 1000, AIR_HU)
"""Of a Catphan's sensitometry module, nearly."""
_CATPHAN = (
    Layer(_cylinder(0, 0, 100), 60),
    *(
        Layer(_egg(58 * np.sin(turn), 58 * np.cos(turn), 0, 6, 6, 25), hu)
        for turn, hu in zip(np.arange(8) * np.pi / 4, _INSERTS_HU, strict=True)
    ),
)

_PELVIS = (
    Layer(_cylinder(0, 0, 112, 1.5), -100),
    Layer(_cylinder(0, 0, 90, 1.6), 45, texture_hu=8),
    Layer(_egg(78, 5, 45, 14, 50, 55), 600, both_sides=True),  # ilium
    Layer(_egg(78, 5, 45, 9, 44, 49), 180, both_sides=True),
    Layer(_egg(92, 0, -35, 25, 25, 25), 500, both_sides=True),  # head of the femur
    Layer(_egg(0, 72, 35, 42, 16, 50), 350),  # sacrum
    Layer(_egg(18, -50, -50, 22, 9, 10), 450, both_sides=True),  # pubis
    Layer(_egg(0, -25, 5, 42, 32, 34), 8),  # bladder
    Layer(_egg(0, 0, -38, 24, 18, 18), 40),  # prostate
    Layer(_egg(0, 40, -20, 15, 14, 45), 30),  # rectum
    Layer(_egg(0, 38, -10, 9, 9, 22), AIR_HU),
)

_THORAX = (
    Layer(_cylinder(0, 0, 112, 1.5), -100),
    Layer(_cylinder(0, 0, 100, 1.5), 50, texture_hu=8),
    *(Layer(_rib(z), 500, both_sides=True) for z in range(-120, 160, 28)),
    Layer(_egg(78, 5, -5, 56, 76, 130), -780, both_sides=True, texture_hu=25),  # lungs
    Layer(_egg(25, -25, -45, 52, 48, 55), 40),  # heart
    Layer(_cylinder(18, 42, 12), 45),  # aorta
    Layer(_cylinder(0, 18, 9), AIR_HU),  # trachea
    Layer(_cylinder(0, 68, 19), 220),  # vertebrae
    Layer(_cylinder(0, 92, 9), 30),  # their canal
    Layer(_cylinder(0, -88, 7, 3.0), 300),  # sternum
)

OTHER_ANATOMIES: Mapping[str, tuple[Layer, ...]] = {
    "water phantom": _WATER,
    "Catphan-like phantom": _CATPHAN,
    "pelvis": _PELVIS,
    "thorax": _THORAX,
}


def write_other_anatomy(
    name: str, folder: Path, slices: int, matrix: int, spacing_mm: tuple[float, float, float]
) -> None:
    """Write one of `OTHER_ANATOMIES` as a CT series into `folder`; the same arguments give the same bytes.

    Args:
        spacing_mm: between slices, rows and columns.
    """
    grid = Grid(slices, matrix, spacing_mm)
    phantom = Phantom(grid, painted(grid, OTHER_ANATOMIES[name]), {})
    write(phantom, folder, (name, str(slices), str(matrix), repr(spacing_mm)))
