"""One CT instance: its header, checked, and its Hounsfield units.

Owns reading a CT Image Storage data set (PS3.3 A.3), from any transfer syntax that the node accepts,
and every refusal that one instance alone can give.
Speaks DICOM keywords in snake case, LPS millimetres and int16 HU (rows, columns).
Never guesses a missing or absurd value, and never lets a malformed file raise anything but a refusal.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from dicom_node.errors import SeriesRejectedError
from dicom_node.refusals import Refusal
from dicom_node.transfer_syntaxes import COMPRESSED

# pydicom's reading warnings repeat the value that they complain of, be it a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

PADDING_HU = -1024
"""What a padded pixel (PS3.3 C.7.5.1.1.2) becomes: outside the reconstruction there is nothing, like air."""

NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})

NOT_OURS = frozenset({Refusal.NOT_DICOM, Refusal.NOT_CT, Refusal.ENHANCED_CT, Refusal.LOCALIZER})
"""Refusals of an instance that may lie beside a CT series without spoiling it, such as its localizer."""

_LOCALIZERS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"})
_NO_PLANNING_IMAGES = frozenset(
    {
        *("MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION", "PROJECTION IMAGE"),
        *("SSD", "VRT", "VR", "VOLUME RENDERING", "PERFUSION", "SUBTRACTION"),
        *("MPR", "MPVR", "CPR", "REFORMAT", "REFORMATTED", "CURVED"),
        *("DOSE_INFO", "DOSE INFO", "SCREENSHOT", "SCREEN SHOT", "SCREEN SAVE"),
    }
)
_MATERIAL_MAPS = frozenset(
    {
        *("MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_MODIFIED", "MAT_VALUE_BASED"),
        *("EFF_ATOMIC_NUM", "ELECTRON_DENSITY"),
    }
)
"""Value 4 of a multi-energy CT's ImageType (PS3.3 C.8.2.1.1.1), but for VMI, which has HU."""
_MATERIAL_UNITS = {
    "MGML": "mg/ml",
    "PCT": "percent",
    "Z_EFF": "effective atomic numbers",
    "ED": "electron densities",
    "EDW": "electron densities relative to water",
    "HU_MOD": "modified HU",
}
"""Rescale Types of such maps (PS3.3 C.11.1.1.2)."""
_ENHANCED = frozenset({EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
_UID_CHARACTERS = re.compile(r"[0-9.]{1,64}")
_LONG_LENGTH_VRS = frozenset({b"OB", b"OW", b"UN"})

_META_BYTES = 1 << 16
"""Group 0002 ends long before; a private part may fill up the rest."""
_SPACING_MM = (0.05, 20.0)
_MATRIX = (8, 4096)
_FARTHEST_MM = 100_000.0


@dataclass(frozen=True)
class CtHeader:
    """What the node needs to know of one slice; names are the DICOM keywords.

    Attributes:
        image_position_patient: LPS millimetres of the centre of the first pixel.
        image_orientation_patient: direction along which the column index grows, then the row index.
        pixel_spacing: millimetres between rows, then between columns (PS3.3 10.7.1.3).
        patient_id: only to be compared between slices; never shown.
        slice_thickness: mm, None where the scanner does not state it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str
    transfer_syntax_uid: str
    image_position_patient: tuple[float, float, float]
    image_orientation_patient: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int
    image_type: tuple[str, ...]
    slice_thickness: float | None
    convolution_kernel: str
    series_description: str = field(repr=False)
    protocol_name: str = field(repr=False)
    patient_id: str = field(repr=False)
    content_date_time: str
    """The latest of the slice's own dates, YYYYMMDDHHMMSS; empty where it has none."""


@dataclass(frozen=True)
class CtSlice:
    """One CT instance.

    Attributes:
        dataset: everything before the pixels, as read.
        hu: int16 (rows, columns).
        sha256: of the data set's bytes, without the file's preamble and meta group.
    """

    header: CtHeader
    dataset: Dataset = field(repr=False)
    hu: NDArray[np.int16] = field(repr=False)
    sha256: str


@dataclass(frozen=True)
class StoredValues:
    """How a stored 16-bit word means an intensity (PS3.3 C.7.6.3, C.11.1, C.7.5.1.1.2).

    Attributes:
        padding: lowest and highest stored value that mean "no pixel here"; None without padding.
    """

    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None


class SliceRejectedError(SeriesRejectedError):
    """One instance is not ours to contour.

    Attributes:
        series_instance_uid: the series that it says it belongs to; empty where it does not say.
    """

    def __init__(self, code: str, reason: str, series_instance_uid: str) -> None:
        super().__init__(code, reason)
        self.series_instance_uid = series_instance_uid

    @property
    def is_foreign(self) -> bool:
        """Whether such an instance may lie beside a CT series without spoiling it, as a localizer may."""
        return self.code in NOT_OURS


def read_slice(source: Path | BinaryIO) -> CtSlice:
    """Read one CT instance from a DICOM file (PS3.10).

    Fractional HU are rounded to the nearest; values beyond int16 saturate at its ends; padding becomes
    `PADDING_HU`, unless the padding value would be tissue (above -500 HU), which is left as it is.

    Raises:
        SliceRejectedError: the instance is not ours to contour, with a code of `Refusal` and the numbers.
        OSError: the file cannot be opened or read.
    """
    raw = source.read_bytes() if isinstance(source, Path) else source.read()
    stream = BytesIO(raw)
    start, syntax = _meta_group(stream)
    dataset = _read_elements(stream)
    with _told_with_its_series(dataset):
        _refuse_what_is_no_ct(dataset, syntax)
        header = _header(dataset, syntax)
        stored = _stored_values(dataset)
        is_native = syntax in NATIVE
        words = _native_words(raw, stream.tell(), header) if is_native else _decoded_words(raw, header)
    sha256 = hashlib.sha256(memoryview(raw)[start:]).hexdigest()
    return CtSlice(header, dataset, hu_table(stored)[words], sha256)


def read_header(path: Path) -> CtHeader:
    """Read and check what comes before the pixels; the file's other bytes are not touched.

    Raises:
        SliceRejectedError: as `read_slice`, as far as the header tells.
        OSError: the file cannot be opened or read.
    """
    with path.open("rb") as file:
        _, syntax = _meta_group(file)
        dataset = _read_elements(file)
    with _told_with_its_series(dataset):
        _refuse_what_is_no_ct(dataset, syntax)
        return _header(dataset, syntax)


@lru_cache(maxsize=8)
def hu_table(stored: StoredValues) -> NDArray[np.int16]:
    """The HU of each of the 65,536 words that a pixel can hold: int16 (65536,), read-only.

    One total table, so that sign, unused high bits, padding, fractional slopes and saturation are
    decided in one place, and a slice is one look-up.
    """
    words = np.arange(1 << 16, dtype=np.uint16)
    unused = 16 - stored.bits_stored
    shifted = words << unused
    values = (shifted.view(np.int16) >> unused if stored.signed else shifted >> unused).astype(np.int64)
    exact = values * stored.slope + stored.intercept
    limits = np.iinfo(np.int16)
    table: NDArray[np.int16] = np.clip(np.rint(exact), limits.min, limits.max).astype(np.int16)
    if stored.padding is not None:
        low, high = stored.padding
        whole = words.view(np.int16).astype(np.int64) if stored.signed else words.astype(np.int64)
        padded = ((low <= values) & (values <= high)) | ((low <= whole) & (whole <= high))
        if stored.slope * high + stored.intercept <= -500:
            table[padded] = PADDING_HU
    table.setflags(write=False)
    return table


def _refuse(code: Refusal, reason: str) -> NoReturn:
    raise SliceRejectedError(code.value, reason, "")


@contextmanager
def _told_with_its_series(dataset: Dataset) -> Iterator[None]:
    """Refusals inside name the series that the instance says it belongs to."""
    try:
        yield
    except SliceRejectedError as problem:
        try:
            series = _text(dataset, "SeriesInstanceUID")
        except SliceRejectedError:
            series = ""
        raise SliceRejectedError(problem.code, problem.reason, series) from None


def _meta_group(stream: BinaryIO) -> tuple[int, UID]:
    """Where the data set starts, and its transfer syntax: walks the explicit VR group 0002 (PS3.10 7.1).

    The stream stands at the file's start again afterwards.
    """
    raw = stream.read(_META_BYTES)
    stream.seek(0)
    if raw[128:132] != b"DICM":
        _refuse(Refusal.NOT_DICOM, "no DICOM file: the prefix DICM is missing (PS3.10 7.1)")
    offset, syntax = 132, b""
    while raw[offset : offset + 2] == b"\x02\x00" and offset + 8 <= len(raw):
        element, vr = raw[offset + 2 : offset + 4], raw[offset + 4 : offset + 6]
        is_long = vr in _LONG_LENGTH_VRS
        head = 12 if is_long else 8
        length = int.from_bytes(raw[offset + (8 if is_long else 6) : offset + head], "little")
        if element == b"\x10\x00":
            syntax = raw[offset + head : offset + head + length]
        offset += head + length
    if not syntax:
        _refuse(Refusal.DAMAGED, "a damaged DICOM file: its meta information names no transfer syntax")
    return offset, UID(syntax.decode("ascii", "replace").strip("\0 "))


def _read_elements(stream: BinaryIO) -> Dataset:
    """Everything before the pixel data; the stream stands at the pixel data element then."""
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True)
    except Exception as problem:  # pydicom has no common root for what malformed bytes can raise
        raise SliceRejectedError(
            Refusal.DAMAGED.value, f"a damaged DICOM file: reading it ends in {type(problem).__name__}", ""
        ) from None


def _refuse_what_is_no_ct(dataset: Dataset, syntax: UID) -> None:
    """Storage class, modality, image type and transfer syntax."""
    sop_class = _text(dataset, "SOPClassUID")
    if "DirectoryRecordSequence" in dataset:
        _refuse(Refusal.NOT_CT, "no CT image: a DICOMDIR, the list of what is on a disc (PS3.10 8.6)")
    if not sop_class:
        _refuse(Refusal.MISSING_ATTRIBUTE, "SOPClassUID is missing: the file is damaged, or no image")
    if sop_class in _ENHANCED:
        _refuse(
            Refusal.ENHANCED_CT, f"{UID(sop_class).name}: only single-frame CT Image Storage is contoured"
        )
    modality = _text(dataset, "Modality")
    if sop_class != CTImageStorage or modality != "CT":
        _refuse(
            Refusal.NOT_CT,
            f"no CT image: storage class {_known_name(sop_class)}, modality {modality[:16] or 'not stated'}",
        )
    _refuse_what_is_no_planning_image(dataset)
    if syntax not in (*NATIVE, *COMPRESSED):
        lossy = (
            syntax.is_transfer_syntax and syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian
        )
        _refuse(
            Refusal.LOSSY if lossy else Refusal.UNSUPPORTED_TRANSFER_SYNTAX,
            f"transfer syntax {_known_name(syntax)} is not read: send it uncompressed or lossless",
        )
    if _text(dataset, "LossyImageCompression") == "01":
        _refuse(Refusal.LOSSY, "LossyImageCompression is 01: the HU are no longer the scanner's")


def _refuse_what_is_no_planning_image(dataset: Dataset) -> None:
    """By ImageType and the unit of the values; DERIVED or SECONDARY alone says nothing against an image."""
    values = [value.upper() for value in _texts(dataset, "ImageType")]
    words = {*values, *(word for value in values for word in value.split())}  # such as CSA MPR
    if words & _LOCALIZERS:
        _refuse(Refusal.LOCALIZER, f"a localizer: ImageType has {', '.join(sorted(words & _LOCALIZERS))}")
    if words & _MATERIAL_MAPS:
        named = ", ".join(sorted(words & _MATERIAL_MAPS))
        _refuse(
            Refusal.MULTI_ENERGY, f"a map of a multi-energy CT, no Hounsfield units: ImageType has {named}"
        )
    if words & _NO_PLANNING_IMAGES:
        named = ", ".join(sorted(words & _NO_PLANNING_IMAGES))
        _refuse(Refusal.NO_PLANNING_IMAGE, f"no planning image: ImageType has {named}")
    unit = _text(dataset, "RescaleType").upper()
    if unit in _MATERIAL_UNITS:
        told = f"its values are {_MATERIAL_UNITS[unit]} (RescaleType {unit})"
        _refuse(Refusal.MULTI_ENERGY, f"a map of a multi-energy CT, no Hounsfield units: {told}")
    if _text(dataset, "MultienergyCTAcquisition").upper() == "YES" and unit != "HU":
        # There it has to be stated (PS3.3 C.8.2.1), be it HU or the unit of a map.
        said = f"RescaleType is {unit[:16]!r}" if unit else "RescaleType is missing"
        _refuse(Refusal.MULTI_ENERGY, f"a multi-energy CT whose values are not said to be HU: {said}")
    # US is unspecified (PS3.3 C.11.1.1.2): a scanner's own image has HU all the same (C.8.2.1.1.2).
    if unit not in {"", "HU", "US"} or (unit == "US" and values[:1] == ["DERIVED"]):
        _refuse(
            Refusal.NO_PLANNING_IMAGE,
            f"RescaleType is {unit[:16]!r}: the values are not known to be Hounsfield units",
        )


def _header(dataset: Dataset, syntax: UID) -> CtHeader:
    """The checked header.

    Raises:
        SeriesRejectedError: something is missing or absurd.
    """
    rows, columns = (_integer(dataset, keyword, *_MATRIX) for keyword in ("Rows", "Columns"))
    position = _numbers(dataset, "ImagePositionPatient", 3)
    if max(map(abs, position)) > _FARTHEST_MM:
        _absurd(
            "ImagePositionPatient", f"{_listed(position)} mm lies more than {_FARTHEST_MM / 1000:g} m away"
        )
    spacing = _numbers(dataset, "PixelSpacing", 2)
    if not all(_SPACING_MM[0] <= mm <= _SPACING_MM[1] for mm in spacing):
        _absurd(
            "PixelSpacing", f"{_listed(spacing)} mm is outside {_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm"
        )
    thickness = _optional_number(dataset, "SliceThickness")
    return CtHeader(
        sop_class_uid=_uid(dataset, "SOPClassUID"),
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        frame_of_reference_uid=_uid(dataset, "FrameOfReferenceUID"),
        transfer_syntax_uid=str(syntax),
        image_position_patient=(position[0], position[1], position[2]),
        image_orientation_patient=_orientation(dataset),
        pixel_spacing=(spacing[0], spacing[1]),
        rows=rows,
        columns=columns,
        image_type=tuple(_texts(dataset, "ImageType")),
        slice_thickness=thickness if thickness else None,
        convolution_kernel=" ".join(_texts(dataset, "ConvolutionKernel")),
        series_description=_text(dataset, "SeriesDescription"),
        protocol_name=_text(dataset, "ProtocolName"),
        patient_id=_text(dataset, "PatientID"),
        content_date_time=_latest_date_time(dataset),
    )


def _orientation(dataset: Dataset) -> tuple[float, float, float, float, float, float]:
    """Six direction cosines, two orthogonal unit vectors within 0.001."""
    cosines = _numbers(dataset, "ImageOrientationPatient", 6)
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    # Slightly tighter than PlaneStack's own tolerance, so that it refuses nothing that passed here.
    errors = (abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if not all(error <= 9e-4 for error in errors):
        _absurd("ImageOrientationPatient", f"{_listed(cosines)} is no pair of orthogonal unit vectors")
    a, b, c, d, e, f = cosines
    return a, b, c, d, e, f


def _stored_values(dataset: Dataset) -> StoredValues:
    """The pixel format, refused where it is not a CT's (PS3.3 C.8.2.1)."""
    if _integer(dataset, "SamplesPerPixel", 0, 99) != 1 or _optional_number(
        dataset, "NumberOfFrames"
    ) not in (None, 1):
        _refuse(Refusal.UNSUPPORTED_PIXELS, "a CT image has one sample a pixel and one frame")
    allocated = _integer(dataset, "BitsAllocated", 1, 64)
    bits_stored = _integer(dataset, "BitsStored", 1, 64)
    high_bit = _integer(dataset, "HighBit", 0, 63)
    if allocated != 16 or not 8 <= bits_stored <= 16 or high_bit != bits_stored - 1:
        _refuse(
            Refusal.UNSUPPORTED_PIXELS,
            f"{allocated} bits allocated, {bits_stored} stored, high bit {high_bit}: a CT has 16 allocated, "
            "up to 16 stored, and the high bit at their end",
        )
    signed = bool(_integer(dataset, "PixelRepresentation", 0, 1))
    (slope,), (intercept,) = (
        _numbers(dataset, keyword, 1) for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if not 1e-4 <= slope <= 100 or abs(intercept) > 40_000:
        _absurd("RescaleSlope", f"slope {slope:g} and intercept {intercept:g} give no Hounsfield units")
    return StoredValues(bits_stored, signed, slope, intercept, _padding(dataset, signed))


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest padded stored value; US and SS encodings of the same word are the same."""
    first = _optional_number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    limit = _optional_number(dataset, "PixelPaddingRangeLimit")
    values = sorted(_as_stored(value, signed) for value in (first, first if limit is None else limit))
    return values[0], values[-1]


def _as_stored(value: float, signed: bool) -> int:
    word = int(value) & 0xFFFF
    return word - 0x10000 if signed and word >= 0x8000 else word


def _native_words(raw: bytes, offset: int, header: CtHeader) -> NDArray[np.uint16]:
    """The pixels (rows, columns) as they lie in the file, without a copy where it is little endian."""
    explicit = header.transfer_syntax_uid != ImplicitVRLittleEndian
    order = "big" if header.transfer_syntax_uid == ExplicitVRBigEndian else "little"
    start = offset + (12 if explicit else 8)
    pixels = header.rows * header.columns
    stated = int.from_bytes(raw[start - 4 : start], order) if start <= len(raw) else 0  # type: ignore[arg-type]
    present = min(stated, max(len(raw) - start, 0))
    if present < 2 * pixels:
        _refuse(
            Refusal.TRUNCATED,
            f"{present} bytes of pixels; {header.rows} rows of {header.columns} need {2 * pixels}",
        )
    kind = ">u2" if order == "big" else "<u2"
    words = np.frombuffer(raw, kind, pixels, start).astype(np.uint16, copy=False)
    return words.reshape(header.rows, header.columns)


def _decoded_words(raw: bytes, header: CtHeader) -> NDArray[np.uint16]:
    """The decompressed pixels (rows, columns)."""
    try:
        whole = pydicom.dcmread(BytesIO(raw))
        array, _ = get_decoder(UID(header.transfer_syntax_uid)).as_array(whole, raw=True)
    except Exception as problem:  # every plugin raises its own
        raise SliceRejectedError(
            Refusal.UNDECODABLE.value,
            f"{_known_name(header.transfer_syntax_uid)} pixels of {header.rows} x {header.columns} cannot be "
            f"decoded: {type(problem).__name__}",
            "",
        ) from None
    if array.shape != (header.rows, header.columns) or array.dtype.itemsize != 2:
        _refuse(
            Refusal.UNDECODABLE, f"decoded to {array.shape}, the header says {(header.rows, header.columns)}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False).view(np.uint16)


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception as problem:  # a value that its VR does not allow
        raise SliceRejectedError(
            Refusal.ABSURD_ATTRIBUTE.value, f"{keyword} cannot be read: {type(problem).__name__}", ""
        ) from None


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    value = _value(dataset, keyword)
    if value is None:
        return []
    many = value if not isinstance(value, str | bytes) and hasattr(value, "__iter__") else [value]
    return [str(one).strip() for one in many]


def _text(dataset: Dataset, keyword: str) -> str:
    texts = _texts(dataset, keyword)
    return texts[0] if texts else ""


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = _text(dataset, keyword)
    if not uid:
        _refuse(Refusal.MISSING_ATTRIBUTE, f"{keyword} is missing")
    if not _UID_CHARACTERS.fullmatch(uid):
        _absurd(keyword, f"{len(uid)} characters that are no UID")
    return uid


def _numbers(dataset: Dataset, keyword: str, count: int) -> list[float]:
    """Exactly `count` finite numbers."""
    texts = [text for text in _texts(dataset, keyword) if text]
    if not texts:
        _refuse(Refusal.MISSING_ATTRIBUTE, f"{keyword} is missing")
    if len(texts) != count:
        _absurd(keyword, f"{len(texts)} values instead of {count}")
    try:
        values = [float(text) for text in texts]
    except ValueError:
        _absurd(keyword, "no number")
    if not all(math.isfinite(value) for value in values):
        _absurd(keyword, f"{_listed(values)} is not finite")
    return values


def _optional_number(dataset: Dataset, keyword: str) -> float | None:
    return _numbers(dataset, keyword, 1)[0] if any(_texts(dataset, keyword)) else None


def _integer(dataset: Dataset, keyword: str, lowest: int, highest: int) -> int:
    (value,) = _numbers(dataset, keyword, 1)
    if value != int(value) or not lowest <= value <= highest:
        _absurd(keyword, f"{value:g} is not a whole number from {lowest} to {highest}")
    return int(value)


def _absurd(keyword: str, what: str) -> NoReturn:
    _refuse(Refusal.ABSURD_ATTRIBUTE, f"{keyword}: {what}")


def _listed(values: list[float]) -> str:
    return "\\".join(f"{value:g}" for value in values)


def _known_name(uid: str) -> str:
    """The standard's name of a UID; one that it does not know is not repeated in full."""
    name = UID(uid).name
    return name if name != uid else f"{uid[:64]!r}"


def _latest_date_time(dataset: Dataset) -> str:
    """The latest of content, acquisition, series and study date with its time, as 14 digits."""
    found = []
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = _text(dataset, f"{kind}Date"), _text(dataset, f"{kind}Time").split(".")[0]
        if re.fullmatch(r"[0-9]{8}", date):
            found.append(date + (time if re.fullmatch(r"[0-9]{6}", time) else "000000"))
    return max(found, default="")
