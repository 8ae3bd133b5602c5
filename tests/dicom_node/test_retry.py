"""Failed deliveries come back later and later, never all at once, and never stop."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import Retry
from dicom_node.retry import delay_s, needs_a_person

RETRY = Retry(first_delay_s=5, max_delay_s=900, alert_after_s=3600)


@given(failures=st.integers(1, 10**9), seed=st.integers())
def test_a_delay_lies_in_the_upper_half_below_its_doubling_and_its_cap(failures, seed):
    longest = min(900, 5 * 2 ** min(failures - 1, 20))
    assert longest / 2 <= delay_s(failures, RETRY, Random(seed)) <= longest


def test_deliveries_that_failed_together_do_not_come_back_together():
    rng = Random(1)
    delays = [delay_s(9, RETRY, rng) for _ in range(100)]
    assert len(set(delays)) == 100
    assert max(delays) - min(delays) > 300


def test_a_delay_follows_a_failure():
    with pytest.raises(ValueError, match="0 is none"):
        delay_s(0, RETRY, Random(1))


def test_a_person_is_told_when_the_hour_is_full():
    assert not needs_a_person(3599.9, RETRY)
    assert needs_a_person(3600.0, RETRY)
