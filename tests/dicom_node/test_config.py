"""The configuration: every problem at once, and a `config.yaml` that says what the models do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dicom_node.config import Config, Destination, FolderDestination, Peer, WebDestination, read_config
from dicom_node.errors import ConfigurationError
from dicom_node.routing import Conditions, ResultChoice, Rule
from tests.tools import ROOT

SMALLEST = {"peers": [], "destinations": []}
SHIPPED = ROOT / "config.yaml"
A_PEER = {"name": "a", "host": "h", "port": 1, "ae_title": "A"}
A_WEB = {"name": "a", "kind": "dicomweb", "url": "https://pacs.example/dicom-web"}
A_FOLDER = {"name": "a", "kind": "folder", "folder": "/srv/contours"}
STATED_DEFAULT = re.compile(r"default: (\[[^\]]*\]|[^,;]+)")


def written(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, **changes}))
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_config(path)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_every_problem_is_named_at_once_with_its_path(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {
            "listener": {"port": 70000, "ae_titel": "X"},
            "peers": [
                {"ae_title": "PACS", "addresses": ["10.0.0.0/8"]},
                {"ae_title": "", "addresses": ["x"]},
            ],
            "series": {"min_slices": 1},
            "colour": "blue",
        },
    )

    assert {problem.partition(":")[0] for problem in problems(path)} == {
        "listener.port",
        "listener.ae_titel",
        "peers[1].ae_title",
        "peers[1].addresses",
        "series.min_slices",
        "colour",
    }


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"listener": {"ae_title": "seventeen letters"}}, "listener.ae_title"),
        ({"listener": {"ae_title": "BACK\\SLASH"}}, "listener.ae_title"),
        ({"listener": {"max_pdu_bytes": 100}}, "listener.max_pdu_bytes"),
        ({"listener": {"idle_timeout_s": 0}}, "listener.idle_timeout_s"),
        ({"listener": {"discard_sop_classes": ["1.02.3"]}}, "listener.discard_sop_classes[0]"),
        ({"listener": {"tls": {"certificate": "a.pem"}}}, "listener.tls.key"),
        ({"peers": [{"ae_title": "A", "addresses": []}]}, "peers[0].addresses"),
        ({"storage": {"reserve_mib": 0}}, "storage.reserve_mib"),
        ({"model": {"approved_sha256": "abc"}}, "model.approved_sha256"),
        ({"model": {"approved_sha256": {"a": "abc"}}}, "model.approved_sha256.a"),
        ({"listener": {"more_ae_titles": ["seventeen letters"]}}, "listener.more_ae_titles[0]"),
        ({"routing": [{"name": "a", "when": {"patient": "x"}}]}, "routing[0].when.patient"),
        ({"routing": [{"name": "a", "results": [{"modell": "x"}]}]}, "routing[0].results[0].modell"),
        ({"inference": {"device": "tpu"}}, "inference.device"),
        ({"rt_struct": {"structure_set_label": "x" * 17}}, "rt_struct.structure_set_label"),
        ({"rt_struct": {"structure_set_label": "{patient}"}}, "rt_struct.structure_set_label"),
        ({"rt_struct": {"structure_set_label": "AN {date} revised"}}, "rt_struct.structure_set_label"),
        ({"rt_struct": {"structure_set_label": "{date"}}, "rt_struct.structure_set_label"),
        ({"rt_struct": {"structure_set_label": "Köpfe"}}, "rt_struct.structure_set_label"),
        ({"rt_struct": {"simplify_mm": 0.2}}, "rt_struct.simplify_mm"),
        ({"retry": {"max_delay_s": 901}}, "retry.max_delay_s"),
        ({"http": {"port": 0}}, "http.port"),
        ({"logging": {"level": "loud"}}, "logging.level"),
        ({"hash_key": "short"}, "hash_key"),
        (
            {"destinations": [{"name": "A B", "host": "h", "port": 1, "ae_title": "A"}]},
            "destinations[0].name",
        ),
        ({"destinations": [{"name": "a"}]}, "destinations[0].host"),
        *(
            ({"destinations": [{**A_PEER, "rt_struct": {key: value}}]}, f"destinations[0].rt_struct.{key}")
            for key, value in (
                ("profile", "pinnacle"),
                ("name_length", 65),
                ("name_length", 7),
                ("name_case", "title"),
                ("name_prefix", "AN_DRAFT_"),
                ("name_prefix", "Ä"),
                ("holes", "none"),
                ("points_per_contour", 19),
                ("empty_structures", "guess"),
                ("roi_type", "PTV"),
                ("transfer_syntax", "big endian"),
                ("structure_set_label", "x" * 17),
                ("nme_length", 16),
            )
        ),
        ({"series": {"query_source": "pacs"}}, "the whole file"),
        ({"destinations": [{"name": "a", "kind": "ftp"}]}, "destinations[0]"),
        ({"destinations": [{**A_WEB, "user": "u", "token_file": "t"}]}, "destinations[0]"),
        ({"destinations": [{**A_WEB, "url": "http://pacs/web", "user": "u"}]}, "destinations[0]"),
        *(
            ({"destinations": [{**A_WEB, key: value}]}, f"destinations[0].{key}")
            for key, value in (
                ("url", "pacs/web"),
                ("url", "ftp://pacs/web"),
                ("url", "https://user:secret@pacs/web"),
                ("url", "https://pacs/web?x=1"),
                ("host", "pacs"),
                ("storage_commitment", {"enabled": True}),
            )
        ),
        *(
            ({"destinations": [{**A_FOLDER, key: value}]}, f"destinations[0].{key}")
            for key, value in (
                ("file_name", "{patient_id}.dcm"),
                ("file_name", "rtstruct.dcm"),
                ("file_name", "../{sop_instance_uid}.dcm"),
                ("file_name", ".{sop_instance_uid}"),
                ("file_name", "{sop_instance_uid"),
                ("storage_commitment", {"enabled": True}),
            )
        ),
        ({"http": {"page": {"token": "short"}}}, "http.page.token"),
        ({"http": {"page": {"enabled": "perhaps"}}}, "http.page.enabled"),
        ({"http": {"host": "0.0.0.0", "page": {"enabled": True}}}, "http"),
        ({"http": {"host": "node.hospital", "page": {"enabled": True}}}, "http"),
    ],
)
def test_a_bad_value_is_refused_at_its_path(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    assert any(problem.startswith(f"{where}: ") for problem in problems(written(tmp_path, changes)))


def test_two_destinations_of_one_name_and_an_unknown_query_source_are_both_named(tmp_path: Path) -> None:
    pacs = {"name": "pacs", "host": "h", "port": 1, "ae_title": "A"}
    path = written(tmp_path, {"destinations": [pacs, pacs], "series": {"query_source": "archive"}})

    (problem,) = problems(path)
    assert "two are called 'pacs'" in problem
    assert "no destination 'archive'" in problem


@pytest.mark.parametrize("text", ["a: [", "hash_key: 'very secret key indeed", "- 1", "", "\xff"])
def test_what_is_no_configuration_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))

    (problem,) = problems(path)
    assert "secret" not in problem


def test_a_missing_file_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == ["cannot be read: No such file or directory"]


def test_the_environment_gives_the_secret_and_nothing_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANATOMYNODE_HASH_KEY", "a secret of many characters")

    config = read_config(written(tmp_path, {}))

    assert config.hash_key == "a secret of many characters"
    assert "a secret" not in repr(config)


TOKEN = "a token of many characters"


@pytest.mark.parametrize(
    ("host", "page", "shown"),
    [
        ("127.0.0.1", {}, True),
        ("localhost", {}, True),
        ("::1", {}, True),
        ("127.0.0.1", {"enabled": False}, False),
        ("0.0.0.0", {}, False),
        ("10.1.2.3", {"token": TOKEN}, False),
        ("10.1.2.3", {"enabled": True, "token": TOKEN}, True),
        ("10.1.2.3", {"enabled": True, "behind_proxy": True}, True),
    ],
)
def test_the_page_is_shown_beyond_loopback_only_where_that_is_said(
    tmp_path: Path, host: str, page: dict[str, Any], shown: bool
) -> None:
    http = read_config(written(tmp_path, {"http": {"host": host, "page": page}})).http
    assert http.shows_page is shown
    assert TOKEN not in repr(http)


@pytest.mark.parametrize("http", [{}, {"host": "0.0.0.0", "page": {"enabled": True}}])
def test_the_environment_gives_the_pages_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http: dict[str, Any]
) -> None:
    monkeypatch.setenv("ANATOMYNODE_PAGE_TOKEN", TOKEN)
    assert read_config(written(tmp_path, {"http": http})).http.page.token == TOKEN
    monkeypatch.setenv("ANATOMYNODE_PAGE_TOKEN", "short")
    assert [problem.partition(":")[0] for problem in problems(written(tmp_path, {}))] == ["http.page.token"]
    assert [problem.partition(":")[0] for problem in problems(written(tmp_path, {"http": 3}))] == ["http"]


@pytest.mark.parametrize(
    ("network", "address", "admitted"),
    [
        ("10.1.2.0/24", "10.1.2.77", True),
        ("10.1.2.0/24", "10.1.3.77", False),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("::1", "::1", True),
        ("0.0.0.0/0", "192.0.2.1", True),
    ],
)
def test_a_peer_is_admitted_from_its_networks_only(network: str, address: str, admitted: bool) -> None:
    assert Peer(ae_title="A", addresses=(network,)).admits(address) is admitted


def test_the_shipped_file_is_valid() -> None:
    assert read_config(SHIPPED).listener.host == "127.0.0.1"


def test_the_shipped_file_names_every_key() -> None:
    missing = [".".join(path) for path, _ in keys(Config) if path not in dict(commented_keys())]

    assert missing == []


def test_the_shipped_file_states_the_true_default_of_every_key() -> None:
    comments = dict(reversed(list(commented_keys())))  # of a list's items the first explains
    for path, default in keys(Config):
        said = STATED_DEFAULT.search(comments[path])
        if default is PydanticUndefined:
            assert "required" in comments[path], path
        else:
            assert said is not None, f"{path} states no default"
            assert yaml.safe_load(said.group(1).rstrip(". ")) == plain(default), path


@pytest.mark.parametrize("section", [Rule, ResultChoice, Conditions, WebDestination, FolderDestination])
def test_the_page_on_routing_names_every_key_that_the_shipped_file_does_not(section: type[BaseModel]) -> None:
    page = (ROOT / "docs" / "ROUTING.md").read_text()
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE))

    assert set(section.model_fields) - set(Destination.model_fields) - rows == set()


def keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each key that holds a value, with its default; TLS is described in words, rules in docs/ROUTING.md."""
    for name, described in model.model_fields.items():
        inner = section_of(described.annotation)
        if inner is not None and inner.__name__ not in {"Tls", "Rule"}:
            if described.default is PydanticUndefined:
                yield (*above, name), described.default
            yield from keys(inner, (*above, name))
        else:
            yield (*above, name), described.default


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds: itself, optional, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return section_of(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, Union, UnionType):
        return next((section for section in map(section_of, get_args(annotation)) if section), None)
    return None


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def commented_keys() -> Iterator[tuple[tuple[str, ...], str]]:
    """Each key of the shipped file, with the comment above it and beside it."""
    above: list[tuple[int, str]] = []
    comment = ""
    for line in SHIPPED.read_text().splitlines():
        key = re.match(r"^( *)(- )?([a-z0-9_]+):(?: |$)", line)
        _, _, beside = line.partition("#")
        if key is None:
            comment = f"{comment} {beside.strip()}" if line.strip().startswith("#") else ""
            continue
        indent = len(key.group(1)) + len(key.group(2) or "")
        above = [*((depth, name) for depth, name in above if depth < indent), (indent, key.group(3))]
        yield tuple(name for _, name in above), f"{comment} ; {beside.strip()}"
        comment = ""
