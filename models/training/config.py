"""What decides the weights, besides the data: one YAML file a model.

Owns the file's keys, their checks, and the split into taught and held-out patients.
Speaks the values that the other modules of training are made from.
Never reads a patient.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from models.anatomy import ANATOMY
from models.card import Window
from models.training.anatomynet import Architecture
from models.training.augmentation import Augmentation
from models.training.crops import View
from models.training.losses import Objective

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(gt=0)]


class TrainingConfigError(Exception):
    """A configuration that cannot be trained by; the message names the file and each key's problem."""


@dataclass(frozen=True, config=_STRICT)
class Phase:
    """A stretch of training with one crop shape (slices, rows, columns) and batch size.

    The learning rate falls in a straight line from the first of `rates` to the second. A phase that
    begins with a higher rate than the last one ended with is a warm restart.

    Attributes:
        centred: share of the crops that are centred on an organ.
        frozen_norm: whether batch norm uses its running statistics, as it will in the product. With one
            large crop a step its own statistics are those of one patient.
    """

    steps: _Count
    batch: _Count
    shape: tuple[_Count, _Count, _Count]
    rates: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
    centred: Annotated[float, Field(ge=0, le=1)] = 0.75
    frozen_norm: bool = False


@dataclass(frozen=True, config=_STRICT)
class Folds:
    """A cross-validation's part: which of `count` equal parts of the patients is held out.

    Attributes:
        held_out: its number from 0 on; None teaches all patients and watches none.
    """

    count: Annotated[int, Field(ge=2)] = 10
    held_out: Annotated[int, Field(ge=0)] | None = 0

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Folds:
        if self.held_out is not None and self.held_out >= self.count:
            raise ValueError(
                f"held_out is {self.held_out}, but the last of {self.count} folds is {self.count - 1}"
            )
        return self


@dataclass(frozen=True, config=_STRICT)
class Published:
    """What the model's package says of itself; none of it changes the weights.

    Attributes:
        manufacturer: who answers for the model.
        attributions: whom the training data's licences ask to name.
        max_extent_mm: the largest body that the network is shown (slices, rows, columns); more is cut off.
        least_in_place: so many structures must be of plausible volume and in place, or the series is refused.
        kept_back: structures that were trained, and why the package does not draw them.
        never_trained: structures that a reader will look for in vain, and why.
    """

    summary: str = "AnatomyNet on head-and-neck CT"
    manufacturer: str = "AnatomyNode"
    licence: str = "Apache-2.0"
    attributions: tuple[str, ...] = ()
    max_extent_mm: tuple[_Positive, _Positive, _Positive] = (400.0, 320.0, 512.0)
    least_in_place: Annotated[int, Field(ge=0)] = 0
    kept_back: dict[str, str] = Field(default_factory=dict)
    never_trained: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """One model's training.

    Attributes:
        structures: TG-263 names, in the order of the channels.
        spacing_mm: the model's grid (slice, row, column).
        begun_with: the configuration whose trained weights are the first ones here (`--start-from`); none
            begins with random ones.
        roi_names: for archives of DICOM: other names under which a structure was drawn.
        precision: of the forward pass; the weights and sums stay in float32.
        ema_decay: how slowly the averaged weights, which are the result, follow the trained ones.
    """

    structures: Annotated[tuple[str, ...], Field(min_length=1)]
    spacing_mm: tuple[_Positive, _Positive, _Positive]
    window: Window
    seed: int
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    network: Architecture = Architecture()
    objective: Objective = Objective()
    augmentation: Augmentation = Augmentation()
    folds: Folds = Folds()
    begun_with: str | None = None
    roi_names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    largest_gradient: _Positive = 5.0
    published: Published = Published()

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        unknown = [name for name in (*self.structures, *self.roi_names) if name not in ANATOMY]
        if unknown:
            raise ValueError(f"models/anatomy.py does not know {', '.join(unknown)}: add them to ANATOMY")
        if strangers := [name for name in self.published.kept_back if name not in self.structures]:
            raise ValueError(f"published.kept_back names {', '.join(strangers)}, which are not trained")
        multiple = self.network.multiple_of
        for phase in self.phases:
            if any(extent % multiple for extent in phase.shape):
                raise ValueError(f"the crop {phase.shape} is no multiple of {multiple}, as the network needs")
        return self

    @property
    def view(self) -> View:
        """How the model sees a CT."""
        return View(self.structures, self.spacing_mm, self.window)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The structures that the package draws, in the order of its output's channels from 1 on."""
        return tuple(name for name in self.structures if name not in self.published.kept_back)

    @property
    def total_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, float]:
        """The phase that a step belongs to, and its learning rate.

        Raises:
            ValueError: the step is not below `total_steps`.
        """
        for phase in self.phases:
            if step < phase.steps:
                first, last = phase.rates
                return phase, first + (last - first) * step / phase.steps
            step -= phase.steps
        raise ValueError(f"the phases end {step} steps before this one")


_SCHEMA = TypeAdapter(TrainingConfig)


def read_config(path: Path) -> TrainingConfig:
    """Read a training configuration; the keys are the fields of `TrainingConfig`.

    `extends` names another file beside it, whose keys hold where this one does not have its own.

    Raises:
        TrainingConfigError: with every problem.
    """
    return parse_config(read_yaml(path), path)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        TrainingConfigError: it cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError) as problem:
        raise TrainingConfigError(f"{path}: {problem}") from problem


def parse_config(content: Any, where: Path) -> TrainingConfig:
    """A configuration from what YAML gave.

    Args:
        content: the keys.
        where: the file that they stand in, for messages and for `extends`.

    Raises:
        TrainingConfigError: with every problem.
    """
    try:
        return _SCHEMA.validate_python(_extended(content, where))
    except ValidationError as problem:
        raise TrainingConfigError(f"{where}: {problem}") from problem


def _extended(content: Any, where: Path) -> Any:
    if not isinstance(content, dict) or "extends" not in content:
        return content
    own = dict(content)
    base = where.parent / str(own.pop("extends"))
    return {**_extended(read_yaml(base), base), **own}


def as_json(config: TrainingConfig) -> str:
    """What of the configuration decides the weights, as a checkpoint keeps it to compare."""
    # Where the weights began is asked for at the first step only.
    return _SCHEMA.dump_json(config, exclude={"published", "begun_with"}).decode()


def prolongs(later: str, earlier: str) -> bool:
    """Whether `later` is `earlier`, or differs from it by further phases at its end only.

    Args:
        later, earlier: as `as_json` gave them.
    """
    # A checkpoint of an earlier release lacks the keys that came since; their defaults are what it did.
    new, old = json.loads(later), json.loads(as_json(_SCHEMA.validate_json(earlier)))
    phases = old["phases"]
    return bool(new["phases"][: len(phases)] == phases and {**new, "phases": phases} == old)
