"""What was found is told apart from what it cannot be, and another anatomy is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from inference.errors import OutsideModelError
from inference.plausibility import judged
from inference.postprocessing import absent, trimmed
from inference.segmentation import StructureMap
from models.card import Input, ModelDescription, Neighbour, Structure, Window
from tests.inference.blocks import cube, mapped, organ, planes


def model(structures: Sequence[Structure], least_in_place: int = 0) -> ModelDescription:
    return ModelDescription(
        name="blocks",
        version="1",
        sha256="0" * 64,
        summary="blocks",
        licence="none",
        attributions=(),
        input=Input(
            spacing_mm=(1, 1, 1), window=Window(lower_hu=0, upper_hu=1), max_extent_mm=(100, 100, 100)
        ),
        structures=tuple(structures),
        largest_side_ratio=3.0,
        least_in_place=least_in_place,
    )


def flags_of(
    maps: Sequence[StructureMap], cut_by_model: bool = False, least_in_place: int = 0
) -> list[tuple[str, ...]]:
    description = model([found.structure for found in maps], least_in_place)
    cleaned = [trimmed(found) if found.probability.size else found for found in maps]
    return [found.flags for found in judged(cleaned, planes(), [cut_by_model] * len(cleaned), description)]


TWO_PIECES = np.maximum(cube(3, 3, 3, side=10), cube(18, 20, 20, side=10))


@pytest.mark.parametrize(
    ("probability", "cut_by_model", "flags"),
    [
        (cube(8, 8, 8), False, ()),
        (cube(0, 8, 8), False, ("cut_by_field_of_view",)),
        (cube(18, 8, 8), False, ("cut_by_field_of_view",)),
        (cube(8, 8, 28), False, ("cut_by_field_of_view",)),
        (cube(8, 8, 8, side=5), False, ("volume_out_of_range",)),
        (cube(0, 8, 8, side=5), False, ("cut_by_field_of_view",)),
        (cube(8, 8, 8, side=5), True, ("cut_by_model_extent",)),
        (np.full((30, 40, 40), 0.9, np.float32), False, ("cut_by_field_of_view", "volume_out_of_range")),
        (TWO_PIECES, False, ("in_pieces",)),
    ],
)
def test_flags_say_what_to_look_at(
    probability: np.ndarray, cut_by_model: bool, flags: tuple[str, ...]
) -> None:
    assert flags_of([mapped(organ(), probability)], cut_by_model) == [flags]


def test_what_was_not_found_says_so_beside_what_was() -> None:
    assert flags_of([mapped(organ("A"), cube(8, 8, 8)), absent(organ("B"))]) == [(), ("not_found",)]


def test_less_confidence_than_the_package_asks_for_is_flagged() -> None:
    wary = organ().model_copy(update={"least_confidence": 0.7})
    for confidence, flags in ((0.7, ()), (0.69, ("low_confidence",))):
        assert flags_of([mapped(wary, cube(8, 8, 8), confidence=confidence)]) == [flags]


def test_a_left_organ_on_the_patients_right_is_flagged_with_its_partner() -> None:
    left, right = organ("Gland_L"), organ("Gland_R")
    for left_column, right_column, flags in ((25, 3, ()), (3, 25, ("implausible_side",))):
        maps = [mapped(left, cube(8, 8, left_column)), mapped(right, cube(8, 8, right_column))]
        assert flags_of(maps) == [flags, flags]
    assert flags_of([mapped(left, cube(8, 8, 3)), absent(right)]) == [(), ("not_found",)]


def test_sides_of_very_unequal_volume_are_flagged_unless_the_scan_cuts_one() -> None:
    left, right = organ("Gland_L"), organ("Gland_R")
    small, large = cube(8, 8, 22, side=11), cube(8, 2, 2, side=16)
    assert flags_of([mapped(left, small), mapped(right, large)]) == [("unequal_sides",)] * 2
    assert flags_of([mapped(left, small), mapped(right, cube(8, 2, 2, side=15))]) == [(), ()]
    cut = cube(0, 8, 22, side=11)
    assert flags_of([mapped(left, cut), mapped(right, large)]) == [("cut_by_field_of_view",), ()]


def family() -> dict[str, Structure]:
    """Three organs in a row along the columns, 12 mm from one to the next, each within 3 mm."""
    columns = {"A": 0.0, "B": 12.0, "C": 24.0}
    return {
        name: organ(
            name,
            tuple(
                Neighbour(name=other, offset_mm=(there - here, 0, 0), tolerance_mm=(3, 3, 3))
                for other, there in columns.items()
                if other != name
            ),
        )
        for name, here in columns.items()
    }


def row(**corners: tuple[int, int, int]) -> list[StructureMap]:
    structures = family()
    return [mapped(structures[name], cube(*corner, side=10)) for name, corner in corners.items()]


def test_one_that_strayed_is_flagged_and_its_neighbours_are_not() -> None:
    assert flags_of(row(A=(8, 8, 2), B=(8, 8, 14), C=(8, 8, 26))) == [(), (), ()]
    assert flags_of(row(A=(8, 8, 2), B=(19, 8, 14), C=(8, 8, 26))) == [(), ("out_of_place",), ()]


def test_alone_nothing_is_out_of_place() -> None:
    assert flags_of(row(B=(8, 8, 14))) == [()]


def test_too_few_in_place_is_another_anatomy_told_with_what_was_found() -> None:
    in_place, scattered = row(A=(8, 8, 2), B=(8, 8, 14)), row(A=(8, 8, 2), B=(19, 25, 2))
    assert flags_of(in_place, least_in_place=2) == [(), ()]
    with pytest.raises(OutsideModelError, match=r"A 1\.0 cm3, B 1\.0 cm3.*0 have.*2 must") as refused:
        flags_of(scattered, least_in_place=2)
    assert refused.value.code == "not_this_anatomy"


def test_nothing_found_is_refused_with_the_names_of_what_was_looked_for() -> None:
    with pytest.raises(OutsideModelError, match=r"none of its structures \(A, B\)") as refused:
        flags_of([absent(organ("A")), absent(organ("B"))])
    assert refused.value.code == "no_structures"
