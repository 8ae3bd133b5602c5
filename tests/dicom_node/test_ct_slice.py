"""One CT instance: every bit depth and transfer syntax gives exact HU, all else a named refusal."""

from __future__ import annotations

import random
import warnings
from io import BytesIO
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from benchmarks.decoding import transcoded
from dicom_node.ct_slice import (
    PADDING_HU,
    CtSlice,
    SliceRejectedError,
    StoredValues,
    hu_table,
    read_header,
    read_slice,
)
from dicom_node.refusals import Refusal
from tests.phantoms import Phantom, encode, slices

ODD_CT = Path(__file__).parents[3] / "shared" / "data" / "odd_ct"
SMALL = Phantom(offsets_mm=(0.0, 3.0), rows=40, columns=36)
CODES = {code.value for code in Refusal}


def first_of(phantom: Phantom) -> bytes:
    return encode(slices(phantom)[0])


def outcome(data: bytes) -> SliceRejectedError | CtSlice:
    """What becomes of these bytes; anything but the two raises."""
    try:
        return read_slice(BytesIO(data))
    except SliceRejectedError as problem:
        return problem


def refusal_of(data: bytes) -> SliceRejectedError:
    with pytest.raises(SliceRejectedError) as caught:
        read_slice(BytesIO(data))
    return caught.value


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize(
    ("bits", "signed", "intercept"), [(12, False, -1024), (12, True, 0), (16, False, -1024), (16, True, 0)]
)
def test_hu_are_exact_in_every_transfer_syntax_and_bit_depth(
    syntax: str, bits: int, signed: bool, intercept: float
) -> None:
    phantom = SMALL.but(transfer_syntax=syntax, bits_stored=bits, signed=signed, intercept=intercept)
    for dataset, hu in zip(slices(phantom), phantom.voxels, strict=True):
        np.testing.assert_array_equal(read_slice(BytesIO(encode(dataset))).hu, hu)


@pytest.mark.parametrize(
    "syntax", [gdcm.TransferSyntax.JPEGLosslessProcess14, gdcm.TransferSyntax.JPEGLosslessProcess14_1]
)
@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_lossless_from_another_encoder_is_exact(syntax: int, signed: bool, tmp_path: Path) -> None:
    phantom = SMALL.but(signed=signed, bits_stored=16)
    path = tmp_path / "slice.dcm"
    path.write_bytes(first_of(phantom))
    read = read_slice(BytesIO(transcoded(path, syntax, tmp_path / "transcoded.dcm")))
    assert read.header.transfer_syntax_uid in {JPEGLossless, JPEGLosslessSV1}
    np.testing.assert_array_equal(read.hu, phantom.voxels[0])


def test_fractional_slopes_round_to_the_nearest_hu() -> None:
    phantom = SMALL.but(slope=0.48828125, intercept=-1024.0, bits_stored=16)
    stored = np.rint((phantom.voxels[0] + 1024.0) / 0.48828125)
    expected = np.rint(stored * 0.48828125 - 1024.0)
    np.testing.assert_array_equal(read_slice(BytesIO(first_of(phantom))).hu, expected)


def test_values_beyond_int16_saturate() -> None:
    table = hu_table(StoredValues(bits_stored=16, signed=False, slope=1, intercept=0, padding=None))
    assert table[40_000] == 32_767
    assert hu_table(StoredValues(16, True, 2, -1024, None))[0x8000] == -32_768


def test_bits_above_those_stored_are_not_read() -> None:
    table = hu_table(StoredValues(bits_stored=12, signed=False, slope=1, intercept=-1024, padding=None))
    assert table[0xF400] == table[0x0400] == 0
    signed = hu_table(StoredValues(bits_stored=12, signed=True, slope=1, intercept=0, padding=None))
    assert signed[0x0FFF] == signed[0xFFFF] == -1


