"""What a planning CT shows around the patient, put back: couch, head rest and immobilisation mask.

Owns their geometry in millimetres and their HU; one patient is always dressed alike.
Speaks `Grid` in and out, HU; LPS: y runs to the back, z to the head.
Never touches the patient: material goes only where the archive has air, outside the body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.archives.openkbp_dicom import AIR_HU, Grid, interpolated

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

AIR_BELOW_HU = -900
"""What is less dense is air. The rim that interpolation smears around the skin is not: it is left as it is,
and distances are counted from where it ends."""
_COARSE_MM = 2.0
"""Distances are found on about this grid; they change too slowly to need a finer one."""
_BRIDGED_MM = 12.0
"""A sheet of thermoplastic does not follow gaps twice as wide: mouth, nostrils, the fold below the chin."""
_SHOULDERS_MM = 300.0
"""No head is as wide."""
_LIFTED_MM = 12.0
"""What lies higher above the couch rests on something."""


@dataclass(frozen=True)
class Material:
    """What something is made of: mean HU, and how much single voxels differ from it."""

    hu: float
    noise_hu: float


CARBON_FIBRE = Material(-180, 25)
FOAM = Material(-950, 12)
CUP = Material(-60, 25)
THERMOPLASTIC = Material(60, 25)


@dataclass(frozen=True)
class Couch:
    """Two shells with foam between them, through all slices.

    Attributes:
        top_mm: y of the upper surface in the middle.
        middle_mm: x of the middle.
        radius_mm: of the upper surface's curve, edges up; infinite where it is flat.
    """

    top_mm: float
    middle_mm: float
    radius_mm: float
    depth_mm: float = 48.0
    half_width_mm: float = 265.0
    shell_mm: float = 2.0

    def below_mm(self, x: Floats, y: Floats) -> Floats:
        """How far a point lies below the upper surface; negative above it."""
        return np.asarray(y - self.top_mm + (x - self.middle_mm) ** 2 / (2 * self.radius_mm), np.float32)


@dataclass(frozen=True)
class Immobilisation:
    """A perforated sheet of thermoplastic at a changing distance from the skin.

    Attributes:
        lowest_mm: z down to which it reaches, on the chest.
        waves: (n, 4) of the distance: 2 pi / wavelength along x, y, z in 1/mm, and phase.
    """

    lowest_mm: float
    waves: NDArray[np.float64]
    thickness_mm: float = 2.5
    most_off_mm: float = 4.0
    hole_mm: float = 4.0
    pitch_mm: float = 9.0

    def gap_mm(self, x: Floats, y: Floats, z: float) -> Floats:
        """Between skin and sheet, 0 to `most_off_mm`."""
        phases = [wave[0] * x + wave[1] * y + wave[2] * z + wave[3] for wave in self.waves]
        swing = np.sum([np.sin(phase) for phase in phases], axis=0) / len(phases)
        return np.asarray(self.most_off_mm * np.clip(0.5 + swing, 0, 1), np.float32)


@dataclass(frozen=True)
class Scene:
    """A patient on his couch.

    Attributes:
        distance_mm: float32 (slices, coarse rows, coarse columns) to the skin with its gaps bridged;
            0 inside.
        every: how many rows and columns of the CT one coarse voxel stands for.
        front_mm, back_mm: (slices,) y of the body's extent; NaN in slices without body.
    """

    distance_mm: Floats
    every: int
    front_mm: Floats
    back_mm: Floats
    couch: Couch
    sheet: Immobilisation


def dress(grid: Grid, patient: str) -> Grid:
    """The same CT with couch, head rest and mask around the patient.

    Args:
        grid: with nothing but air outside the body.
        patient: decides what differs from patient to patient.
    """
    if not (grid.hu > AIR_BELOW_HU).any():
        return grid
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big"))
    scene = lay_down(grid, rng)
    hu = grid.hu.copy()
    for index in range(len(hu)):
        _paint(hu[index], grid, scene, index, rng)
    return replace(grid, hu=hu)


def lay_down(grid: Grid, rng: np.random.Generator) -> Scene:
    """Find the body, and put the couch below it: under the shoulders, or a head rest lower than a head."""
    every = max(1, round(_COARSE_MM / grid.spacing_mm[1]))
    spacing_mm = (grid.spacing_mm[0], grid.spacing_mm[1] * every, grid.spacing_mm[2] * every)
    body = _bridged(_body(grid.hu[:, ::every, ::every]), spacing_mm)
    distance = ndimage.distance_transform_edt(~body, sampling=spacing_mm).astype(np.float32)
    x_mm, y_mm = _axes(grid, every)
    middle_mm = float(x_mm[body.any(axis=(0, 1))].mean() + rng.uniform(-15, 15))
    wide = [np.ptp(x_mm[plane.any(axis=0)]) > _SHOULDERS_MM if plane.any() else False for plane in body]
    radius_mm = float(rng.choice((np.inf, 2000.0)))
    rest_mm = 2.0 if any(wide) else rng.uniform(30, 50)
    couch = Couch(0.0, middle_mm, radius_mm)
    lowest = couch.below_mm(x_mm[None, :], y_mm[:, None])[body.any(axis=0)].max()
    extents = [y_mm[plane.any(axis=1)] if plane.any() else np.full(1, np.nan) for plane in body]
    chest_mm = 60.0 if any(wide) else np.inf
    return Scene(
        distance_mm=ndimage.gaussian_filter(distance, (0, 1, 1)),
        every=every,
        front_mm=np.array([rows[0] for rows in extents], np.float32),
        back_mm=np.array([rows[-1] for rows in extents], np.float32),
        couch=replace(couch, top_mm=float(lowest) + rest_mm),
        sheet=Immobilisation(
            np.flatnonzero(wide).max(initial=0) * grid.spacing_mm[0] - chest_mm, _waves(rng)
        ),
    )


def _body(hu: NDArray[np.int16]) -> Mask:
    """The largest piece of tissue, its cavities filled plane by plane."""
    labels, count = ndimage.label(hu > AIR_BELOW_HU)
    largest = 1 + np.argmax(np.bincount(labels.ravel(), minlength=count + 1)[1:])
    return np.stack([ndimage.binary_fill_holes(plane) for plane in labels == largest])


def _bridged(body: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """The body as a sheet around it sees it."""
    room = [(0, 0)] + [(int(np.ceil(_BRIDGED_MM / mm)) + 1,) * 2 for mm in spacing_mm[1:]]
    near = ndimage.distance_transform_edt(~np.pad(body, room), sampling=spacing_mm) <= _BRIDGED_MM
    closed = ndimage.distance_transform_edt(near, sampling=spacing_mm) > _BRIDGED_MM
    inner = tuple(
        slice(before, length - after) for (before, after), length in zip(room, closed.shape, strict=True)
    )
    return np.asarray(closed[inner] | body)


def _axes(grid: Grid, every: int = 1) -> tuple[Floats, Floats]:
    """LPS x of the columns and y of the rows."""
    _, rows, columns = grid.hu.shape
    x = grid.origin_mm[0] + np.arange(0, columns, every) * grid.spacing_mm[2]
    y = grid.origin_mm[1] + np.arange(0, rows, every) * grid.spacing_mm[1]
    return x.astype(np.float32), y.astype(np.float32)


def _waves(rng: np.random.Generator) -> NDArray[np.float64]:
    """Three waves of 70 to 160 mm in directions of their own."""
    directions = rng.standard_normal((3, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    numbers = 2 * np.pi * directions / rng.uniform(70, 160, (3, 1))
    return np.hstack((numbers, rng.uniform(0, 2 * np.pi, (3, 1))))


def _paint(plane: NDArray[np.int16], grid: Grid, scene: Scene, index: int, rng: np.random.Generator) -> None:
    """Put the materials of one slice into its free air; where two meet, the denser one shows."""
    rows, columns = plane.shape
    coarse = scene.distance_mm[index]
    at = [
        np.minimum(np.arange(n) / scene.every, m - 1) for n, m in zip(plane.shape, coarse.shape, strict=True)
    ]
    distance = interpolated(interpolated(coarse, at[0], axis=0), at[1], axis=1)
    x, y = _axes(grid)
    hu = np.full((rows, columns), AIR_HU, np.float32)
    for share, material in _layers(scene, grid, index, distance, x[None, :], y[:, None]):
        touched = share > 0
        noise = rng.standard_normal(int(touched.sum()), np.float32) * np.float32(material.noise_hu)
        filled = AIR_HU + share[touched] * (material.hu + noise - AIR_HU)
        hu[touched] = np.maximum(hu[touched], filled)
    free = (plane < AIR_BELOW_HU) & (distance > 0) & (hu > plane)
    plane[free] = np.rint(hu[free]).astype(np.int16)


def _layers(
    scene: Scene, grid: Grid, index: int, distance: Floats, x: Floats, y: Floats
) -> Iterator[tuple[Floats, Material]]:
    """What of each voxel of a slice is filled, 0 to 1, and with what."""
    pixel_mm = grid.spacing_mm[1]
    yield from _couch(scene.couch, x, y, pixel_mm)
    front, back = float(scene.front_mm[index]), float(scene.back_mm[index])
    if np.isnan(front):
        return
    z = index * grid.spacing_mm[0]
    if scene.couch.top_mm - back > _LIFTED_MM:
        yield from _head_rest(scene.couch, distance, x, y, front + 0.7 * (back - front), pixel_mm)
    if z >= scene.sheet.lowest_mm:
        deepest = min(front + 0.65 * (back - front), scene.couch.top_mm - 40)
        yield (
            _sheet(scene.sheet, distance, (x, y, z), (scene.couch.middle_mm, deepest), pixel_mm),
            THERMOPLASTIC,
        )


def _couch(couch: Couch, x: Floats, y: Floats, pixel_mm: float) -> Iterator[tuple[Floats, Material]]:
    depth = couch.below_mm(x, y)
    across = couch.half_width_mm - np.abs(x - couch.middle_mm)
    whole = _filled(depth, 0, couch.depth_mm, pixel_mm) * _filled(across, 0, np.inf, pixel_mm)
    core = _filled(depth, couch.shell_mm, couch.depth_mm - couch.shell_mm, pixel_mm) * _filled(
        across, couch.shell_mm, np.inf, pixel_mm
    )
    yield whole - core, CARBON_FIBRE
    yield core, FOAM


def _head_rest(
    couch: Couch, distance: Floats, x: Floats, y: Floats, rim_mm: float, pixel_mm: float
) -> Iterator[tuple[Floats, Material]]:
    """A block of foam under head and neck, hollow as they are, in a thin cup."""
    block = (
        _filled(110 - np.abs(x - couch.middle_mm), 0, np.inf, pixel_mm)
        * _filled(y - rim_mm, 0, np.inf, pixel_mm)
        * _filled(-couch.below_mm(x, y), 0, np.inf, pixel_mm)
    )
    cup = _filled(distance, 1.5, 4.0, pixel_mm)
    yield block * cup, CUP
    yield block * _filled(distance, 4.0, np.inf, pixel_mm), FOAM


def _sheet(
    sheet: Immobilisation,
    distance: Floats,
    place: tuple[Floats, Floats, float],
    middle_and_deepest_mm: tuple[float, float],
    pixel_mm: float,
) -> Floats:
    """The sheet over the patient's front and sides, with its staggered holes."""
    x, y, z = place
    middle, deepest = middle_and_deepest_mm
    gap = sheet.gap_mm(x, y, z)
    share = _filled(distance - gap, 0, sheet.thickness_mm, pixel_mm)
    share = share * _filled(deepest - y, 0, np.inf, pixel_mm)
    # Length along the sheet, about, for a head of 85 mm radius.
    along = np.arctan2(x - middle, deepest - y) * 85 / sheet.pitch_mm
    up = z / sheet.pitch_mm
    staggered = along + 0.5 * (np.floor(up) % 2)
    off_mm = sheet.pitch_mm * np.hypot(staggered - np.rint(staggered), up - np.floor(up) - 0.5)
    return np.asarray(share * _filled(off_mm, sheet.hole_mm / 2, np.inf, pixel_mm), np.float32)


def _filled(depth: Floats, start_mm: float, end_mm: float, pixel_mm: float) -> Floats:
    """The share of a pixel that lies between two depths, 0 to 1: what partial volume makes of a sheet."""
    half = pixel_mm / 2
    overlap = np.minimum(depth + half, end_mm) - np.maximum(depth - half, start_mm)
    return np.asarray(np.clip(overlap / pixel_mm, 0, 1), np.float32)
