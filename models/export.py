"""From a training's checkpoint to a model package that the node can use.

Owns model.yaml: what the network expects and draws, with what is plausible of it.
Speaks file paths in, a folder `models/packages/NAME` out.
Never writes a package whose network answers otherwise than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml

from models.anatomy import ANATOMY
from models.card import Input, ModelDescription, Structure, read_package, sha256_of
from models.onnx_graph import Probabilities, write_onnx
from models.plausible import Plausible, measure
from models.training.anatomynet import AnatomyNet
from models.training.calibration import Trust, calibrate
from models.training.config import TrainingConfig, read_config
from models.training.held_out import read_scores


def load_average(checkpoint: Path, config: TrainingConfig) -> AnatomyNet:
    """The averaged weights of a training's checkpoint, in eval mode."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = AnatomyNet(len(config.structures) + 1, config.network)
    network.load_state_dict(state["average"])
    return network.eval()


def describe(
    config: TrainingConfig,
    name: str,
    version: str,
    sha256: str,
    measured: Mapping[str, Plausible],
    trusts: Mapping[str, Trust],
) -> ModelDescription:
    """The package's description, of the structures that it draws."""
    published = config.published
    return ModelDescription(
        name=name,
        version=version,
        sha256=sha256,
        summary=published.summary,
        manufacturer=published.manufacturer,
        licence=published.licence,
        attributions=published.attributions,
        input=Input(
            spacing_mm=config.spacing_mm,
            window=config.window,
            multiple_of=config.network.multiple_of,
            max_extent_mm=published.max_extent_mm,
        ),
        structures=tuple(
            _structure(structure, channel, measured[structure], trusts.get(structure))
            for channel, structure in enumerate(config.drawn, start=1)
        ),
        least_in_place=published.least_in_place,
    )


def _structure(name: str, channel: int, plausible: Plausible, trust: Trust | None) -> Structure:
    organ = ANATOMY[name]
    described = Structure(
        name=name,
        channel=channel,
        color=organ.color,
        code=organ.code,
        laterality=organ.laterality,
        volume_cm3=plausible.volume_cm3,
        postprocessing=organ.postprocessing,
        neighbours=plausible.neighbours,
    )
    if trust is None:
        return described
    return described.model_copy(
        update={
            "postprocessing": organ.postprocessing.model_copy(update={"threshold": trust.threshold}),
            "calibration": trust.calibration,
            "least_confidence": trust.least_confidence,
        }
    )


def export_package(
    checkpoint: Path,
    config: Path,
    data: Path | None,
    output: Path,
    version: str = "0.1.0",
    half: bool = False,
    held_out: Sequence[Path] = (),
) -> ModelDescription:
    """Write `model.onnx` and `model.yaml` into `output`; its name becomes the model's.

    Args:
        checkpoint: of `models.training.trainer.train`; the averaged weights are taken.
        config: the training's configuration.
        data: the training patients, to measure volumes and places on; None takes training's own bounds.
        output: the package's folder, made where it is missing.
        version: of the model; another whenever the weights are.
        half: whether the convolutions run in float16, for GPUs.
        held_out: a training's `held_out.csv` or `cross_validation.csv`, for thresholds and confidence; where
            the patients in it are few for that, `taught.csv` beside it. None at all
            takes the usual threshold and states the network's own sureness as confidence.

    Raises:
        ValueError: the network in the file differs from the trained one.
        TrainingConfigError: the configuration cannot be read.
    """
    training = read_config(config)
    output.mkdir(parents=True, exist_ok=True)
    onnx = output / "model.onnx"
    channels = [0, *(1 + training.structures.index(name) for name in training.drawn)]
    probabilities = Probabilities(load_average(checkpoint, training), channels, half).eval()
    write_onnx(probabilities, onnx, training.network.multiple_of)
    trusts = calibrate([score for table in held_out for score in read_scores(table)])
    described = describe(training, output.name, version, sha256_of(onnx), measure(training, data), trusts)
    content = yaml.safe_dump(
        described.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110
    )
    header = "# Written by `anatomynode models export`; the keys are explained in models/card.py.\n"
    (output / "model.yaml").write_text(header + content, encoding="utf-8")
    return read_package(output).description