@pytest.mark.parametrize(
    ("signed", "stored", "padding"), [(True, 0xF830, -2000), (True, 0xF830, 63536), (False, 0, 0)]
)
def test_padding_becomes_air_however_its_value_is_encoded(signed: bool, stored: int, padding: int) -> None:
    phantom = SMALL.but(bits_stored=16, signed=signed, intercept=-1024.0)
    dataset = slices(phantom)[0]
    dataset.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    words = np.frombuffer(dataset.PixelData, "<u2").copy()
    words[: phantom.columns] = stored
    dataset.PixelData = words.tobytes()
    hu = read_slice(BytesIO(encode(dataset))).hu
    assert (hu[0] == PADDING_HU).all()
    np.testing.assert_array_equal(hu[1:], phantom.voxels[0][1:])


def test_a_padding_range_is_inclusive_at_both_ends() -> None:
    table = hu_table(StoredValues(16, True, 1, 0, (-3024, -2000)))
    words = np.array([-3025, -3024, -2500, -2000, -1999], np.int16).view(np.uint16)
    assert table[words].tolist() == [-3025, PADDING_HU, PADDING_HU, PADDING_HU, -1999]


def test_a_padding_value_that_is_tissue_leaves_the_tissue() -> None:
    table = hu_table(StoredValues(16, True, 1, 0, (0, 0)))
    assert table[0] == 0


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(8, 16),
    signed=st.booleans(),
    slope=st.sampled_from([1.0, 0.5, 2.0, 0.1, 1.5]),
    intercept=st.integers(-8192, 8192),
    value=st.integers(-(1 << 15), (1 << 16) - 1),
)
def test_the_table_says_what_the_standard_says(
    bits: int, signed: bool, slope: float, intercept: int, value: int
) -> None:
    lowest = -(1 << bits - 1) if signed else 0
    value = lowest + value % (1 << bits)
    expected = np.clip(np.rint(value * slope + intercept), -32768, 32767)
    assert hu_table(StoredValues(bits, signed, slope, intercept, None))[value & 0xFFFF] == expected


