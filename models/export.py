"""From a training's checkpoint to a model package that the node can use.

Owns the ONNX graph (softmax inside), its proof against torch, model.yaml and MODEL_CARD.md.
Speaks file paths in, a folder `models/packages/NAME` out; volumes in cm3 of the patient's own grid.
Never writes a package whose network answers otherwise than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.session import Session
from models.anatomynet import AnatomyNet
from models.card import Code, Input, ModelDescription, Postprocessing, Structure, read_package, sha256_of
from models.datasets import PLAUSIBLE
from models.training import TrainingConfig, load_patients, read_config

LARGEST_DIFFERENCE = 1e-4
_PROOF_SHAPES = ((16, 24, 20), (34, 18, 42))

# Slices, rows, columns. Nine of ten training patients (343 x 272 x 524 mm) fit nearly whole. More
# would change what squeeze-and-excitation pools over, for anatomy that the model does not draw.
MAX_EXTENT_MM = (360.0, 320.0, 512.0)


@dataclass(frozen=True)
class Anatomy:
    """What a TG-263 name stands for, whichever model draws it."""

    color: tuple[int, int, int]
    code: Code
    laterality: Literal["L", "R"] | None = None
    postprocessing: Postprocessing = field(default_factory=Postprocessing)


# Codes as PS3.16 has them, in the words of pydicom.sr.codedict.
_PAROTID = Code(value="45289007", meaning="Parotid gland")
ANATOMY: Mapping[str, Anatomy] = {
    "Brainstem": Anatomy((78, 160, 214), Code(value="119238007", meaning="Brain Stem")),
    # An early or uncertain cord comes in pieces along the canal: they are all cord.
    "SpinalCord": Anatomy(
        (240, 200, 60),
        Code(value="2748008", meaning="Spinal cord"),
        postprocessing=Postprocessing(components=3, min_component_cm3=0.5),
    ),
    "Parotid_L": Anatomy((86, 180, 110), _PAROTID, "L"),
    "Parotid_R": Anatomy((200, 110, 190), _PAROTID, "R"),
    # Dental metal cuts the mandible in two.
    "Bone_Mandible": Anatomy(
        (225, 120, 70),
        Code(value="91609006", meaning="Mandible"),
        postprocessing=Postprocessing(components=2, min_component_cm3=1.0),
    ),
}

ATTRIBUTIONS = (
    "Training data: OpenKBP (Babier A, Zhang B, Mahmood R, Moore KL, Purdie TG, McNiven AL, Chan TCY. "
    "OpenKBP: the open-access knowledge-based planning grand challenge and dataset. Medical Physics "
    "48:5549-5561, 2021; MIT licence)",
    "The images and contours of OpenKBP come from The Cancer Imaging Archive (Clark K et al. Journal of "
    "Digital Imaging 26:1045-1057, 2013)",
    "Architecture: AnatomyNet (Zhu W et al. Medical Physics 46:576-589, 2019), written anew",
)


class _Probabilities(nn.Module):
    def __init__(self, network: AnatomyNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits.softmax(dim=1)


def load_average(checkpoint: Path, classes: int) -> AnatomyNet:
    """The averaged weights of a training's checkpoint, in eval mode."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = AnatomyNet(classes)
    network.load_state_dict(state["average"])
    return network.eval()


def export_onnx(network: AnatomyNet, path: Path) -> float:
    """Write one self-contained file: `image` (1, 1, D, H, W) -> `probabilities` (1, classes, D, H, W).

    D, H and W are dynamic and even. Returns the largest absolute difference to torch that was seen.

    Raises:
        ValueError: the file's answers differ from torch's by `LARGEST_DIFFERENCE` or more.
    """
    probabilities = _Probabilities(network).eval()
    extents = {2 + axis: 2 * torch.export.Dim(name, min=4) for axis, name in enumerate("dhw")}
    program = torch.onnx.export(
        probabilities,
        (torch.rand(1, 1, *_PROOF_SHAPES[0]),),
        dynamo=True,
        verbose=False,
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes=(extents,),
    )
    assert program is not None  # only `dynamo=False` returns nothing
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of the machine that exported
    program.save(path, external_data=False)
    difference = largest_difference(probabilities, path)
    if difference >= LARGEST_DIFFERENCE:
        raise ValueError(f"{path} differs from torch by {difference:.1e}, more than {LARGEST_DIFFERENCE:.0e}")
    return difference


def largest_difference(probabilities: nn.Module, path: Path) -> float:
    """Between torch and the product's own session, over images of several shapes."""
    session = Session(path, device="cpu", allow_cpu=True, threads=1)
    rng = np.random.default_rng(0)
    worst = 0.0
    for shape in _PROOF_SHAPES:
        image = rng.random((1, 1, *shape), dtype=np.float32)
        with torch.no_grad():
            expected = probabilities(torch.from_numpy(image)).numpy()
        worst = max(worst, float(np.abs(session.run(image) - expected).max()))
    return worst


def volume_ranges(config: TrainingConfig, data: Path | None) -> dict[str, tuple[float, float]]:
    """Per structure the volumes in cm3 that are no reason to look twice.

    Measured: 2nd and 98th percentile of the training patients, widened by a quarter, since many of their
    scans are cut. Without the data: the bounds that training itself accepts.
    """
    if data is None:
        return {name: PLAUSIBLE[name].volume_cm3 for name in config.structures}
    seen: dict[str, list[float]] = {name: [] for name in config.structures}
    for patient in load_patients(data, config.structures):
        voxels = np.bincount(patient.labels.ravel(), minlength=len(config.structures) + 1)
        for channel, name in enumerate(config.structures, start=1):
            if patient.annotated[channel]:
                seen[name].append(float(voxels[channel] * patient.spacing_mm.prod() / 1000))
    return {name: _widened(np.array(volumes)) for name, volumes in seen.items()}


