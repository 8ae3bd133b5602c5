"""The networks that the configuration names, loaded when they are first needed.

Owns the packages, whether each may send, its editions for the destinations, and what is in memory.
Speaks packages' names and sha256s in, `Network` and segmenters out.
Never exchanges a package while the node runs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dicom_node import contouring, logs, routing
from dicom_node.config import Config
from dicom_node.contouring import ForwardPassError
from dicom_node.editions import Editions
from dicom_node.errors import ConfigurationError
from dicom_node.jobs import DEFAULT_TEMPLATE, Model
from inference.errors import DeviceUnavailableError, InferenceFailedError
from inference.segmenter import Segmenter
from models.card import ModelPackage

MOST_LOADED = 3
"""So many networks stay in memory; of more, the one that was used longest ago is given up. On the CPU one
takes megabytes; on a GPU it keeps what its largest series needed."""

log = logs.get(__name__)


def template_key(template: Path | None) -> str:
    """What stands in a job's row for the template of its result."""
    return DEFAULT_TEMPLATE if template is None else str(template)


@dataclass(frozen=True)
class Network:
    """One package.

    Attributes:
        name: of its folder, as the configuration has it.
        editions: what each destination wants, by the template of the result (`template_key`).
    """

    name: str
    package: ModelPackage
    is_approved: bool
    editions: Mapping[str, Editions]

    @property
    def model(self) -> Model:
        """As a job's row has it."""
        return Model(self.package.description.name, self.package.description.sha256)

    @property
    def spacing_mm(self) -> float:
        """The slice distance that it was trained at."""
        return self.package.description.input.spacing_mm[0]


def named(config: Config) -> Mapping[str, tuple[tuple[str, Path | None], ...]]:
    """Each package that the configuration names, with the templates of its results and their paths."""
    found: dict[str, list[tuple[str, Path | None]]] = {config.model.package: [("rt_struct", None)]}
    for path, choice in routing.choices(config.routing):
        found.setdefault(choice.model or config.model.package, []).append((path, choice.template))
    return {name: tuple(templates) for name, templates in found.items()}


def read_networks(config: Config) -> dict[str, Network]:
    """Every package that the configuration names, checked, by its name; nothing is loaded.

    Raises:
        ConfigurationError: with every problem, each with its path.
    """
    found: dict[str, Network] = {}
    problems: list[str] = []
    for name, templates in named(config).items():
        try:
            package = contouring.package_of(config.model.model_copy(update={"package": name}))
        except ConfigurationError as problem:
            problems += problem.problems
            continue
        editions: dict[str, Editions] = {}
        for path, template in templates:
            try:
                editions[template_key(template)] = Editions.read(
                    config, package.description, template, f"{path}.template"
                )
            except ConfigurationError as problem:
                problems += problem.problems
        is_approved = config.model.approved_of(name) == package.description.sha256
        found[name] = Network(name, package, is_approved, editions)
    problems += _same(found)
    if problems:
        raise ConfigurationError(tuple(dict.fromkeys(problems)))
    return found


def _same(found: Mapping[str, Network]) -> Iterator[str]:
    by_sha256: dict[str, str] = {}
    for name, network in found.items():
        other = by_sha256.setdefault(network.model.sha256, name)
        if other != name:
            yield f"routing: the model packages {other} and {name} are the same network; name one of them"


class Networks:
    """The packages that this node runs, and their networks.

    Args:
        make: loads a package's network.

    Attributes:
        default: that of `model.package`, the only one that is loaded from the start.
        device: where it runs.

    Raises:
        ConfigurationError: a package or a template cannot be used, or the default network cannot be loaded.
    """

    def __init__(self, config: Config, make: Callable[[ModelPackage], Segmenter]) -> None:
        self.by_name: Mapping[str, Network] = read_networks(config)
        self.default = self.by_name[config.model.package]
        self._by_sha256 = {network.model.sha256: network for network in self.by_name.values()}
        self._make = make
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Segmenter] = OrderedDict()
        self._loaded[self.default.name] = make(self.default.package)
        self.device = self._loaded[self.default.name].device

    @property
    def models(self) -> dict[str, Model]:
        """By the packages' names."""
        return {name: network.model for name, network in self.by_name.items()}

    def warm_up(self) -> float:
        """Run the default network once; seconds taken."""
        return self._loaded[self.default.name].warm_up()

    def of(self, sha256: str) -> Network | None:
        """The package that has this network; None where the configuration names none."""
        return self._by_sha256.get(sha256)

    def segmenter(self, network: Network) -> Segmenter:
        """Its network, which is loaded and warm.

        Raises:
            ForwardPassError: it cannot be loaded now.
        """
        with self._lock:
            if network.name not in self._loaded:
                while len(self._loaded) >= MOST_LOADED:
                    given_up, _ = self._loaded.popitem(last=False)
                    log.info("network given up", package=given_up)
                self._loaded[network.name] = self._warm(network)
            self._loaded.move_to_end(network.name)
            return self._loaded[network.name]

    def keep_only(self, network: Network) -> None:
        """Give up the others: the device may have had too little memory for all."""
        with self._lock:
            for name in [one for one in self._loaded if one != network.name]:
                del self._loaded[name]

    def _warm(self, network: Network) -> Segmenter:
        try:
            segmenter = self._make(network.package)
            seconds = segmenter.warm_up()
        except InferenceFailedError as problem:
            raise ForwardPassError(problem) from problem
        except (ConfigurationError, DeviceUnavailableError) as problem:
            raise ForwardPassError(InferenceFailedError(str(problem))) from problem
        log.info("network is warm", package=network.name, device=segmenter.device, seconds=round(seconds, 3))
        return segmenter
