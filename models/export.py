"""From a training's checkpoint to a model package that the node can use.

Owns model.yaml: what the network expects and draws, and the volumes that are no reason to look twice.
Speaks file paths in, a folder `models/packages/NAME` out; volumes in cm3 of the patient's own grid.
Never writes a package whose network answers otherwise than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from models.anatomy import ANATOMY
from models.archives.layouts import open_archive
from models.archives.patients import Patient
from models.card import Input, ModelDescription, Structure, read_package, sha256_of
from models.onnx_graph import Probabilities, write_onnx
from models.training.anatomynet import AnatomyNet
from models.training.config import TrainingConfig, read_config

_ENOUGH = 5
"""So many whole organs say more about volumes than many cut ones."""


def load_average(checkpoint: Path, config: TrainingConfig) -> AnatomyNet:
    """The averaged weights of a training's checkpoint, in eval mode."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = AnatomyNet(len(config.structures) + 1, config.network)
    network.load_state_dict(state["average"])
    return network.eval()


def volume_ranges(config: TrainingConfig, data: Path | None) -> dict[str, tuple[float, float]]:
    """Per structure the volumes in cm3 that are no reason to look twice.

    Measured: 2nd and 98th percentile of the training patients whose scan does not cut the organ, widened by
    a quarter; of all where fewer than `_ENOUGH` are whole. Without the data: the bounds that training
    itself accepts.
    """
    if data is None:
        return {name: ANATOMY[name].volume_cm3 for name in config.structures}
    whole: dict[str, list[float]] = {name: [] for name in config.structures}
    drawn: dict[str, list[float]] = {name: [] for name in config.structures}
    archive = open_archive(data, config.roi_names)
    for patient in (archive.read(name, config.structures) for name in archive.names()):
        for label in np.flatnonzero(patient.annotated[1:]) + 1:
            name = config.structures[label - 1]
            volume_cm3, is_cut = _volume(patient, int(label))
            drawn[name].append(volume_cm3)
            if not is_cut:
                whole[name].append(volume_cm3)
    return {
        name: _widened(whole[name] if len(whole[name]) >= _ENOUGH else drawn[name])
        for name in config.structures
    }


def _volume(patient: Patient, label: int) -> tuple[float, bool]:
    """Cubic centimetres, and whether the first or the last slice cuts the organ."""
    mask = patient.labels == label
    return float(mask.sum() * patient.spacing_mm.prod() / 1000), bool(mask[0].any() or mask[-1].any())


def _widened(volumes: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(volumes, (2, 98))
    return round(float(low) * 0.75, 1), round(float(high) * 1.25, 1)


def describe(
    config: TrainingConfig, name: str, version: str, sha256: str, ranges: Mapping[str, tuple[float, float]]
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
            Structure(
                name=structure,
                channel=channel,
                color=ANATOMY[structure].color,
                code=ANATOMY[structure].code,
                laterality=ANATOMY[structure].laterality,
                volume_cm3=ranges[structure],
                postprocessing=ANATOMY[structure].postprocessing,
            )
            for channel, structure in enumerate(config.drawn, start=1)
        ),
    )


def export_package(
    checkpoint: Path,
    config: Path,
    data: Path | None,
    output: Path,
    version: str = "0.1.0",
    half: bool = False,
) -> ModelDescription:
    """Write `model.onnx` and `model.yaml` into `output`; its name becomes the model's.

    Args:
        checkpoint: of `models.training.trainer.train`; the averaged weights are taken.
        config: the training's configuration.
        data: the training patients, to measure volumes on; None takes training's own bounds.
        output: the package's folder, made where it is missing.
        version: of the model; another whenever the weights are.
        half: whether the convolutions run in float16, for GPUs.

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
    described = describe(training, output.name, version, sha256_of(onnx), volume_ranges(training, data))
    content = yaml.safe_dump(
        described.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110
    )
    header = "# Written by `anatomynode models export`; the keys are explained in models/card.py.\n"
    (output / "model.yaml").write_text(header + content, encoding="utf-8")
    return read_package(output).description
