"""The same patient gives the same structures in the same place, however the CT was acquired.

The network is a stand-in that knows HU and sides: what is denser than the body is a gland, left or right
of the image's middle. So everything but the forward pass is the product's own.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from inference import segmenter as room
from inference.errors import InferenceFailedError, OutsideModelError
from inference.segmentation import Segmentation
from inference.segmenter import Segmenter
from inference.volume import PlaneStack, Volume
from models.card import PACKAGES, Code, ModelPackage, Structure, read_package
from tests.organs import MODEL

BODY_HU, GLAND_HU = 0, 200
CENTRE_MM = np.array([10.0, -20.0, 400.0])
# Lateral, posterior and superior of the body's centre, and the radius: left is a little larger.
GLANDS_MM = {"Gland_L": (np.array([45.0, 10, 5]), 20.0), "Gland_R": (np.array([-45.0, 10, 5]), 17.0)}
BODY_RADII_MM = np.array([80.0, 95.0, 200.0])


class DensityNetwork:
    """Probabilities as a network might give them: 0.5 half way between body and gland."""

    classes = 3
    device = "cpu"

    def __init__(self, *_: object) -> None:
        pass

    def run(self, image: np.ndarray) -> np.ndarray:
        dense = np.clip((image[0, 0] - 0.2) / 0.2, 0, 1)
        left = np.arange(image.shape[-1]) >= image.shape[-1] / 2
        probabilities = np.stack((1 - dense, dense * left, dense * ~left))[None]
        return probabilities.astype(np.float32)


def package() -> ModelPackage:
    glands = tuple(
        Structure(
            name=name,
            channel=channel,
            color=(0, 0, 0),
            code=Code(value="45289007", meaning="Parotid gland"),
            laterality=name[-1],
            volume_cm3=(5, 80),
        )
        for channel, name in enumerate(GLANDS_MM, start=1)
    )
    model_input = MODEL.input.model_copy(update={"max_extent_mm": (360, 320, 512)})
    description = MODEL.model_copy(update={"input": model_input, "structures": glands})
    return ModelPackage(description, Path("none.onnx"))


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.setattr(room, "Session", DensityNetwork)
    return Segmenter(package(), "cpu", allow_cpu=True, threads=1)


def positions(planes: PlaneStack) -> np.ndarray:
    return (
        planes.origins_mm[:, None, None]
        + np.arange(planes.rows)[None, :, None, None] * planes.row_step_mm
        + np.arange(planes.columns)[None, None, :, None] * planes.column_step_mm
    )


def scanned(planes: PlaneStack, glands: bool = True) -> Volume:
    """The anatomy above, point-sampled by any stack of planes."""
    place = positions(planes) - CENTRE_MM
    hu = np.full(planes.shape, -1000, np.int16)
    hu[((place / BODY_RADII_MM) ** 2).sum(axis=-1) <= 1] = BODY_HU
    for centre, radius in GLANDS_MM.values() if glands else ():
        hu[((place - centre) ** 2).sum(axis=-1) <= radius**2] = GLAND_HU
    return Volume(hu, planes)


def stack(row: np.ndarray, column: np.ndarray, offsets: np.ndarray, drift: float = 0.0) -> PlaneStack:
    """Planes of 2.5 x 2 mm pixels around the centre; `drift` is the tilt's tangent."""
    corner = CENTRE_MM - 60 * 2.5 * column - 70 * 2 * row
    origins = corner + offsets[:, None] * (np.cross(row, column) + drift * column)
    return PlaneStack(origins, row, column, 2.5, 2.0, 121, 141)


def check_glands(result: Segmentation, planes: PlaneStack) -> None:
    """Each gland is where it was put, within a millimetre, and as large as it was, within 7 %."""
    place = positions(planes) - CENTRE_MM
    for found in result.structures:
        centre, radius = GLANDS_MM[found.structure.name]
        assert found.flags == ()
        points = place[found.box][found.mask]
        weights = np.broadcast_to(planes.slice_thickness_mm[:, None, None], planes.shape)[found.box][
            found.mask
        ]
        np.testing.assert_allclose(np.average(points, axis=0, weights=weights), centre, atol=1.0)
        volume = weights.sum() * planes.row_spacing_mm * planes.column_spacing_mm
        assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.07)
        assert np.linalg.norm(points - centre, axis=-1).max() < radius + 3.5


