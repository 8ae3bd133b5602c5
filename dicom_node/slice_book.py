"""Every axial slice with its contours, as pictures to scroll through; drawn in a process of its own.

Owns the drawing, and the file in which it comes: a ZIP of `book.json` and a JPEG a slice.
Speaks `python -m dicom_node.slice_book STORAGE JOB`: the file on standard output, or why there is none.
Never draws in the process that receives, and never says who the patient is.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from dicom_node.config import Storage
from dicom_node.ct_series import CtSeries
from dicom_node.database import open_engine
from dicom_node.errors import AnatomyNodeError
from dicom_node.painting import drawn
from dicom_node.preview import WINDOW_HU
from dicom_node.received import ReceivedRoi, read_rois
from inference.volume import PlaneStack

BEYOND_SLICES = 3
"""So many slices are shown above and below the contours."""
AROUND_MM = 40.0
MAX_SLICES = 400
NICE = 5
"""A third of what one who receives gets of a core; with far less it would starve beside a contouring."""
MOST_MEMORY_BYTES, MOST_CPU_S = 6 << 30, 120
REFUSED = 3
"""The exit status with which a reason for a person stands on the standard error stream."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The part of each slice that is shown, as a radiologist sees it: from the feet, anterior at the top.

    Attributes:
        low, high: (row, column) of the first voxel, and one beyond the last.
    """

    planes: PlaneStack
    low: tuple[int, int]
    high: tuple[int, int]

    @cached_property
    def is_transposed(self) -> bool:
        """Whether rows, and not columns, run across the patient."""
        return bool(abs(self.planes.row_direction[0]) < abs(self.planes.column_direction[0]))

    @cached_property
    def flips(self) -> tuple[bool, bool]:
        """Whether x, and y, run against the index that they follow: x to the left, y to the back."""
        across, down = self.planes.row_direction, self.planes.column_direction
        if self.is_transposed:
            across, down = down, across
        return bool(across[0] < 0), bool(down[1] < 0)

    @cached_property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        rows, columns = (high - low for low, high in zip(self.low, self.high, strict=True))
        height, width = rows * self.planes.row_spacing_mm, columns * self.planes.column_spacing_mm
        return (height, width) if self.is_transposed else (width, height)

    def picture(self, hu: NDArray[np.int16]) -> Image.Image:
        """One slice (rows, columns) in grey, with square pixels."""
        lower, upper = WINDOW_HU
        part = hu[self.low[0] : self.high[0], self.low[1] : self.high[1]].astype(np.float32)
        grey = (np.clip((part - lower) / (upper - lower), 0, 1) * 255).astype(np.uint8)
        if self.is_transposed:
            grey = grey.T
        flip_x, flip_y = self.flips
        grey = grey[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        image = Image.fromarray(np.ascontiguousarray(grey))
        pixel_mm = min(self.planes.row_spacing_mm, self.planes.column_spacing_mm)
        width, height = (max(1, round(extent / pixel_mm)) for extent in self.size_mm)
        return (
            image
            if image.size == (width, height)
            else image.resize((width, height), Image.Resampling.BILINEAR)
        )

    def points_mm(self, ring: Floats) -> Floats:
        """(n, 2) millimetres (x, y) from the picture's upper left corner, of (row, column) indices."""
        spacing = np.array((self.planes.row_spacing_mm, self.planes.column_spacing_mm))
        # The corner lies half a voxel before the first voxel's centre.
        across_rows = (ring - np.array(self.low) + 0.5) * spacing
        xy = across_rows if self.is_transposed else across_rows[:, ::-1]
        sizes, flips = np.array(self.size_mm), np.array(self.flips)
        return np.asarray(np.where(flips, sizes - xy, xy), np.float64)


def book(series: CtSeries, rt_struct: bytes) -> bytes:
    """The file; see `book.json` in `_told`."""
    rois = read_rois(dcmread(BytesIO(rt_struct)), series)
    planes = series.volume.planes
    window, slices = _window(planes, rois), _slices(planes, rois)
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr("book.json", json.dumps(_told(window, slices, rois)))
        for index in slices:
            picture = BytesIO()
            window.picture(series.volume.hu[index]).save(picture, "JPEG", quality=85)
            packed.writestr(f"{index + 1}.jpg", picture.getvalue())
    return file.getvalue()


def _told(window: Window, slices: range, rois: tuple[ReceivedRoi, ...]) -> dict[str, Any]:
    """Slices are numbered from 1, as in every other place where a person reads of them; heads first."""
    planes = window.planes
    top_first = sorted(slices, key=lambda index: -planes.origins_mm[index][2])
    return {
        "size_mm": [round(extent, 2) for extent in window.size_mm],
        "of": planes.shape[0],
        "slices": [
            {
                "number": index + 1,
                "z_mm": round(float(planes.origins_mm[index][2]), 1),
                "outlines": dict(_outlines(window, index, rois)),
            }
            for index in top_first
        ],
        "rois": [
            {
                "number": roi.number,
                "name": roi.name,
                "color": "#{:02x}{:02x}{:02x}".format(*roi.color),
                "middle": sorted(roi.rings)[len(roi.rings) // 2] + 1,
            }
            for roi in rois
        ],
    }


def _outlines(window: Window, index: int, rois: tuple[ReceivedRoi, ...]) -> Iterator[tuple[str, str]]:
    """SVG path data by ROI number."""
    for roi in rois:
        lines = (window.points_mm(ring) for ring in roi.rings.get(index, ()))
        data = "".join(f"M{' '.join(f'{x:.1f},{y:.1f}' for x, y in line)}Z" for line in lines)
        if data:
            yield str(roi.number), data


def _window(planes: PlaneStack, rois: tuple[ReceivedRoi, ...]) -> Window:
    points = np.concatenate([ring for roi in rois for rings in roi.rings.values() for ring in rings])
    margin = AROUND_MM / np.array((planes.row_spacing_mm, planes.column_spacing_mm))
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin) + 1, (planes.rows, planes.columns)).astype(int)
    return Window(planes, (int(low[0]), int(low[1])), (int(high[0]), int(high[1])))


def _slices(planes: PlaneStack, rois: tuple[ReceivedRoi, ...]) -> range:
    drawn_on = [index for roi in rois for index in roi.rings]
    first = max(min(drawn_on) - BEYOND_SLICES, 0)
    last = min(max(drawn_on) + BEYOND_SLICES, planes.shape[0] - 1)
    return range(first, min(last + 1, first + MAX_SLICES))


def _yield_to_others() -> None:
    """What receives goes first, and nothing here grows without end; a sandbox may forbid to say so."""
    with suppress(OSError):
        os.nice(NICE)
    with suppress(OSError):  # where memory runs short, this goes first
        Path("/proc/self/oom_score_adj").write_text("500")
    for kind, most in ((resource.RLIMIT_AS, MOST_MEMORY_BYTES), (resource.RLIMIT_CPU, MOST_CPU_S)):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def main(folder: Path, job: int) -> int:
    """Draw one job; the exit status."""
    _yield_to_others()
    storage = Storage(folder=folder)
    engine = open_engine(storage.database)
    try:
        series, rt_struct, _ = drawn(engine, job, storage)
        made = book(series, rt_struct)
    except AnatomyNodeError as problem:
        sys.stderr.write(problem.reason)
        return REFUSED
    finally:
        engine.dispose()
    sys.stdout.buffer.write(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
