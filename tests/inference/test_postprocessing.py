"""A structure is what the package's rules leave of the network's probabilities, with honest flags."""

from __future__ import annotations

import numpy as np
import pytest

from inference.postprocessing import exclusive, finish, propose, trimmed, volume_cm3
from inference.volume import PlaneStack
from models.card import Postprocessing
from tests.inference.blocks import cube, mapped, organ, planes


@pytest.mark.parametrize(
    ("rule", "voxels"),
    [
        ({"components": 1, "min_component_cm3": 0}, 1000),
        ({"components": 2, "min_component_cm3": 0}, 1064),
        ({"components": 0, "min_component_cm3": 0}, 1065),
        ({"components": 0, "min_component_cm3": 0.05}, 1064),
        ({"components": 1, "min_component_cm3": 2.0}, 0),
        ({"threshold": 0.95, "min_component_cm3": 0}, 1),
    ],
)
def test_components_are_kept_by_number_and_size(rule: dict[str, float], voxels: int) -> None:
    probability = cube(2, 2, 2, side=10)
    probability[20:24, 20:24, 20:24] = 0.8
    probability[28, 30, 30] = 0.99
    assert finish(mapped(organ(**rule), probability), planes()).mask.sum() == voxels


def in_a_slice(*parts: tuple[slice, slice], index: int = 5) -> np.ndarray:
    probability = np.zeros((30, 40, 40), np.float32)
    for rows, columns in parts:
        probability[index, rows, columns] = 0.9
    return probability


LEFT, RIGHT = (slice(10, 20), slice(5, 15)), (slice(10, 20), slice(22, 32))
BRIDGE = (slice(14, 16), slice(15, 22))


@pytest.mark.parametrize(
    ("rule", "parts", "voxels"),
    [
        ({}, (LEFT, BRIDGE, RIGHT), 214),
        ({"min_width_mm": 3}, (LEFT, BRIDGE, RIGHT), 200),
        ({"min_width_mm": 3, "components": 1}, (LEFT, BRIDGE, RIGHT), 100),
        ({"min_width_mm": 4}, (BRIDGE,), 14),  # thinner everywhere: it stays
        ({"min_island_mm2": 20}, (LEFT, (slice(25, 29), slice(25, 29))), 100),
        ({"min_island_mm2": 16}, (LEFT, (slice(25, 29), slice(25, 29))), 116),
        ({"min_island_mm2": 20}, ((slice(25, 29), slice(25, 29)), (slice(1, 3), slice(1, 3))), 16),
        ({"min_island_mm2": 20}, (LEFT, (slice(20, 22), slice(15, 17))), 100),  # touches by a corner
    ],
)
def test_bridges_and_islands_of_a_slice_go_by_the_structures_rule(
    rule: dict[str, float], parts: tuple[tuple[slice, slice], ...], voxels: int
) -> None:
    structure = organ(**{"components": 0, "min_component_cm3": 0, "fill_holes": False, **rule})
    assert finish(mapped(structure, in_a_slice(*parts)), planes()).mask.sum() == voxels


def test_an_opened_structure_still_ends_at_the_volumes_border() -> None:
    probability = in_a_slice((slice(0, 20), slice(0, 40)))
    structure = organ(components=0, min_component_cm3=0, min_width_mm=8)
    assert finish(mapped(structure, probability), planes()).mask.sum() == 800


def test_a_piece_far_from_the_main_one_is_dropped_however_large() -> None:
    """An upper arm's marrow looks like a cord; it lies 200 mm to the side of the spine."""
    probability = np.zeros((60, 40, 80), np.float32)
    probability[2:40, 18:22, 10:14] = 0.9
    probability[44:55, 18:22, 12:16] = 0.9  # the same cord, 10 mm further along the spine
    probability[5:35, 18:22, 70:74] = 0.9
    rule = Postprocessing(components=0, min_component_cm3=0, reach_mm=30)
    found = propose(probability, rule, (2.5, 2.0, 2.0))
    assert (found.probability >= 0.5).sum() == (38 + 11) * 16
    assert propose(probability, Postprocessing(components=0, min_component_cm3=0), (2.5, 2, 2)).shape[2] > 60


def test_a_hole_is_filled_in_its_plane_and_a_bay_stays_open() -> None:
    probability = cube(5, 5, 5)
    probability[5:17, 9:11, 9:11] = 0.1  # a tunnel through every plane
    probability[5:17, 5:8, 14:16] = 0.1  # a bay that reaches the outside
    for fill, tunnel in ((True, True), (False, False)):
        finished = finish(mapped(organ(fill_holes=fill), probability), planes())
        mask = np.zeros(planes().shape, bool)
        mask[finished.box] = finished.mask
        assert mask[5:17, 9:11, 9:11].all() == tunnel
        assert not mask[5:17, 5:8, 14:16].any()


def test_what_is_proposed_has_a_margin_and_no_part_of_a_removed_component() -> None:
    probability = cube(8, 8, 8, side=6)
    probability[8:14, 8:14, 15:17] = 0.8
    candidate = propose(probability, Postprocessing(), (3.0, 4.0, 4.0))
    assert candidate.start == (6, 6, 6)
    assert candidate.shape == (10, 10, 10)
    assert (candidate.probability >= 0.5).sum() == 216
    assert not candidate.at_end


def test_smoothing_is_in_millimetres() -> None:
    probability = np.zeros((21, 21, 21), np.float32)
    probability[10, 10, 10] = 1
    candidate = propose(
        probability, Postprocessing(smooth_mm=4, threshold=0.01, min_component_cm3=0), (8.0, 4.0, 2.0)
    )
    spread = [int((candidate.probability >= 0.01).any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1))]
    assert spread[0] < spread[1] < spread[2]


def test_no_voxel_belongs_to_two_structures_and_the_more_probable_one_keeps_it() -> None:
    first = mapped(organ("A", threshold=0.3), cube(5, 5, 5, value=0.6))
    second = mapped(organ("B", threshold=0.3), cube(0, 0, 0, value=0.8)[:20, :20, :20], start=(3, 3, 3))
    one, other = exclusive([first, second])
    assert (other.mask == second.mask).all()
    both = np.zeros((30, 40, 40), int)
    for found in (one, other):
        both[found.box] += found.mask
    assert both.max() == 1
    assert both.sum() == (12**3 * 2 - 10**3)


def test_a_trimmed_box_has_one_voxel_of_margin_within_the_volume() -> None:
    found = trimmed(mapped(organ(), cube(0, 8, 28)))
    assert found.start == (0, 7, 27)
    assert found.probability.shape == (13, 14, 13)


def test_each_plane_counts_with_half_the_way_to_its_neighbours() -> None:
    origins = np.zeros((4, 3))
    origins[:, 2] = (0, 1, 3, 7)
    uneven = PlaneStack(origins, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 2.0, 5.0, 10, 10)
    assert volume_cm3(mapped(organ(), np.ones((4, 10, 10), np.float32)), uneven) == pytest.approx(
        (1 + 1.5 + 3 + 4) * 1000 / 1000
    )
