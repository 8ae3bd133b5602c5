"""Which edition of an RT Structure Set each destination wants.

Owns the resolution of profile, overrides and template, and their judgement against the model.
Speaks the configuration and the model's description in; `RtStructOptions` by destination out.
Never reads a file after the start: an edition is the same for as long as the node runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dicom_node import __version__, structure_template
from dicom_node.config import Config, EditionChoice
from dicom_node.errors import ConfigurationError
from dicom_node.profiles import LONGEST_LABEL, filled_label
from dicom_node.rt_struct import RtStructOptions
from dicom_node.structure_template import Template, read_template
from models.card import ModelDescription

_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Editions:
    """What the node makes of each segmentation.

    Attributes:
        plain: without a destination, as `anatomynode contour` writes it.
        by_destination: as each destination wants it, in the order of the configuration.
    """

    plain: RtStructOptions
    by_destination: Mapping[str, RtStructOptions]

    @classmethod
    def read(
        cls,
        config: Config,
        model: ModelDescription,
        template: Path | None = None,
        path_of_template: str = "rt_struct.template",
    ) -> Editions:
        """Resolve what the configuration says, for a model.

        Args:
            template: of a routing rule's result, before those of the destinations.
            path_of_template: where it stands in the configuration.

        Raises:
            ConfigurationError: with every problem, each with its path.
        """
        problems: list[str] = []
        named = None if template is None else (path_of_template, template)
        plain = _read("rt_struct", EditionChoice(), config, model, problems, named)
        by_destination = {
            destination.name: _read(
                f"destinations[{index}].rt_struct", destination.rt_struct, config, model, problems, named
            )
            for index, destination in enumerate(config.destinations)
        }
        if problems:
            raise ConfigurationError(tuple(dict.fromkeys(problems)))
        return cls(plain, by_destination)

    def of_job(
        self,
        created_at: datetime,
        predecessor: str | None,
        predecessors: Mapping[str, str],
        addressees: Collection[str] | None = None,
    ) -> list[tuple[RtStructOptions, tuple[str, ...]]]:
        """Each different edition once, with the destinations that get it; the plain one where there are none.

        Args:
            created_at: aware; the job's own time.
            predecessor: the SOP Instance UID of the result of an earlier revision, for the plain edition.
            predecessors: that of what each destination has of it.
            addressees: the destinations that are to get it; None means all.
        """
        grouped: list[tuple[RtStructOptions, tuple[str, ...]]] = []
        for name, wanted in self.by_destination.items():
            if addressees is not None and name not in addressees:
                continue
            options = replace(
                wanted, created_at=created_at, predecessor_sop_instance_uid=predecessors.get(name)
            )
            for place, (known, names) in enumerate(grouped):
                if known == options:
                    grouped[place] = (known, (*names, name))
                    break
            else:
                grouped.append((options, (name,)))
        plain = replace(self.plain, created_at=created_at, predecessor_sop_instance_uid=predecessor)
        return grouped or [(plain, ())]


def _read(
    path: str,
    choice: EditionChoice,
    config: Config,
    model: ModelDescription,
    problems: list[str],
    named: tuple[str, Path] | None,
) -> RtStructOptions:
    """How one destination wants it.

    Args:
        named: a template that goes before the destination's own, with its path in the configuration.
    """
    own = config.rt_struct
    template, profile = Template(), choice.resolved
    path_of_template, file = named or (
        f"{path}.template" if choice.template else "rt_struct.template",
        choice.template or own.template,
    )
    if file is not None:
        try:
            template = read_template(file)
        except ConfigurationError as problem:
            problems += [f"{path_of_template}: {line}" for line in problem.problems]
    wrong = structure_template.problems(model.structures, template, profile)
    problems += [f"{path}: {_place(file)}{line}" for line in wrong]
    label = choice.structure_set_label or own.structure_set_label
    problems += [f"{path}.structure_set_label: {line}" for line in _wrong_label(label, model)]
    return RtStructOptions(
        contour_mode=own.contour_mode,
        simplify_mm=own.simplify_mm,
        structure_set_label=label,
        series_description=own.series_description,
        created_at=_ANY_TIME,
        model=model,
        program_version=__version__,
        template=template,
        profile=profile,
        leave_out=config.review.leave_out,
    )


def _place(file: Path | None) -> str:
    return "" if file is None else f"{file}: "


def _wrong_label(template: str, model: ModelDescription) -> Iterator[str]:
    label = filled_label(
        template, model=model.name, version=model.version, program=__version__, date="20000101"
    )
    if len(label) > LONGEST_LABEL:
        yield f"with this model it is {label!r}, {len(label)} characters; {LONGEST_LABEL} are the most"
