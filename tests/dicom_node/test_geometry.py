"""Contours lie on the body that was scanned, however it was scanned.

A ball and the body round it, known by their formulas in patient coordinates, are taken in many ways and go
through everything that a patient's CT goes through. Only the network is a stand-in: it knows HU alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless

from dicom_node import contouring
from dicom_node.config import Config, Inference
from dicom_node.ct_series import assemble
from dicom_node.ct_slice import read_slice
from inference import segmenter as room
from inference.segmenter import Segmenter
from models.card import ModelPackage
from tests import organs
from tests.phantoms import ORIENTATIONS, Phantom, encode, slices

CENTRE_MM = np.array([13.7, -21.3, -244.6])
RADIUS_MM = 24.0
BODY_MM = np.array([75.0, 85.0, 300.0])
"""Half axes of the body."""
BODY_OFF_MM = np.array([6.0, -4.0, 0.0])
"""From the body's middle to the ball's."""
EDGE_MM = 20.0
"""How wide the ball's edge is: the network samples every 4 mm, and 0.5 must lie on the surface."""
OFF_SURFACE_MM = 0.35
OFF_PLANE_MM = 0.01
FIELD_MM = 230.0
SETTINGS = Config(peers=(), destinations=(), inference=Inference(device="cpu"))


def stacked(*gaps_mm: float) -> tuple[float, ...]:
    return tuple(float(offset) for offset in np.concatenate(([0.0], np.cumsum(gaps_mm))).round(4))


def turned(about_x_deg: float, about_y_deg: float, about_z_deg: float) -> tuple[float, ...]:
    """ImageOrientationPatient of an axial plane that was turned."""
    (ca, cb, cc), (sa, sb, sc) = (
        fun(np.radians((about_x_deg, about_y_deg, about_z_deg))) for fun in (np.cos, np.sin)
    )
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    matrix = about_z @ about_y @ about_x
    return (*matrix[:, 0].tolist(), *matrix[:, 1].tolist())


def tilted(orientation: tuple[float, ...], along: tuple[float, float, float]) -> Phantom:
    """The planes lean; the couch moved along `along`, by 1 mm for each millimetre between the planes."""
    normal = np.cross(orientation[:3], orientation[3:])
    step = np.array(along) / float(np.dot(along, normal))
    return EVEN.but(orientation=orientation, step_direction=tuple(step.tolist()))


def matrix(extent: int, **fields: object) -> Phantom:
    return EVEN.but(
        rows=extent, columns=extent, pixel_spacing=(FIELD_MM / extent, FIELD_MM / extent), **fields
    )


EVEN = Phantom(offsets_mm=stacked(*22 * (3.0,)), rows=115, columns=115, pixel_spacing=(2.0, 2.0))
UNEVEN = stacked(*12 * (3.0,), *6 * (6.0,))
UPWARDS, DOWNWARDS = (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)

ACQUISITIONS: dict[str, Phantom] = {
    **{position: EVEN.but(orientation=cosines) for position, cosines in ORIENTATIONS.items()},
    "oblique": EVEN.but(orientation=turned(12, -9, 20)),
    "oblique, far from axial": EVEN.but(orientation=turned(30, 20, 0)),
    "gantry tilted forwards": tilted(turned(18, 0, 0), UPWARDS),
    "gantry tilted backwards": tilted(turned(-22.5, 0, 0), UPWARDS),
    "gantry tilted, feet first, prone": tilted((1, 0, 0, 0, -0.9659258263, 0.2588190451), DOWNWARDS),
    "rows wider than columns": EVEN.but(rows=77, columns=144, pixel_spacing=(3.0, 1.6)),
    "columns wider than rows": EVEN.but(rows=144, columns=77, pixel_spacing=(1.6, 3.0)),
    "3 then 6 mm": EVEN.but(offsets_mm=UNEVEN),
    "6 then 3 mm, falling": EVEN.but(offsets_mm=UNEVEN[::-1]),
    "thin slices": EVEN.but(offsets_mm=stacked(*70 * (1.0,))),
    "thick slices": EVEN.but(offsets_mm=stacked(*14 * (5.0,))),
    "z falls": EVEN.but(offsets_mm=EVEN.offsets_mm[::-1], transfer_syntax=ImplicitVRLittleEndian),
    "256 matrix, big endian": matrix(256, transfer_syntax=ExplicitVRBigEndian),
    "512 matrix, JPEG-LS": matrix(512, offsets_mm=stacked(*14 * (5.0,)), transfer_syntax=JPEGLSLossless),
    "1024 matrix": matrix(1024, offsets_mm=stacked(*12 * (6.0,))),
    "all at once": tilted(turned(15, 0, 0), UPWARDS).but(
        offsets_mm=UNEVEN[::-1], rows=77, columns=144, pixel_spacing=(3.0, 1.6)
    ),
}


