"""The RT Structure Set: where its points lie, whose it is, and what planning systems ask of it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.sr._concepts_dict import concepts as CONCEPTS
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from skimage.draw import polygon2mask

from dicom_node import ct_identity, rt_struct, rt_struct_check
from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from dicom_node.errors import SeriesRejectedError
from dicom_node.profiles import Profile
from dicom_node.structure_template import Entry, Template
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack
from models.anatomy import ANATOMY
from tests import organs, phantoms
from tests.phantoms import ORIENTATIONS, Phantom
from tests.tools import needs

OBLIQUE = (0.9961947, 0.0871557, 0.0, -0.0858317, 0.9810603, 0.1736482)
TILTED = Phantom(
    orientation=(1.0, 0.0, 0.0, 0.0, 0.9659258262890683, -0.25881904510252074),
    step_direction=(0.0, 0.0, 1.0),
)
UNEVEN = (*(3.0 * index for index in range(10)), *(27.0 + 6.0 * index for index in range(1, 8)))
GEOMETRIES = {
    **{name: Phantom(orientation=orientation) for name, orientation in ORIENTATIONS.items()},
    "tilted gantry": TILTED,
    "oblique": Phantom(orientation=OBLIQUE),
    "uneven slices": Phantom(offsets_mm=UNEVEN),
    "oblong pixels": Phantom(rows=100, columns=40, pixel_spacing=(2.0, 6.0)),
    "long coordinates": Phantom(origin_mm=(-249.51171875123, -460.123456789, -1234.123456789)),
}


def read(data: bytes) -> FileDataset:
    return dcmread(BytesIO(data))


def built(
    series: CtSeries, **changes: object
) -> tuple[rt_struct.RtStruct, Segmentation, rt_struct.RtStructOptions]:
    segmentation = organs.segmentation(series.volume.planes)
    options = replace(organs.options(), **changes)  # type: ignore[arg-type]
    return rt_struct.build(series, segmentation, options), segmentation, options


def contours(dataset: FileDataset) -> list[tuple[str, np.ndarray]]:
    """The referenced instance and the points in mm of each contour."""
    return [
        (
            str(item.ContourImageSequence[0].ReferencedSOPInstanceUID),
            np.array(item.ContourData, float).reshape(-1, 3),
        )
        for roi in dataset.ROIContourSequence
        for item in roi.ContourSequence
    ]


@pytest.mark.parametrize("mode", ["smooth", "voxel"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_point_lies_in_its_slice_and_round_the_organ(geometry, mode):
    series = phantoms.series(GEOMETRIES[geometry])
    made, segmentation, options = built(series, contour_mode=mode)
    rt_struct_check.check(made.data, series, segmentation, options)
    slices = {header.sop_instance_uid: header for header in series.headers}
    dataset = read(made.data)
    for uid, points in contours(dataset):
        header = slices[uid]
        cosines = np.array(header.image_orientation_patient)
        offsets = (points - header.image_position_patient) @ np.cross(cosines[:3], cosines[3:])
        assert np.abs(offsets).max() <= 0.01
        if cosines[2] == cosines[5] == 0:
            assert set(points[:, 2]) == {header.image_position_patient[2]}
    # The mandible, the largest ball: its middle is known in millimetres.
    planes, found = series.volume.planes, segmentation.structures[-1]
    weights = np.argwhere(found.mask)
    middle = np.mean(
        [planes.plane_points_mm(s, np.array([[r, c]], float))[0] for s, r, c in weights.tolist()], axis=0
    )
    points = np.concatenate(
        [
            np.array(item.ContourData, float).reshape(-1, 3)
            for item in dataset.ROIContourSequence[-1].ContourSequence
        ]
    )
    assert np.linalg.norm((points.max(axis=0) + points.min(axis=0)) / 2 - middle) < 4.0


def test_no_decimal_string_is_longer_than_16_bytes():
    made, _, _ = built(phantoms.series(GEOMETRIES["long coordinates"]))
    for roi in read(made.data).ROIContourSequence:
        for item in roi.ContourSequence:
            raw = item.get_item(Tag("ContourData")).value
            assert max(len(number.strip()) for number in raw.split(b"\\")) <= 16


JAPANESE = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "PatientComments": "検査",
    "StudyDescription": "頭頸部",
}


CHARACTER_SETS = {
    "ISO_IR 100": {"PatientName": "Müller^Jürgen", "StudyDescription": "Schädel und Hals"},
    "ISO_IR 192": {"PatientName": "Σωκράτης^Ελένη", "StudyDescription": "頭頸部 Çene"},
    "GB18030": {"PatientName": "Wang^XiaoDong=王^小东", "StudyDescription": "头颈部"},
}
NAMED = [JAPANESE, *({"SpecificCharacterSet": one, **texts} for one, texts in CHARACTER_SETS.items())]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("texts", NAMED, ids=["ISO 2022 IR 87", *CHARACTER_SETS])
def test_patient_and_study_are_the_cts_own_bytes(texts, syntax):
    phantom = Phantom(overrides=texts, transfer_syntax=syntax)
    ct = read(phantoms.encode(phantoms.slices(phantom)[0]))
    dataset = read(built(phantoms.series(phantom))[0].data)
    for keyword in (*ct_identity.PATIENT_MODULE, *ct_identity.STUDY_MODULES, "SpecificCharacterSet"):
        tag = Tag(keyword)
        assert (tag in dataset) == (tag in ct)
        if tag in ct and tag != Tag("SpecificCharacterSet"):
            assert (dataset.get_item(tag).value or b"") == (ct.get_item(tag).value or b"")
    assert str(dataset.PatientName) == texts["PatientName"]


@needs("dciodvfy")
@pytest.mark.parametrize("mode", ["smooth", "voxel"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        dict.fromkeys(("AccessionNumber", "StudyID", "ReferringPhysicianName", "StudyTime")),
        JAPANESE,
    ],
    ids=["complete", "without Type 2", "Japanese"],
)
def test_dciodvfy_finds_no_error(tmp_path, mode, overrides):
    made, _, _ = built(
        phantoms.series(Phantom(overrides=overrides)),
        contour_mode=mode,
        predecessor_sop_instance_uid="1.2.3",
    )
    path = tmp_path / "rs.dcm"
    path.write_bytes(made.data)
    judged = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in judged.stderr.splitlines() if line.startswith("Error")]
    assert errors == []


@needs("dciodvfy")
def test_dciodvfy_finds_no_error_in_what_another_profile_wants(tmp_path):
    profile = Profile(
        transfer_syntax="explicit",
        points_per_contour=20,
        name_prefix="AN_",
        name_length=64,
        name_case="upper",
    )
    path = tmp_path / "rs.dcm"
    path.write_bytes(built(phantoms.series(Phantom(overrides=JAPANESE)), profile=profile)[0].data)
    judged = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in judged.stderr.splitlines() if line.startswith("Error")] == []
    assert read(path.read_bytes()).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@needs("dcentvfy")
def test_dcentvfy_finds_one_patient_one_study_and_one_frame_of_reference(tmp_path):
    phantom = Phantom()
    files = phantoms.write(phantom, tmp_path / "ct")
    path = tmp_path / "rs.dcm"
    path.write_bytes(built(phantoms.series(phantom))[0].data)
    judged = subprocess.run(
        ["dcentvfy", str(path), *map(str, files)], capture_output=True, text=True, check=False
    )
    assert "Error" not in judged.stdout + judged.stderr


@needs("plastimatch")
def test_another_reader_finds_the_same_masks(tmp_path):
    phantom = Phantom(rows=128, columns=128, pixel_spacing=(2.0, 2.0))
    phantoms.write(phantom, tmp_path / "ct")
    series = phantoms.series(phantom)
    made, segmentation, _ = built(series, contour_mode="voxel")
    (tmp_path / "rs.dcm").write_bytes(made.data)
    subprocess.run(
        [
            *("plastimatch", "convert", "--input", str(tmp_path / "rs.dcm")),
            *("--referenced-ct", str(tmp_path / "ct"), "--output-prefix", str(tmp_path / "masks")),
            *("--prefix-format", "nrrd"),
        ],
        capture_output=True,
        check=True,
        timeout=60,
    )
    for found in segmentation.structures[1:]:
        theirs = organs.read_nrrd(tmp_path / "masks" / f"{found.structure.name}.nrrd")
        assert 2 * (theirs & found.mask).sum() >= 0.97 * (theirs.sum() + found.mask.sum())


def nested_rings(planes: PlaneStack) -> StructureMap:
    """Rings within rings, a single voxel in the innermost, and single voxels that touch by a corner."""
    slices, rows, columns = planes.shape
    distance = np.hypot(*np.mgrid[:rows, :columns] - np.array([rows // 2, columns // 2])[:, None, None])
    plane = (distance < 14) & ~(distance < 11) | (distance < 8) & ~(distance < 4) | (distance < 1)
    plane[2, 2] = plane[3, 3] = plane[rows - 1, columns - 1] = True
    mask = np.zeros(planes.shape, bool)
    mask[3 : slices - 3] = plane
    return organs.boxed(mask)


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
@pytest.mark.parametrize("most_points", [0, 20])
@pytest.mark.parametrize("holes", ["keyhole", "xor"])
def test_nested_rings_and_single_voxels_read_back_from_the_file_by_two_readers(holes, most_points, syntax):
    series = phantoms.series()
    planes = series.volume.planes
    found = nested_rings(planes)
    profile = Profile(holes=holes, points_per_contour=most_points, transfer_syntax=syntax)
    options = replace(organs.options("voxel"), profile=profile)
    some = Segmentation((found,), "cpu", {})
    made = rt_struct.build(series, some, options)
    rt_struct_check.check(made.data, series, some, options)
    dataset = read(made.data)
    # The other reader: pydicom's numbers, scikit-image's point in polygon, exclusive or.
    uids = [header.sop_instance_uid for header in series.headers]
    filled = np.zeros(planes.shape, bool)
    for uid, points in contours(dataset):
        index = uids.index(uid)
        ways = points - planes.origins_mm[index]
        rows = ways @ planes.column_direction / planes.row_spacing_mm
        columns = ways @ planes.row_direction / planes.column_spacing_mm
        filled[index] ^= polygon2mask(planes.shape[1:], np.stack((rows, columns), axis=1).round(6))
    whole = np.zeros(planes.shape, bool)
    whole[found.box] = found.mask
    assert np.array_equal(filled, whole)
    (roi,) = dataset.ROIContourSequence
    types = {contour.ContourGeometricType for contour in roi.ContourSequence}
    assert types == {"CLOSED_PLANAR" if holes == "keyhole" else "CLOSEDPLANAR_XOR"}


def test_the_same_job_done_again_gives_the_same_bytes_whatever_the_order_of_the_slices():
    files = [phantoms.encode(one) for one in phantoms.slices(Phantom())]
    forwards, backwards = (
        assemble((read_slice(BytesIO(file)) for file in order), 2) for order in (files, files[::-1])
    )
    assert built(forwards)[0] == built(backwards)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"contour_mode": "voxel"},
        {"simplify_mm": 0.05},
        {"structure_set_label": "Other"},
        {"series_description": "Other"},
        {"model": organs.MODEL.model_copy(update={"sha256": "cd" * 32})},
        {"program_version": "0.2.0"},
        {"template": Template(structures={"Brainstem": Entry(name="Stem")})},
        {"profile": Profile(name_prefix="AN_")},
        {"predecessor_sop_instance_uid": "1.2.3"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_the_contours_decides_the_uids(changes):
    series = phantoms.series()
    first, other = built(series)[0], built(series, **changes)[0]
    assert first.sop_instance_uid != other.sop_instance_uid
    assert first.series_instance_uid != other.series_instance_uid


def test_the_time_of_the_job_decides_dates_but_no_uid():
    series = phantoms.series()
    first, later = built(series)[0], built(series, created_at=datetime(2027, 1, 1, tzinfo=UTC))[0]
    assert first.sop_instance_uid == later.sop_instance_uid
    assert read(first.data).StructureSetDate != read(later.data).StructureSetDate


def test_dates_are_read_by_the_clock_of_the_ct():
    series = phantoms.series(Phantom(overrides={"TimezoneOffsetFromUTC": "-0530"}))
    dataset = read(built(series)[0].data)
    assert (dataset.StructureSetDate, dataset.StructureSetTime) == ("20260301", "070015")
    assert dataset.TimezoneOffsetFromUTC == "-0530"
    assert "TimezoneOffsetFromUTC" not in read(built(phantoms.series())[0].data)


def test_each_roi_says_what_it_is_and_who_drew_it():
    made, segmentation, options = built(phantoms.series())
    dataset = read(made.data)
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert "Not a medical device" in dataset.StructureSetDescription
    rows = zip(
        segmentation.structures,
        dataset.StructureSetROISequence,
        dataset.ROIContourSequence,
        dataset.RTROIObservationsSequence,
        strict=True,
    )
    for found, roi, drawn, observed in rows:
        assert roi.ROIName == found.structure.name
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
        assert options.model.sha256[:12] in roi.ROIGenerationDescription
        (algorithm,) = roi.ROIDerivationAlgorithmIdentificationSequence
        assert options.model.sha256 in algorithm.AlgorithmParameters
        assert tuple(drawn.ROIDisplayColor) == found.structure.color
        assert observed.RTROIInterpretedType == "ORGAN"
        assert observed.RTROIIdentificationCodeSequence[0].CodeValue == found.structure.code.value
        assert roi.ROINumber == drawn.ReferencedROINumber == observed.ReferencedROINumber


def test_flags_reach_the_person_who_looks_at_the_structure():
    series = phantoms.series()
    plain = organs.segmentation(series.volume.planes).structures[-1]
    flagged = replace(plain, flags=("cut_by_field_of_view",))
    made = rt_struct.build(series, Segmentation((flagged,), "cpu", {}), organs.options())
    dataset = read(made.data)
    assert "cut_by_field_of_view" in dataset.StructureSetROISequence[0].ROIDescription
    assert "cut_by_field_of_view" in dataset.RTROIObservationsSequence[0].ROIObservationDescription


def test_a_structure_that_was_not_found_is_left_out_and_reported():
    series = phantoms.series()
    whole = organs.segmentation(series.volume.planes)
    absent = replace(organs.boxed(np.zeros((1, 1, 1), bool), "SpinalCord", 2), flags=("not_found",))
    structures = (whole.structures[0], absent, *whole.structures[2:])
    made = rt_struct.build(series, Segmentation(structures, "cpu", {}), organs.options())
    assert [report.number for report in made.rois] == [1, None, 3, 4, 5]
    assert made.rois[1].flags == ("not_found",)
    assert "SpinalCord" not in [roi.ROIName for roi in read(made.data).StructureSetROISequence]


def test_by_profile_a_structure_that_was_not_found_is_there_without_contours_or_refuses_the_object():
    series = phantoms.series()
    whole = organs.segmentation(series.volume.planes)
    absent = replace(organs.boxed(np.zeros((1, 1, 1), bool), "SpinalCord", 2), flags=("not_found",))
    some = Segmentation((whole.structures[0], absent), "cpu", {})
    options = replace(organs.options(), profile=Profile(empty_structures="include"))
    made = rt_struct.build(series, some, options)
    rt_struct_check.check(made.data, series, some, options)
    dataset = read(made.data)
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Brainstem", "SpinalCord"]
    assert ["ContourSequence" in roi for roi in dataset.ROIContourSequence] == [True, False]
    with pytest.raises(rt_struct.IncompleteError, match="SpinalCord: not found or left out"):
        rt_struct.build(series, some, replace(options, profile=Profile(empty_structures="refuse")))


def test_a_template_gives_names_and_colours_and_leaves_structures_out():
    series = phantoms.series()
    template = Template(
        structures={
            "Brainstem": Entry(name="Hirnstamm", color=(9, 8, 7)),
            "SpinalCord": Entry(leave_out=True),
        }
    )
    stem, _, *others = organs.segmentation(series.volume.planes).structures
    no_cord = organs.structure_map(np.zeros((0, 0, 0)), name="SpinalCord", channel=2, flags=("not_found",))
    segmentation = Segmentation((stem, no_cord, *others), "cpu", {})
    options = replace(organs.options(), template=template)
    made = rt_struct.build(series, segmentation, options)
    rt_struct_check.check(made.data, series, segmentation, options)
    dataset = read(made.data)
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Hirnstamm", *organs.NAMES[2:]]
    assert list(dataset.ROIContourSequence[0].ROIDisplayColor) == [9, 8, 7]
    assert [roi.number for roi in made.rois] == [1, None, 3, 4, 5]
    assert [roi.name for roi in made.rois] == list(organs.NAMES)
    assert [roi.flags for roi in made.rois] == [(), ("left_out",), (), (), ()]


def test_a_name_is_never_cut():
    long = "Brainstem, a draft to be looked at"
    template = Template(structures={"Brainstem": Entry(name=long)})
    made, segmentation, options = built(phantoms.series(), template=template, profile=Profile(name_length=64))
    rt_struct_check.check(made.data, phantoms.series(), segmentation, options)
    dataset = read(made.data)
    assert dataset.StructureSetROISequence[0].ROIName == long
    labels = ["ROIObservationLabel" in one for one in dataset.RTROIObservationsSequence]
    assert labels == [False, True, True, True, True]


def test_a_label_names_the_model_and_the_day():
    dataset = read(built(phantoms.series(), structure_set_label="{version} {date}")[0].data)
    assert dataset.StructureSetLabel == "1.2.3 20260301"


def test_a_side_is_coded_beside_the_organ():
    observations = read(built(phantoms.series())[0].data).RTROIObservationsSequence
    sides = [
        [
            modifier.CodeMeaning
            for modifier in one.RTROIIdentificationCodeSequence[0].get(
                "SegmentedPropertyTypeModifierCodeSequence", ()
            )
        ]
        for one in observations
    ]
    assert sides == [[], [], ["Left"], ["Right"], []]


def test_each_code_of_the_anatomy_is_in_the_dictionary_with_its_meaning():
    known = {
        (value, meaning.casefold())
        for codes in CONCEPTS["SCT"].values()
        for value, (meaning, _) in codes.items()
    }
    for organ in ANATOMY.values():
        assert (organ.code.value, organ.code.meaning.casefold()) in known


def test_a_series_without_any_structure_is_rejected():
    empty = Segmentation((organs.boxed(np.zeros((1, 1, 1), bool)),), "cpu", {})
    with pytest.raises(SeriesRejectedError) as refused:
        rt_struct.build(phantoms.series(), empty, organs.options())
    assert refused.value.code == "nothing_found"


def test_our_own_words_fit_their_elements_and_every_character_set():
    series = phantoms.series(Phantom(overrides=JAPANESE))
    model = organs.MODEL.model_copy(update={"name": "Réseau " * 20, "manufacturer": "A\\B " * 40})
    made, segmentation, options = built(series, model=model, series_description="é" * 64)
    dataset = read(made.data)
    assert len(dataset.StructureSetROISequence[0].ROIGenerationDescription) <= 64
    assert isinstance(dataset.Manufacturer, str)
    assert len(dataset.Manufacturer) <= 64
    rt_struct_check.check(made.data, series, segmentation, options)


def test_the_file_names_this_program_and_no_other():
    raw = built(phantoms.series())[0].data
    assert b"Qurit" not in raw
    assert b"rt-utils" not in raw
    assert read(raw).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
