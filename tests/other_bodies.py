"""CT series of what is no head and neck: a pelvis, a thorax, and two phantoms of quality assurance.

Owns their shapes, made from ellipsoids; nothing of them was ever a patient.
Speaks `tests.phantoms.Phantom`, HU and LPS millimetres about the middle of the body.
Never reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.phantoms import Phantom

Hu = NDArray[np.float32]
Point = tuple[float, float, float]

_SLICES, _MATRIX, _BETWEEN_MM, _PIXEL_MM = 64, 128, 3.0, 3.6


class Body:
    """HU that ellipsoids and cylinders are painted into, the later over the earlier."""

    def __init__(self) -> None:
        self.hu: Hu = np.full((_SLICES, _MATRIX, _MATRIX), -1000, np.float32)
        half = (_MATRIX - 1) / 2
        self._z = ((np.arange(_SLICES) - (_SLICES - 1) / 2) * _BETWEEN_MM)[:, None, None]
        self._y = ((np.arange(_MATRIX) - half) * _PIXEL_MM)[None, :, None]
        self._x = ((np.arange(_MATRIX) - half) * _PIXEL_MM)[None, None, :]

    def ball(self, hu: float, centre: Point, radii: Point, both: bool = False) -> None:
        """An ellipsoid; with `both` its mirror image too. A radius of 1e3 makes it a cylinder."""
        for side in (1, -1) if both else (1,):
            x, y, z = side * centre[0], centre[1], centre[2]
            inside = (
                ((self._x - x) / radii[0]) ** 2
                + ((self._y - y) / radii[1]) ** 2
                + ((self._z - z) / radii[2]) ** 2
            )
            self.hu[inside <= 1] = hu

    def scanned(self) -> Phantom:
        """With a scanner's noise, as a series."""
        noise = np.random.default_rng(7).normal(0, 10, self.hu.shape)
        hu = np.clip(self.hu + noise, -1024, 3000).astype(np.int16)
        return Phantom(
            offsets_mm=tuple(_BETWEEN_MM * index for index in range(_SLICES)),
            rows=_MATRIX,
            columns=_MATRIX,
            pixel_spacing=(_PIXEL_MM, _PIXEL_MM),
            origin_mm=(-230.0, -230.0, -700.0),
            hu=hu,
        )


def pelvis() -> Body:
    body = Body()
    body.ball(-100, (0, 0, 0), (185, 125, 1e3))
    body.ball(50, (0, 5, 0), (165, 105, 1e3))
    body.ball(700, (70, 35, 40), (60, 30, 60), both=True)
    body.ball(250, (70, 35, 40), (54, 24, 54), both=True)
    body.ball(60, (60, 5, 45), (48, 30, 55), both=True)
    body.ball(600, (0, 75, 25), (50, 22, 60))
    body.ball(250, (0, 75, 25), (44, 16, 54))
    body.ball(900, (90, 10, -40), (26, 26, 26), both=True)
    body.ball(350, (90, 10, -40), (22, 22, 22), both=True)
    body.ball(800, (30, -40, -70), (30, 12, 14), both=True)
    body.ball(5, (0, -25, -30), (40, 35, 32))
    body.ball(-800, (0, 50, -40), (14, 12, 50))
    return body


def thorax() -> Body:
    body = Body()
    body.ball(-100, (0, 0, 0), (190, 120, 1e3))
    body.ball(50, (0, 0, 0), (172, 104, 1e3))
    for height in range(-90, 100, 30):
        body.ball(600, (0, 0, height), (158, 98, 5))
        body.ball(45, (0, 0, height), (150, 90, 5))
    body.ball(-830, (80, -5, 0), (66, 82, 1e3), both=True)
    body.ball(45, (20, -30, -40), (52, 46, 50))
    body.ball(550, (0, 70, 0), (22, 20, 1e3))
    body.ball(30, (0, 88, 0), (9, 9, 1e3))
    body.ball(-1000, (0, 0, 60), (9, 9, 60))
    body.ball(60, (0, 30, 0), (12, 12, 1e3))
    return body


def catphan() -> Body:
    body = Body()
    body.ball(100, (0, 0, 0), (100, 100, 1e3))
    inserts: Sequence[float] = (-1000, -200, -100, 0, 120, 340, 990, -35)
    for number, hu in enumerate(inserts):
        angle = 2 * np.pi * number / len(inserts)
        body.ball(hu, (58.5 * np.cos(angle), 58.5 * np.sin(angle), 0.0), (7, 7, 1e3))
    return body


def water() -> Body:
    body = Body()
    body.ball(0, (0, 0, 0), (110, 110, 1e3))
    return body


OTHER_BODIES: Mapping[str, Callable[[], Body]] = {
    "pelvis": pelvis,
    "thorax": thorax,
    "catphan": catphan,
    "water": water,
}
