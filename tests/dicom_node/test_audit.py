"""The audit trail tells who sent what when and where it went, and never whom it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import yaml

from dicom_node import jobs
from dicom_node.audit import trail
from dicom_node.database import transaction
from dicom_node.retention import Retention
from dicom_node.schema import Job
from tests.node_fixtures import HASHED
from tests.worker_node import Node, make_node

__all__ = ["make_node"]  # a fixture

DAY_S = 86_400.0
EVER = (datetime.fromtimestamp(0, UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A series that came, was refused, sent again by a person, stored, and whose slices were removed."""
    node = make_node()
    worker = node.worker()
    node.receive()
    node.now += 2.0
    node.step(worker)
    with transaction(node.engine) as session:
        job = session.get_one(Job, 1)
        (delivery,) = jobs.deliveries_of(session, job)
        jobs.delivery_refused(session, delivery, 0xA900, "the data set does not match", node.now + 1)
        jobs.retry(session, job, node.now + 2)
        jobs.delivery_stored(session, delivery, 0x0000, "success", node.now + 3)
    node.now += 31 * DAY_S
    Retention(node.config, node.engine, node.clock).step()
    return node


def test_each_thing_that_happened_is_there_once_in_order_with_who_did_it(node: Node) -> None:
    events = trail(node.engine, *EVER).events
    assert [(event.at, event.event, event.who) for event in events] == [
        (1000.0, "received", "SCANNER at 127.0.0.1"),
        (1003.0, "outgoing", "pacs"),
        (1004.0, "decided", "a person"),
        (1004.0, "decided", "a person"),
        (1005.0, "outgoing", "pacs"),
        (node.now, "removed", "retention"),
    ]
    assert "24 slice(s), association released" in events[0].what
    assert "REFUSED" in events[1].what
    assert "STORED" in events[4].what
    assert "24 file(s) of its slices, for age" in events[5].what
    assert {event.patient_key for event in events} == {HASHED("PHANTOM-1")}


def test_a_stretch_of_time_has_its_first_moment_and_not_its_last(node: Node) -> None:
    first, stop = datetime.fromtimestamp(1003, UTC), datetime.fromtimestamp(1005, UTC)
    assert [event.at for event in trail(node.engine, first, stop).events] == [1003.0, 1004.0, 1004.0]


def test_what_review_holds_is_no_persons_decision(make_node: Callable[..., Node]) -> None:
    node = make_node(review={"hold": ["low_confidence"]})
    worker = node.worker()
    node.segmenters[0].flags = ("low_confidence",)
    node.receive()
    node.now += 2.0
    node.step(worker)
    assert [event.event for event in trail(node.engine, *EVER).events] == ["received"]


def test_the_command_prints_it_for_persons_and_programs(node: Node) -> None:
    config = node.config.storage.folder / "config.yaml"
    settings = {"peers": [], "destinations": [], "storage": {"folder": str(node.config.storage.folder)}}
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "dicom_node", "audit", "--config", config, "--since", "1970-01-01"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "SCANNER at 127.0.0.1" in told.splitlines()[0]
    listed = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)
    assert (len(listed), listed[0]["at"]) == (6, "1970-01-01T00:16:40+00:00")
