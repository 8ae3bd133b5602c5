"""Whatever a sender makes of a slice, its series becomes a volume or a named rejection, never a traceback."""

from __future__ import annotations

import random
import struct
import warnings
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from dicom_node.ct_series import CtSeries, SeriesBuilder
from dicom_node.ct_slice import CtSlice, SliceRejectedError, read_slice
from dicom_node.errors import SeriesRejectedError
from dicom_node.refusals import Refusal
from tests.phantoms import Phantom, encode, slices

MUTATIONS = 5000
CODES = {code.value for code in Refusal}
LONGEST_REASON = 600
TINY = Phantom(offsets_mm=tuple(3.0 * index for index in range(6)), rows=8, columns=8)

ELEMENTS = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"),
    *("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "ImageType", "Modality", "PatientID"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    *("PatientPosition", "NumberOfFrames", "InstanceNumber", "ContentDate", "SpecificCharacterSet"),
)
"""What decides where a slice lies, what it is worth, and whose it is."""

VALUES: tuple[bytes, ...] = (
    *(
        b"",
        b" ",
        b"nan",
        b"inf",
        b"-inf",
        b"0",
        b"-1",
        b"1e308",
        b"1e-308",
        b"9" * 40,
        b"abc",
        b"\\",
        b"\\\\",
    ),
    *(b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0", b"1\\1\\1\\1\\1\\1", b"1\\0\\0\\1\\0\\0", b"nan\\0\\0"),
    *(b"0\\0\\1e9", b"4\\0", b"-4\\4", b"4", b"\xff\xfe", b"\x00\x00", b"\x08\x00", b"\xff\xff", b"'; DROP"),
    *(
        b"../../etc",
        b"\x1b$B;3ED\x1b(B",
        b"2.25.1",
        b"MR",
        b"MONOCHROME1",
        b"RGB",
        b"ORIGINAL\\PRIMARY\\LOCALIZER",
    ),
)


def written(dataset: Dataset) -> bytes:
    stream = BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def with_another_value(dataset: Dataset, rng: random.Random) -> bytes:
    """One to three elements with bytes that their VR may not allow, or without them (Implicit VR)."""
    data = encode(dataset)
    for keyword in rng.sample(ELEMENTS, rng.randrange(1, 4)):
        tag = tag_for_keyword(keyword)
        assert tag is not None
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        start = data.find(head, data.find(b"DICM") + 4)
        if start < 0:
            continue
        (length,) = struct.unpack_from("<I", data, start + 4)
        element = b""
        if rng.random() > 0.15:
            value = rng.choice(VALUES)
            value += b" " * (len(value) % 2)
            element = head + struct.pack("<I", len(value)) + value
        data = data[:start] + element + data[start + 8 + length :]
    return data


def with_odd_elements(dataset: Dataset, rng: random.Random) -> bytes:
    """Private tags and nested sequences, which are none of our business."""
    changed = pydicom.dcmread(BytesIO(encode(dataset)))
    block = changed.private_block(0x0009 + 2 * rng.randrange(20), f"VENDOR {rng.randrange(9)}", create=True)
    block.add_new(rng.randrange(0x100), rng.choice(["LO", "OB", "UN", "SH"]), rng.choice([b"x\x00", b"12"]))
    inner: Any = Dataset()
    for _ in range(rng.randrange(1, 30)):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner])
        outer.PixelSpacing = ["7", "7"]
        inner = outer
    changed.SourceImageSequence = Sequence([inner])
    return written(changed)


def with_other_bytes(dataset: Dataset, rng: random.Random) -> bytes:
    """Bytes changed, cut, doubled or zeroed, anywhere."""
    data = bytearray(encode(dataset))
    start = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(128, len(data))] = rng.randrange(256)
        case 1:
            del data[start:]
        case 2:
            data[start:start] = data[start : start + rng.randrange(64)]
        case _:
            data[start : start + 24] = bytes(len(data[start : start + 24]))
    return bytes(data)


def became(others: list[CtSlice], mutated: bytes) -> CtSeries | SeriesRejectedError:
    """What the node makes of a series with one such slice."""
    builder = SeriesBuilder()
    for one in others:
        builder.add(one)
    try:
        try:
            builder.add(read_slice(BytesIO(mutated)))
        except SliceRejectedError as problem:
            builder.refuse(problem)
        return builder.build(min_slices=4)
    except SeriesRejectedError as problem:
        return problem


def test_5000_mutated_data_sets_give_a_volume_or_a_named_rejection_each() -> None:
    rng = random.Random(20261126)
    syntaxes = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, JPEGLSLossless)
    sources = [slices(TINY.but(transfer_syntax=syntax)) for syntax in syntaxes]
    others = [read_slice(BytesIO(encode(one))) for one in sources[1]]
    ends: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(MUTATIONS):
            place = rng.randrange(len(others))
            make = rng.choices((with_another_value, with_odd_elements, with_other_bytes), (6, 1, 3))[0]
            source = sources[0] if make is with_another_value else rng.choice(sources)
            mutated = make(source[place], rng)
            end = became([*others[:place], *others[place + 1 :]], mutated)
            if isinstance(end, CtSeries):
                assert np.isfinite(end.volume.planes.origins_mm).all()
                assert end.volume.hu.shape == end.volume.planes.shape
                ends["volume"] += 1
            else:
                assert end.code in CODES
                assert 0 < len(end.reason) < LONGEST_REASON
                assert "Traceback" not in end.reason
                ends[end.code] += 1
    assert ends["volume"] > 500
    assert len(ends) > 8, ends
