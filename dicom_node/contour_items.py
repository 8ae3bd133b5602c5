"""Contours as the bytes of a Contour Sequence (3006,0040), in Implicit or Explicit VR Little Endian.

Owns how a point in the patient becomes decimal strings.
Speaks contours in (row, column) index coordinates in, encoded sequence items out (PS3.5 7.5, PS3.3 C.8.8.6).
Never writes a DS of more than 16 bytes, nor a contour off its slice's plane.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from pydicom.valuerep import format_number_as_ds

from inference.contours import Contour
from inference.volume import PlaneStack

_CONSTANT_MM = 1e-4
"""A coordinate that varies less than this over the whole slice is written as the slice's own."""


@dataclass(frozen=True)
class ItemEncoder:
    """Writes sequence items in one of the two encodings.

    The items are encoded here rather than as pydicom data sets, which would judge each of some
    hundred thousand numbers by itself.
    """

    explicit: bool

    def contours(self, contours: Sequence[Contour], planes: PlaneStack, references: Sequence[bytes]) -> bytes:
        """The value of a Contour Sequence: one item a contour.

        Args:
            contours: of one structure. Where one of them is a hole, all are CLOSEDPLANAR_XOR.
            planes: where their points lie.
            references: `reference` of each slice.
        """
        if not contours:
            return b""
        is_xor = any(contour.is_hole for contour in contours)
        geometric_type = b"CLOSEDPLANAR_XOR" if is_xor else b"CLOSED_PLANAR"
        return b"".join(
            _item(
                self._element(0x3006, 0x0016, b"SQ", references[contour.slice_index]),
                self._element(0x3006, 0x0042, b"CS", geometric_type),
                self._element(0x3006, 0x0046, b"IS", b"%d" % len(contour.points)),
                self._element(0x3006, 0x0048, b"IS", b"%d" % number),
                self._element(0x3006, 0x0050, b"DS", data),
            )
            for number, (contour, data) in enumerate(
                zip(contours, _contour_data(contours, planes), strict=True), start=1
            )
        )

    def reference(self, sop_class_uid: str, sop_instance_uid: str) -> bytes:
        """One item of a Contour Image Sequence (3006,0016)."""
        return _item(
            self._element(0x0008, 0x1150, b"UI", sop_class_uid.encode("ascii"), b"\0"),
            self._element(0x0008, 0x1155, b"UI", sop_instance_uid.encode("ascii"), b"\0"),
        )

    def _element(self, group: int, number: int, vr: bytes, value: bytes, padding: bytes = b" ") -> bytes:
        """PS3.5 7.1; a DS that is longer than two bytes can tell raises `struct.error`."""
        padded = value + padding * (len(value) % 2)
        if not self.explicit:
            return struct.pack("<HHI", group, number, len(padded)) + padded
        layout = "<HH2s2xI" if vr == b"SQ" else "<HH2sH"
        return struct.pack(layout, group, number, vr, len(padded)) + padded


def _contour_data(contours: Sequence[Contour], planes: PlaneStack) -> Iterator[bytes]:
    """For each contour x, y, z of its points in LPS mm, in tenths of a micrometre.

    For an axial slice z is the same for every point: the ImagePositionPatient's own, not a rounded one.
    """
    extent = np.abs(planes.row_step_mm) * planes.rows + np.abs(planes.column_step_mm) * planes.columns
    varies = extent >= _CONSTANT_MM
    lengths = [len(contour.points) for contour in contours]
    slices = np.repeat([contour.slice_index for contour in contours], lengths)
    points = planes.plane_points_mm(slices, np.concatenate([contour.points for contour in contours]))
    # What has to be rounded, point by point.
    rounded = int(np.count_nonzero(varies))
    numbers = iter(points[:, varies].ravel().tolist())
    for contour, length in zip(contours, lengths, strict=True):
        point = "\\".join(
            "%.4f" if moves else format_number_as_ds(float(own))
            for moves, own in zip(varies, planes.origins_mm[contour.slice_index], strict=True)
        )
        text = "\\".join([point] * length) % tuple(islice(numbers, length * rounded))
        yield text.encode("ascii")


def _item(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
