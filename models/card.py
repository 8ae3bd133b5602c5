"""The model package: what a `.onnx` expects, what it draws, and how its output becomes structures.

Owns `models/packages/NAME/model.yaml`, read and checked; the sha256 of the `.onnx` beside it.
Speaks millimetres, HU and TG-263 names; axis order (slices, rows, columns).
Never loads a network: that is `inference/session.py`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PACKAGES = Path(__file__).parent / "packages"

Positive = Annotated[float, Field(gt=0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Window(_Described):
    """The HU range that the network sees; it is scaled to 0..1 and clipped."""

    lower_hu: float
    upper_hu: float


class Input(_Described):
    """How a CT becomes the network's input: image (1, 1, slices, rows, columns), float32, 0..1.

    The axes are LPS: slices towards the head, rows to posterior, columns to the patient's left.
    Outside the volume and outside the body the image is air, 0.
    """

    spacing_mm: tuple[Positive, Positive, Positive]
    window: Window
    multiple_of: Annotated[int, Field(ge=1)] = 2
    """Each extent is padded with air to a multiple of this many voxels."""
    max_extent_mm: tuple[Positive, Positive, Positive]
    """The body crop is cut to this extent: superior end, and the body's centre in-plane, are kept."""
    body_threshold_hu: float = -400.0


class Code(_Described):
    """A coded concept (PS3.3 8.8), such as SCT 15926001 "Brainstem"."""

    value: str
    scheme: str = "SCT"
    meaning: str


class Postprocessing(_Described):
    """How one structure's probabilities become its mask."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    components: Annotated[int, Field(ge=0)] = 1
    """How many of the largest 26-connected components stay; 0 keeps all."""
    min_component_cm3: Annotated[float, Field(ge=0)] = 0.1
    reach_mm: Annotated[float, Field(gt=0)] | None = None
    """How far from the largest component's box another one's box may begin; null keeps any distance."""
    min_island_mm2: Annotated[float, Field(ge=0)] = 0.0
    """A piece of less area within a slice is left out, unless the slice has no larger one; 0 keeps any."""
    min_width_mm: Annotated[float, Field(ge=0)] = 0.0
    """What is thinner within a slice is left out, such as a bridge between two parts; a slice that is thinner
    everywhere stays; 0 keeps any."""
    fill_holes: bool = True
    smooth_mm: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of a Gaussian on the probability map, in mm; 0 leaves it as it is."""


class Neighbour(_Described):
    """Where another structure lies from this one: its centroid less this one's, LPS (x, y, z) in mm."""

    name: str
    offset_mm: tuple[float, float, float]
    tolerance_mm: tuple[Positive, Positive, Positive]
    """How far from there it may be, as the training data had it, with a margin."""


class Calibration(_Described):
    """How a network's sureness becomes the Dice to be expected, measured on patients it was not taught on.

    Dice = dice_mean + own * z + others * (mean z of the patient's other structures), where z is the distance
    of the sureness from `sureness_mean` in units of `sureness_sd`.
    """

    sureness_mean: float
    sureness_sd: Positive
    dice_mean: float
    own: float
    others: float


class Structure(_Described):
    """One organ that the model draws."""

    name: Annotated[str, Field(max_length=16)]
    """TG-263 name."""
    channel: Annotated[int, Field(ge=1)]
    """Its channel in the network's output; 0 is the background."""
    color: tuple[Byte, Byte, Byte]
    code: Code
    laterality: Literal["L", "R"] | None = None
    volume_cm3: tuple[Positive, Positive]
    """The range that the training data spans, with a margin; outside it the ROI is flagged."""
    postprocessing: Postprocessing = Postprocessing()
    neighbours: tuple[Neighbour, ...] = ()
    calibration: Calibration | None = None
    least_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Below it the ROI is flagged."""


class ModelDescription(_Described):
    """The content of `model.yaml`."""

    name: str
    version: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of `model.onnx`."""
    summary: str
    manufacturer: str = "AnatomyNode"
    licence: str
    attributions: tuple[str, ...]
    """Whom the training data's licences ask to name; travels with the weights."""
    input: Input
    structures: tuple[Structure, ...]
    largest_side_ratio: Annotated[float, Field(ge=1)] = 3.0
    """Of the volumes of a left and a right organ, the larger to the smaller; above it both are flagged."""
    least_in_place: Annotated[int, Field(ge=0)] = 0
    """So many structures must have a plausible volume and lie where their neighbours say; with fewer this
    is not the anatomy that the model was made for. 0 asks nothing."""

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """By structure, of those that have one."""
        return {one.name: one.calibration for one in self.structures if one.calibration is not None}


class ModelPackageError(Exception):
    """A model package that is missing, damaged or not what its description says."""


@dataclass(frozen=True)
class ModelPackage:
    """A checked package: the description, and the path of the network that it describes."""

    description: ModelDescription
    onnx: Path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_package(folder: Path) -> ModelPackage:
    """Read `model.yaml`, and check that `model.onnx` has the sha256 that it states.

    Raises:
        ModelPackageError: naming the file and every problem in it.
    """
    card, onnx = folder / "model.yaml", folder / "model.onnx"
    for path in (card, onnx):
        if not path.is_file():
            raise ModelPackageError(f"{path} is missing: a model package needs model.yaml and model.onnx")
    try:
        description = ModelDescription.model_validate(yaml.safe_load(card.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as problem:
        raise ModelPackageError(f"{card}: {problem}") from problem
    actual = sha256_of(onnx)
    if actual != description.sha256:
        raise ModelPackageError(
            f"{onnx} has the sha256 {actual}, but model.yaml describes {description.sha256}: "
            "the file is damaged or was exchanged; install the package again"
        )
    return ModelPackage(description, onnx)
