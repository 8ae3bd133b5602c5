"""Finding a patient's jobs without keeping the patient: identifiers as keyed hashes.

Owns the hash, and the random key that is made once where the configuration gives none.
Speaks text in, hexadecimal digits out (BLAKE2b, RFC 7693, in its keyed mode).
Never stores, logs or returns the text itself.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.config import Config
from dicom_node.durable import sync_folder, synced_draft
from dicom_node.errors import ConfigurationError

KEY_FILE = "hash.key"
KEY_BYTES = 32
DIGEST_BYTES = 20


@dataclass(frozen=True)
class KeyedHash:
    """The same text gives the same 40 hexadecimal digits, and nobody without the key can try names out.

    Attributes:
        key: secret bytes of any length; longer ones than BLAKE2b's 64 are hashed first.
    """

    key: bytes = field(repr=False)

    def __call__(self, text: str) -> str:
        """The hash of `text`, less the spaces that DICOM pads with (PS3.5 6.2)."""
        key = self.key if len(self.key) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.sha512(self.key).digest()
        return hashlib.blake2b(text.strip(" ").encode(), key=key, digest_size=DIGEST_BYTES).hexdigest()


def load_key(config: Config) -> bytes:
    """The key from the configuration, else the one in the storage folder, which is made on first use.

    Listener and worker may both come first: the key is linked into place whole, so one of them wins
    and both use the winner's.

    Raises:
        ConfigurationError: the kept key cannot be read, or is cut short.
    """
    if config.hash_key is not None:
        return config.hash_key.encode()
    path = config.storage.folder / KEY_FILE
    if not path.exists():
        _make_key(path)
    try:
        key = path.read_bytes()
    except OSError as problem:
        raise ConfigurationError((f"storage.folder: {path} cannot be read: {problem.strerror}",)) from problem
    if len(key) != KEY_BYTES:
        raise ConfigurationError((f"storage.folder: {path} has {len(key)} bytes instead of {KEY_BYTES}",))
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Linked, not renamed: where the other process was first, its key counts.
    with synced_draft(path, secrets.token_bytes(KEY_BYTES)) as draft, suppress(FileExistsError):
        path.hardlink_to(draft)
    sync_folder(path.parent)
