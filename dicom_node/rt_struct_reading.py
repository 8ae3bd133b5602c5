"""The contours of an RT Structure Set, read from its bytes as a receiver would.

Owns the decoding of contour items in Implicit and in Explicit VR Little Endian (PS3.5 7.1, 7.5).
Speaks a pydicom data set in; ROIs with their contours in LPS millimetres out.
Never repairs: what cannot be read raises `UnreadableError`, which names the place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

Vectors = NDArray[np.float64]
Reference = tuple[str, str]
"""SOP Class and SOP Instance UID of an image."""

_TAG_AND_LENGTH = struct.Struct("<HHI").unpack_from
_ITEM = 0xFFFEE000
_SOP_CLASS = 0x00081150
_SOP_INSTANCE = 0x00081155
_CONTOUR_IMAGE_SEQUENCE = 0x30060016
_CONTOUR_SEQUENCE = 0x30060040
_CONTOUR_GEOMETRIC_TYPE = 0x30060042
_NUMBER_OF_CONTOUR_POINTS = 0x30060046
_CONTOUR_NUMBER = 0x30060048
_CONTOUR_DATA = 0x30060050

_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Their length has four bytes, after two that are reserved (PS3.5 Table 7.1-1)."""


class UnreadableError(Exception):
    """Bytes that are no contours."""


@dataclass(frozen=True)
class ReadContour:
    """One contour as a receiver reads it.

    Attributes:
        place: for messages.
        number: Contour Number; None where it has none.
        references: the images in its Contour Image Sequence.
        slice_index: the slice that it references; None where that is none of the series'.
        points_mm: (n, 3) LPS.
        has_three_points: whether at least three of its points differ.
        longest_ds: characters of its longest coordinate.
        size_bytes: of its Contour Data.
    """

    place: str
    number: int | None
    geometric_type: str
    stated_points: int
    references: tuple[Reference, ...]
    slice_index: int | None
    points_mm: Vectors
    has_three_points: bool
    longest_ds: int
    size_bytes: int


@dataclass(frozen=True)
class ReadRoi:
    """One ROI with its contours, in the order in which they stand."""

    number: int
    name: str
    contours: tuple[ReadContour, ...]

    @property
    def is_placed(self) -> bool:
        """Whether each contour lies on a slice of the series."""
        return bool(self.contours) and all(one.slice_index is not None for one in self.contours)