EVEN = np.arange(-72.0, 73.0, 3.0)
UNEVEN = np.concatenate((np.arange(-72.0, 0.0, 2.0), np.arange(0.0, 73.0, 4.0)))


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("axes", [a[:2] for a in permutations(range(3))], ids=str)
def test_glands_are_found_where_they_lie_in_every_aligned_orientation(
    segmenter: Segmenter, axes: tuple[int, int], offsets: np.ndarray
) -> None:
    for row_sign, column_sign in ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0)):
        planes = stack(row_sign * np.eye(3)[axes[0]], column_sign * np.eye(3)[axes[1]], offsets)
        check_glands(segmenter.segment(scanned(planes)), planes)


@pytest.mark.parametrize("drift", [0.0, 0.3], ids=["square", "tilted"])
@pytest.mark.parametrize("seed", range(3))
def test_glands_are_found_where_they_lie_in_oblique_and_tilted_stacks(
    segmenter: Segmenter, seed: int, drift: float
) -> None:
    turned = np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(seed).normal(size=(3, 3)))[0]
    for offsets in (EVEN, UNEVEN):
        planes = stack(turned[0], turned[1], offsets, drift)
        check_glands(segmenter.segment(scanned(planes)), planes)


def test_flipping_the_patient_or_the_order_of_slices_gives_the_very_same_voxels(segmenter: Segmenter) -> None:
    supine = stack(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), EVEN)
    volume = scanned(supine)
    expected = _whole_masks(segmenter.segment(volume), supine.shape)
    for flips in ((1, 2), (0, 1), (0, 2)):  # head first prone, feet first supine, feet first prone
        directions = [supine.column_direction, supine.row_direction]
        corner = supine.origins_mm[-1 if 0 in flips else 0].copy()
        if 1 in flips:
            corner += (supine.rows - 1) * supine.row_step_mm
            directions[0] = -directions[0]
        if 2 in flips:
            corner += (supine.columns - 1) * supine.column_step_mm
            directions[1] = -directions[1]
        normal = np.cross(directions[1], directions[0])
        origins = corner + (EVEN - EVEN[0])[:, None] * normal
        planes = PlaneStack(origins, directions[1], directions[0], 2.5, 2.0, supine.rows, supine.columns)
        turned = Volume(np.ascontiguousarray(np.flip(volume.hu, flips)), planes)
        found = np.flip(_whole_masks(segmenter.segment(turned), planes.shape), [axis + 1 for axis in flips])
        assert (found != expected).sum() <= 1e-4 * expected.sum()


def _whole_masks(result: Segmentation, shape: tuple[int, int, int]) -> np.ndarray:
    masks = np.zeros((len(result.structures), *shape), bool)
    for mask, found in zip(masks, result.structures, strict=True):
        mask[found.box] = found.mask
    return masks


def test_a_body_without_any_structure_is_outside_the_model(segmenter: Segmenter) -> None:
    planes = stack(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), EVEN)
    with pytest.raises(OutsideModelError, match="Gland_L") as refused:
        segmenter.segment(scanned(planes, glands=False))
    assert refused.value.code == "no_structures"


def test_the_result_says_where_it_ran_and_how_long_each_stage_took(segmenter: Segmenter) -> None:
    planes = stack(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), EVEN)
    result = segmenter.segment(scanned(planes))
    assert result.device == "cpu"
    assert set(result.seconds) == {"preprocess", "forward", "postprocess"}
    assert min(result.seconds.values()) > 0


def test_a_network_with_fewer_channels_than_its_description_is_refused(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DensityNetwork, "classes", 2)
    with pytest.raises(InferenceFailedError, match="2 output channels"):
        Segmenter(package(), "cpu", allow_cpu=True, threads=1)


def test_the_package_that_comes_with_the_program_warms_up() -> None:
    real = Segmenter(read_package(PACKAGES / "anatomynet-hn"), "cpu", allow_cpu=True, threads=1)
    assert real.device == "cpu"
    assert real.warm_up() > 0
