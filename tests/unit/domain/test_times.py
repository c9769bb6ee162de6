"""Times as text."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain.times import rfc3339


@pytest.mark.parametrize(
    ("at_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_769_860_800_250_000_000, "2026-01-31T12:00:00.250Z"),
        (1_769_860_800_999_999_999, "2026-01-31T12:00:00.999Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854Z"),
    ],
)
def test_times_are_utc_with_milliseconds(at_ns: int, text: str) -> None:
    assert rfc3339(at_ns) == text


@given(st.integers(0, 2**63 - 1))
def test_the_text_is_the_time_cut_to_a_millisecond(at_ns: int) -> None:
    read = datetime.fromisoformat(rfc3339(at_ns))
    assert read.tzinfo == UTC
    assert round(read.timestamp() * 1000) == at_ns // 1_000_000
