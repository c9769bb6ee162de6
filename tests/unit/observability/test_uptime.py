"""Uptime: the share of time that was lived, and that it survives restarts and a store that fails."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain.errors import StorageUnavailable
from knhk.observability import uptime
from knhk.observability.uptime import FOLD, WINDOW_NS, Lifetime, Uptime, outdated, uptime_percentage
from knhk.persistence.memory import MemoryStore

SECOND = 1_000_000_000
DAY = 24 * 3600 * SECOND
TIMES = st.integers(0, 2_000)
LIFETIMES = st.lists(st.builds(Lifetime, TIMES, TIMES), max_size=8)


class HandClock:
    """Time that passes when it is told to, or when somebody sleeps."""

    def __init__(self, now_ns: int = 1_000 * DAY) -> None:
        self.at_ns = now_ns

    def now_ns(self) -> int:
        return self.at_ns

    async def sleep(self, seconds: float) -> None:
        self.at_ns += round(seconds * SECOND)
        await asyncio.sleep(0)

    def call_later(self, *_: object) -> asyncio.TimerHandle:
        raise NotImplementedError


@given(LIFETIMES, TIMES, st.integers(1, 2_000))
def test_it_is_the_share_of_moments_that_some_lifetime_covers(lifetimes: list[Lifetime], now: int, window: int) -> None:
    found = uptime_percentage(lifetimes, now, window)
    begin = max(min((one.started_at_ns for one in lifetimes), default=now), now - window)
    moments = range(begin, now)
    lived = sum(any(one.started_at_ns <= moment < one.last_alive_at_ns for one in lifetimes) for moment in moments)
    assert found == pytest.approx(100.0 * lived / len(moments) if moments else 100.0)
    assert 0 <= found <= 100


@given(LIFETIMES, st.builds(Lifetime, TIMES, TIMES), TIMES)
def test_more_life_after_the_first_start_never_lowers_it(lifetimes: list[Lifetime], more: Lifetime, now: int) -> None:
    if lifetimes and more.started_at_ns >= min(lifetimes).started_at_ns:
        assert uptime_percentage([*lifetimes, more], now) >= uptime_percentage(lifetimes, now) - 1e-9


@given(st.lists(st.builds(Lifetime, st.integers(0, 90), st.integers(0, 90)), max_size=8))
def test_forgetting_what_is_outdated_changes_nothing(days: list[Lifetime]) -> None:
    now = 90 * DAY
    lifetimes = [Lifetime(one.started_at_ns * DAY, max(one) * DAY) for one in days]
    kept = set(lifetimes).difference(outdated(lifetimes, now))
    assert uptime_percentage(kept, now) == pytest.approx(uptime_percentage(lifetimes, now))
    assert sum(one.last_alive_at_ns < now - WINDOW_NS for one in kept) <= 1


def test_lifetimes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uptime, "MOST_LIFETIMES", 3)
    lifetimes = [Lifetime(number, number + 1) for number in range(10)]
    assert sorted(set(lifetimes).difference(outdated(lifetimes, 11))) == lifetimes[7:]


async def test_the_time_between_two_processes_counts_as_down() -> None:
    store, clock = MemoryStore(), HandClock()
    first = Uptime(store, clock, interval_s=3600.0)
    await first.start()
    assert first.percentage() == 100.0
    clock.at_ns += 90 * SECOND
    await first.stop()
    clock.at_ns += 10 * SECOND
    second = Uptime(store, clock, interval_s=3600.0)
    await second.start()
    assert second.percentage() == pytest.approx(90.0)
    clock.at_ns += 100 * SECOND
    assert second.percentage() == pytest.approx(95.0)
    assert second.seconds == 100.0
    await second.stop()


async def test_a_killed_process_was_alive_until_its_last_sign() -> None:
    store, clock = MemoryStore(), HandClock()
    killed = Uptime(store, clock, interval_s=5.0)
    await killed.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert killed._task is not None
    killed._task.cancel()
    signs = await store.rows(FOLD, b"u")
    seen_ns = int.from_bytes(signs[0][1]) - int.from_bytes(signs[0][0][1:])
    assert len(signs) == 1
    assert seen_ns >= 5 * SECOND
    clock.at_ns = int.from_bytes(signs[0][1]) + seen_ns
    following = Uptime(store, clock)
    await following.start()
    assert following.percentage() == pytest.approx(50.0)
    await following.stop()


async def test_old_lifetimes_are_deleted() -> None:
    store, clock = MemoryStore(), HandClock()
    for days in (100, 80, 60, 10):
        started = clock.at_ns - days * DAY
        row = (started + DAY).to_bytes(8)
        await store.store(FOLD, {b"u" + started.to_bytes(8): row}, 0)
    running = Uptime(store, clock)
    await running.start()
    await running.stop()
    assert len(await store.rows(FOLD, b"u")) == 3
    assert running.percentage() == pytest.approx(100 / 30, rel=1e-3)


async def test_a_store_that_fails_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = MemoryStore(), HandClock()

    async def fail(*_: object, **__: object) -> None:
        raise StorageUnavailable("no")

    monkeypatch.setattr(store, "store", fail)
    monkeypatch.setattr(store, "rows", fail)
    running = Uptime(store, clock)
    await running.start()
    await running.stop()
    assert running.percentage() == 100.0


async def test_it_is_kept_by_the_real_store(tmp_path: Path) -> None:
    from tests.contract.backends import RocksDbBackend

    backend, clock = RocksDbBackend(tmp_path), HandClock()
    store = backend.open()
    for _ in range(2):
        running = Uptime(store, clock, interval_s=3600.0)
        await running.start()
        clock.at_ns += 30 * SECOND
        await running.stop()
        store = await backend.restart(store)
        clock.at_ns += 10 * SECOND
    last = Uptime(store, clock)
    await last.start()
    assert last.percentage() == pytest.approx(75.0)
    await last.stop()
    await store.close()
