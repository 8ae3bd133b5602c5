"""What becomes of a structure or a series that looks odd: told, left out, or held for a person.

Owns the policy of the configuration's `review` and of a destination's `hold`.
Speaks `Segmentation` and flags in, a `Segmentation` or sentences out.
Never judges what is odd: `inference/plausibility.py` and the series' own geometry do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from dicom_node.config import Config
from dicom_node.ct_series import CtSeries
from dicom_node.errors import SeriesRejectedError
from dicom_node.refusals import Refusal
from inference.flags import LEFT_OUT, TILTED, UNEVEN, flag_words
from inference.postprocessing import absent
from inference.segmentation import Segmentation, StructureMap

LEAST_TILT_DEG = 0.1
"""Rounded positions make a gantry that stands straight seem to lean by some hundredths of a degree."""


def without(segmentation: Segmentation, flags: Collection[str]) -> Segmentation:
    """The segmentation with each structure empty that has one of these flags; it keeps its flags.

    Raises:
        SeriesRejectedError: nothing would be left.
    """
    structures = tuple(
        _left_out(found) if found.probability.size and not set(flags).isdisjoint(found.flags) else found
        for found in segmentation.structures
    )
    if structures and not any(found.probability.size for found in structures):
        told = "; ".join(f"{found.structure.name}: {', '.join(found.flags)}" for found in structures)
        raise SeriesRejectedError(
            Refusal.NOTHING_FOUND, f"review.leave_out leaves no structure of those that were found ({told})"
        )
    return replace(segmentation, structures=structures)


def holds(series: CtSeries, segmentation: Segmentation, config: Config) -> Mapping[str, str]:
    """Why a destination has to wait for a person, by its name, where it has to.

    What holds the whole job is not asked again: whoever released that has seen it.
    """
    reasons = {
        destination.name: why_to_hold(series, segmentation, set(destination.hold) - set(config.review.hold))
        for destination in config.destinations
    }
    return {name: why for name, why in reasons.items() if why is not None}


def why_to_hold(series: CtSeries, segmentation: Segmentation, flags: Collection[str]) -> str | None:
    """What a person should see before it goes out, in a sentence; None where it may go.

    Args:
        flags: which ones are to be looked at.
    """
    return "; ".join((*_of_the_series(series, flags), *_of_structures(segmentation, flags))) or None


def _left_out(found: StructureMap) -> StructureMap:
    return replace(absent(found.structure), flags=(*found.flags, LEFT_OUT))


def _of_the_series(series: CtSeries, flags: Collection[str]) -> Iterator[str]:
    tilt_deg = series.volume.planes.tilt_deg
    if TILTED in flags and tilt_deg > LEAST_TILT_DEG:
        yield f"the gantry was tilted by {tilt_deg:.1f} degrees"
    if UNEVEN in flags and series.is_uneven:
        yield "the slice spacing changes within the series"


def _of_structures(segmentation: Segmentation, flags: Collection[str]) -> Iterator[str]:
    for found in segmentation.structures:
        odd = flag_words(flag for flag in found.flags if flag in flags)
        if odd and LEFT_OUT not in found.flags:
            yield f"{found.structure.name}: {odd}"
