"""Random crops of patients on the model's own grid: what the network is trained on.

Owns where a crop is taken, how CT and labels are sampled into it, and the exchange of sides when mirrored.
Speaks images float (1, slices, rows, columns) in 0..1, and labels uint8 (slices, rows, columns).
Never interpolates a label map: each organ's mask is sampled by itself, and the larger share decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.anatomy import MIRROR_PAIRS
from models.archives.patients import Patient, count_drawn, windowed
from models.card import Window
from models.training.augmentation import Augmentation

Shape = tuple[int, int, int]
Millimetres = tuple[float, float, float]

_JITTER_MM = 30.0


@dataclass(frozen=True)
class View:
    """How the model sees a CT.

    Attributes:
        structures: the model's, in the order of its channels from 1 on.
        spacing_mm: (slice, row, column) of the model's grid.
    """

    structures: tuple[str, ...]
    spacing_mm: Millimetres
    window: Window


@dataclass(frozen=True)
class Crop:
    """One training example: image float (1, *shape), labels uint8 (*shape), annotated bool (classes,)."""

    image: Tensor
    labels: Tensor
    annotated: Tensor


@dataclass(frozen=True)
class Sampler:
    """Which patient and place the next crop comes from.

    A share of the crops is centred on an organ. Which organ is drawn with the square root of how many
    patients have it, and then one of those: rare organs come up more often than their patients would
    bring them, and still do not crowd out the others.

    Attributes:
        centred: the share of crops that are centred on a drawn organ; the others lie anywhere.
    """

    patients: Sequence[Patient]
    centred: float = 0.75

    def choose(self, rng: np.random.Generator) -> tuple[Patient, NDArray[np.float64]]:
        """A patient, and the native index (slice, row, column) of the crop's centre."""
        drawn = count_drawn(self.patients)
        if rng.random() >= self.centred or not drawn.any():
            patient = self.patients[int(rng.integers(len(self.patients)))]
            return patient, np.array(patient.hu.shape) * rng.uniform(0.3, 0.7, 3)
        shares = np.sqrt(drawn)
        label = rng.choice(len(shares), p=shares / shares.sum()) + 1
        having = [patient for patient in self.patients if patient.annotated[label]]
        patient = having[int(rng.integers(len(having)))]
        voxels = np.argwhere(patient.labels == label)
        if not len(voxels):  # wholly hidden by smaller organs
            return patient, np.array(patient.hu.shape) / 2
        jitter = rng.uniform(-_JITTER_MM, _JITTER_MM, 3) / patient.spacing_mm
        return patient, voxels[rng.integers(len(voxels))] + jitter


def sample_crop(
    sampler: Sampler, view: View, shape: Shape, augmentation: Augmentation, rng: np.random.Generator
) -> Crop:
    """A randomly placed and disturbed crop on the model's own spacing."""
    patient, centre = sampler.choose(rng)
    matrix = augmentation.matrix(rng)
    mirrored = augmentation.mirror and rng.random() < 0.5
    if mirrored:
        matrix[:, 2] *= -1
    extent_mm = np.array(shape) * np.array(view.spacing_mm)
    where = _places(patient, matrix, centre, shape, view.spacing_mm, augmentation.bending(extent_mm, rng))
    nearest = rng.random() < augmentation.nearest_probability
    crop = _sampled(patient, where, view, "nearest" if nearest else "bilinear")
    if mirrored:
        crop = _exchanged(crop, view.structures)
    first, stop = augmentation.cut_slices(shape[0], rng)
    image = augmentation.disturbed(crop.image[0], view.window, rng)
    labels = crop.labels
    for beyond in (slice(0, first), slice(stop, None)):
        image[beyond] = 0
        labels[beyond] = 0
    return replace(crop, image=image[None], labels=labels)


def whole_patient(patient: Patient, view: View, multiple_of: int) -> Crop:
    """The whole volume, unturned, on the model's spacing, as the product frames it.

    The grid is centred on the CT's; behind its last voxels it is padded with air.
    """
    reach_mm = (np.array(patient.hu.shape) - 1) * patient.spacing_mm
    counts = np.floor(reach_mm / view.spacing_mm + 1e-6).astype(int) + 1
    padded = -(-counts // multiple_of) * multiple_of
    shape = (int(padded[0]), int(padded[1]), int(padded[2]))
    shift = (padded - counts) / 2 * np.array(view.spacing_mm) / patient.spacing_mm
    centre = (np.array(patient.hu.shape) - 1) / 2 + shift
    where = _places(patient, np.eye(3), centre, shape, view.spacing_mm, None)
    return _sampled(patient, where, view, "bilinear")


def _places(
    patient: Patient,
    matrix: NDArray[np.float64],
    centre: NDArray[np.float64],
    shape: Shape,
    spacing_mm: Millimetres,
    bending: Tensor | None,
) -> Tensor:
    """Where the crop's voxels lie in the patient: native indices (*shape, 3).

    Args:
        matrix: maps the crop's millimetres from its centre to the patient's.
        centre: native index of the crop's centre.
        bending: shifts in mm at the nodes of a coarse grid over the crop.
    """
    half_mm = (np.array(shape) - 1) / 2 * np.array(spacing_mm)
    axes = [torch.linspace(-half, half, count) for half, count in zip(half_mm, shape, strict=True)]
    places_mm = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    if bending is not None:
        shifts = functional.interpolate(bending, shape, mode="trilinear", align_corners=True)
        places_mm = places_mm + shifts[0].movedim(0, -1)
    to_index = torch.from_numpy(matrix / patient.spacing_mm[:, None]).float()
    return places_mm @ to_index.T + torch.from_numpy(centre).float()


def _sampled(patient: Patient, where: Tensor, view: View, mode: str) -> Crop:
    """CT and labels at native indices (slices, rows, columns, 3); outside the volume air and background."""
    extent = torch.tensor(patient.hu.shape, dtype=torch.float32)
    grid = (2 * where / (extent - 1) - 1).flip(-1)[None]
    image = torch.from_numpy(windowed(patient.hu, view.window))[None, None]
    return Crop(
        functional.grid_sample(image, grid, mode=mode, padding_mode="zeros", align_corners=True)[0],
        _labels_at(patient, grid),
        torch.from_numpy(patient.annotated.copy()),
    )


def _labels_at(patient: Patient, grid: Tensor) -> Tensor:
    """Each voxel gets the organ that fills the largest share of it, if that is half or more."""
    drawn = np.flatnonzero(patient.annotated[1:]) + 1
    masks = torch.from_numpy(patient.labels[None] == drawn[:, None, None, None].astype(np.uint8)).float()
    shares = functional.grid_sample(masks[None], grid, padding_mode="zeros", align_corners=True)[0]
    if not len(drawn):
        return torch.zeros(grid.shape[1:4], dtype=torch.uint8)
    largest, which = shares.max(dim=0)
    return torch.where(largest >= 0.5, torch.from_numpy(drawn.astype(np.uint8))[which], 0).byte()


def _exchanged(crop: Crop, structures: tuple[str, ...]) -> Crop:
    """Left and right structures swapped after a mirroring."""
    table = np.arange(len(structures) + 1)
    for left, right in MIRROR_PAIRS:
        if left in structures and right in structures:
            a, b = structures.index(left) + 1, structures.index(right) + 1
            table[a], table[b] = b, a
    labels = torch.from_numpy(table.astype(np.uint8))[crop.labels.long()]
    return replace(crop, labels=labels, annotated=crop.annotated[torch.from_numpy(table)])
