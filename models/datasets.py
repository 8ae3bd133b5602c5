"""Patients for training: CT, label map and what was drawn, and random crops of them.

Owns reading the OpenKBP archive (one `.npz` a patient) and geometric and intensity augmentation.
Speaks HU and label arrays (slices, rows, columns) with spacing in mm, LPS axes with z to the head.
Never invents an annotation: a structure without a plausible mask is unknown, not absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.card import Window


@dataclass(frozen=True)
class PlausibleRange:
    """What a drawn structure must look like to be taught: volume in cm3 and mean HU."""

    volume_cm3: tuple[float, float]
    mean_hu: tuple[float, float]


# Clinical archives hold outright errors, such as a "brainstem" with the HU of bone. The bounds are
# wide: 1st and 99th percentile of the training patients with a margin of about a third.
PLAUSIBLE = {
    "Brainstem": PlausibleRange((0.5, 50.0), (-20.0, 90.0)),
    "SpinalCord": PlausibleRange((2.0, 80.0), (-50.0, 200.0)),
    "Parotid_L": PlausibleRange((4.0, 90.0), (-110.0, 130.0)),
    "Parotid_R": PlausibleRange((4.0, 90.0), (-110.0, 130.0)),
    "Bone_Mandible": PlausibleRange((15.0, 130.0), (300.0, 1600.0)),
}


@dataclass(frozen=True)
class Patient:
    """One training patient on its native grid.

    Attributes:
        hu: int16 (slices, rows, columns).
        labels: uint8, same shape; 0 is background, `i + 1` is `structures[i]`.
        annotated: bool (classes,); entry 0 is true.
        spacing_mm: (slice, row, column) distances.
    """

    name: str
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    annotated: NDArray[np.bool_]
    spacing_mm: NDArray[np.float64]


def is_plausible(
    name: str, hu: NDArray[np.int16], mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> bool:
    """Whether volume and mean HU of a drawn structure are those of the organ."""
    if not mask.any():
        return False
    bounds = PLAUSIBLE[name]
    volume_cm3 = float(mask.sum() * spacing_mm.prod() / 1000)
    mean_hu = float(hu[mask].mean())
    return (
        bounds.volume_cm3[0] <= volume_cm3 <= bounds.volume_cm3[1]
        and bounds.mean_hu[0] <= mean_hu <= bounds.mean_hu[1]
    )


def read_openkbp(path: Path, structures: tuple[str, ...]) -> Patient:
    """Read one patient of the OpenKBP archive, clinical contours only."""
    with np.load(path) as archive:
        hu = archive["ct_hu"]
        spacing_mm = archive["spacing_mm"].astype(np.float64)
        labels = np.zeros(hu.shape, np.uint8)
        annotated = np.zeros(len(structures) + 1, bool)
        annotated[0] = True
        for index, name in enumerate(structures, start=1):
            key = f"clinical/{name}"
            if key in archive.files and is_plausible(name, hu, archive[key], spacing_mm):
                labels[archive[key]] = index
                annotated[index] = True
    return Patient(path.stem, hu, labels, annotated, spacing_mm)


def windowed(hu: NDArray[np.int16], window: Window) -> NDArray[np.float32]:
    """HU clipped to the window and scaled to 0..1, so that air outside the volume is 0."""
    scaled = (hu.astype(np.float32) - window.lower_hu) / (window.upper_hu - window.lower_hu)
    return np.clip(scaled, 0, 1, out=scaled)


@dataclass(frozen=True)
class Augmentation:
    """How far a crop may be from the patient it was taken from; everything off by default."""

    rotation_deg: float = 0.0
    scale: float = 0.0
    shift_hu: float = 0.0
    noise_hu: float = 0.0
    gain: float = 0.0
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    nearest_probability: float = 0.0
    centre_on_structure: float = 0.75


def _affine(rng: np.random.Generator, augmentation: Augmentation) -> NDArray[np.float64]:
    """A random rotation and anisotropic scaling, 3x3 over (slice, row, column) millimetres."""
    angles = np.deg2rad(rng.uniform(-augmentation.rotation_deg, augmentation.rotation_deg, 3))
    matrix = np.diag(1 + rng.uniform(-augmentation.scale, augmentation.scale, 3))
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        rotation = np.eye(3)
        rotation[first, first] = rotation[second, second] = np.cos(angle)
        rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
        matrix = rotation @ matrix
    return matrix


def _centre(patient: Patient, rng: np.random.Generator, augmentation: Augmentation) -> NDArray[np.float64]:
    """Index of the crop's centre: near a drawn structure, or anywhere in the middle of the volume."""
    if rng.random() < augmentation.centre_on_structure and patient.annotated[1:].any():
        structure = rng.choice(np.flatnonzero(patient.annotated[1:])) + 1
        voxels = np.argwhere(patient.labels == structure)
        if len(voxels):
            jitter = rng.uniform(-30, 30, 3) / patient.spacing_mm
            return np.asarray(voxels[rng.integers(len(voxels))] + jitter, np.float64)
    extent = np.array(patient.hu.shape, np.float64)
    return np.asarray(extent * rng.uniform(0.3, 0.7, 3), np.float64)


