"""Every reason for which a series is not ours to contour, as bounded words.

Owns the codes of `SeriesRejectedError`; metrics and the job list count by them.
Speaks one word a reason, each with its meaning in a line.
Never carries a number or a name: those stand in the error's sentence.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why an instance or a series was rejected."""

    NOT_DICOM = "not_dicom"
    """No DICOM file (PS3.10)."""
    DAMAGED = "damaged"
    """A DICOM file whose elements cannot be read."""
    NOT_CT = "not_ct"
    """Another modality or storage class."""
    ENHANCED_CT = "enhanced_ct"
    """An Enhanced (multi-frame) CT; only CT Image Storage is contoured."""
    LOCALIZER = "localizer"
    """A scout or topogram by its ImageType."""
    NO_PLANNING_IMAGE = "no_planning_image"
    """A projection, reformat, rendering or screenshot by its ImageType, or values that are no HU."""
    MULTI_ENERGY = "multi_energy"
    """A map of a material, a density or an atomic number, or a multi-energy CT without stated HU."""
    LOSSY = "lossy"
    """The pixels went through lossy compression: their HU are not the scanner's."""
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    """Encoded in a way that this program does not read."""
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    """A pixel format that CT Image Storage does not have."""
    UNDECODABLE = "undecodable"
    """Compressed pixels that the decoder refused."""
    TRUNCATED = "truncated"
    """Fewer pixels than the header states."""
    MISSING_ATTRIBUTE = "missing_attribute"
    """An attribute without which the slice has no place, scale or identity."""
    ABSURD_ATTRIBUTE = "absurd_attribute"
    """An attribute that is there and cannot be true."""
    MIXED_SERIES = "mixed_series"
    """Slices of several series, studies, patients or frames of reference."""
    MIXED_GEOMETRY = "mixed_geometry"
    """Slices whose orientation, matrix or pixel spacing differ."""
    CONFLICTING_INSTANCES = "conflicting_instances"
    """One SOP Instance UID with two contents."""
    DUPLICATE_POSITION = "duplicate_position"
    """Several slices at one position."""
    MISSING_SLICE = "missing_slice"
    """A gap of more than 1.5 times its neighbours."""
    IRREGULAR_SPACING = "irregular_spacing"
    """A slice spacing that changes, and does not stay so."""
    TOO_FEW_SLICES = "too_few_slices"
    """No planning CT."""
    NOT_AXIAL = "not_axial"
    """Planes that are nearer to sagittal or coronal than to axial."""
    BLANK_SLICE = "blank_slice"
    """A slice without content between slices that have some."""
    ABSURD_HU = "absurd_hu"
    """Intensities in which there is no air or no tissue."""
    NOTHING_FOUND = "nothing_found"
    """None of the model's structures is in the series."""
