"""What each kind of planning system wants of an RT Structure Set, as data.

Owns the knobs, their bounds, and the profiles by name; any knob may be set otherwise for a destination.
Speaks frozen values; lengths in characters, points as a count.
Never knows a product's version: where a system's limit is not public, the strictest known one stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LABEL_FIELDS = ("model", "version", "program", "date")
"""What a structure set label may name in braces: the model, its version, the program's, and the day."""

LONGEST_LABEL = 16
"""Of Structure Set Label (3006,0002), which is an SH (PS3.5 6.2)."""

FEWEST_POINTS = 20
"""A lower limit of points would cut contours into slivers."""


def _none_or_enough(points: int) -> int:
    if 0 < points < FEWEST_POINTS:
        raise ValueError(f"0 (no limit), or at least {FEWEST_POINTS}")
    return points


def _is_label(template: str) -> str:
    """With the shortest values that its fields can have it must fit."""
    try:
        shortest = filled_label(template, model="", version="", program="", date="20000101")
    except (KeyError, IndexError, ValueError, AttributeError) as problem:
        fields = ", ".join(f"{{{name}}}" for name in LABEL_FIELDS)
        raise ValueError(f"it may name {fields} in braces, and nothing else") from problem
    if len(shortest) > LONGEST_LABEL or not template.isascii() or "\\" in template:
        raise ValueError(f"at most {LONGEST_LABEL} characters of ASCII, without a backslash")
    return template


NameLength = Annotated[int, Field(ge=8, le=64)]
NameCase = Literal["keep", "upper", "lower"]
NamePrefix = Annotated[str, Field(max_length=8, pattern=r"^[\x21-\x5b\x5d-\x7e]*$")]
PointsPerContour = Annotated[int, Field(ge=0), AfterValidator(_none_or_enough)]
Holes = Literal["keyhole", "xor"]
EmptyStructures = Literal["omit", "include", "refuse"]
RoiType = Literal["ORGAN", "AVOIDANCE", "CONTROL"]
Encoding = Literal["implicit", "explicit"]
Label = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_is_label)]
ProfileName = Literal["generic", "eclipse", "raystation"]

_LONGEST_EXPLICIT_BYTES = 65_534
_BYTES_A_POINT = 3 * (16 + 1)
MOST_POINTS_EXPLICIT = _LONGEST_EXPLICIT_BYTES // _BYTES_A_POINT
"""In Explicit VR the length of Contour Data has two bytes (PS3.5 7.1.2). A point has three DS, each of at
most 16 bytes and followed by a separator."""


class Profile(BaseModel):
    """How one kind of destination wants its RT Structure Set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name_length: NameLength = 16
    """The longest ROI name, prefix included."""
    name_case: NameCase = "keep"
    name_prefix: NamePrefix = ""
    """Before each ROI name, so that automatic structures cannot be taken for those drawn by hand."""
    holes: Holes = "keyhole"
    """`keyhole`: one contour with a bridge to each hole. `xor`: each hole a contour of its own; where there
    is one, the ROI's contours are CLOSEDPLANAR_XOR (PS3.3 C.8.8.6.3), which some systems do not read."""
    points_per_contour: PointsPerContour = 0
    """A contour with more points is cut into parts that touch; 0 cuts none."""
    empty_structures: EmptyStructures = "omit"
    """A structure that was not found: left out, there without contours, or the destination gets nothing."""
    roi_type: RoiType = "ORGAN"
    """RT ROI Interpreted Type (3006,00A4)."""
    transfer_syntax: Encoding = "implicit"
    """Implicit or Explicit VR Little Endian."""

    @property
    def most_points(self) -> int | None:
        """So many points a contour may have; None where there is no limit."""
        limits = [self.points_per_contour] if self.points_per_contour else []
        if self.transfer_syntax == "explicit":
            limits.append(MOST_POINTS_EXPLICIT)
        return min(limits, default=None)


GENERIC = Profile()
"""What every system is known to read."""

PROFILES: Mapping[ProfileName, Profile] = {
    "generic": GENERIC,
    # Refuses names over 16 characters, names equal but for case, empty structures, DS over 16 bytes.
    "eclipse": Profile(name_length=16, empty_structures="omit", transfer_syntax="implicit"),
    # Makes a second ROI where one of the name has another type: organs have to be ORGAN.
    "raystation": Profile(name_length=64, roi_type="ORGAN", transfer_syntax="implicit"),
}


def filled_label(template: str, *, model: str, version: str, program: str, date: str) -> str:
    """A structure set label with its fields filled in.

    Raises:
        KeyError, IndexError, ValueError, AttributeError: braces that do not match, or another field.
    """
    return template.format_map({"model": model, "version": version, "program": program, "date": date})
