"""Decoding ahead saves time and never costs more memory than it may."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.decoding import Decoder, Spooled, SpoolFileLostError
from tests import phantoms
from tests.phantoms import Phantom


@pytest.fixture
def spooled(tmp_path: Path) -> list[Spooled]:
    files = phantoms.write(Phantom(offsets_mm=(0.0, 3.0, 6.0, 9.0)), tmp_path)
    return [Spooled(number, file) for number, file in enumerate(files, start=1)]


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(max_open=2)
    yield decoder
    decoder.close()


def test_what_was_decoded_ahead_is_not_read_again(decoder: Decoder, spooled: list[Spooled]) -> None:
    decoder.ahead(1, spooled[:3])
    assert (decoder.decoded_to(1), decoder.size_bytes) == (3, 3 * 64 * 64 * 2)
    for one in spooled[:3]:
        one.file.unlink()
    assert len(decoder.whole(decoder.take(1), spooled)) == 4
    assert (decoder.open_series, decoder.decoded_to(1)) == (0, 0)


def test_the_series_untouched_for_longest_is_given_up_and_decoded_when_its_job_runs(
    decoder: Decoder, spooled: list[Spooled]
) -> None:
    for series in (1, 2, 1, 3):
        decoder.ahead(series, spooled[:2])
    assert decoder.open_series == 2
    assert [decoder.decoded_to(series) for series in (1, 2, 3)] == [2, None, 2]
    assert len(decoder.whole(decoder.take(2), spooled)) == 4


def test_one_series_beyond_the_memory_bound_is_not_kept(spooled: list[Spooled]) -> None:
    decoder = Decoder(max_bytes=2 * 64 * 64 * 2)
    decoder.ahead(1, spooled)
    assert (decoder.size_bytes, decoder.decoded_to(1)) == (0, None)
    decoder.close()


def test_a_lost_file_is_told_when_the_job_runs_and_not_before(
    decoder: Decoder, spooled: list[Spooled]
) -> None:
    spooled[1].file.unlink()
    decoder.ahead(1, spooled)
    assert decoder.decoded_to(1) is None
    with pytest.raises(SpoolFileLostError):
        decoder.whole(decoder.take(1), spooled)


def test_a_file_that_the_disk_damaged_is_no_fault_of_its_series(
    decoder: Decoder, spooled: list[Spooled]
) -> None:
    spooled[0].file.write_bytes(b"no DICOM")
    with pytest.raises(SpoolFileLostError, match="damaged"):
        decoder.whole(decoder.take(1), spooled)


def test_slices_that_come_after_the_series_was_taken_begin_anew(
    decoder: Decoder, spooled: list[Spooled]
) -> None:
    decoder.ahead(1, spooled[:3])
    taken = decoder.take(1)
    decoder.ahead(1, spooled)
    assert (len(taken.builder), decoder.decoded_to(1)) == (3, 4)
    assert len(decoder.whole(taken, spooled[:3])) == 3
