"""Which of several reconstructions of one scan to contour.

Owns the default rule, as a ranking with its reasons in words.
Speaks candidates in, candidates with reasons out; millimetres.
Never looks at a pixel, and never prefers by the order of arrival: the same candidates rank alike always.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dicom_node.ct_slice import CtHeader
from dicom_node.stack import gap_report

_WHOLE = 0.8
"""A series shorter than this part of the longest one shows only a part of the patient."""

_SHARP_KERNELS = (
    # Siemens: B30f, Br59, Hr64, Bl57: the number grows with the sharpness; 55 and more draw bone and lung.
    re.compile(r"[A-Z]{1,2}(5[5-9]|[6-9][0-9])[a-z]?"),
    # Canon: FC30 to FC39 bone, FC50 to FC59 and FC80 to FC89 lung and high resolution.
    re.compile(r"FC[358][0-9]"),
    # GE and Philips by their names.
    re.compile(r"BONE|BONEPLUS|EDGE|ULTRA|LUNG|YC|YD|D|E|L", re.IGNORECASE),
)
_METAL_REDUCED = re.compile(r"(?<![a-z])(i-?mar|o-?mar|semar|smart ?mar|mar)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """One series that could be contoured.

    Attributes:
        spacing_mm: the median distance between slices.
        extent_mm: from the first slice to the last, along the normal.
        words: kernel, series description and protocol name.
    """

    series_instance_uid: str
    slices: int
    spacing_mm: float
    extent_mm: float
    convolution_kernel: str
    words: str
    is_original: bool

    @classmethod
    def of(cls, headers: Sequence[CtHeader]) -> Candidate:
        """A candidate from the headers of one series, in any order; at least one."""
        first = headers[0]
        positions = [header.image_position_patient for header in headers]
        offsets = gap_report(positions, first.image_orientation_patient).offsets_mm
        gaps = np.diff(offsets)
        return cls(
            series_instance_uid=first.series_instance_uid,
            slices=len(headers),
            spacing_mm=float(np.median(gaps)) if len(gaps) else 0.0,
            extent_mm=offsets[-1] - offsets[0],
            convolution_kernel=first.convolution_kernel,
            words=" ".join((first.convolution_kernel, first.series_description, first.protocol_name)),
            is_original="ORIGINAL" in first.image_type,
        )


@dataclass(frozen=True)
class Ranked:
    """A candidate, and what speaks for and against it; free of patient data and of free text."""

    candidate: Candidate
    reasons: tuple[str, ...]


def rank(
    candidates: Iterable[Candidate], exclude_kernels: Sequence[str], model_spacing_mm: float
) -> tuple[Ranked, ...]:
    """The candidates, the one to contour first.

    Args:
        candidates: series of one study that could be contoured.
        exclude_kernels: words of kernels that lose, from the configuration.
        model_spacing_mm: the slice distance that the network was trained at.

    What decides, in this order: a reconstruction that shows the whole scan over one that shows a part;
    soft tissue over a sharp kernel; with metal artefact reduction over without (streaks hide the organs
    around dental fillings); original over derived; a slice distance nearer to the model's (thin slices
    are noisier, thick ones miss small organs); more slices; and the UID, so that there is never a tie.
    """
    pool = list(candidates)
    longest_mm = max((one.extent_mm for one in pool), default=0.0)

    def key(one: Candidate) -> tuple[bool, bool, bool, bool, float, int, str]:
        return (
            one.extent_mm < _WHOLE * longest_mm,
            _sharp_word(one, exclude_kernels) is not None,
            _METAL_REDUCED.search(one.words) is None,
            not one.is_original,
            round(abs(one.spacing_mm - model_spacing_mm), 1),
            -one.slices,
            one.series_instance_uid,
        )

    return tuple(Ranked(one, _reasons(one, exclude_kernels, longest_mm)) for one in sorted(pool, key=key))


def _sharp_word(one: Candidate, exclude_kernels: Sequence[str]) -> str | None:
    """What says that the kernel is sharp: a configured word, or the kernel's own name."""
    for word in exclude_kernels:
        if re.search(rf"(?<![a-z]){re.escape(word)}", one.words, re.IGNORECASE):
            return word
    for name in one.convolution_kernel.split():
        if any(pattern.fullmatch(name) for pattern in _SHARP_KERNELS):
            return name
    return None


def _reasons(one: Candidate, exclude_kernels: Sequence[str], longest_mm: float) -> tuple[str, ...]:
    sharp = _sharp_word(one, exclude_kernels)
    stated = (
        f"{one.slices} slices of {one.spacing_mm:.2f} mm",
        f"sharp kernel ({sharp})" if sharp else "soft-tissue kernel",
        "metal artefacts reduced" if _METAL_REDUCED.search(one.words) else "",
        "" if one.is_original else "derived",
        f"only {one.extent_mm:.0f} of {longest_mm:.0f} mm" if one.extent_mm < _WHOLE * longest_mm else "",
    )
    return tuple(reason for reason in stated if reason)
