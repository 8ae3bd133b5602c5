"""How far a training crop may be from the patient that it was taken from.

Owns the random maps of space (turned, scaled, bent), and what scanners, couches and fillings do to a CT.
Speaks millimetres (slice, row, column) for space, and images windowed to 0..1, (slices, rows, columns).
Never touches labels: what is changed here is the CT that the network sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.card import Window

_NODE_MM = 48.0
"""Distance between the nodes of the elastic map: bends necks and cheeks, not single organs."""


@dataclass(frozen=True)
class Augmentation:
    """How much of each disturbance a crop may get; everything off by default.

    Attributes:
        rotation_deg, scale: about and along each axis, at most.
        elastic_mm: standard deviation of the random shift at each node of a coarse grid.
        mirror: whether left and right are exchanged half the time.
        nearest_probability: how often the CT is point-sampled as the archive was, not interpolated.
        blur: largest share of a 3x3x3 mean in the image: other kernels, thicker slices. A third as much
            may be taken away, which sharpens.
        gain, shift_hu, noise_hu: another calibration, at most.
        cut: how often the scan ends within the crop, above or below.
        clutter: how often a couch or a mask lies at the skin.
        streaks: how often a filling throws streaks.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    elastic_mm: float = 0.0
    mirror: bool = False
    nearest_probability: float = 0.0
    blur: float = 0.0
    gain: float = 0.0
    shift_hu: float = 0.0
    noise_hu: float = 0.0
    cut: float = 0.0
    clutter: float = 0.0
    streaks: float = 0.0

    def matrix(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random rotation and scaling, 3x3 over (slice, row, column) millimetres."""
        angles = np.deg2rad(rng.uniform(-self.rotation_deg, self.rotation_deg, 3))
        matrix = np.diag(1 + rng.uniform(-self.scale, self.scale, 3))
        for axis, angle in enumerate(angles):
            first, second = [other for other in range(3) if other != axis]
            rotation = np.eye(3)
            rotation[first, first] = rotation[second, second] = np.cos(angle)
            rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
            matrix = rotation @ matrix
        return matrix

    def bending(self, extent_mm: NDArray[np.float64], rng: np.random.Generator) -> Tensor | None:
        """Shifts in mm at the nodes of a coarse grid over the crop, (1, 3, *nodes); None where it is off."""
        if self.elastic_mm == 0:
            return None
        nodes = np.maximum(2, np.rint(extent_mm / _NODE_MM).astype(int) + 1)
        return torch.from_numpy(rng.normal(0, self.elastic_mm, (1, 3, *nodes)).astype(np.float32))

    def disturbed(self, image: Tensor, window: Window, rng: np.random.Generator) -> Tensor:
        """The image (slices, rows, columns) as another scanner, couch and dentist would have it."""
        per_hu = 1 / (window.upper_hu - window.lower_hu)
        if rng.random() < self.streaks:
            image = _with_streaks(image, rng)
        if self.blur:
            image = _blurred(image, rng.uniform(-self.blur / 3, self.blur))
        image = self._on_another_scanner(image, per_hu, rng)
        if rng.random() < self.clutter:
            image = _with_couch(image, rng) if rng.random() < 0.5 else _with_mask(image, rng)
        return image

    def _on_another_scanner(self, image: Tensor, per_hu: float, rng: np.random.Generator) -> Tensor:
        """Gain, offset and noise; air stays air."""
        noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
        changed = (
            image * (1 + rng.uniform(-self.gain, self.gain))
            + rng.uniform(-self.shift_hu, self.shift_hu) * per_hu
            + noise * rng.uniform(0, self.noise_hu) * per_hu
        )
        return torch.where(image == 0, 0.0, changed).clamp(0, 1)

    def cut_slices(self, slices: int, rng: np.random.Generator) -> tuple[int, int]:
        """First slice of the scan within the crop, and the one behind its last; half of it at least stays."""
        if rng.random() >= self.cut:
            return 0, slices
        lost = rng.integers(1, slices // 2)
        return (int(lost), slices) if rng.random() < 0.5 else (0, slices - int(lost))


def _blurred(image: Tensor, share: float) -> Tensor:
    mean = functional.avg_pool3d(image[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    # Air is told by its zero; it stays so.
    mixed = image + share * (mean - image)
    return torch.where(image == 0, 0.0, mixed).clamp(0, 1)


def _with_streaks(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A filling somewhere in the tissue: saturated itself, with dark and bright rays in a few slices."""
    tissue = torch.nonzero(image > 0.2)
    if not len(tissue):
        return image
    plane, row, column = (int(index) for index in tissue[int(rng.integers(len(tissue)))])
    rows = torch.arange(image.shape[1])[:, None] - row
    columns = torch.arange(image.shape[2])[None, :] - column
    distance = torch.sqrt(rows**2 + columns**2).float()
    angle = torch.atan2(rows.float(), columns.float())
    rays = torch.zeros_like(distance)
    for _ in range(int(rng.integers(3, 9))):
        sharpness = float(rng.uniform(20, 120))
        rays += float(rng.uniform(-0.5, 0.5)) * torch.exp(
            sharpness * (torch.cos(angle - rng.uniform(0, 2 * np.pi)) - 1)
        )
    rays *= torch.exp(-distance / float(rng.uniform(8, 25)))
    result = image.clone()
    half = int(rng.integers(0, 3))
    planes = slice(max(0, plane - half), plane + half + 1)
    struck = (image[planes] + rays).clamp(0, 1)
    result[planes] = torch.where(image[planes] == 0, 0.0, struck)
    result[planes][:, distance <= float(rng.uniform(0.5, 2.0))] = 1.0
    return result


def _outside(image: Tensor) -> Tensor:
    """Bool, same shape: air before the first and behind the last tissue of its column of rows."""
    tissue = image > 0
    before = tissue.cummax(dim=1).values
    behind = tissue.flip(1).cummax(dim=1).values.flip(1)
    return ~(before & behind)


def _with_mask(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A thermoplastic mask: a shell of holes and plastic, one voxel thick, at or just off the skin."""
    body = (image > 0).float()[None, None]
    gap = int(rng.integers(0, 3))
    inner = functional.max_pool3d(body, 2 * gap + 1, stride=1, padding=gap)[0, 0] > 0
    outer = functional.max_pool3d(body, 2 * gap + 3, stride=1, padding=gap + 1)[0, 0] > 0
    holes = torch.from_numpy(rng.random(image.shape, np.float32)) < rng.uniform(0, 0.6)
    shell = outer & ~inner & _outside(image) & ~holes
    return torch.where(shell, float(rng.uniform(0.1, 0.4)), image)


def _with_couch(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A plate behind the patient, level or tilted, through all slices or the lower ones."""
    rows = torch.arange(image.shape[1], dtype=torch.float32)[None, :, None]
    columns = torch.arange(image.shape[2], dtype=torch.float32)[None, None, :]
    tissue = torch.nonzero(image > 0)
    if not len(tissue):
        return image
    lowest = float(tissue[:, 1].max())
    level = (
        lowest + float(rng.uniform(-12, 2)) + (columns - image.shape[2] / 2) * float(rng.uniform(-0.05, 0.05))
    )
    plate = (rows >= level) & (rows < level + float(rng.uniform(1, 4)))
    reach = torch.arange(image.shape[0])[:, None, None] < image.shape[0] * float(rng.uniform(0.4, 1.6))
    return torch.where(plate & reach & _outside(image), float(rng.uniform(0.05, 0.5)), image)
