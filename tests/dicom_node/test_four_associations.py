"""A sender that splits a series over associations, and repeats itself, gets one job with every slice once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydicom import Dataset
from sqlalchemy import func, select

from dicom_node import story
from dicom_node.database import reading
from dicom_node.listener import Listener
from dicom_node.schema import Arrival, Instance
from dicom_node.states import JobState
from tests import phantoms
from tests.dicom_node.reception_rig import associated
from tests.tools import free_port
from tests.worker_node import PHANTOM, Node, make_node

__all__ = ["make_node"]  # a fixture

ASSOCIATIONS, ROUNDS = 4, 2
STORED = 0x0000


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node(
        listener={"ae_title": "NODE", "port": free_port()},
        peers=[{"ae_title": "CT1", "addresses": ["127.0.0.1"]}],
    )


def test_one_series_over_four_associations_at_once_each_with_resends_of_all_is_one_job_with_all_slices(
    node: Node,
) -> None:
    slices = phantoms.slices(PHANTOM)
    worker, listener = node.worker(), Listener(node.config, node.engine, node.clock)
    listener.start()
    try:
        with ThreadPoolExecutor(ASSOCIATIONS) as senders:
            sent = [senders.submit(_send, listener.port, slices, seed) for seed in range(ASSOCIATIONS)]
            while not all(one.done() for one in sent):
                node.step(worker)  # decodes, and judges, beside the four
            assert [one.result() for one in sent] == [{STORED}] * ASSOCIATIONS
    finally:
        listener.stop(10)
    figures = listener.figures.snapshot()
    arrived = len(slices) * ASSOCIATIONS * ROUNDS
    assert (figures.instances, figures.instances_again) == (len(slices), arrived - len(slices))
    with reading(node.engine) as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Instance, Arrival)]
    assert counts == [len(slices), arrived]

    node.now += 2.0
    for _ in range(3):
        node.step(worker)
    assert (node.job().state, node.series().revision, node.segmenters[0].runs) == (JobState.READY, 1, 1)
    assert (node.series().evidence or {})["instances"] == len(slices)
    assert len(story.show(node.engine, 1).associations) == ASSOCIATIONS
    assert len(node.deliveries()) == 1


def _send(port: int, slices: Sequence[Dataset], seed: int) -> set[int]:
    """All slices over one association, in an order of its own, and then all of them again."""
    order = random.Random(seed)
    statuses = set()
    with associated(port) as sender:
        for _ in range(ROUNDS):
            for one in order.sample(list(slices), len(slices)):
                statuses.add(int(sender.send_c_store(one).Status))
    return statuses
