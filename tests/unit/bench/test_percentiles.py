"""Percentiles are exact and by nearest rank."""

import pytest
from bench.percentiles import NONE_MEASURED, nearest_rank, summarise
from hypothesis import given
from hypothesis import strategies as st


def test_the_ranks_of_one_to_a_hundred_are_the_values_themselves() -> None:
    ordered = range(1, 101)
    assert [nearest_rank(ordered, percent) for percent in (1, 50, 90, 99, 99.5, 100)] == [1, 50, 90, 99, 100, 100]


def test_every_percentile_of_one_value_is_that_value() -> None:
    assert [nearest_rank([7], percent) for percent in (0.1, 50, 100)] == [7, 7, 7]


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_a_percentage_outside_the_scale_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        nearest_rank([1], percent)


def test_an_empty_sample_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="empty"):
        nearest_rank([], 50)
    assert summarise([]) == NONE_MEASURED


@given(st.lists(st.integers(0, 10**12), min_size=1), st.floats(0.01, 100))
def test_at_least_that_share_lies_at_or_below_and_less_than_that_share_below(sample: list[int], percent: float) -> None:
    found = nearest_rank(sorted(sample), percent)
    assert found in sample
    assert sum(value <= found for value in sample) >= len(sample) * percent / 100
    assert sum(value < found for value in sample) < len(sample) * percent / 100


def test_a_summary_is_in_milliseconds_and_does_not_need_an_ordered_sample() -> None:
    summary = summarise([3_000_000, 1_000_000, 2_000_000])
    assert (summary.count, summary.p50_ms, summary.p99_ms, summary.max_ms) == (3, 2.0, 3.0, 3.0)
