"""DICOM TLS: both sides show certificates, and renewed files count without a restart.

Owns the profile (PS3.15 B.12, BCP 195), the reading of certificate files, and how long they are valid.
Speaks `Tls` from the configuration; ssl contexts out.
Never goes on without TLS where it is configured: files that cannot be used leave those that could.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

from cryptography import x509

from dicom_node import logs
from dicom_node.config import Tls
from dicom_node.errors import ConfigurationError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
"""Of TLS 1.2 what RFC 9325 (BCP 195) 4.2 recommends: forward secret, authenticated. TLS 1.3 has no others."""

_DAY_S = 86_400.0

log = logs.get(__name__)


def server_context(tls: Tls, key: str) -> ssl.SSLContext:
    """TLS 1.2 or newer; clients must show a certificate that `tls.ca` has signed.

    Args:
        key: of the configuration, for messages.

    Raises:
        ConfigurationError: a file is missing or is no certificate or key; with every problem.
    """
    return _context(tls, ssl.PROTOCOL_TLS_SERVER, key)


def client_context(tls: Tls, key: str) -> ssl.SSLContext:
    """TLS 1.2 or newer; the server must show a certificate that `tls.ca` has signed.

    The host's name is not compared: DICOM devices are addressed by IP, and the CA is the site's own.

    Args:
        key: of the configuration, for messages.

    Raises:
        ConfigurationError: a file is missing or is no certificate or key; with every problem.
    """
    return _context(tls, ssl.PROTOCOL_TLS_CLIENT, key)


def _context(tls: Tls, protocol: int, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    problems = []
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as problem:  # ssl.SSLError is one
        problems.append(f"{key}: {tls.certificate} with {tls.key}: {problem.strerror or problem}")
    try:
        context.load_verify_locations(tls.ca)
    except OSError as problem:
        problems.append(f"{key}.ca: {tls.ca}: {problem.strerror or problem}")
    if problems:
        raise ConfigurationError(tuple(problems))
    return context


class ServerTls:
    """The server's context, made anew when one of its files has changed; many threads may ask.

    Raises:
        ConfigurationError: at the start, a file is missing or is no certificate or key.
    """

    def __init__(self, tls: Tls, key: str) -> None:
        self._tls = tls
        self._key = key
        self._lock = threading.Lock()
        self._seen = _versions(tls)
        self._context = server_context(tls, key)

    def context(self) -> ssl.SSLContext:
        """For the next connection; the last good one while the files cannot be used, as in mid-renewal."""
        with self._lock:
            seen = _versions(self._tls)
            if seen != self._seen:
                self._seen = seen
                self._renew()
            return self._context

    def _renew(self) -> None:
        try:
            self._context = server_context(self._tls, self._key)
        except ConfigurationError as problem:
            log.error("renewed TLS files cannot be used; the earlier ones stay", problems=problem.problems)
        else:
            log.info("TLS files are renewed", certificate=str(self._tls.certificate))


def days_left(certificate: Path, now: float) -> float:
    """How long the certificate in a PEM file is still valid; negative where it no longer is.

    Args:
        now: UTC epoch seconds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no certificate.
    """
    first = x509.load_pem_x509_certificate(certificate.read_bytes())
    return (first.not_valid_after_utc.timestamp() - now) / _DAY_S


def _versions(tls: Tls) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_version(path) for path in (tls.certificate, tls.key, tls.ca))


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
