"""The page: who may look, what a browser is allowed, every job to be found, and words that stay words."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from werkzeug.test import Client, TestResponse

from dicom_node import jobs, migrate, turnaround_plot
from dicom_node.book_shelf import Book, BusyError, Shelf
from dicom_node.config import Config
from dicom_node.database import open_engine, transaction
from dicom_node.page import Page, duration
from dicom_node.page_facts import Arrived
from dicom_node.schema import Arrival, Association, Instance, Job, Series
from dicom_node.states import JobState
from tests.recorded_jobs import NOW, add_job, contour, deliver

TOKEN = "a token of sixteen"
HOSTILE = "<script>alert(1)</script>'\"&"
PAGES = (
    "/",
    "/?state=QUEUED",
    "/jobs/1",
    "/jobs/2",
    "/jobs/99",
    "/jobs/2/preview",
    "/nothing",
    "/?before=x",
    "//jobs/1",
)


@pytest.fixture
def make_client(tmp_path: Any) -> Iterator[Callable[..., tuple[Client, Engine]]]:
    engines: list[Engine] = []

    def make(**http: Any) -> tuple[Client, Engine]:
        config = Config.model_validate(
            {
                "peers": [],
                "storage": {"folder": tmp_path},
                "destinations": [{"name": "pacs", "host": "127.0.0.1", "port": 1, "ae_title": "PACS"}],
                "http": http,
            }
        )
        migrate.upgrade(config.storage.database)
        engines.append(open_engine(config.storage.database))
        return Client(Page(engines[-1], config, lambda: NOW + 100)), engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def get(client: Client, path: str, host: str = "localhost:9104", **headers: str) -> TestResponse:
    return client.get(path, headers={"Host": host, **headers})


def basic(password: str) -> str:
    return "Basic " + b64encode(f"anybody:{password}".encode()).decode()


PATHS = ("/", "/jobs/1", "/jobs/1/preview", "/jobs/1/preview/1.jpg", "/page.css", "/x")


@pytest.mark.parametrize("path", PATHS)
def test_with_a_token_nothing_is_shown_without_it(make_client: Any, path: str) -> None:
    client, engine = make_client(host="0.0.0.0", page={"enabled": True, "token": TOKEN})
    add_job(engine, 1)
    admitted = [
        get(client, path, "node.hospital", Authorization=said).status_code
        for said in (basic(TOKEN), f"Bearer {TOKEN}")
    ]
    assert admitted in ([200, 200], [404, 404])
    for said in (None, basic("another"), "Bearer x", "x"):
        refused = get(client, path, **({} if said is None else {"Authorization": said}))
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
        assert "token" in refused.text
        assert "QUEUED" not in refused.text


def test_without_a_token_only_this_machines_names_are_answered_unless_a_proxy_asks(
    make_client: Any,
) -> None:
    client, _ = make_client()
    own = ("localhost", "localhost:9104", "127.0.0.1:9104", "127.1.2.3", "[::1]:9104", "LOCALHOST")
    others = (
        "evil.example",
        "evil.example:9104",
        "10.0.0.1",
        "localhost.evil.example",
        "[::1",
        "[::2]:1",
        "",
    )
    assert {get(client, "/", host).status_code for host in own} == {200}
    assert {get(client, "/", host).status_code for host in others} == {403}
    proxied, _ = make_client(host="0.0.0.0", page={"enabled": True, "behind_proxy": True})
    assert get(proxied, "/", "node.hospital").status_code == 200


def test_whatever_peers_and_errors_say_stays_words_and_nothing_runs_or_comes_from_elsewhere(
    make_client: Any,
) -> None:
    client, engine = make_client()
    deliver(engine, contour(engine, add_job(engine, 1)), NOW + 6)
    add_job(engine, 2)
    with transaction(engine) as session:
        job = session.get_one(Job, 2)
        jobs.move(session, job, JobState.RUNNING, NOW + 3, HOSTILE)
        jobs.move(session, job, JobState.FAILED, NOW + 4, HOSTILE, "bug")
        _received(session, HOSTILE)
        session.get_one(Series, 2).flag = HOSTILE
    for path in PAGES:
        answer = get(client, path)
        assert answer.status_code in (200, 400, 404)
        assert "<script" not in answer.text
        assert " style=" not in answer.text
        assert not re.search(r"(?:href|src)=\"(?!/|#)", answer.text), "nothing from elsewhere"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert answer.headers["Cache-Control"] == "no-store"
        assert re.findall(r"<(h1)", answer.text) == ["h1"]
        assert 'lang="en"' in answer.text
        assert '<main id="main">' in answer.text
        assert len(re.findall("<table", answer.text)) == len(re.findall("<thead", answer.text))
        assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", answer.text))
    assert get(client, "/jobs/2").text.count("&lt;script&gt;") >= 4


def _received(session: Any, title: str) -> None:
    association = Association(
        calling_ae_title=title, called_ae_title="N", peer_address="127.0.0.1", opened_at=NOW
    )
    slice_ = Instance(
        **{"series_id": 2, "sop_instance_uid": "1.2", "sop_class_uid": "1", "transfer_syntax_uid": "1"},
        **{"sha256": "aa", "file": "a.dcm", "size_bytes": 1, "received_at": NOW, "geometry": {}},
    )
    session.add_all([association, slice_])
    session.flush()
    session.add(Arrival(instance_id=slice_.id, association_id=association.id, at=NOW))


def test_a_jobs_page_tells_its_stages_structures_deliveries_and_every_change(make_client: Any) -> None:
    client, engine = make_client()
    deliver(engine, contour(engine, add_job(engine, 1)), NOW + 6)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", get(client, "/jobs/1").text))
    for told in (
        "receiving 10.0 s",
        "waiting 2.5 s",
        "inference 2.2 s",
        "sending to pacs 0.50 s",
        "Brainstem 25.0 cm³ 9 0.80",
        "Larynx not found",
        "pacs STORED 1 2027-01-15 08:00:06",
        "job RUNNING the worker took it",
    ):
        assert told in text, told
    listed = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", get(client, "/").text))
    assert "10.0 s 2.5 s 3.0 s 0.50 s 6.0 s stored" in listed


@pytest.mark.parametrize("path", ["/jobs/1/preview", "/jobs/1/preview/1.jpg"])
def test_while_another_job_is_drawn_the_browser_is_asked_to_come_again(
    make_client: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def busy(*_: object) -> Book:
        raise BusyError("another job is being drawn")

    client, engine = make_client()
    contour(engine, add_job(engine, 1))
    monkeypatch.setattr(Shelf, "book", busy)
    answer = get(client, path)
    assert (answer.status_code, answer.headers["Refresh"]) == (503, "2")
    assert "another job is being drawn" in answer.text


def test_every_job_is_on_exactly_one_leaf_and_a_filter_shows_one_state(make_client: Any) -> None:
    client, engine = make_client()
    for number in range(1, 121):
        add_job(engine, number)
    contour(engine, 60)
    for path, wanted in (("/", list(range(120, 0, -1))), ("/?state=READY", [60])):
        seen: list[int] = []
        while path:
            text = get(client, path).text
            seen += map(int, re.findall(r'<th scope="row"><a href="/jobs/(\d+)"', text))
            older = re.search(r'rel="next" href="([^"]+)"', text)
            path = older.group(1).replace("&amp;", "&") if older else ""
        assert seen == wanted
    for bad in ("/?state=GONE", "/?before=-1", "/?before=1e3", "/?before=" + "9" * 40):
        assert get(client, bad).status_code == 400


@given(
    st.lists(st.tuples(st.floats(0, 14 * 86_400 - 1), st.floats(0, 1e7)), max_size=40),
    st.floats(0, 86_400, exclude_max=True),
)
@settings(max_examples=60, deadline=None)
def test_every_result_lies_within_the_plot_and_slower_is_never_lower(
    results: list[tuple[float, float]], time_of_day: float
) -> None:
    now = 20_000 * 86_400 + time_of_day
    begin = turnaround_plot.begin_of(14, now)
    arrived = [Arrived(1, "pacs", begin + after, seconds) for after, seconds in results]
    plot = turnaround_plot.plot(arrived, 14, now)
    assert sum(day.count for day in plot.days) == len(results)
    for dot in plot.dots:
        assert plot.left <= dot.x <= plot.right
        assert 0 <= dot.y <= plot.bottom + 1e-6
    by_speed = sorted(plot.dots, key=lambda dot: dot.result.seconds)
    assert all(slower.y <= quicker.y + 1e-6 for quicker, slower in pairwise(by_speed))
    assert len(plot.ticks) >= 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "< 0.01 s"),
        (0.42, "0.42 s"),
        (12.34, "12.3 s"),
        (59.96, "60.0 s"),
        (200.0, "3 min 20 s"),
        (3600.0, "1 h"),
        (18_720.0, "5 h 12 min"),
        (273_600.0, "3 d 4 h"),
        (8e7, "925 d 22 h"),
    ],
)
def test_durations_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
