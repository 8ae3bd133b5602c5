"""Which of several reconstructions is contoured."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from dicom_node.config import SeriesRules
from dicom_node.reconstruction import Candidate, rank

PLAIN = Candidate("2.25.1", 120, 2.5, 300.0, "B30f", "B30f Head and neck 2.5", True)
EXCLUDED = SeriesRules().exclude_kernels


def but(**changes: object) -> Candidate:
    fields = {"series_instance_uid": "2.25.2", **changes}
    if "convolution_kernel" in fields:
        fields.setdefault("words", fields["convolution_kernel"])
    return replace(PLAIN, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (PLAIN, but(convolution_kernel="B70s")),
        (PLAIN, but(convolution_kernel="Hr64h 3")),
        (PLAIN, but(convolution_kernel="BONEPLUS")),
        (PLAIN, but(convolution_kernel="FC30")),
        (PLAIN, but(convolution_kernel="YD")),
        (PLAIN, but(words="B30f Neck BONE 1.0")),
        (PLAIN, but(words="sharp")),
        (but(words="B30f iMAR"), PLAIN),
        (but(words="Neck O-MAR"), PLAIN),
        (PLAIN, but(is_original=False)),
        (PLAIN, but(spacing_mm=0.6, slices=480)),
        (PLAIN, but(spacing_mm=5.0, slices=60)),
        (but(slices=125), PLAIN),
        (PLAIN, but(extent_mm=80.0, words="iMAR")),
        (PLAIN, but()),
    ],
)
def test_the_first_difference_decides(better: Candidate, worse: Candidate) -> None:
    for order in permutations((better, worse)):
        assert rank(order, EXCLUDED, 3.0)[0].candidate == better


def test_softness_is_not_read_out_of_other_words() -> None:
    """A backbone or a Canon soft kernel is not sharp, and Marla is no artefact reduction."""
    for candidate in (but(words="whole backbone"), but(convolution_kernel="FC08"), but(words="Marla")):
        (ranked,) = rank([candidate], EXCLUDED, 3.0)
        assert ranked.reasons == ("120 slices of 2.50 mm", "soft-tissue kernel")


def test_reasons_repeat_no_free_text() -> None:
    (ranked,) = rank([but(words="DOE JOHN bone", is_original=False)], EXCLUDED, 3.0)
    assert ranked.reasons == ("120 slices of 2.50 mm", "sharp kernel (bone)", "derived")
