"""What a commissioning was made of, and what of it is different now.

Owns the facts and settings that a report keeps, and the words for each that has changed.
Speaks a configuration in; names and values as text out.
Never keeps a secret: a report is printed and filed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dicom_node import __version__
from dicom_node.config import Config
from models.card import ModelDescription

PROGRAM, MODEL, CONFIGURATION, DEVICE = "program", "model sha256", "configuration sha256", "device"
THE_SAME = (PROGRAM, MODEL, CONFIGURATION, DEVICE)
"""Facts that a baseline must share, or it is no baseline."""

_SECRET = frozenset({"hash_key"})
_LIBRARIES = ("pydicom", "pynetdicom", "rt-utils", "numpy", "onnxruntime", "onnxruntime-gpu")


def facts_of(config_path: Path, described: ModelDescription, device: str) -> dict[str, str]:
    """Versions, hashes and the device, by name."""
    return {
        PROGRAM: __version__,
        "model": f"{described.name} {described.version}",
        MODEL: described.sha256,
        CONFIGURATION: sha256(config_path.read_bytes()).hexdigest(),
        DEVICE: device,
        "Python": platform.python_version(),
        **{library: found for library in _LIBRARIES if (found := _version(library)) is not None},
    }


def settings_of(config: Config) -> dict[str, str]:
    """Every key of the configuration as it is in use, by its path, such as `series.min_slices`."""
    return dict(_flat("", config.model_dump(mode="json", exclude=set(_SECRET))))


def changes(
    facts: Mapping[str, str],
    settings: Mapping[str, str],
    known_facts: Mapping[str, str],
    known_settings: Mapping[str, str] | None,
) -> Iterator[str]:
    """What is different from what was commissioned, in words; a changed comment in the file is nothing.

    Args:
        facts: of now; one that is not there is not compared.
        known_settings: None in reports of versions that did not keep them.
    """
    for name in THE_SAME:
        was, is_now = known_facts.get(name), facts.get(name)
        if is_now is None or is_now == was:
            continue
        if name == CONFIGURATION and known_settings is not None:
            yield from _changed_settings(settings, known_settings)
        else:
            yield f"{name} was {was} and is {is_now}: commission anew"


def _changed_settings(settings: Mapping[str, str], known: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(settings.keys() | known.keys()):
        was, is_now = known.get(key, "not there"), settings.get(key, "not there")
        if was != is_now:
            yield f"{key} was {was} and is {is_now}: commission anew"


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{path}[{index}]", inner)
    else:
        yield path, json.dumps(value)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
