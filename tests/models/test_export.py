"""An exported package answers as the trained network does, and names nothing of the machine that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [train]")

from inference.session import Session  # noqa: E402
from models import export, onnx_graph  # noqa: E402
from models.card import ModelDescription, read_package  # noqa: E402
from models.plausible import Plausible  # noqa: E402
from models.training.anatomynet import AnatomyNet, Architecture  # noqa: E402
from models.training.calibration import calibrate  # noqa: E402
from models.training.config import read_config  # noqa: E402
from models.training.held_out import THRESHOLDS, HeldOutScore, Judged, read_scores, write_scores  # noqa: E402

CONFIG = {
    "structures": ["Brainstem", "Eye_L", "Parotid_L"],
    "spacing_mm": [2.5, 4.0, 4.0],
    "window": {"lower_hu": -200, "upper_hu": 400},
    "seed": 1,
    "phases": [{"steps": 1, "batch": 1, "shape": [16, 16, 16], "rates": [0.1, 0.1]}],
    "network": {"down_samplings": 2, "finish": 16, "detail": 4},
    "published": {
        "summary": "a network of the tests",
        "attributions": ["nobody"],
        "max_extent_mm": [300, 300, 500],
        "kept_back": {"Eye_L": "too few patients"},
    },
}
ARCHITECTURE = Architecture(down_samplings=2, finish=16, detail=4)
DRAWN = [0, 1, 3]
"""Background, brainstem, parotid: the eye is kept back."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return file


@pytest.fixture(scope="module")
def exported(
    config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AnatomyNet, Path, ModelDescription]:
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(3)
    average = AnatomyNet(4, ARCHITECTURE)
    average(torch.rand(1, 1, 16, 16, 16))  # running statistics that are not the initial ones
    torch.save({"average": average.state_dict(), "step": 12}, folder / "checkpoint.pt")
    package = folder / "new-model"
    described = export.export_package(folder / "checkpoint.pt", config, None, package, "9.9")
    return average.eval(), package, described


def test_the_averaged_weights_answer_as_in_torch_at_shapes_never_seen(
    exported: tuple[AnatomyNet, Path, ModelDescription],
) -> None:
    network, package, _ = exported
    image = np.random.default_rng(1).random((1, 1, 12, 32, 20), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).softmax(1).numpy()
    answered = Session(package / "model.onnx", "cpu", allow_cpu=True, threads=1).run(image)
    np.testing.assert_allclose(answered, expected[:, DRAWN], atol=1e-5)


def test_the_description_is_the_configurations_without_what_is_kept_back(
    exported: tuple[AnatomyNet, Path, ModelDescription], config: Path
) -> None:
    _, package, description = exported
    assert read_package(package).description == description
    assert (description.name, description.version) == ("new-model", "9.9")
    assert [(one.name, one.channel) for one in description.structures] == [("Brainstem", 1), ("Parotid_L", 2)]
    assert description.input.spacing_mm == read_config(config).spacing_mm
    assert description.input.multiple_of == 4
    assert description.input.max_extent_mm == (300, 300, 500)
    assert description.attributions == ("nobody",)


def test_the_file_is_whole_and_names_no_path(exported: tuple[AnatomyNet, Path, ModelDescription]) -> None:
    _, package, _ = exported
    assert sorted(path.name for path in package.iterdir()) == ["model.onnx", "model.yaml"]
    content = (package / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path(export.__file__).parent).encode() not in content


def test_a_network_that_answers_otherwise_is_not_written_off_as_equal(
    exported: tuple[AnatomyNet, Path, ModelDescription],
) -> None:
    _, package, _ = exported
    torch.manual_seed(4)
    other = onnx_graph.Probabilities(AnatomyNet(4, ARCHITECTURE).eval(), DRAWN)
    assert onnx_graph.largest_difference(other, package / "model.onnx") > onnx_graph.LARGEST_DIFFERENCE


def test_a_file_that_answers_otherwise_is_refused_and_removed(
    exported: tuple[AnatomyNet, Path, ModelDescription], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _, _ = exported
    monkeypatch.setattr(onnx_graph, "LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(ValueError, match="differs from torch"):
        onnx_graph.write_onnx(onnx_graph.Probabilities(network, DRAWN), tmp_path / "wrong.onnx", 4)
    assert not (tmp_path / "wrong.onnx").exists()


def test_half_precision_is_another_file_with_nearly_the_same_answers(
    exported: tuple[AnatomyNet, Path, ModelDescription], tmp_path: Path
) -> None:
    network, package, _ = exported
    twin = AnatomyNet(4, ARCHITECTURE)
    twin.load_state_dict(network.state_dict())
    file = tmp_path / "half.onnx"
    onnx_graph.write_onnx(onnx_graph.Probabilities(twin.eval(), DRAWN, half=True).eval(), file, 4)
    assert file.stat().st_size < 0.6 * (package / "model.onnx").stat().st_size
    image = np.random.default_rng(1).random((1, 1, 16, 32, 20), np.float32)
    half, full = (
        Session(path, "cpu", allow_cpu=True, threads=1).run(image) for path in (file, package / "model.onnx")
    )
    np.testing.assert_allclose(half, full, atol=onnx_graph.LARGEST_HALF_DIFFERENCE)
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)


def test_a_cross_validation_gives_the_package_its_thresholds_and_confidence(
    exported: tuple[AnatomyNet, Path, ModelDescription], config: Path, tmp_path: Path
) -> None:
    _, _, plain = exported
    judged = {each: Judged(0.8 if each == 0.4 else 0.7, 0.9) for each in THRESHOLDS}
    scores = [HeldOutScore(f"pt_{number}", "Parotid_L", judged) for number in range(20)]
    write_scores(tmp_path / "held_out.csv", scores)
    trusts = calibrate(read_scores(tmp_path / "held_out.csv"))
    measured = {name: Plausible((1.0, 2.0)) for name in ("Brainstem", "Parotid_L")}
    described = export.describe(read_config(config), "m", "1", plain.sha256, measured, trusts)
    brainstem, parotid = described.structures
    assert (brainstem.postprocessing.threshold, brainstem.calibration) == (0.5, None)
    assert parotid.postprocessing.threshold == 0.4
    assert parotid.calibration is not None
    assert parotid.calibration.dice_mean == pytest.approx(0.8)
    assert [one.calibration for one in plain.structures] == [None, None]
