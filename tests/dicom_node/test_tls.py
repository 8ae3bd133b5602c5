"""DICOM TLS: certificates are renewed without a restart, and weak ciphers are not spoken."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dicom_node import check, metrics
from dicom_node.config import Destination, Tls
from dicom_node.database import open_engine
from dicom_node.errors import ConfigurationError
from dicom_node.reception_figures import ReceptionFigures
from dicom_node.tls import ServerTls, client_context, days_left, server_context
from tests import certificates
from tests.dicom_node.reception_rig import configuration, listening


def _handshake(port: int, tls: Tls) -> bool:
    """Whether the node takes a peer with these files; under TLS 1.3 a refusal comes with the first read."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        try:
            with client_context(tls, "tls").wrap_socket(plain) as secured:
                secured.settimeout(0.5)
                return secured.recv(1) != b""
        except TimeoutError:
            return True  # it waits for our first word
        except OSError:
            return False


def _replace(old: Tls, new: Tls) -> None:
    for name in ("certificate", "key", "ca"):
        shutil.copy(getattr(new, name), getattr(old, name))


def test_renewed_files_count_from_the_next_connection_on_and_unusable_ones_leave_the_last_good(
    tmp_path: Path,
) -> None:
    used, first, second = (certificates.make(tmp_path / name) for name in ("used", "first", "second"))
    _replace(used, first)
    with listening(configuration(tmp_path / "node", tls=used)) as reception:
        assert (_handshake(reception.port, first), _handshake(reception.port, second)) == (True, False)
        _replace(used, second)
        assert (_handshake(reception.port, first), _handshake(reception.port, second)) == (False, True)
        used.key.write_text("half a renewal")
        assert _handshake(reception.port, second)
        used.certificate.unlink()
        assert _handshake(reception.port, second)
        _replace(used, first)
        assert _handshake(reception.port, first)


@pytest.mark.parametrize("weak", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384"])
def test_a_cipher_without_forward_secrecy_or_authentication_is_not_spoken(tmp_path: Path, weak: str) -> None:
    tls = certificates.make(tmp_path / "tls")
    context = client_context(tls, "tls")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with listening(configuration(tmp_path / "node", tls=tls)) as reception:
        for ciphers, agreed in (("ECDHE-ECDSA-AES128-GCM-SHA256", True), (weak, False)):
            context.set_ciphers(ciphers)
            with socket.create_connection(("127.0.0.1", reception.port), timeout=10) as plain:
                if agreed:
                    with context.wrap_socket(plain) as secured:
                        assert secured.version() == "TLSv1.2"
                else:
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        context.wrap_socket(plain)


def test_at_the_start_files_that_cannot_be_used_are_all_named(tmp_path: Path) -> None:
    tls = certificates.make(tmp_path / "tls")
    tls.key.write_text("no key")
    tls.ca.unlink()
    for make in (server_context, client_context, ServerTls):
        with pytest.raises(ConfigurationError) as told:
            make(tls, "listener.tls")
        assert [str(tls.key) in told.value.problems[0], str(tls.ca) in told.value.problems[1]] == [True, True]
        assert [one.split(": ")[0] for one in told.value.problems] == ["listener.tls", "listener.tls.ca"]


def test_the_days_left_are_a_metric_and_few_of_them_a_finding(tmp_path: Path) -> None:
    tls = certificates.make(tmp_path / "tls")
    assert days_left(tls.certificate, time.time()) == pytest.approx(1, abs=0.01)
    config = configuration(tmp_path / "node", tls=tls)
    pacs = Destination(name="pacs", host="127.0.0.1", port=1, ae_title="PACS", tls=tls)
    gone = pacs.model_copy(
        update={"name": "gone", "tls": tls.model_copy(update={"certificate": tmp_path / "x"})}
    )
    config = config.model_copy(update={"destinations": (pacs, gone)})
    with listening(config):
        engine = open_engine(config.storage.database)
        collector = metrics.NodeCollector(engine, config, ReceptionFigures())
        families = text_string_to_metric_families(metrics.exposition(collector)().decode())
        left = {
            sample.labels["name"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "anatomynode_certificate_days_left"
        }
        engine.dispose()
    assert left == {"listener": pytest.approx(1, abs=0.01), "pacs": pytest.approx(1, abs=0.01)}
    found = {one.check: one.problem or "" for one in check._tls(config)}
    assert "1 day(s) left; renew it" in found["listener.tls"]
    assert str(tmp_path / "x") in found["gone.tls"]
