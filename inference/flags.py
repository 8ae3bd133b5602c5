"""What may be odd about a structure or a series, in bounded words that a person reads.

Owns the words, and the order in which they are told.
Speaks strings, so that who configures or counts them needs no arrays.
Never judges: `plausibility.py` does, and the product's policy says what follows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

NOT_FOUND = "not_found"
CUT_BY_FIELD_OF_VIEW = "cut_by_field_of_view"
CUT_BY_MODEL_EXTENT = "cut_by_model_extent"
VOLUME_OUT_OF_RANGE = "volume_out_of_range"
IMPLAUSIBLE_SIDE = "implausible_side"
UNEQUAL_SIDES = "unequal_sides"
OUT_OF_PLACE = "out_of_place"
IN_PIECES = "in_pieces"
LOW_CONFIDENCE = "low_confidence"
FLAGS = (
    NOT_FOUND,
    CUT_BY_FIELD_OF_VIEW,
    CUT_BY_MODEL_EXTENT,
    VOLUME_OUT_OF_RANGE,
    IMPLAUSIBLE_SIDE,
    UNEQUAL_SIDES,
    OUT_OF_PLACE,
    IN_PIECES,
    LOW_CONFIDENCE,
)
"""Of a structure, in the order in which they are told."""

LEFT_OUT = "left_out"
"""A structure that was found and is not drawn, because the policy says so of one of its flags."""

TILTED = "tilted"
UNEVEN = "uneven"
SERIES_FLAGS = (TILTED, UNEVEN)
"""Of a series: both are contoured exactly, but not every planning system shows them so."""


def flag_words(flags: Iterable[str], unsaid: Collection[str] = ()) -> str:
    """`low confidence, in pieces`: flags as a person reads them, without those that are said elsewhere."""
    return ", ".join(flag.replace("_", " ") for flag in flags if flag not in unsaid)