REFUSALS: dict[str, tuple[dict[str, object], str, str]] = {
    "MR": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}, "not_ct", "MR Image Storage"),
    "no storage class": ({"SOPClassUID": None}, "missing_attribute", "SOPClassUID"),
    "Enhanced CT": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "enhanced_ct", "Enhanced CT"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", "LOCALIZER"),
    "MIP": ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "no_planning_image", "MIP"),
    "axial MPR": ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "no_planning_image", "MPR"),
    "Siemens MPR": (
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CSA MPR"]},
        "no_planning_image",
        "MPR",
    ),
    "other unit": ({"RescaleType": "OD"}, "no_planning_image", "'OD'"),
    "derived, unit unspecified": (
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "RescaleType": "US"},
        "no_planning_image",
        "'US'",
    ),
    **{
        f"map by its unit {unit}": ({"RescaleType": unit}, "multi_energy", f"(RescaleType {unit})")
        for unit in ("MGML", "PCT", "Z_EFF", "ED", "EDW", "HU_MOD")
    },
    **{
        f"map by its type {kind}": (
            {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", kind]},
            "multi_energy",
            kind,
        )
        for kind in (
            *("MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_MODIFIED", "MAT_VALUE_BASED"),
            *("EFF_ATOMIC_NUM", "ELECTRON_DENSITY"),
        )
    },
    "multi-energy without a unit": (
        {"MultienergyCTAcquisition": "YES", "RescaleType": None},
        "multi_energy",
        "RescaleType is missing",
    ),
    "lossy before": ({"LossyImageCompression": "01"}, "lossy", "01"),
    "no position": ({"ImagePositionPatient": None}, "missing_attribute", "ImagePositionPatient"),
    "empty position": ({"ImagePositionPatient": []}, "missing_attribute", "ImagePositionPatient"),
    "two numbers": ({"ImagePositionPatient": ["1", "2"]}, "absurd_attribute", "2 values instead of 3"),
    "far away": ({"ImagePositionPatient": ["1e9", "0", "0"]}, "absurd_attribute", "1e+09"),
    "no orientation": ({"ImageOrientationPatient": None}, "missing_attribute", "ImageOrientationPatient"),
    "no unit vectors": (
        {"ImageOrientationPatient": ["1", "0", "0", "0.5", "1", "0"]},
        "absurd_attribute",
        "1\\0\\0\\0.5\\1\\0",
    ),
    "no spacing": ({"PixelSpacing": None}, "missing_attribute", "PixelSpacing"),
    "zero spacing": ({"PixelSpacing": ["0", "1"]}, "absurd_attribute", "0\\1 mm"),
    "negative spacing": ({"PixelSpacing": ["-1", "1"]}, "absurd_attribute", "-1\\1 mm"),
    "no frame": ({"FrameOfReferenceUID": None}, "missing_attribute", "FrameOfReferenceUID"),
    "no series": ({"SeriesInstanceUID": None}, "missing_attribute", "SeriesInstanceUID"),
    "no slope": ({"RescaleSlope": None}, "missing_attribute", "RescaleSlope"),
    "zero slope": ({"RescaleSlope": "0"}, "absurd_attribute", "slope 0"),
    "absurd intercept": ({"RescaleIntercept": "-1e7"}, "absurd_attribute", "-1e+07"),
    "no rows": ({"Rows": None}, "missing_attribute", "Rows"),
    "rows that lie": ({"Rows": 480}, "truncated", "480 rows of 36 need 34560"),
    "eight bits": ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "unsupported_pixels", "8 bits"),
    "high bit": ({"HighBit": 15}, "unsupported_pixels", "high bit 15"),
    "colour": ({"SamplesPerPixel": 3}, "unsupported_pixels", "one sample"),
    "many frames": ({"NumberOfFrames": "2"}, "unsupported_pixels", "one frame"),
    "no pixels": ({"PixelData": None}, "truncated", "0 bytes"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_planning_slice_is_refused_by_name_and_with_numbers(name: str) -> None:
    overrides, code, numbers = REFUSALS[name]
    problem = refusal_of(first_of(SMALL.but(overrides=overrides)))
    assert problem.code == code
    assert numbers in problem.reason
    assert "Phantom^Test" not in problem.reason
    assert "PHANTOM-1" not in problem.reason


@pytest.mark.parametrize(
    "overrides",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "RescaleType": None},
        {"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"], "MultienergyCTAcquisition": "YES"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], "RescaleType": "US"},
        {"ImageType": None},
    ],
    ids=str,
)
def test_a_derived_secondary_or_monoenergetic_ct_is_taken_where_nothing_speaks_against_it(
    overrides: dict[str, object],
) -> None:
    read = read_slice(BytesIO(first_of(SMALL.but(overrides=overrides))))
    np.testing.assert_array_equal(read.hu, read_slice(BytesIO(first_of(SMALL))).hu)


def test_the_unit_of_the_values_stands_against_a_series_before_its_pixels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "slice"
    path.write_bytes(first_of(SMALL.but(overrides={"RescaleType": "MGML"})))
    with pytest.raises(SliceRejectedError, match="mg/ml"):
        read_header(path)


def test_a_number_that_is_none_is_refused() -> None:
    data = first_of(SMALL.but(overrides={"ImagePositionPatient": ["11111", "0", "0"]}))
    assert refusal_of(data.replace(b"11111\\0", b"nan  \\0")).reason.startswith("ImagePositionPatient: nan")
    assert refusal_of(data.replace(b"11111\\0", b"1,5  \\0")).code == "absurd_attribute"


