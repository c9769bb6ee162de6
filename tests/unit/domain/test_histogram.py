"""Histograms: every value is in one bucket, and quantiles lie where the values are."""

from hypothesis import given
from hypothesis import strategies as st

from knhk.domain.histogram import SHORT_S, Histogram, quantile


def test_a_value_that_equals_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram((1, 2))
    for value in (0, 1, 1.5, 2, 3):
        histogram.add(value)
    assert (histogram.counts, histogram.count, histogram.total) == ([2, 2, 1], 5, 7.5)


def test_quantiles_are_linear_within_a_bucket() -> None:
    assert quantile(0.5, (1.0, 2.0), [0, 10, 0]) == 1.5
    assert quantile(0.99, (1.0, 2.0), [0, 0, 7]) == 2.0
    assert quantile(0.5, (1.0, 2.0), [0, 0, 0]) is None


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 1))
def test_a_quantile_is_within_the_bucket_of_the_exact_one(values: list[float], share: float) -> None:
    histogram = Histogram(SHORT_S)
    for value in values:
        histogram.add(value)
    found = quantile(share, histogram.bounds, histogram.counts)
    exact = sorted(values)[max(0, -(-int(share * 10**9) * len(values) // 10**9) - 1)]
    bounds = (0.0, *SHORT_S)
    upper = next(bound for bound in SHORT_S if exact <= bound)
    assert found is not None
    assert bounds[bounds.index(upper) - 1] - 1e-9 <= found <= upper + 1e-9
