"""A received RT-STRUCT on its CT: what was sent is what is seen, in any patient position.

Owns the rules of the demo's reader.
Speaks phantoms of geometry and balls as organs.
Never runs a network.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.received import on_ct
from dicom_node.rt_struct import build
from inference.segmentation import Segmentation
from tests import organs, phantoms


@pytest.mark.parametrize(
    "changes",
    [{}, {"pixel_spacing": (3.0, 1.5)}, {"orientation": phantoms.ORIENTATIONS["FFDL"]}],
    ids=["plain", "oblong pixels", "on the side, feet first"],
)
def test_what_comes_back_is_what_was_drawn(changes: dict[str, Any]) -> None:
    series = phantoms.series(phantoms.Phantom().but(**changes))
    drawn = organs.segmentation(series.volume.planes, "soft")
    structures = tuple(one.structure for one in drawn.structures)
    file = build(series, drawn, organs.options()).data
    seen = on_ct(dcmread(BytesIO(file)), series, structures, "cpu")
    for mine, theirs in zip(seen.structures, drawn.structures, strict=True):
        whole = np.zeros(series.volume.planes.shape, bool)
        whole[mine.box] = mine.mask
        common = 2 * (whole[theirs.box] & theirs.mask).sum() / (whole.sum() + theirs.mask.sum())
        assert common > 0.97


def test_a_structure_that_is_not_in_the_object_was_not_found() -> None:
    series = phantoms.series()
    drawn = organs.segmentation(series.volume.planes)
    file = build(series, Segmentation(drawn.structures[1:], "cpu", {}), organs.options()).data
    wanted = tuple(one.structure for one in drawn.structures)
    absent, *present = on_ct(dcmread(BytesIO(file)), series, wanted, "cpu").structures
    assert absent.probability.size == 0
    assert absent.flags == ("not_found",)
    assert all(one.mask.any() for one in present)
