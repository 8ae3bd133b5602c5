"""Identifiers are found again by who has the key, and by nobody else."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicom_node.config import Config, Storage
from dicom_node.errors import ConfigurationError
from dicom_node.keyed_hash import KeyedHash, load_key


def _config(folder: Path, hash_key: str | None = None) -> Config:
    return Config(peers=(), destinations=(), storage=Storage(folder=folder), hash_key=hash_key)


def test_the_same_text_under_the_same_key_gives_the_same_digits_whatever_its_padding() -> None:
    hashed = KeyedHash(b"k" * 32)
    assert hashed("PAT-1 ") == hashed("PAT-1")
    assert hashed("PAT-1") != hashed("PAT-2")
    assert hashed("PAT-1") != KeyedHash(b"other key")("PAT-1")
    assert "PAT" not in hashed("PAT-1")
    assert KeyedHash(b"long" * 64)("PAT-1") != KeyedHash(b"long" * 65)("PAT-1")


def test_the_key_shows_in_no_representation() -> None:
    assert "secret" not in repr(KeyedHash(b"secret secret secret"))


def test_the_key_is_made_once_for_all_processes_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    config = _config(tmp_path / "storage")
    with ThreadPoolExecutor(8) as pool:
        keys = {done.result() for done in [pool.submit(load_key, config) for _ in range(8)]}
    assert len(keys) == 1
    files = list((tmp_path / "storage").iterdir())
    assert [file.name for file in files] == ["hash.key"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


def test_the_configured_key_comes_first(tmp_path: Path) -> None:
    assert load_key(_config(tmp_path, "a configured key")) == b"a configured key"
    assert not list(tmp_path.iterdir())


def test_a_key_cut_short_is_refused_rather_than_used(tmp_path: Path) -> None:
    (tmp_path / "hash.key").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="5 bytes"):
        load_key(_config(tmp_path))
