"""From a complete series to the jobs that it is to have.

Owns the step from routing's decision to orders for `jobs.py`.
Speaks rows in, `jobs.Order` out.
Never changes a row, and reads no slice where no routing is configured.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from dicom_node import routing, routing_facts
from dicom_node.config import Config
from dicom_node.jobs import Model, Order
from dicom_node.networks import template_key
from dicom_node.routing import Decision, Facts
from dicom_node.schema import Series


class Dispatcher:
    """Asks the rules of the configuration.

    Args:
        models: by the names of their packages; every one that the rules name.
    """

    def __init__(self, config: Config, models: Mapping[str, Model]) -> None:
        self._config = config
        self._models = models
        self._is_simple = not config.routing and not any(one.senders for one in config.destinations)

    def orders(self, session: Session, series: Series, against_the_rules: bool = False) -> tuple[Order, ...]:
        """What is to be made of a complete series.

        Args:
            against_the_rules: a person asked for it, so that no rule may ignore it: it is made as if there
                were none.
        """
        default = self._models[self._config.model.package]
        if self._is_simple:
            return (Order(default),)
        facts = routing_facts.of_received(session, series, self._config.storage.spool)
        decision = self._decided(facts, self._config.routing)
        if decision.ignore is not None and not against_the_rules:
            assert decision.rule is not None
            return (Order(default, rule=decision.rule.name, ignore=decision.ignore),)
        if decision.ignore is not None:
            decision = self._decided(facts, ())
        return tuple(
            Order(
                model=self._models[wanted.model],
                template=template_key(wanted.template),
                destinations=wanted.destinations,
                priority=decision.priority,
                rule=None if decision.rule is None else decision.rule.name,
            )
            for wanted in decision.wanted
        )

    def _decided(self, facts: Facts, rules: tuple[routing.Rule, ...]) -> Decision:
        return routing.decide(rules, facts, self._config.model.package, self._config.destinations)
