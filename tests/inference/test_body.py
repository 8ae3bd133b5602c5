"""The network is shown the body, the whole body as far as it may, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from inference.body import crop, find_body, frame
from inference.errors import OutsideModelError
from inference.volume import PlaneStack, Volume
from models.card import Input, Window

SPACING_MM = (3.0, 4.0, 4.0)
MODEL = Input(
    spacing_mm=SPACING_MM,
    window=Window(lower_hu=-200, upper_hu=800),
    max_extent_mm=(120.0, 320.0, 160.0),
    body_threshold_hu=-400,
)


def cylinder(shape: tuple[int, int, int], radius: float, centre: tuple[float, float]) -> np.ndarray:
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return np.broadcast_to(disc, shape).copy()


def test_a_couch_that_touches_the_body_is_not_body_and_an_airway_is() -> None:
    shape = (20, 60, 70)
    body = cylinder(shape, 18, (25, 35))
    airway = cylinder(shape, 4, (25, 35))
    couch = np.zeros(shape, bool)
    couch[:, 43:45, :] = True
    found = find_body((body & ~airway) | couch, SPACING_MM)
    assert found[airway].all()
    assert (found & body).sum() > 0.97 * body.sum()
    assert (found & couch & ~body).sum() < 0.15 * couch.sum()


def test_without_anything_as_large_as_a_head_there_is_no_body() -> None:
    for radius in (0.0, 5.0):
        dense = cylinder((10, 60, 60), radius, (30, 30)) if radius else np.zeros((10, 60, 60), bool)
        with pytest.raises(OutsideModelError, match="no body was found") as refused:
            find_body(dense, SPACING_MM)
        assert refused.value.code == "no_body"


def test_a_long_body_keeps_its_superior_end_and_a_wide_one_its_centre() -> None:
    body = np.zeros((90, 60, 100), bool)
    body[5:80, 10:50, 10:90] = True
    start, extent, cut = crop(body, MODEL)
    assert (start, extent, cut) == ((40, 10, 30), (40, 40, 40), True)


def test_a_body_within_the_bounds_is_shown_whole() -> None:
    body = np.zeros((30, 60, 60), bool)
    body[3:20, 10:50, 20:51] = True
    assert crop(body, MODEL) == ((3, 10, 20), (17, 40, 31), False)


def test_the_image_is_windowed_even_in_extent_and_air_outside_the_body() -> None:
    shape = (31, 80, 80)
    hu = np.full(shape, -1000, np.int16)
    body = cylinder(shape, 25, (40, 40))
    hu[body] = 300
    hu[:, 74:76, :] = 1500  # a couch, away from the body
    origins = np.zeros((shape[0], 3))
    origins[:, 2] = 2.5 * np.arange(shape[0])
    planes = PlaneStack(origins, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 3.0, 3.0, 80, 80)
    framed = frame(Volume(hu, planes), MODEL)
    assert framed.image.dtype == np.float32
    assert all(extent % 2 == 0 for extent in framed.image.shape)
    assert framed.image.max() == pytest.approx(0.5)  # 300 HU; the couch would be 1
    assert framed.image.min() == 0
    volume_cm3 = (framed.image > 0.25).sum() * np.prod(SPACING_MM) / 1000
    assert volume_cm3 == pytest.approx(body.sum() * 2.5 * 9 / 1000, rel=0.06)