def read_rois(dataset: FileDataset, slices: Mapping[str, int]) -> tuple[ReadRoi, ...]:
    """The ROIs of a structure set.

    Args:
        slices: index of each slice of the series by its SOP Instance UID.

    Raises:
        UnreadableError: another transfer syntax, or bytes that are no contours.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        raise UnreadableError(f"{syntax} is neither Implicit nor Explicit VR Little Endian")
    explicit = syntax == ExplicitVRLittleEndian
    contours = {
        int(item.ReferencedROINumber): _encoded_items(item, _CONTOUR_SEQUENCE)
        for item in dataset.ROIContourSequence
    }
    # Contours of one slice name it with the same bytes.
    references = cache(lambda sequence: _read_references(sequence, explicit))
    rois = []
    for item in dataset.StructureSetROISequence:
        number, name = int(item.ROINumber), str(item.ROIName)
        items = tuple(_read_items(contours.get(number, b""), explicit))
        rois.append(ReadRoi(number, name, _read_contours(name, items, slices, references)))
    return tuple(rois)


def referenced_images(dataset: FileDataset, series: Sequence[Dataset]) -> list[Reference]:
    """What the Contour Image Sequences of some items of RT Referenced Series Sequence name.

    Raises:
        UnreadableError: bytes that are no references.
    """
    explicit = dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    encoded = (_encoded_items(item, _CONTOUR_IMAGE_SEQUENCE) for item in series)
    return [reference for items in encoded for reference in _read_references(items, explicit)]


def _read_contours(
    roi: str,
    items: Sequence[Mapping[int, bytes]],
    slices: Mapping[str, int],
    read_references: Callable[[bytes], tuple[Reference, ...]],
) -> tuple[ReadContour, ...]:
    places = [f"{roi}, contour {index}" for index in range(1, len(items) + 1)]
    numbers = [item[_CONTOUR_DATA].rstrip(b" ").split(b"\\") for item in items]
    return tuple(
        _read_contour(place, item, each, points_mm, slices, read_references)
        for place, item, each, points_mm in zip(
            places, items, numbers, _read_points(places, numbers), strict=True
        )
    )


def _read_points(places: Sequence[str], numbers: Sequence[list[bytes]]) -> list[Vectors]:
    """(n, 3) of each contour, all of them decoded in one go.

    Args:
        places: of each contour, for messages.
        numbers: of each contour its coordinates, one after the other.
    """
    for place, each in zip(places, numbers, strict=True):
        if len(each) % 3:
            raise UnreadableError(f"{place} has {len(each)} coordinates, not a multiple of 3")
    points_mm = np.fromiter(map(float, chain.from_iterable(numbers)), np.float64).reshape(-1, 3)
    parts = np.split(points_mm, np.cumsum([len(each) // 3 for each in numbers])[:-1]) if numbers else []
    if not np.isfinite(points_mm).all():
        place = next(place for place, part in zip(places, parts, strict=True) if not np.isfinite(part).all())
        raise UnreadableError(f"{place} has a coordinate that is no finite number")
    return parts


def _read_contour(
    place: str,
    item: Mapping[int, bytes],
    numbers: list[bytes],
    points_mm: Vectors,
    slices: Mapping[str, int],
    read_references: Callable[[bytes], tuple[Reference, ...]],
) -> ReadContour:
    data = item[_CONTOUR_DATA]
    if b"_" in data:  # Python's float reads 1_0
        raise UnreadableError(f"{place} has a coordinate that is no finite number")
    references = read_references(item.get(_CONTOUR_IMAGE_SEQUENCE, b""))
    number = item.get(_CONTOUR_NUMBER)
    return ReadContour(
        place,
        None if number is None else int(number),
        item[_CONTOUR_GEOMETRIC_TYPE].decode().strip(),
        int(item[_NUMBER_OF_CONTOUR_POINTS]),
        references,
        slices.get(references[0][1]) if references else None,
        points_mm,
        _are_three(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)),
        max(map(len, numbers)),
        len(data),
    )


def _are_three(points: Iterable[tuple[bytes, ...]]) -> bool:
    """Whether at least three of them differ, without looking further than that."""
    seen: set[tuple[bytes, ...]] = set()
    for point in points:
        seen.add(point)
        if len(seen) == 3:
            return True
    return False


def _read_references(sequence: bytes, explicit: bool) -> tuple[Reference, ...]:
    return tuple(
        (item[_SOP_CLASS].rstrip(b"\0").decode(), item[_SOP_INSTANCE].rstrip(b"\0").decode())
        for item in _read_items(sequence, explicit)
    )


def _encoded_items(dataset: Dataset, tag: int) -> bytes:
    """The bytes of a sequence that pydicom has not taken apart yet."""
    element = dataset.get_item(tag)
    return bytes(element.value) if element is not None and element.is_raw else b""


def _read_items(sequence: bytes, explicit: bool) -> Iterator[dict[int, bytes]]:
    """The items of a sequence with lengths given (PS3.5 7.5): tag to value.

    By hand, because pydicom takes a fifth of a second for what is only ever these few elements.
    """
    for tag, content in _read_elements(sequence, explicit=False):  # items have no VR in either
        if tag != _ITEM:
            raise UnreadableError(f"a sequence holds the tag {Tag(tag)} instead of an item")
        yield dict(_read_elements(content, explicit))


def _read_elements(content: bytes, explicit: bool) -> Iterator[tuple[int, bytes]]:
    place, end = 0, len(content)
    while place < end:
        group, number, length = _TAG_AND_LENGTH(content, place)
        header = 8
        if explicit:
            if content[place + 4 : place + 6] in _LONG_VRS:
                (length,), header = struct.unpack_from("<I", content, place + 8), 12
            else:
                (length,) = struct.unpack_from("<H", content, place + 6)
        place += header + length
        if place > end:
            raise UnreadableError(f"{Tag(group, number)} is longer than what holds it")
        yield group << 16 | number, content[place - length : place]
