"""The decision under any load: within limits, after cooldowns, monotone, without flapping, and never out of nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.scaling.decision import Decision, Past, Policy, Signal, decide, desired_by, overloads

SECOND = 1_000_000_000
UP, DOWN = 300 * SECOND, 600 * SECOND
NOW = 10**18

anything = st.one_of(st.none(), st.floats(), st.floats(0, 5))
loads = st.floats(0, 20)
replicas = st.integers(1, 200)
pasts = st.lists(st.builds(Past, st.integers(NOW - 2 * DOWN, NOW + DOWN), replicas, replicas), max_size=5)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    low, high = sorted((draw(st.integers(1, 50)), draw(st.integers(1, 200))))
    return Policy(low, high, up_cooldown_ns=UP, down_cooldown_ns=DOWN)


def signals(*values: float | None, target: float = 0.7) -> list[Signal]:
    return [Signal(f"s{number}", value, target) for number, value in enumerate(values)]


def cpu(value: float | None, current: int, policy: Policy = Policy(), *history: Past, now: int = NOW) -> Decision:  # noqa: B008
    return decide([Signal("cpu", value, 0.7)], [], current, policy, history, now)


@given(st.lists(anything, max_size=5), st.lists(st.just("x"), max_size=1), replicas, policies(), pasts)
def test_a_change_is_within_the_limits_and_after_the_cooldown(
    values: list[float | None], unknown: list[str], current: int, policy: Policy, history: list[Past]
) -> None:
    found = decide(signals(*values), unknown, current, policy, history, NOW)
    assert found.reason
    if not found.changes:
        return
    assert policy.min_replicas <= found.wanted <= policy.max_replicas
    ups = [one.at_ns for one in history if one.after > one.before]
    changes = [one.at_ns for one in history if one.after != one.before]
    if found.wanted > found.current:
        assert all(NOW - at_ns >= UP for at_ns in ups)
    else:
        assert all(NOW - at_ns >= DOWN for at_ns in changes)


@given(loads, loads, loads, replicas, policies(), pasts)
def test_more_load_never_means_fewer_replicas(
    one: float, other: float, beside: float, current: int, policy: Policy, history: list[Past]
) -> None:
    low, high = sorted((one, other))
    less = decide(signals(low, beside), [], current, policy, history, NOW)
    more = decide(signals(high, beside), [], current, policy, history, NOW)
    assert less.wanted <= more.wanted


@given(st.floats(0.01, 60), st.lists(st.floats(0.95, 1.05), min_size=20, max_size=60), st.integers(1, 100))
def test_a_load_that_stays_about_the_same_never_turns_the_direction(
    total: float, noise: list[float], current: int
) -> None:
    """Total work, in replicas at their target. A change has its effect at once; the noise is 5 percent."""
    directions, history, now = [], [], NOW
    for factor in noise:
        found = cpu(0.7 * total * factor / current, current, Policy(), *history, now=now)
        if found.changes:
            directions.append(found.wanted > current)
            history.append(Past(now, current, found.wanted))
            current = found.wanted
        now += DOWN
    assert len(set(directions)) <= 1, directions
    assert len(directions) <= 8, "it comes to rest"


@given(st.floats(0.01, 90), st.integers(1, 100))
def test_it_comes_to_rest_where_the_load_is_below_the_target(total: float, current: int) -> None:
    history: list[Past] = []
    for step in range(12):
        found = cpu(0.7 * total / current, current, Policy(), *history, now=NOW + step * DOWN)
        history.append(Past(NOW + step * DOWN, current, found.wanted))
        current = found.wanted
    assert not found.changes
    assert total / current <= 1.1 + 1e-6 or current == 100
    assert current <= max(1, math.ceil(total / 0.9))


@given(st.sampled_from([None, math.nan, math.inf, -math.inf, -0.5, 1e300]), replicas, st.integers(0, 4))
def test_what_is_no_measurement_decides_nothing_and_says_so(value: float | None, current: int, others: int) -> None:
    """Nor do the others take a replica away as long as one is not known."""
    idle = [Signal(f"idle{number}", 0.0, 0.7) for number in range(others)]
    found = decide([Signal("cpu", value, 0.7), *idle], [], current, Policy(max_replicas=200), [], NOW)
    assert (found.wanted, found.held) == (current, "unknown") or (current == 1 and others)
    if found.held == "unknown":
        assert "cpu" in found.reason


def test_what_is_known_still_adds_replicas() -> None:
    found = decide(signals(None, 1.4), ["knhk-2 does not answer"], 3, Policy(), [], NOW)
    assert found.wanted == 6
    assert "s1 is 1.4 with a target of 0.7: 3 x 2.00 makes 6 replicas" in found.reason


def test_a_replica_that_does_not_answer_keeps_the_others() -> None:
    found = decide(signals(0.01), ["knhk-2 does not answer"], 3, Policy(), [], NOW)
    assert (found.wanted, found.held) == (3, "unknown")
    assert "knhk-2 does not answer" in found.reason


@pytest.mark.parametrize(
    ("value", "current", "wanted"),
    [
        (0.70, 4, 4),
        (0.76, 4, 4),  # within the tolerance of 10 %
        (0.78, 4, 5),
        (1.00, 4, 6),
        (0.60, 4, 4),  # three would be above 90 % of the target
        (0.47, 4, 3),
        (0.10, 4, 2),  # at most half of them at once
        (9.90, 4, 8),  # at most twice as many
        (9.90, 1, 5),  # or four more
    ],
)
def test_the_formula(value: float, current: int, wanted: int) -> None:
    assert cpu(value, current).wanted == wanted


def test_the_largest_signal_counts() -> None:
    found = decide(signals(0.1, 1.4, 0.9), [], 2, Policy(), [], NOW)
    assert found.wanted == 4
    assert [one.desired for one in found.signals] == [1, 4, 3]


def test_limits_hold_without_any_measurement() -> None:
    policy = Policy(3, 5)
    assert decide([], [], 1, policy, [], NOW).wanted == 3
    assert decide([], ["etcd does not answer"], 9, policy, [], NOW).wanted == 5
    assert "scaling.min_replicas is 3" in decide([], [], 1, policy, [], NOW).reason
    assert "scaling.max_replicas is 5" in cpu(2.0, 4, policy).reason


def test_zero_replicas_are_switched_off_and_stay_so() -> None:
    found = cpu(0.9, 0, Policy(3, 5))
    assert not found.changes
    assert "switched them off" in found.reason


def test_cooldowns() -> None:
    grew = Past(NOW, 2, 3)
    early, late = NOW + UP - 1, NOW + UP
    assert cpu(1.4, 3, Policy(), grew, now=early).held == "cooldown"
    assert cpu(1.4, 3, Policy(), grew, now=late).wanted == 6
    assert cpu(0.1, 3, Policy(), grew, now=late).held == "cooldown"  # an increase is not taken back at once
    assert cpu(0.1, 3, Policy(), grew, now=NOW + DOWN).wanted == 2
    shrank = Past(NOW, 3, 2)
    assert cpu(1.4, 2, Policy(), shrank, now=NOW).wanted == 4  # too few is mended at once
    assert "in 300 s at the earliest" in cpu(1.4, 3, Policy(), grew, now=NOW).reason


def test_a_clock_that_was_set_back_changes_nothing() -> None:
    found = cpu(1.4, 3, Policy(), Past(NOW, 2, 3), now=NOW - 3600 * SECOND)
    assert (found.wanted, found.held) == (3, "clock")


@given(st.floats(0, 3), st.integers(2, 50))
def test_what_overloads_fewer_is_what_would_grow_again(value: float, current: int) -> None:
    found = [Signal("cpu", value, 0.7)]
    wanted = desired_by(found[0], current)
    assert wanted is not None
    if wanted < current:
        assert overloads(found, current, wanted) is None
    fewer = max(1, current // 2)
    if overloads(found, current, fewer) is not None:
        assert desired_by(Signal("cpu", value * current / fewer, 0.7), fewer) > fewer  # type: ignore[operator]