def test_the_header_alone_says_the_same_as_the_slice(tmp_path: Path) -> None:
    path = tmp_path / "slice"
    path.write_bytes(first_of(SMALL))
    assert read_header(path) == read_slice(path).header
    path.write_bytes(first_of(SMALL.but(overrides={"PixelSpacing": None})))
    with pytest.raises(SliceRejectedError) as caught:
        read_header(path)
    assert caught.value.series_instance_uid == slices(SMALL)[0].SeriesInstanceUID


def test_the_sha256_is_of_the_data_set_whatever_stands_before_it() -> None:
    dataset = slices(SMALL)[0]
    first = read_slice(BytesIO(encode(dataset)))
    dataset.file_meta.ImplementationVersionName = "ANOTHER"
    assert read_slice(BytesIO(encode(dataset))).sha256 == first.sha256
    dataset.InstanceNumber = 77
    assert read_slice(BytesIO(encode(dataset))).sha256 != first.sha256


def test_undecodable_pixels_are_refused_by_name() -> None:
    data = bytearray(first_of(SMALL.but(transfer_syntax=JPEGLSLossless)))
    data[-200:] = bytes(200)
    assert refusal_of(bytes(data)).code == "undecodable"


def test_a_lossy_transfer_syntax_is_refused() -> None:
    data = first_of(SMALL.but(transfer_syntax=JPEG2000Lossless))
    problem = refusal_of(data.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.91"))
    assert problem.code == "lossy"
    assert "JPEG 2000" in problem.reason


def test_any_damage_gives_a_bounded_refusal_or_a_slice_and_never_a_traceback() -> None:
    """Bytes changed, cut, doubled and zeroed: 400 files, of five encodings."""
    syntaxes = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)
    whole = [first_of(SMALL.but(transfer_syntax=syntax)) for syntax in syntaxes]
    rng = random.Random(20240102)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(400):
            data = bytearray(rng.choice(whole))
            _damage(data, rng)
            became = outcome(bytes(data))
            if isinstance(became, SliceRejectedError):
                refused += 1
                assert became.code in CODES
                assert 0 < len(became.reason) < 400
            else:
                assert became.hu.dtype == np.int16
                assert became.hu.ndim == 2
    assert refused > 100


def _damage(data: bytearray, rng: random.Random) -> None:
    """One of: a few other bytes in the header, a cut, a doubled part, zeros."""
    kind, header = rng.randrange(4), min(len(data), 1500)
    start = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(132, header)] = rng.randrange(256)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:start] = data[start : start + rng.randrange(64)]
    else:
        data[start : start + 40] = bytes(len(data[start : start + 40]))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MR_small.dcm", "not_ct"),
        ("rtstruct.dcm", None),
        ("CT_small.dcm", None),
        ("no_meta.dcm", "not_dicom"),
        ("image_dfl.dcm", None),
    ],
)
def test_pydicoms_own_files_are_read_or_refused(name: str, code: str | None) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom's {name} is not installed")
    became = outcome(Path(path).read_bytes())
    assert code is None or (isinstance(became, SliceRejectedError) and became.code == code)


@pytest.mark.skipif(not ODD_CT.is_dir(), reason="../shared/data/odd_ct is not here")
def test_real_odd_series_are_refused_for_what_they_lack() -> None:
    """Anonymised so far that no frame of reference is left; with one, the pixels are those of pydicom."""
    for path in sorted(ODD_CT.rglob("*.dcm")):
        data = path.read_bytes()
        assert refusal_of(data).code in {"missing_attribute", "not_ct"}
        dataset = pydicom.dcmread(BytesIO(data))
        if dataset.Modality != "CT":
            continue
        dataset.FrameOfReferenceUID = "2.25.1"
        read = read_slice(BytesIO(encode(dataset)))
        stored = dataset.pixel_array.astype(float) * dataset.RescaleSlope + dataset.RescaleIntercept
        real = read.hu != PADDING_HU
        assert real.mean() > 0.3
        np.testing.assert_array_equal(read.hu[real], stored[real])
