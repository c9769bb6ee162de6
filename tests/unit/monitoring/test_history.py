"""Buckets: windows sum what ended in them, storing and loading loses nothing, and old buckets go."""

from hypothesis import given
from hypothesis import strategies as st

from knhk.monitoring.history import HOUR_NS, HOURS_KEPT, MINUTE_NS, MINUTES_KEPT, Bucket, History

NOW = 500_000 * HOUR_NS + 30 * MINUTE_NS
Ends = list[tuple[int, bool, bool, float]]
ENDS = st.lists(
    st.tuples(st.integers(NOW - 40 * 24 * HOUR_NS, NOW), st.booleans(), st.booleans(), st.floats(0, 100_000)),
    max_size=60,
)


def fed(ends: Ends) -> History:
    history = History()
    for ended_at_ns, failed, slow, seconds in ends:
        history.add(ended_at_ns, failed=failed, slow=slow, seconds=seconds)
    return history


def figures(bucket: Bucket) -> tuple[int, int, int, int]:
    return bucket.total, bucket.failed, bucket.slow, sum(bucket.durations)


@given(ENDS, st.sampled_from([300, 3_600, 21_600]))
def test_a_short_window_sums_its_minutes(ends: Ends, seconds: int) -> None:
    since = (NOW - seconds * 10**9) // MINUTE_NS
    inside = [one for one in ends if one[0] // MINUTE_NS > since]
    expected = len(inside), sum(one[1] for one in inside), sum(one[2] for one in inside), len(inside)
    assert figures(fed(ends).window(NOW, seconds)) == expected


@given(ENDS, st.sampled_from([259_200, 2_592_000]))
def test_a_long_window_sums_its_hours(ends: Ends, seconds: int) -> None:
    since = (NOW - seconds * 10**9) // HOUR_NS
    inside = [one for one in ends if one[0] // HOUR_NS > since]
    assert figures(fed(ends).window(NOW, seconds))[0] == len(inside)


@given(ENDS, ENDS)
def test_what_was_stored_and_what_came_meanwhile_add_up(before: Ends, meanwhile: Ends) -> None:
    rows = fed(before).rows(NOW)
    history = fed(meanwhile)
    history.load([(key, row) for key, row in rows.items() if row is not None])
    together = fed(before + meanwhile)
    for seconds in (300, 21_600, 259_200, 2_592_000):
        assert figures(history.window(NOW, seconds)) == figures(together.window(NOW, seconds))
    again = History()
    again.load([(key, row) for key, row in history.rows(NOW).items() if row is not None])
    assert figures(again.window(NOW, 2_592_000)) == figures(together.window(NOW, 2_592_000))


def test_old_buckets_go_and_only_what_changed_is_stored() -> None:
    history = fed([(NOW - hours * HOUR_NS, False, False, 0.1) for hours in range(2_000)])
    first = history.rows(NOW)
    assert sum(row is not None for row in first.values()) <= MINUTES_KEPT + HOURS_KEPT + 2
    assert history.rows(NOW) == {}
    history.add(NOW, failed=True, slow=False, seconds=1)
    assert len(history.rows(NOW)) == 2
    later = history.rows(NOW + 31 * 24 * HOUR_NS)
    assert later
    assert set(later.values()) == {None}
    assert history.window(NOW + 31 * 24 * HOUR_NS, 2_592_000) == Bucket()


def test_rows_that_cannot_be_read_are_passed_over() -> None:
    history = History()
    history.load([(b"m12345678", b"\xc1"), (b"x12345678", b"\x90"), (b"m1", b"\x90"), (b"", b"")])
    assert history.rows(NOW) == {}
