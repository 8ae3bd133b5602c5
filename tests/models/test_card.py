"""A model package is used only if it is what its description says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom.sr.codedict import codes

from models.card import PACKAGES, ModelPackageError, read_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGES / "anatomynet-hn", tmp_path / "package"))


def replaced(folder: Path, old: str, new: str) -> None:
    card = folder / "model.yaml"
    text = card.read_text(encoding="utf-8")
    assert old in text
    card.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_network_with_one_other_byte_is_refused(folder: Path) -> None:
    onnx = folder / "model.onnx"
    content = bytearray(onnx.read_bytes())
    content[len(content) // 2] ^= 1
    onnx.write_bytes(content)
    with pytest.raises(ModelPackageError, match="sha256"):
        read_package(folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.yaml"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelPackageError, match=name):
        read_package(folder)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("summary:", "sumary:", "sumary"),
        ("threshold: 0.5", "threshold: 1.5", "threshold"),
        ("- 2.5", "- -2.5", "spacing_mm"),
        ("laterality: L", "laterality: left", "laterality"),
        ("name: Brainstem", "name: Brainstem_and_more", "at most 16"),
        ("version:", ": [", "model.yaml"),
    ],
)
def test_a_wrong_description_is_refused_and_the_key_named(
    folder: Path, old: str, new: str, words: str
) -> None:
    replaced(folder, old, new)
    with pytest.raises(ModelPackageError, match=words):
        read_package(folder)


def test_the_package_names_its_data_and_codes_as_the_standard_does() -> None:
    description = read_package(PACKAGES / "anatomynet-hn").description
    assert any("OpenKBP" in text and "MIT" in text for text in description.attributions)
    card = (PACKAGES / "anatomynet-hn" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "not a medical device" in card
    assert description.sha256 in card
    standard = {
        "Brainstem": codes.SCT.BrainStem,
        "SpinalCord": codes.SCT.SpinalCord,
        "Parotid_L": codes.SCT.ParotidGland,
        "Parotid_R": codes.SCT.ParotidGland,
        "Bone_Mandible": codes.SCT.Mandible,
        "Larynx": codes.SCT.Larynx,
        "Esophagus": codes.SCT.Esophagus,
        "Glnd_Submand_L": codes.SCT.SubmandibularGland,
        "Glnd_Submand_R": codes.SCT.SubmandibularGland,
        "Eye_L": codes.SCT.Eyeball,
        "Eye_R": codes.SCT.Eyeball,
        "Brain": codes.SCT.Brain,
        "Lung_L": codes.SCT.Lung,
        "Lung_R": codes.SCT.Lung,
    }
    found = {s.name: (s.code.value, s.code.scheme, s.code.meaning) for s in description.structures}
    assert found == {name: (code.value, "SCT", code.meaning) for name, code in standard.items()}
    assert len({structure.color for structure in description.structures}) == len(description.structures)
