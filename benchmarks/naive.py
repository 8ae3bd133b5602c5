"""The peer: the chain that everybody writes first, with pydicom, scipy and rt-utils as their pages show it.

Owns the naive work between the last slice on disk and the RT-STRUCT on disk, the network left out.
Speaks seconds by stage, for the very masks that the node drew.
Never made slower than it is in the wild: each line stands in a tutorial of its library.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from rt_utils import RTStructBuilder
from scipy.ndimage import zoom

Mask = NDArray[np.bool_]


@dataclass
class Stages:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under this name."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin

    @property
    def total(self) -> float:
        """All stages together."""
        return sum(self.seconds.values())


def contour(
    folder: Path, masks: Mapping[str, Mask], spacing_mm: tuple[float, float, float], output: Path
) -> Stages:
    """Do what follows a series' last slice, with `masks` in the place of what a network finds.

    Args:
        folder: the series, and nothing else.
        masks: bool (slices, rows, columns), z ascending, on the series' own grid.
        spacing_mm: the model's own, (slice, row, column).
        output: the RT-STRUCT to write.
    """
    stages = Stages()
    with stages.stage("read"):
        slices = sorted(
            (pydicom.dcmread(file) for file in folder.glob("*.dcm")),
            key=lambda one: float(one.ImagePositionPatient[2]),
        )
        volume = np.stack([one.pixel_array * one.RescaleSlope + one.RescaleIntercept for one in slices])
    with stages.stage("resample"):
        between = float(slices[1].ImagePositionPatient[2] - slices[0].ImagePositionPatient[2])
        native = np.array((between, *map(float, slices[0].PixelSpacing)))
        factors = native / np.array(spacing_mm)
        network_input = np.clip((zoom(volume, factors) + 200) / 1000, 0, 1)
    predicted = _as_the_network_would(masks, network_input.shape)
    with stages.stage("masks back"):
        back = {
            name: zoom(found, np.array(volume.shape) / np.array(found.shape), order=0).astype(bool)
            for name, found in predicted.items()
        }
    with stages.stage("rt-utils reads again"):
        rt_struct = RTStructBuilder.create_new(dicom_series_path=str(folder))
    with stages.stage("add_roi"):
        for name, mask in back.items():
            rt_struct.add_roi(mask=np.moveaxis(mask, 0, -1), name=name)
    with stages.stage("save"):
        rt_struct.save(str(output))
    return stages


def _as_the_network_would(masks: Mapping[str, Mask], shape: tuple[int, ...]) -> dict[str, NDArray[np.uint8]]:
    """The masks on the model's grid; not timed, for the forward pass is not."""
    grids = []
    for count, native in zip(shape, next(iter(masks.values())).shape, strict=True):
        grids.append(np.minimum((np.arange(count) + 0.5) * native / count, native - 1).astype(int))
    return {name: mask[np.ix_(*grids)].astype(np.uint8) for name, mask in masks.items()}
