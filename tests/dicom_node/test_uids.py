"""Derived UIDs: the same content gives the same object, and nothing else does."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicom_node.uids import IMPLEMENTATION_CLASS_UID, derive_uid, is_derived

parts = st.lists(st.text(max_size=8), max_size=4).map(tuple)


@given(parts)
def test_a_derived_uid_is_valid_and_a_custom_uuid(content):
    uid = UID(derive_uid(*content))
    assert uid.is_valid
    assert len(uid) <= 64
    derived = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert (derived.variant, derived.version) == (uuid.RFC_4122, 8)
    assert is_derived(uid)


@pytest.mark.parametrize(
    "uid", ["2.25.7", "1.2.840.10008.1.1", "2.25.", "2.25.x", f"2.25.{'9' * 60}", "", "2.25.٧"]
)
def test_other_peoples_uids_are_not_taken_for_derived(uid):
    assert not is_derived(uid)


@given(st.uuids(version=4))
def test_random_uids_are_not_taken_for_derived(random):
    assert not is_derived(f"2.25.{random.int}")


@given(parts, parts)
def test_uids_are_equal_exactly_where_the_parts_are(first, second):
    assert (derive_uid(*first) == derive_uid(*second)) == (first == second)


def test_the_rule_never_changes():
    """A changed rule would send a second object for a series that is already delivered."""
    assert derive_uid("a", "b") == "2.25.80570676777572633702511940372177902698"
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