def _widened(volumes: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(volumes, (2, 98))
    return round(float(low) * 0.75, 1), round(float(high) * 1.25, 1)


def describe(
    config: TrainingConfig, name: str, version: str, sha256: str, ranges: Mapping[str, tuple[float, float]]
) -> ModelDescription:
    """The package's description.

    Raises:
        ValueError: a structure of the configuration that `ANATOMY` does not know.
    """
    unknown = [structure for structure in config.structures if structure not in ANATOMY]
    if unknown:
        raise ValueError(
            f"models/export.py has no code and colour for {', '.join(unknown)}: add them to ANATOMY"
        )
    return ModelDescription(
        name=name,
        version=version,
        sha256=sha256,
        summary="AnatomyNet on head-and-neck CT: brainstem, spinal cord, parotids and mandible",
        licence="Apache-2.0",
        attributions=ATTRIBUTIONS,
        input=Input(spacing_mm=config.spacing_mm, window=config.window, max_extent_mm=MAX_EXTENT_MM),
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
            for channel, structure in enumerate(config.structures, start=1)
        ),
    )


def export_package(
    checkpoint: Path, config: Path, data: Path | None, output: Path, version: str = "0.1.0"
) -> ModelDescription:
    """Write `model.onnx`, `model.yaml` and `MODEL_CARD.md` into `output`; its name becomes the model's.

    Args:
        checkpoint: of `models.training.train`; the averaged weights are taken.
        config: the training's configuration.
        data: the folder of training patients, to measure volumes on; None takes training's own bounds.
        output: the package's folder, made where it is missing.
        version: of the model; another whenever the weights are.

    Raises:
        ValueError: the network in the file differs from the trained one, or a structure is unknown.
    """
    training = read_config(config)
    output.mkdir(parents=True, exist_ok=True)
    onnx = output / "model.onnx"
    export_onnx(load_average(checkpoint, len(training.structures) + 1), onnx)
    described = describe(training, output.name, version, sha256_of(onnx), volume_ranges(training, data))
    content = yaml.safe_dump(
        described.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110
    )
    header = "# Written by `anatomynode models export`; the keys are explained in models/card.py.\n"
    (output / "model.yaml").write_text(header + content, encoding="utf-8")
    steps = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["step"])
    (output / "MODEL_CARD.md").write_text(model_card(described, training, steps), encoding="utf-8")
    return read_package(output).description


def model_card(described: ModelDescription, training: TrainingConfig, steps: int) -> str:
    """The package's MODEL_CARD.md: what it is for, what it was made of, and where it must not be trusted."""
    rows = "\n".join(
        f"| {structure.name} | {structure.code.value} {structure.code.meaning} | "
        f"{structure.volume_cm3[0]:g}-{structure.volume_cm3[1]:g} |"
        for structure in described.structures
    )
    attributions = "\n".join(f"- {attribution}." for attribution in described.attributions)
    spacing = " x ".join(f"{mm:g}" for mm in described.input.spacing_mm)
    extent = " x ".join(f"{mm:g}" for mm in described.input.max_extent_mm)
    window = described.input.window
    return f"""# {described.name} {described.version}

{described.summary}.

**This is not a medical device.** Its contours are proposals: a clinic must commission the model on its own
patients, and a qualified person must review and approve each contour before it is used.

| structure | SNOMED CT code | expected volume, cm3 |
|---|---|---|
{rows}

## Use

- Made for: a first set of contours on adult head-and-neck radiotherapy planning CT, supine, head towards the
  gantry or away from it; kernel and contrast as in routine planning.
- Not made for: children, CT of other regions, cone-beam CT, MR, diagnosis, or any use without review.
- Input: CT brought to {spacing} mm (slice, row, column), HU {window.lower_hu:g} to {window.upper_hu:g}
  scaled to 0..1, everything outside the body air, at most {extent} mm from the top of the body downwards.
- sha256 of `model.onnx`: `{described.sha256}`
- How good it is on patients that it was not trained on: `EVALUATION.md` beside this file, as written by
  `anatomynode models evaluate` through the whole product

## Training

- Data: the OpenKBP patients' planning CT and clinical contours; {training.held_out} of the training
  patients were held out to watch the progress. The validation patients were used for reporting only.
- The contours are those of many clinics under no single protocol; those with an implausible volume or mean
  HU were left out. A structure that nobody drew counts as unknown, not as absent.
- {steps} of {training.total_steps} steps; soft Dice and focal loss; AdamW; the weights are a moving average.
  The configuration is in `models/configs/`.

## Limits

- The CTs were sampled at about 4 mm in-plane; small structures and fine outlines cannot be better.
- Clinics differ in where cord and brainstem meet, and in how far down the cord is drawn: expect to edit.
- A single network without an ensemble: its confidence is no probability of being right. Tumours, surgery,
  dental metal, missing organs and unusual anatomy were not examined separately.
- Patients' age, sex and origin are not known for this archive: fairness was not examined.

## Attributions

{attributions}
"""
