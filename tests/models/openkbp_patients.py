"""Patients as the OpenKBP archive holds them, made from geometry.

Owns `.npz` archives whose content is known: the phantom cut free from its couch, or blocks in tissue.
Speaks HU and bool masks (slices, rows, columns).
Never reads a real patient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.phantom import Grid, build

SPACING_MM = (3.0, 4.0, 4.0)
FIRST_ROW, FIRST_COLUMN = 26, 6


def write_archive(
    path: Path,
    hu: NDArray[np.int16],
    drawings: Mapping[str, NDArray[np.bool_]],
    fraction_inside: Mapping[str, float] | None = None,
) -> Path:
    """One patient; `drawings` by key (`clinical/Brainstem`), each within the slab unless told otherwise."""
    inside = {**dict.fromkeys(drawings, 1.0), **(fraction_inside or {})}
    np.savez_compressed(
        path,
        ct_hu=hu,
        spacing_mm=np.array(SPACING_MM, np.float32),
        offset_voxels=np.array((0, FIRST_ROW, FIRST_COLUMN)),
        fraction_inside=json.dumps(inside),
        **drawings,
    )
    return path


def write_phantom_archive(path: Path) -> Path:
    """The phantom from the shoulders up, on the archive's grid, with its organs as clinical contours."""
    phantom = build(Grid(60, 116, SPACING_MM))
    slab = (slice(None), slice(20, 96), slice(None))
    hu = phantom.hu[slab].copy()
    hu[~body_of(hu)] = -1000
    return write_archive(
        path, hu, {f"clinical/{name}": mask[slab] for name, mask in phantom.structures.items()}
    )


def body_of(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """The largest thick piece of tissue, its cavities filled plane by plane."""
    pieces, _ = ndimage.label(ndimage.binary_opening(hu > -400, np.ones((1, 3, 3))))
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(plane) for plane in largest])
