"""An open loop sends every arrival once, at its time, without drift."""

import select
import time

from bench.schedule import NS_PER_SECOND, ArrivalSchedule, Ticker
from hypothesis import given
from hypothesis import strategies as st

SCHEDULES = st.builds(
    ArrivalSchedule, start_ns=st.integers(0, 10**18), rate=st.integers(1, 100_000), total=st.integers(1, 10**6)
)


@given(SCHEDULES, st.integers(0, 10**6))
def test_an_arrival_is_due_from_its_intended_time_on_and_not_before(schedule: ArrivalSchedule, index: int) -> None:
    index %= schedule.total
    intended_ns = schedule.intended_ns(index)
    assert schedule.due(intended_ns) > index
    assert schedule.due(intended_ns - 1) <= index


@given(SCHEDULES, st.integers(0, 10**11))
def test_due_never_falls_nor_passes_the_total(schedule: ArrivalSchedule, elapsed_ns: int) -> None:
    now_ns = schedule.start_ns + elapsed_ns
    assert 1 <= schedule.due(now_ns) <= schedule.due(now_ns + 1) <= schedule.total


def test_a_second_holds_as_many_arrivals_as_the_rate_says() -> None:
    schedule = ArrivalSchedule(start_ns=5, rate=1850, total=10**6)
    assert schedule.due(4) == 0
    assert schedule.due(5 + NS_PER_SECOND - 1) == 1850
    assert schedule.intended_ns(1850 * 3600) == 5 + 3600 * NS_PER_SECOND


def test_the_ticker_is_readable_from_its_first_tick_on() -> None:
    first_ns = time.monotonic_ns() + 5_000_000
    ticker = Ticker(first_ns, 1_000_000)
    try:
        for tick in range(3):
            assert select.select([ticker], [], [], 5)[0] == [ticker]
            ticker.acknowledge()
            assert time.monotonic_ns() >= first_ns + tick * 1_000_000
    finally:
        ticker.close()
