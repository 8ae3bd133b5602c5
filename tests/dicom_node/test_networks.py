"""Packages are checked at the start, networks are loaded when they are needed, and few stay in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node import check, networks
from dicom_node.config import Config
from dicom_node.contouring import ForwardPassError
from dicom_node.errors import ConfigurationError
from dicom_node.networks import MOST_LOADED, Networks
from inference.errors import DeviceUnavailableError
from models.card import ModelPackage
from tests.node_fixtures import BoxSegmenter, configuration, write_package

OTHERS = [f"model-{number}" for number in range(MOST_LOADED)]


def copy_package(folder: Path, name: str, network: bytes) -> None:
    copy = folder / "packages" / name
    shutil.copytree(folder / "packages" / "test-model", copy)
    (copy / "model.onnx").write_bytes(network)
    card = yaml.safe_load((copy / "model.yaml").read_text())
    (copy / "model.yaml").write_text(
        yaml.safe_dump({**card, "name": name, "sha256": hashlib.sha256(network).hexdigest()})
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    sha256 = write_package(tmp_path / "packages")
    for name in OTHERS:
        copy_package(tmp_path, name, name.encode())
    results = [{}, *({"model": name} for name in OTHERS)]
    return configuration(tmp_path, sha256, routing=[{"name": "all", "results": results}])


class Loader:
    """Makes stand-ins, and remembers of which packages."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.problem: Exception | None = None

    def __call__(self, package: ModelPackage) -> Any:
        if self.problem is not None:
            raise self.problem
        self.made.append(package.description.name)
        return BoxSegmenter(package)


def test_a_network_is_loaded_once_and_given_up_when_it_was_used_longest_ago(config: Config) -> None:
    load = Loader()
    known = Networks(config, load)
    assert load.made == ["test-model"]
    for name in (*OTHERS[:-1], "test-model", OTHERS[-1], "test-model", OTHERS[0]):
        known.segmenter(known.by_name[name])

    assert load.made == ["test-model", *OTHERS, OTHERS[0]]


def test_after_a_failed_pass_the_device_is_left_to_the_network_that_failed(config: Config) -> None:
    load = Loader()
    known = Networks(config, load)
    other = known.by_name[OTHERS[0]]
    known.segmenter(other)
    known.keep_only(other)
    known.segmenter(other)
    known.segmenter(known.default)

    assert load.made == ["test-model", OTHERS[0], "test-model"]


def test_a_network_that_cannot_be_loaded_now_is_tried_again(config: Config) -> None:
    load = Loader()
    known = Networks(config, load)
    load.problem = DeviceUnavailableError("the device is gone")

    with pytest.raises(ForwardPassError, match="the device is gone"):
        known.segmenter(known.by_name[OTHERS[0]])


def test_the_same_network_under_two_names_is_a_problem(config: Config, tmp_path: Path) -> None:
    copy_package(tmp_path, "twin", b"no network")
    rules = [{"name": "all", "results": [{}, {"model": "twin"}]}]

    with pytest.raises(ConfigurationError, match="test-model and twin are the same network"):
        networks.read_networks(Config.model_validate({**config.model_dump(), "routing": rules}))


def test_check_names_what_rules_ask_for_that_is_not_there_or_not_approved(
    config: Config, tmp_path: Path
) -> None:
    rules = [{"name": "all", "results": [{"template": "nowhere.yaml"}, {"model": OTHERS[0]}]}]
    file = tmp_path / "config.yaml"
    settings = json.loads(config.model_copy(update={"destinations": ()}).model_dump_json(exclude_unset=True))
    file.write_text(yaml.safe_dump({**settings, "routing": rules}))

    by_check = {one.check: one.problem for one in check.look(file) if one.problem}

    missing = "routing[0].results[0].template: nowhere.yaml: cannot be read: No such file or directory"
    assert by_check["RT Structure Sets"] == missing
    held = f"model.approved_sha256 is not set for {OTHERS[0]}: results are HELD, nothing is sent"
    assert by_check["model approval"] == held
