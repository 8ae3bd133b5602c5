"""Contours as the bytes of a Contour Sequence (3006,0040), Implicit VR Little Endian.

Owns how a point in the patient becomes decimal strings.
Speaks contours in (row, column) index coordinates in, encoded sequence items out (PS3.5 7.5, PS3.3 C.8.8.6).
Never writes a DS of more than 16 bytes, nor a contour off its slice's plane.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from pydicom.valuerep import format_number_as_ds

from inference.contours import Contour
from inference.volume import PlaneStack

_CONSTANT_MM = 1e-4
"""A coordinate that varies less than this over the whole slice is written as the slice's own."""


def encode_contours(
    contours: Sequence[Contour], planes: PlaneStack, references: Sequence[tuple[str, str]]
) -> bytes:
    """The value of a Contour Sequence: one item a contour.

    The items are encoded here rather than as pydicom data sets, which would judge each of some
    hundred thousand numbers by itself.

    Args:
        contours: of one structure.
        planes: where their points lie.
        references: SOP Class and SOP Instance UID of each slice.
    """
    return b"".join(
        _item(
            _element(0x3006, 0x0016, _image_reference(*references[contour.slice_index])),
            _element(0x3006, 0x0042, b"CLOSED_PLANAR"),
            _element(0x3006, 0x0046, b"%d" % len(contour.points)),
            _element(0x3006, 0x0048, b"%d" % number),
            _element(0x3006, 0x0050, _contour_data(contour, planes)),
        )
        for number, contour in enumerate(contours, start=1)
    )


def encode_references(references: Sequence[tuple[str, str]]) -> bytes:
    """The value of a Contour Image Sequence (3006,0016) that names every one of the slices."""
    return b"".join(_image_reference(*reference) for reference in references)


def _contour_data(contour: Contour, planes: PlaneStack) -> bytes:
    """x, y, z of each point in LPS mm, in tenths of a micrometre.

    For an axial slice z is the same for every point: the ImagePositionPatient's own, not a rounded one.
    """
    points = planes.plane_points_mm(contour.slice_index, contour.points)
    origin = planes.origins_mm[contour.slice_index]
    extent = np.abs(planes.row_step_mm) * planes.rows + np.abs(planes.column_step_mm) * planes.columns
    varies = extent >= _CONSTANT_MM
    point = "\\".join(
        "%.4f" if moves else format_number_as_ds(float(own))
        for moves, own in zip(varies, origin, strict=True)
    )
    text = "\\".join([point] * len(points)) % tuple(points[:, varies].ravel().tolist())
    return text.encode("ascii")


def _image_reference(sop_class_uid: str, sop_instance_uid: str) -> bytes:
    return _item(
        _element(0x0008, 0x1150, sop_class_uid.encode("ascii"), b"\0"),
        _element(0x0008, 0x1155, sop_instance_uid.encode("ascii"), b"\0"),
    )


def _element(group: int, number: int, value: bytes, padding: bytes = b" ") -> bytes:
    padded = value + padding * (len(value) % 2)
    return struct.pack("<HHI", group, number, len(padded)) + padded


def _item(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
