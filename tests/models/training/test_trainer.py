"""Training: resumable, reproducible, and able to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="training needs the extra `train` (torch)")

from models.card import PACKAGES  # noqa: E402
from models.export import load_average  # noqa: E402
from models.training.ablation import read_ablation  # noqa: E402
from models.training.config import Phase, TrainingConfigError, read_config  # noqa: E402
from models.training.held_out import read_scores  # noqa: E402
from models.training.trainer import ResumeError, train  # noqa: E402
from tests.models.small_archive import CONFIG, write_patients  # noqa: E402

UNCHANGING = replace(
    CONFIG,
    phases=(Phase(steps=1, batch=1, shape=(16, 16, 16), rates=(0.0, 0.0), frozen_norm=True),),
    weight_decay=0.0,
)
"""A step that leaves the weights as they were."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny volumes gain nothing from threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "patients", 3)


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["average"]


def _quiet(_message: str) -> None:
    pass


def _cut_off_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A reporter that stops the training when it tells of this step, behind its checkpoint."""
    monkeypatch.setattr("models.training.trainer.CHECKPOINT_EVERY", steps)

    def report(message: str) -> None:
        if message.startswith(f"step {steps}/"):
            raise KeyboardInterrupt

    return report


def test_a_training_cut_off_and_resumed_gives_the_weights_and_curves_of_an_uninterrupted_one(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(CONFIG, patients, tmp_path / "whole", report=_quiet)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, patients, tmp_path / "resumed", report=_cut_off_after(2, monkeypatch))
    with (tmp_path / "resumed" / "loss.csv").open("a") as rows:
        rows.write("3,0.1,0.1\n")  # trained, but not in the checkpoint any more
    resumed = train(CONFIG, patients, tmp_path / "resumed", report=_quiet)

    for name, tensor in _weights(whole).items():
        torch.testing.assert_close(_weights(resumed)[name], tensor, msg=name)
    for table in ("loss.csv", "watch.csv", "held_out.csv", "taught.csv"):
        assert (tmp_path / "whole" / table).read_text() == (tmp_path / "resumed" / table).read_text()
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 1000


def test_a_checkpoint_of_another_configuration_is_not_trained_on(patients: Path, tmp_path: Path) -> None:
    train(CONFIG, patients, tmp_path / "run", report=_quiet)
    with pytest.raises(ResumeError, match="another configuration"):
        train(replace(CONFIG, seed=8), patients, tmp_path / "run", report=_quiet)


def test_a_finished_training_is_prolonged_by_further_phases_and_by_no_other_change(
    patients: Path, tmp_path: Path
) -> None:
    longer = replace(
        CONFIG, phases=(*CONFIG.phases, Phase(steps=2, batch=1, shape=(16, 16, 16), rates=(1e-3, 0.0)))
    )
    whole = train(longer, patients, tmp_path / "whole", report=_quiet)
    train(CONFIG, patients, tmp_path / "prolonged", report=_quiet)
    prolonged = train(longer, patients, tmp_path / "prolonged", report=_quiet)

    for name, tensor in _weights(whole).items():
        torch.testing.assert_close(_weights(prolonged)[name], tensor, msg=name)
    with pytest.raises(ResumeError, match="another configuration"):
        train(CONFIG, patients, tmp_path / "prolonged", report=_quiet)


def test_another_trainings_weights_are_taken_over_where_the_layers_agree(
    patients: Path, tmp_path: Path
) -> None:
    first = train(CONFIG, patients, tmp_path / "first", report=_quiet)
    more = replace(UNCHANGING, structures=(*CONFIG.structures, "Parotid_L"))
    second = train(more, patients, tmp_path / "second", start_from=first, report=_quiet)
    before, after = _weights(first), _weights(second)
    assert before["head.weight"].shape != after["head.weight"].shape
    for name in before:
        if not name.startswith("head"):
            torch.testing.assert_close(after[name], before[name], msg=name)


def test_a_training_that_goes_on_from_another_ones_weights_does_not_begin_without_them(
    patients: Path, tmp_path: Path
) -> None:
    later = replace(CONFIG, begun_with="first.yaml")
    with pytest.raises(ResumeError, match=r"first\.yaml.*--start-from"):
        train(later, patients, tmp_path / "run", report=_quiet)


def test_a_wider_network_answers_at_first_as_the_one_whose_weights_it_took_over(
    patients: Path, tmp_path: Path
) -> None:
    first = train(CONFIG, patients, tmp_path / "first", report=_quiet)
    plan = CONFIG.network
    wider = replace(UNCHANGING, network=replace(plan, finish=plan.finish + 3, detail=4))
    second = train(wider, patients, tmp_path / "second", start_from=first, report=_quiet)
    image = torch.rand(1, 1, 16, 24, 16)
    narrow, wide = load_average(first, CONFIG), load_average(second, wider)
    assert sum(value.numel() for value in wide.parameters()) > sum(v.numel() for v in narrow.parameters())
    torch.testing.assert_close(wide(image), narrow(image))


def test_training_finds_the_structures_of_a_phantom_that_it_was_never_shown(
    patients: Path, tmp_path: Path
) -> None:
    config = replace(
        CONFIG,
        phases=(Phase(steps=40, batch=1, shape=(24, 20, 24), rates=(5e-3, 0.0), centred=0.0),),
    )
    train(config, patients, tmp_path / "run", report=_quiet)
    header, *rows = (tmp_path / "run" / "watch.csv").read_text().splitlines()
    dice = dict(zip(header.split(","), map(float, rows[-1].split(",")), strict=True))
    assert dice["Bone_Mandible"] > 0.6
    held_out = [
        one for one in read_scores(tmp_path / "run" / "held_out.csv") if one.structure == "Bone_Mandible"
    ]
    assert np.mean([one.dice for one in held_out]) == pytest.approx(dice["Bone_Mandible"], abs=1e-3)
    assert len((tmp_path / "run" / "loss.csv").read_text().splitlines()) == 41


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"structures": ["Brainstem", "Spleen"]}, "does not know Spleen"),
        ({"folds": {"count": 4, "held_out": 4}}, "the last of 4 folds is 3"),
        ({"network": {"down_samplings": 3}}, r"no multiple of 8"),
        ({"augmentation": {"rotation": 3}}, "augmentation"),
        ({"published": {"kept_back": {"Eye_L": "too few"}}}, "Eye_L, which are not trained"),
    ],
)
def test_a_bad_configuration_names_the_file_the_key_and_the_problem(
    change: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    good = {
        "structures": ["Brainstem"],
        "spacing_mm": [3.0, 4.0, 4.0],
        "window": {"lower_hu": -200, "upper_hu": 800},
        "seed": 1,
        "phases": [{"steps": 1, "batch": 1, "shape": [12, 12, 12], "rates": [0.1, 0.1]}],
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(good))
    assert read_config(file).structures == ("Brainstem",)
    file.write_text(yaml.safe_dump({**good, **change}))
    with pytest.raises(TrainingConfigError, match=rf"config\.yaml(.|\n)*{complaint}"):
        read_config(file)


def test_every_configuration_of_the_repository_is_valid() -> None:
    configs = PACKAGES.parent / "configs"
    assert len(read_ablation(configs / "ablation.yaml")) >= 4
    for file in configs.glob("*.yaml"):
        if file.name != "ablation.yaml":
            assert read_config(file).total_steps > 0
