"""Every C-STORE status has one meaning."""

import re

import pytest

from dicom_node.store_status import KEPT, NO_STATUS, TABLE, UNKNOWN, StoreKind, in_words, meaning

STORED_WITH_WARNING = {0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)}
REFUSED = {
    *(0x0105, 0x0106, 0x0112, 0x0113, 0x0114, 0x0115, 0x0117, 0x0118, 0x0119),
    *(0x0120, 0x0121, 0x0122, 0x0123, 0x0124, 0x0211, 0x0212),
    *range(0xA900, 0xAA00),
    *range(0xC000, 0xD000),
}


def expected(status: int) -> StoreKind:
    """The rule, told once more by sets; what is in none of them is tried again."""
    if status == 0x0000:
        return StoreKind.STORED
    if status in STORED_WITH_WARNING:
        return StoreKind.WARNING
    if status == 0x0111:
        return StoreKind.DUPLICATE
    return StoreKind.REFUSED if status in REFUSED else StoreKind.TRANSIENT


def test_each_of_the_65536_statuses_has_the_outcome_of_the_standard():
    assert [meaning(status).kind for status in range(0x10000)] == [expected(s) for s in range(0x10000)]


def test_only_success_and_warnings_count_as_kept():
    kept = {status for status in range(0x10000) if meaning(status).kind in KEPT}
    assert kept == {0x0000} | STORED_WITH_WARNING


def test_no_status_and_unknown_statuses_are_sent_again():
    assert meaning(None) is NO_STATUS
    assert NO_STATUS.kind is UNKNOWN.kind is StoreKind.TRANSIENT
    assert {meaning(status) for status in (0x0002, 0x0300, 0xA800, 0xFE00, 0xFF00, 0xFFFF)} == {UNKNOWN}


def test_each_entry_cites_the_standard_and_says_what_to_do():
    for entry in (*TABLE, UNKNOWN, NO_STATUS):
        assert re.fullmatch(r"PS3\.[47] .+", entry.source)
        assert len(entry.reason.split()) >= (1 if entry.kind is StoreKind.STORED else 6)
        assert entry.first <= entry.last


@pytest.mark.parametrize("status", [-1, 0x10000])
def test_a_number_that_is_no_status_is_an_error(status):
    with pytest.raises(ValueError, match="16 bits"):
        meaning(status)


def test_the_sentence_names_the_status():
    assert in_words(0xA700).startswith("0xA700: the peer is out of resources")
    assert "0x" not in in_words(None)