class KnowsDensity:
    """0.5 where a voxel is half way between the body's 0 HU and the ball's 200."""

    classes = 2
    device = "cpu"

    def __init__(self, *_: object) -> None:
        pass

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        dense = np.clip((image[0, 0] - 0.2) / 0.2, 0, 1)
        return np.stack((1 - dense, dense))[None].astype(np.float32)


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.setattr(room, "Session", KnowsDensity)
    ball = organs.structure().model_copy(update={"volume_cm3": (5, 200)})
    package = ModelPackage(organs.MODEL.model_copy(update={"structures": (ball,)}), Path("none.onnx"))
    return Segmenter(package, "cpu", allow_cpu=True, threads=1)


def taken(phantom: Phantom) -> list[Dataset]:
    """The body as this scanner would have seen it: the ball a little off the middle of the stack."""
    across, down = np.array(phantom.orientation[:3]), np.array(phantom.orientation[3:])
    step = np.cross(across, down) if phantom.step_direction is None else np.array(phantom.step_direction)
    row, column = phantom.pixel_spacing
    origin = (
        CENTRE_MM
        - 0.46 * (phantom.columns * column) * across
        - 0.52 * (phantom.rows * row) * down
        - 0.52 * max(phantom.offsets_mm) * step
    )
    placed = phantom.but(origin_mm=tuple(origin.tolist()))
    return slices(placed.but(hu=np.stack(list(seen(placed)))))


def seen(phantom: Phantom) -> Iterator[NDArray[np.int16]]:
    """HU (rows, columns) of each slice, from the formulas."""
    across, down = np.array(phantom.orientation[:3]), np.array(phantom.orientation[3:])
    rows, columns = np.ogrid[: phantom.rows, : phantom.columns]
    row, column = phantom.pixel_spacing
    plane = rows[..., None] * row * down + columns[..., None] * column * across
    for position in phantom.positions_mm:
        away = plane + position - CENTRE_MM
        inside = (((away + BODY_OFF_MM) / BODY_MM) ** 2).sum(-1) < 1
        ball = 200 * np.clip(0.5 - (np.linalg.norm(away, axis=-1) - RADIUS_MM) / EDGE_MM, 0, 1)
        yield np.where(inside, np.rint(ball), -1000).astype(np.int16)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_contours_lie_on_the_body_and_in_the_plane_of_the_slice_that_they_reference(
    name: str, segmenter: Segmenter
) -> None:
    datasets = {str(one.SOPInstanceUID): one for one in taken(ACQUISITIONS[name])}
    arriving = [encode(one) for one in datasets.values()]
    random.Random(name).shuffle(arriving)
    series = assemble((read_slice(BytesIO(data)) for data in arriving), min_slices=2)
    options = contouring.options_of(SETTINGS, organs.MODEL, datetime(2026, 1, 2, tzinfo=UTC))
    made = pydicom.dcmread(BytesIO(contouring.contour(series, segmenter, options).rt_struct.data))
    off_surface_mm, off_plane_mm, drawn = [], [], set()
    for item in made.ROIContourSequence[0].ContourSequence:
        uid = str(item.ContourImageSequence[0].ReferencedSOPInstanceUID)
        points = np.array(item.ContourData, float).reshape(-1, 3)
        off_plane_mm.append(np.abs(above(datasets[uid], points)).max())
        off_surface_mm.append(np.abs(np.linalg.norm(points - CENTRE_MM, axis=1) - RADIUS_MM).max())
        drawn.add(uid)
    assert max(off_plane_mm) <= OFF_PLANE_MM
    assert max(off_surface_mm) <= OFF_SURFACE_MM
    depths = {uid: abs(float(above(one, CENTRE_MM[None])[0])) for uid, one in datasets.items()}
    assert {uid for uid, mm in depths.items() if mm < RADIUS_MM - 1} <= drawn
    assert all(depths[uid] < RADIUS_MM + 1 for uid in drawn)


def above(dataset: Dataset, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) how far points (n, 3) are above a slice's plane, by its own position and orientation."""
    cosines = np.array(dataset.ImageOrientationPatient, float)
    away: NDArray[np.float64] = (points_mm - np.array(dataset.ImagePositionPatient, float)) @ np.cross(
        cosines[:3], cosines[3:]
    )
    return away
