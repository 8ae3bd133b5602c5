"""A clinic's own names and colours for the structures that the model draws.

Owns the template file (YAML), and the name and colour that a structure has at one destination.
Speaks the model's structure names; every problem names its path in the file.
Never shortens a name: one that is too long for a destination is a problem of the configuration.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicom_node.errors import ConfigurationError
from dicom_node.profiles import Profile
from models.card import Byte, Structure

RoiName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]*[\x21-\x5b\x5d-\x7e])?$",
    ),
]
"""ASCII, which every character set of a CT contains, without a backslash, which separates values."""


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Described):
    """What becomes of one structure of the model; what is not said stays as the model has it."""

    name: RoiName | None = None
    color: tuple[Byte, Byte, Byte] | None = None
    """Red, green, blue."""
    leave_out: bool = False


class Template(_Described):
    """The content of a template file: the model's structure names, and what a clinic makes of each."""

    structures: Mapping[str, Entry] = {}


UNCHANGED = Template()
"""Every structure as the model has it."""


@dataclass(frozen=True)
class Appearance:
    """How a structure looks at one destination."""

    name: str
    color: tuple[int, int, int]


def read_template(path: Path) -> Template:
    """Read a template file.

    Raises:
        ConfigurationError: with every problem, each with its path in the file.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Template.model_validate({} if raw is None else raw)
    except OSError as problem:
        raise ConfigurationError((f"{path}: cannot be read: {problem.strerror}",)) from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigurationError((f"{path}: is no YAML",)) from problem
    except ValidationError as problem:
        raise ConfigurationError(
            tuple(
                f"{path}: {'.'.join(map(str, error['loc'])) or 'the whole file'}: {error['msg']}"
                for error in problem.errors()
            )
        ) from problem


def appearance(structure: Structure, template: Template, profile: Profile) -> Appearance | None:
    """The name and colour of a structure; None where the template leaves it out."""
    entry = template.structures.get(structure.name, Entry())
    if entry.leave_out:
        return None
    name = profile.name_prefix + (entry.name or structure.name)
    match profile.name_case:
        case "upper":
            name = name.upper()
        case "lower":
            name = name.lower()
    return Appearance(name, entry.color or structure.color)


def problems(structures: Iterable[Structure], template: Template, profile: Profile) -> Iterator[str]:
    """What is wrong with a template for a model and a destination, each with its path in the file."""
    known = {structure.name: structure for structure in structures}
    for name in template.structures.keys() - known.keys():
        yield f"structures.{name}: the model draws no such structure; it draws {', '.join(known)}"
    drawn = {name: appearance(structure, template, profile) for name, structure in known.items()}
    if known and not any(drawn.values()):
        yield "structures: every structure of the model is left out"
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name, seen in drawn.items():
        if seen is None:
            continue
        same[seen.name.casefold()].append(name)
        if len(seen.name) > profile.name_length:
            yield (
                f"structures.{name}.name: {seen.name!r} has {len(seen.name)} characters, "
                f"the profile takes {profile.name_length}"
            )
    for names in same.values():
        if len(names) > 1:
            yield f"structures.{names[1]}.name: the same as that of {names[0]}, but for case at most"
