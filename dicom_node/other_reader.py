"""An RT Structure Set as a reader sees it that is not ours: rt-utils with OpenCV.

Owns the door to what rt-utils reads.
Speaks folders and files in, LPS millimetres and cm3 out.
Never reads tilted or uneven series: rt-utils takes every series as straight and even.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rt_utils import RTStructBuilder, image_helper

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class SeenRoi:
    """Where another reader sees an ROI.

    Attributes:
        centre_mm: (x, y, z) LPS, of its voxels' centres.
    """

    centre_mm: Vector
    volume_cm3: float


def read(series_folder: Path, rt_struct: Path, roi: str) -> SeenRoi:
    """The voxels of one ROI.

    Raises:
        Exception: rt-utils takes the object for invalid, or finds none of its slices or no such ROI.
    """
    seen = RTStructBuilder.create_from(str(series_folder), str(rt_struct))
    rows, columns, slices = np.nonzero(seen.get_roi_mask_by_name(roi))
    to_mm = image_helper.get_pixel_to_patient_transformation_matrix(seen.series_data)
    # The matrix takes (column, row, slice), whatever its author calls the directions.
    centre = to_mm @ np.array([columns.mean(), rows.mean(), slices.mean(), 1.0])
    return SeenRoi(centre[:3], len(rows) * float(abs(np.linalg.det(to_mm[:3, :3]))) / 1000)