@dataclass(frozen=True)
class Crop:
    """One training example: image float (1, *shape), labels uint8 (*shape), annotated bool."""

    image: Tensor
    labels: Tensor
    annotated: Tensor


def resample(
    patient: Patient,
    matrix: NDArray[np.float64],
    centre: NDArray[np.float64],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    window: Window,
    mode: str = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Image float (1, *shape) in 0..1 and labels uint8 (*shape) on a grid of `spacing_mm`.

    Args:
        matrix: 3x3, maps the grid's millimetres from its centre to the patient's.
        centre: native index (slice, row, column) of the grid's centre.
        mode: "bilinear" or "nearest", for the image; labels are always taken from the nearest voxel.

    Image and labels go through one sampling grid, so the native grid is interpolated once. Outside
    the volume the image is air and the label background.
    """
    half_extent_mm = (np.array(shape) - 1) / 2 * np.array(spacing_mm)
    axes = [torch.linspace(-h, h, n) for h, n in zip(half_extent_mm, shape, strict=True)]
    grid_mm = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    to_index = torch.from_numpy(matrix / patient.spacing_mm[:, None]).float()
    index = grid_mm @ to_index.T + torch.from_numpy(centre).float()
    extent = torch.tensor(patient.hu.shape, dtype=torch.float32)
    grid = (2 * index / (extent - 1) - 1).flip(-1)[None]
    image = torch.from_numpy(windowed(patient.hu, window))[None, None]
    labels = torch.from_numpy(patient.labels).float()[None, None]
    sample = torch.nn.functional.grid_sample
    return (
        sample(image, grid, mode=mode, padding_mode="zeros", align_corners=True)[0],
        sample(labels, grid, mode="nearest", padding_mode="zeros", align_corners=True)[0, 0].byte(),
    )


def whole_patient(
    patient: Patient, spacing_mm: tuple[float, float, float], window: Window
) -> tuple[Tensor, Tensor]:
    """The whole volume, unturned, on the model's spacing; even extents. See `resample`."""
    extent_mm = np.array(patient.hu.shape) * patient.spacing_mm
    pairs = [int(np.ceil(mm / step / 2)) for mm, step in zip(extent_mm, spacing_mm, strict=True)]
    shape = (2 * pairs[0], 2 * pairs[1], 2 * pairs[2])
    centre = (np.array(patient.hu.shape) - 1) / 2
    return resample(patient, np.eye(3), centre, shape, spacing_mm, window)


def sample_crop(
    patient: Patient,
    structures: tuple[str, ...],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    window: Window,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Crop:
    """A randomly placed, turned, scaled and mirrored crop on the model's own spacing."""
    matrix = _affine(rng, augmentation)
    mirrored = bool(augmentation.mirror_pairs) and rng.random() < 0.5
    if mirrored:
        matrix[:, 2] *= -1
    mode = "nearest" if rng.random() < augmentation.nearest_probability else "bilinear"
    centre = _centre(patient, rng, augmentation)
    image, labels = resample(patient, matrix, centre, shape, spacing_mm, window, mode)
    annotated = patient.annotated
    if mirrored:
        labels, annotated = _exchange(labels, annotated, structures, augmentation.mirror_pairs)
    return Crop(_disturbed(image, window, augmentation, rng), labels, torch.from_numpy(annotated.copy()))


def _disturbed(image: Tensor, window: Window, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Another scanner's gain, offset and noise; air stays air."""
    per_hu = 1 / (window.upper_hu - window.lower_hu)
    noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    changed = (
        image * (1 + rng.uniform(-augmentation.gain, augmentation.gain))
        + rng.uniform(-augmentation.shift_hu, augmentation.shift_hu) * per_hu
        + noise * rng.uniform(0, augmentation.noise_hu) * per_hu
    )
    return torch.where(image == 0, 0.0, changed).clamp(0, 1)


def _exchange(
    labels: Tensor,
    annotated: NDArray[np.bool_],
    structures: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
) -> tuple[Tensor, NDArray[np.bool_]]:
    """Swap left and right structures after a mirroring."""
    table = np.arange(len(structures) + 1)
    for left, right in pairs:
        a, b = structures.index(left) + 1, structures.index(right) + 1
        table[a], table[b] = b, a
    return torch.from_numpy(table.astype(np.uint8))[labels.long()], annotated[table]
