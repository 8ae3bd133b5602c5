"""Segmentations made from geometry, for tests of contours and RT Structure Sets.

Owns builders of `StructureMap`, `Segmentation` and options whose content is known.
Speaks arrays (slices, rows, columns) and the CT's indices.
Never runs a network.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.rt_struct import RtStructOptions
from inference.contours import ContourMode
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack
from models.card import Code, Input, ModelDescription, Structure, Window

NAMES = ("Brainstem", "SpinalCord", "Parotid_L", "Parotid_R", "Bone_Mandible")

SIDES: Mapping[str, Literal["L", "R"]] = {"_L": "L", "_R": "R"}

MODEL = ModelDescription(
    name="anatomynet-test",
    version="1.2.3",
    sha256="ab" * 32,
    summary="Draws nothing; for tests.",
    licence="Apache-2.0",
    attributions=(),
    input=Input(
        spacing_mm=(3, 4, 4), window=Window(lower_hu=-200, upper_hu=800), max_extent_mm=(400, 400, 400)
    ),
    structures=(),
)


def options(mode: ContourMode = "smooth", simplify_mm: float = 0.1) -> RtStructOptions:
    return RtStructOptions(
        contour_mode=mode,
        simplify_mm=simplify_mm,
        structure_set_label="AnatomyNode",
        series_description="AnatomyNode contours (unapproved)",
        created_at=datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC),
        model=MODEL,
        program_version="0.1.0",
    )


def structure(name: str = "Brainstem", channel: int = 1) -> Structure:
    return Structure(
        name=name,
        channel=channel,
        color=(40 * channel % 256, 200, 30),
        code=Code(value="15926001", meaning="Brainstem"),
        laterality=SIDES.get(name[-2:]),
        volume_cm3=(1, 50),
    )


def structure_map(
    probability: NDArray[np.floating] | NDArray[np.bool_],
    start: Sequence[int] = (0, 0, 0),
    name: str = "Brainstem",
    channel: int = 1,
    flags: tuple[str, ...] = (),
) -> StructureMap:
    confidence = 0.9 if probability.size else None
    first = (start[0], start[1], start[2])
    return StructureMap(
        structure(name, channel), first, probability.astype(np.float32), 0.5, confidence, flags
    )


def boxed(mask: NDArray[np.bool_], name: str = "Brainstem", channel: int = 1) -> StructureMap:
    """A whole-volume mask as a map in its own box, with the margin that the contract asks for."""
    if not mask.any():
        return structure_map(np.zeros((0, 0, 0)), name=name, channel=channel)
    spans = [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]
    start = [max(0, low - 1) for low, _ in spans]
    box = tuple(slice(first, high + 2) for first, (_, high) in zip(start, spans, strict=True))
    return structure_map(mask[box], start, name, channel)


def ball(
    planes: PlaneStack, centre: Sequence[float], radius_mm: float, name: str, channel: int
) -> StructureMap:
    """A soft ball about an index (slice, row, column); its probability falls by 0.2 a millimetre."""
    slices, rows, columns = np.ogrid[tuple(slice(0, extent) for extent in planes.shape)]
    offsets = planes.offsets_mm[slices.ravel()] - np.interp(
        centre[0], np.arange(len(planes.offsets_mm)), planes.offsets_mm
    )
    distance = np.sqrt(
        offsets[:, None, None] ** 2
        + ((rows - centre[1]) * planes.row_spacing_mm) ** 2
        + ((columns - centre[2]) * planes.column_spacing_mm) ** 2
    )
    probability = np.clip(0.5 + 0.2 * (radius_mm - distance), 0, 1)
    return structure_map(probability, name=name, channel=channel)


def segmentation(planes: PlaneStack, mode: str = "soft") -> Segmentation:
    """Five balls of 5 to 20 mm in the middle of a volume; `mode` hard makes them masks."""
    middle = [(extent - 1) / 2 for extent in planes.shape]
    balls = [
        ball(
            planes, (middle[0], middle[1] + 2 * index, middle[2] - 3 * index), 5 + 4 * index, name, index + 1
        )
        for index, name in enumerate(NAMES)
    ]
    if mode == "hard":
        balls = [
            structure_map(found.mask, name=found.structure.name, channel=found.structure.channel)
            for found in balls
        ]
    return Segmentation(tuple(balls), "cpu", {})


def read_nrrd(path: Path) -> NDArray[np.bool_]:
    """A uint8 NRRD, packed or not, as bool (slices, rows, columns)."""
    header, _, content = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    sizes = [int(size) for size in fields["sizes"].split()]
    raw = gzip.decompress(content) if fields["encoding"].startswith("gz") else content
    return np.frombuffer(raw, np.uint8).reshape(sizes[::-1]) > 0
