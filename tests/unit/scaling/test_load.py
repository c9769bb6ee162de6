"""What replicas report becomes signals; what is to come is worked out from schedules and other days."""

import math

from hypothesis import given
from hypothesis import strategies as st

from knhk.domain.triggers import Cron
from knhk.scaling import forecast
from knhk.scaling.decision import Policy
from knhk.scaling.forecast import HORIZON_S, Hour, Mean
from knhk.scaling.load import Fleet, Load, increase, signals_of, used
from knhk.scaling.meter import processors

SECOND = 1_000_000_000
NOON = 1_767_268_800 * SECOND  # 2026-01-01T12:00:00Z
counters = st.one_of(st.floats(0, 1e9), st.just(math.nan), st.just(math.inf))


def load(name: str, cpu: float | None = 0.5, **other: float) -> Load:
    return Load(replica=name, cpu=cpu, **{"memory": 0.2, "runs": 0.1, "steps": 0.1, "wait_s": 0.01, **other})


def test_all_replicas_together_count() -> None:
    found, unknown = signals_of(Fleet((load("a", 0.2), load("b", 0.8))), 2, Policy())
    values = {one.name: one.value for one in found}
    assert values["cpu"] == 0.5
    assert values["wait"] == 0.01
    assert [one.target for one in found] == [0.7, 0.7, 1.0, 1.0, 1.0]
    assert unknown == []


def test_a_replica_that_is_not_there_counts_as_idle_and_is_named() -> None:
    found, unknown = signals_of(Fleet((load("a", 0.9),), {"b": "timed out"}), 3, Policy())
    assert math.isclose(found[0].value or 0, 0.3)
    assert unknown == ["b: timed out", "1 of 3 replicas are not there"]


def test_a_strange_value_of_one_makes_the_signal_unknown() -> None:
    for strange in (None, math.nan, -1.0, math.inf, 1e12):
        found, _ = signals_of(Fleet((load("a"), load("b", strange))), 2, Policy())
        assert found[0].value is None
        assert "b" in found[0].why
    found, _ = signals_of(Fleet((load("a"), load("b", wait_s=math.nan))), 2, Policy())
    assert found[-1].value is None
    assert signals_of(Fleet(()), 2, Policy())[0][0].value is None


def test_without_a_target_for_latency_waiting_is_no_signal() -> None:
    found, _ = signals_of(Fleet((load("a"),)), 1, Policy(target_wait_s=0.0))
    assert "wait" not in [one.name for one in found]


@given(counters, counters)
def test_counters_never_shrink_and_begin_anew_after_a_restart(before: float, after: float) -> None:
    grown = increase(before, after)
    assert grown >= 0
    assert math.isfinite(grown)
    if math.isfinite(before) and math.isfinite(after):
        assert grown == (after - before if after >= before else after)


def test_a_replica_that_is_new_counts_from_the_next_look() -> None:
    before = [load("a", cpu_s=10.0, work_s=5.0)]
    after = [load("a", cpu_s=13.0, work_s=6.0), load("b", cpu_s=1e6, work_s=1e6)]
    assert used(before, after) == (3.0, 1.0)


def test_what_schedules_bring_beyond_what_they_just_brought() -> None:
    noon, steady = ("noon", Cron("0 12 * * *")), ("steady", Cron("* * * * *"))
    found = forecast.firings([noon, steady], NOON - 60 * SECOND)
    assert {one.definition: (one.coming, one.before) for one in found} == {"noon": (1, 0), "steady": (10, 10)}
    means, hours = {"noon": Mean(2, 2 * 1_800), "steady": Mean(5, 50)}, {0: Hour(50.0, 100.0, 3_600.0)}
    loads = [load("a", 0.4, cores=0.4)]  # one core can be used, by what it uses of it
    signal = forecast.scheduled(found, means, hours, loads, 1, 0.7)
    assert signal is not None
    # 1 run of 1800 s of steps, each with half a second of CPU, in 10 minutes: 1.5 cores more
    assert math.isclose(signal.value or 0, 0.4 + 1_800 * 0.5 / HORIZON_S)
    assert "noon fires 1 times (before: 0) of 1.8e+03 s" in signal.why
    assert forecast.scheduled(forecast.firings([steady], NOON), means, hours, loads, 1, 0.7) is None
    assert forecast.scheduled(found, {}, hours, loads, 1, 0.7) is None
    assert forecast.scheduled(found, means, {}, loads, 1, 0.7) is None


def test_the_same_hour_of_other_days() -> None:
    coming = forecast.hour_of(NOON)
    hours = {
        coming - 24: Hour(7_200.0, 0.0, 3_600.0),
        coming - 168: Hour(900.0, 0.0, 900.0),
        coming - 1: Hour(9e9, 0, 1),
    }
    signal = forecast.seasonal(hours, [load("a", 0.5, cores=0.5)], 2, 0.7, NOON)
    assert signal is not None
    assert math.isclose(signal.value or 0, 1.0)  # 2 cores yesterday, on two replicas of one
    assert "2 cores yesterday" in signal.why
    short = {coming - 24: Hour(100.0, 0.0, 60.0)}
    assert forecast.seasonal(short, [load("a")], 1, 0.7, NOON) is None


def test_the_quota_of_the_container_is_what_may_be_used(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert processors(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert processors(tmp_path) >= 1
    assert processors(tmp_path / "nowhere") >= 1
