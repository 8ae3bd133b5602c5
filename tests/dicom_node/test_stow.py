"""STOW-RS: what each answer means for the object, by a server that says anything, and by a real archive."""

from __future__ import annotations

import json
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dicom_node import stow
from dicom_node.config import WebDestination
from dicom_node.errors import PermanentError, TransientError
from dicom_node.store_status import StoreKind
from tests import certificates
from tests.instances import write_instance
from tests.tools import ORTHANC_DICOMWEB, free_port, needs, running
from tests.web_service import Answer, module
from tests.web_service import serving as service

UID = "2.25.7"


def destination(port: int, scheme: str = "http", **more: Any) -> WebDestination:
    settings = {"name": "web-1", "kind": "dicomweb", "url": f"{scheme}://127.0.0.1:{port}/dicom-web/"}
    times = {"connect_timeout_s": 2.0, "response_timeout_s": 2.0}
    return WebDestination.model_validate({**settings, **times, **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_instance(tmp_path / "result.dcm", UID)


KEPT, FAILED = stow.REFERENCED, stow.FAILED


@pytest.mark.parametrize(
    ("status", "body", "kind", "number"),
    [
        (200, module(KEPT), StoreKind.STORED, None),
        (202, module(KEPT, t00081196=0xB000), StoreKind.WARNING, 0xB000),
        (200, b"[" + module(KEPT) + b"]", StoreKind.STORED, None),
        (200, module(KEPT, uid="2.25.8"), StoreKind.TRANSIENT, None),
        (200, b"<html>", StoreKind.TRANSIENT, None),
        (200, b"", StoreKind.TRANSIENT, None),
        (200, b"[" * 100_000, StoreKind.TRANSIENT, None),
        (200, b'{"00081199": {"Value": "x"}}', StoreKind.TRANSIENT, None),
        (500, module(KEPT), StoreKind.TRANSIENT, None),
        (202, module(FAILED, t00081197=0xA700), StoreKind.TRANSIENT, 0xA700),
        (409, module(FAILED, t00081197=0x0110), StoreKind.TRANSIENT, 0x0110),
        (409, module(FAILED, t00081197=0x0122), StoreKind.REFUSED, 0x0122),
        (409, module(FAILED, t00081197=0xC000), StoreKind.REFUSED, 0xC000),
        (409, module(FAILED, t00081197=0x0111), StoreKind.DUPLICATE, 0x0111),
        (409, module(FAILED, t00081197=0x0000), StoreKind.TRANSIENT, 0x0000),
        (409, module(FAILED, t00081197=0x10000), StoreKind.TRANSIENT, None),
        (409, module(FAILED), StoreKind.TRANSIENT, None),
        (409, b"", StoreKind.REFUSED, None),
        (401, b"", StoreKind.REFUSED, None),
        (404, b"", StoreKind.REFUSED, None),
        (503, b"", StoreKind.UNREACHABLE, None),
        (429, b"", StoreKind.TRANSIENT, None),
    ],
)
def test_the_answers_word_on_the_object_decides_and_else_the_http_status(
    file: Path, status: int, body: bytes, kind: StoreKind, number: int | None
) -> None:
    with service(Answer(status, body)) as port:
        outcome = stow.store(destination(port), file)

    assert (outcome.kind, outcome.status) == (kind, number)
    assert str(status) in outcome.reason


def test_every_http_status_has_a_meaning_and_none_is_taken_for_stored() -> None:
    meanings = {status: stow.of_status(status) for status in range(100, 1000)}

    assert {kind for kind, _ in meanings.values()} == {
        StoreKind.TRANSIENT,
        StoreKind.REFUSED,
        StoreKind.UNREACHABLE,
    }
    assert all(words for _, words in meanings.values())


def test_the_request_carries_the_very_bytes_as_one_part_of_dicom(file: Path) -> None:
    answer = Answer(200, module(KEPT))
    with service(answer) as port:
        stow.store(destination(port), file)

    ((path, headers, body),) = answer.heard
    assert path == "/dicom-web/studies"
    assert headers["Accept"] == "application/dicom+json"
    kind, _, boundary = headers["Content-Type"].partition("; boundary=")
    assert kind == 'multipart/related; type="application/dicom"'
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    assert body == head + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    assert "Authorization" not in headers


def test_a_redirect_is_not_followed(file: Path) -> None:
    elsewhere = Answer(200, module(KEPT))
    with (
        service(elsewhere) as other,
        service(Answer(307, headers={"Location": f"http://127.0.0.1:{other}/"})) as port,
    ):
        outcome = stow.store(destination(port), file)

    assert (outcome.kind, elsewhere.heard) == (StoreKind.REFUSED, [])


def test_secrets_come_from_the_environment_or_a_file_that_is_read_anew(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    answer = Answer(200, module(KEPT))
    with service(answer) as port:
        by_token = destination(port, token_file=secret)
        for token in ("first", "renewed"):
            secret.write_text(f"{token}\n")
            stow.store(by_token, file)
        stow.store(destination(port, user="node", password_file=secret), file)
        monkeypatch.setenv("ANATOMYNODE_WEB_1_TOKEN", "from the environment")
        stow.store(by_token, file)
        secret.unlink()
        monkeypatch.delenv("ANATOMYNODE_WEB_1_TOKEN")
        gone = stow.store(by_token, file)

    assert [headers["Authorization"] for _, headers, _ in answer.heard] == [
        "Bearer first",
        "Bearer renewed",
        "Basic bm9kZTpyZW5ld2Vk",
        "Bearer from the environment",
    ]
    assert gone.kind is StoreKind.UNREACHABLE


def test_a_secret_from_the_environment_is_told_to_nobody_in_clear_text(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANATOMYNODE_WEB_1_TOKEN", "secret")
    elsewhere = destination(1, url="http://192.0.2.1/dicom-web")

    outcome = stow.store(elsewhere, file)

    assert (outcome.kind, "secret" in outcome.reason) == (StoreKind.REFUSED, False)


def test_silence_absence_and_half_an_answer_are_told_apart(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection into its backlog
        port = silent.getsockname()[1]
        asleep = stow.store(destination(port, response_timeout_s=0.3), file)
    absent = stow.store(destination(free_port()), file)
    with service(Answer(200, b"x" * (stow.MOST_OF_AN_ANSWER_BYTES + 1))) as port:
        endless = stow.store(destination(port), file)
    unknown = stow.store(destination(1, url="http://nowhere.invalid/dicom-web"), file)

    assert (asleep.kind, absent.kind, endless.kind, unknown.kind) == (
        StoreKind.TRANSIENT,
        StoreKind.UNREACHABLE,
        StoreKind.TRANSIENT,
        StoreKind.UNREACHABLE,
    )


def test_over_tls_the_service_must_show_a_certificate_that_the_ca_signed(file: Path, tmp_path: Path) -> None:
    tls, other = certificates.make(tmp_path / "tls"), certificates.make(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    with service(Answer(200, module(KEPT)), tls=context) as port:
        url = f"https://localhost:{port}/dicom-web"
        trusted = stow.store(destination(port, url=url, ca=tls.ca), file)
        strange = stow.store(destination(port, url=url, ca=other.ca), file)
        missing = stow.store(destination(port, url=url, ca=tmp_path / "none.pem"), file)

    assert trusted.kind is StoreKind.STORED
    assert {strange.kind, missing.kind} == {StoreKind.UNREACHABLE}
    assert "certificate" in strange.reason


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (200, None),
        (204, None),
        (405, None),
        (401, PermanentError),
        (404, PermanentError),
        (503, TransientError),
    ],
)
def test_a_look_asks_for_nobodys_study(status: int, problem: type[Exception] | None) -> None:
    answer = Answer(status)
    with service(answer) as port:
        if problem is None:
            assert "answers" in stow.look(destination(port))
        else:
            with pytest.raises(problem, match=str(status)):
                stow.look(destination(port))

    assert answer.heard[0][0] == "/dicom-web/studies?StudyInstanceUID=2.25.1&limit=1"


@needs("Orthanc", ORTHANC_DICOMWEB)
def test_orthanc_keeps_the_very_object_once_and_refuses_strangers(file: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"node": "secret"},
        "StorageDirectory": str(tmp_path / "storage"),
        "Plugins": [ORTHANC_DICOMWEB],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    password = tmp_path / "password"
    password.write_text("secret")
    known = destination(port, user="node", password_file=password, response_timeout_s=20.0)
    with running(["Orthanc", tmp_path / "orthanc.json"], tmp_path / "orthanc.log", port=port):
        stranger = stow.store(destination(port), file)
        there = stow.look(known)
        first, again = stow.store(known, file), stow.store(known, file)
        broken = tmp_path / "broken.dcm"
        broken.write_bytes(file.read_bytes()[:400])
        refused = stow.store(known, broken)
        asking = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        asking.add_password(None, f"http://127.0.0.1:{port}/", "node", "secret")
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(asking))
        (name,) = json.load(opener.open(f"http://127.0.0.1:{port}/instances", timeout=10))
        kept = opener.open(f"http://127.0.0.1:{port}/instances/{name}/file", timeout=10).read()

    assert stranger.kind is StoreKind.REFUSED
    assert "answers" in there
    assert (first.kind, again.kind) == (StoreKind.STORED, StoreKind.STORED)
    assert kept == file.read_bytes()
    assert refused.kind not in {StoreKind.STORED, StoreKind.WARNING}
