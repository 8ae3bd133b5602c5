"""An exported package answers as the trained network does, and names nothing of the machine that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [train]")

from inference.session import Session  # noqa: E402
from models import export  # noqa: E402
from models.anatomynet import AnatomyNet  # noqa: E402
from models.card import ModelDescription, read_package  # noqa: E402
from models.training import read_config  # noqa: E402

CONFIG = Path(export.__file__).parent / "configs" / "anatomynet-hn.yaml"
CLASSES = 6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnatomyNet, Path, ModelDescription]:
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(3)
    average = AnatomyNet(CLASSES)
    average(torch.rand(1, 1, 16, 16, 16))  # running statistics that are not the initial ones
    state = {"network": AnatomyNet(CLASSES).state_dict(), "average": average.state_dict(), "step": 12}
    torch.save(state, folder / "checkpoint.pt")
    package = folder / "new-model"
    return (
        average.eval(),
        package,
        export.export_package(folder / "checkpoint.pt", CONFIG, None, package, "9.9"),
    )


def test_the_averaged_weights_answer_as_in_torch_at_shapes_never_seen(
    exported: tuple[AnatomyNet, Path, ModelDescription],
) -> None:
    network, package, _ = exported
    image = np.random.default_rng(1).random((1, 1, 12, 30, 18), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).softmax(1).numpy()
    answered = Session(package / "model.onnx", "cpu", allow_cpu=True, threads=1).run(image)
    np.testing.assert_allclose(answered, expected, atol=1e-5)


def test_the_description_is_the_trainings(exported: tuple[AnatomyNet, Path, ModelDescription]) -> None:
    _, package, description = exported
    config = read_config(CONFIG)
    assert read_package(package).description == description
    assert (description.name, description.version) == ("new-model", "9.9")
    assert [structure.name for structure in description.structures] == list(config.structures)
    assert [structure.channel for structure in description.structures] == [1, 2, 3, 4, 5]
    assert description.input.spacing_mm == config.spacing_mm
    assert "12 of " in (package / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_file_is_whole_and_names_no_path(exported: tuple[AnatomyNet, Path, ModelDescription]) -> None:
    _, package, _ = exported
    assert sorted(path.name for path in package.iterdir()) == ["MODEL_CARD.md", "model.onnx", "model.yaml"]
    content = (package / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path(export.__file__).parent).encode() not in content


def test_a_network_that_answers_otherwise_is_not_written_off_as_equal(
    exported: tuple[AnatomyNet, Path, ModelDescription],
) -> None:
    _, package, _ = exported
    torch.manual_seed(4)
    other = torch.nn.Sequential(AnatomyNet(CLASSES).eval(), torch.nn.Softmax(dim=1))
    assert export.largest_difference(other, package / "model.onnx") > export.LARGEST_DIFFERENCE


def test_volumes_are_measured_on_the_patients_in_cubic_centimetres(tmp_path: Path) -> None:
    hu = np.full((30, 40, 40), 40, np.int16)
    for index, side in enumerate((10, 11, 12)):
        mask = np.zeros(hu.shape, bool)
        mask[:side, :10, :10] = True
        np.savez(
            tmp_path / f"p{index}.npz",
            ct_hu=hu,
            spacing_mm=np.array([2.0, 3.0, 3.0]),
            **{"clinical/Parotid_L": mask},
        )
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["structures"], config["mirror_pairs"] = ["Parotid_L"], []
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    ranges = export.volume_ranges(read_config(tmp_path / "config.yaml"), tmp_path)
    low, high = ranges["Parotid_L"]
    assert low == pytest.approx(0.75 * 18.0, abs=0.2)  # 1000 voxels of 18 mm3, less a quarter
    assert high == pytest.approx(1.25 * 21.6, abs=0.2)
