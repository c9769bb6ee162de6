"""Burn rates: the workbook's windows, and that both of a pair must agree."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.monitoring.objectives import PACES, PERIOD_S, WINDOWS, Measured, Objective, budget_left, burn_rate, burning


def objective(bad: Mapping[str, float], *, target: float = 0.999, least: float = 1) -> Objective:
    """One with these shares of bad runs by window, of 10,000 in each."""
    by_seconds = {WINDOWS[window]: share for window, share in bad.items()}
    return Objective(
        "success", "Workflows fail", target, least, lambda s: Measured(by_seconds.get(s, 0) * 10_000, 10_000)
    )


@pytest.mark.parametrize(
    ("bad", "severity"),
    [
        ({"1h": 0.0145, "5m": 0.0145}, "critical"),
        ({"1h": 0.0145, "5m": 0.001}, None),  # it is over
        ({"1h": 0.001, "5m": 0.5}, None),  # it is a blip
        ({"6h": 0.0061, "30m": 0.0061}, "critical"),
        ({"3d": 0.0011, "6h": 0.0011}, "warning"),
        ({"3d": 0.0009, "6h": 0.0009}, None),
        ({}, None),
    ],
)
def test_both_windows_of_a_pair_must_burn(bad: dict[str, float], severity: str | None) -> None:
    found = burning(objective(bad))
    assert (found.severity if found else None) == severity


def test_too_few_to_tell() -> None:
    assert burning(objective({"1h": 0.02, "5m": 0.02}, least=201)) is None
    assert burning(objective({"1h": 0.02, "5m": 0.02}, least=200)) is not None


def test_nothing_to_measure_is_nothing_bad() -> None:
    nothing = Objective("success", "x", 0.999, 1, lambda _: Measured(0, 0))
    assert burning(nothing) is None
    assert budget_left(nothing) == 1
    everything = Objective("success", "x", 1.0, 1, lambda _: Measured(5, 5))
    assert burn_rate(everything, "1h") > 1e6  # a promise of 100 % has no budget at all
    assert burning(everything) is not None


@given(st.floats(0.9, 0.9999), st.floats(0, 1))
def test_a_rate_of_one_uses_the_budget_up_exactly(target: float, share: float) -> None:
    budget = 1 - target
    used = Objective("x", "x", target, 1, lambda s: Measured(share * budget * s, s))
    assert burn_rate(used, "30d") == pytest.approx(share)
    assert budget_left(used) == pytest.approx(1 - share)


def test_paces_spend_what_the_workbook_says() -> None:
    spent = [pace.rate * WINDOWS[pace.long] / PERIOD_S for pace in PACES]
    assert spent == pytest.approx([0.02, 0.05, 0.10])
