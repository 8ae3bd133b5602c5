"""What looks odd is told, left out or held, as the configuration says, and never in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node import review, rt_struct, rt_struct_check
from dicom_node.config import read_config
from dicom_node.ct_series import CtSeries
from dicom_node.errors import ConfigurationError, SeriesRejectedError
from dicom_node.rt_struct_check import RtStructCheckError
from dicom_node.structure_template import Entry, Template
from inference.flags import FLAGS
from inference.postprocessing import absent
from inference.segmentation import Segmentation
from tests import organs, phantoms
from tests.dicom_node.test_rt_struct import GEOMETRIES
from tests.phantoms import Phantom

SERIES = phantoms.series(Phantom())


def flagged(series: CtSeries, flags: Mapping[str, tuple[str, ...]]) -> Segmentation:
    """Five balls, with these flags."""
    plain = organs.segmentation(series.volume.planes)
    return replace(
        plain,
        structures=tuple(
            replace(found, flags=flags.get(found.structure.name, ())) for found in plain.structures
        ),
    )


def test_a_structure_that_is_left_out_is_not_in_the_object_and_keeps_its_flags() -> None:
    odd = {"Parotid_L": ("unequal_sides", "low_confidence"), "Parotid_R": ("unequal_sides",)}
    segmentation = review.without(flagged(SERIES, odd), ("low_confidence",))
    options = replace(organs.options(), leave_out=("low_confidence",))
    made = rt_struct.build(SERIES, segmentation, options)
    rt_struct_check.check(made.data, SERIES, segmentation, options)
    names = [str(roi.ROIName) for roi in dcmread(BytesIO(made.data)).StructureSetROISequence]
    assert names == [name for name in organs.NAMES if name != "Parotid_L"]
    told = {roi.name: roi.flags for roi in made.rois}
    assert told["Parotid_L"] == ("unequal_sides", "low_confidence", "left_out")
    assert told["Parotid_R"] == ("unequal_sides",)


def test_what_is_not_drawn_is_told_where_a_dosimetrist_looks_and_the_check_insists_on_it() -> None:
    odd = {"Parotid_L": ("unequal_sides", "low_confidence")}
    *some, last = review.without(flagged(SERIES, odd), ("low_confidence",)).structures
    segmentation = Segmentation((*some, absent(last.structure)), "cpu", {})
    names = {"Parotid_R": Entry(leave_out=True), "Parotid_L": Entry(name="PG left")}
    options = replace(organs.options(), leave_out=("low_confidence",), template=Template(structures=names))
    made = rt_struct.build(SERIES, segmentation, options).data
    dataset = dcmread(BytesIO(made))
    told = dataset.StructureSetDescription
    assert told.startswith(
        "Left out, draw by hand: PG left (unequal sides, low confidence). "
        f"Not found: {last.structure.name}. Not wanted by the template: Parotid_R. Drawn by "
    )
    assert "Not a medical device" in told
    assert dataset.SeriesDescription == "AnatomyNode contours (unapproved); 1 left out"
    rt_struct_check.check(made, SERIES, segmentation, options)
    dataset.StructureSetDescription = told.replace("PG left", "PG right")
    changed = BytesIO()
    dataset.save_as(changed)
    with pytest.raises(RtStructCheckError, match="does not say that PG left is not drawn"):
        rt_struct_check.check(changed.getvalue(), SERIES, segmentation, options)


def test_however_many_are_not_drawn_the_words_keep_their_limits_and_cut_no_name() -> None:
    drawn = flagged(SERIES, {}).structures
    missing = [absent(organs.structure(f"Structure_{number:03d}", 1)) for number in range(100)]
    missing += [replace(absent(organs.structure("Parotid_L", 1)), flags=("low_confidence", "left_out"))]
    kept = [found for found in drawn if found.structure.name != "Parotid_L"]
    segmentation = Segmentation((*kept, *missing), "cpu", {})
    options = replace(organs.options(), series_description="C" * 60)
    made = rt_struct.build(SERIES, segmentation, options).data
    rt_struct_check.check(made, SERIES, segmentation, options)
    dataset = dcmread(BytesIO(made))
    told = dataset.StructureSetDescription
    assert 900 < len(told) <= 1024
    assert told.startswith("Left out, draw by hand: Parotid_L (low confidence). Not found: Structure_000; ")
    assert re.search(r"; Structure_\d{3}; and more, see the job\. Drawn by ", told)
    assert dataset.SeriesDescription == "C" * 60


def test_another_policy_is_another_object() -> None:
    segmentation = flagged(SERIES, {})
    uids = {
        rt_struct.build(SERIES, segmentation, replace(organs.options(), leave_out=flags)).sop_instance_uid
        for flags in ((), ("in_pieces",), ("in_pieces", "out_of_place"), ("out_of_place", "in_pieces"))
    }
    assert len(uids) == 3  # the order says nothing


def test_a_series_of_which_nothing_would_be_left_is_rejected_with_the_flags() -> None:
    odd = dict.fromkeys(organs.NAMES, ("out_of_place",))
    with pytest.raises(SeriesRejectedError, match=r"review\.leave_out .*Brainstem: out_of_place"):
        review.without(flagged(SERIES, odd), ("out_of_place",))


@pytest.mark.parametrize(
    ("geometry", "flags", "reason"),
    [
        ("tilted gantry", ("tilted",), "the gantry was tilted by 15.0 degrees"),
        ("tilted gantry", ("uneven",), None),
        ("uneven slices", ("tilted", "uneven"), "the slice spacing changes within the series"),
        *((name, ("tilted", "uneven"), None) for name in ("HFS", "FFDL", "oblique", "oblong pixels")),
    ],
)
def test_tilted_and_uneven_series_are_held_where_the_policy_says_so_and_others_never(
    geometry: str, flags: tuple[str, ...], reason: str | None
) -> None:
    series = phantoms.series(GEOMETRIES[geometry])
    assert review.why_to_hold(series, flagged(series, {}), flags) == reason


def test_what_is_left_out_holds_nothing_any_more() -> None:
    odd = {"Parotid_L": ("in_pieces",), "SpinalCord": ("in_pieces", "low_confidence")}
    segmentation = review.without(flagged(SERIES, odd), ("low_confidence",))
    assert review.why_to_hold(SERIES, segmentation, ("in_pieces",)) == "Parotid_L: in pieces"
    assert review.why_to_hold(SERIES, segmentation, ("out_of_place",)) is None


@pytest.mark.parametrize(
    ("key", "flag"), [("leave_out", "not_found"), ("leave_out", "tilted"), ("hold", "odd")]
)
def test_a_flag_that_means_nothing_there_is_a_configuration_error_that_names_the_known(
    key: str, flag: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"peers: []\ndestinations: []\nreview: {{{key}: [{flag}]}}\n")
    with pytest.raises(ConfigurationError) as refused:
        read_config(file)
    (problem,) = [line for line in refused.value.problems if "review" in line]
    assert f"review.{key}" in problem
    assert flag in problem
    assert FLAGS[-1] in problem


def test_a_destination_that_holds_an_unknown_flag_is_a_configuration_error_with_its_path(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.yaml"
    pacs = "{name: pacs, host: h, port: 104, ae_title: A, hold: [tilted, odd]}"
    file.write_text(f"peers: []\ndestinations: [{pacs}]\n")
    with pytest.raises(ConfigurationError, match=r"destinations\[0\]\.hold: .*no flag odd; known: "):
        read_config(file)
