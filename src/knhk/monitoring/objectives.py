"""Service level objectives, error budgets and burn rates; pure.

A burn rate is how fast the error budget is used up: at 1 it lasts exactly for the budget's 30 days. An alert needs a
high rate over a long window, so that it matters, and over a short one, so that it is still so and ends soon after the
trouble. Windows and rates: Beyer et al. (ed.), The Site Reliability Workbook, O'Reilly 2018, chapter 5, table 5-8.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

Severity = Literal["info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")
PERIOD_S: Final = 30 * 24 * 3600
WINDOWS: Final[Mapping[str, int]] = {
    "5m": 300,
    "30m": 1_800,
    "1h": 3_600,
    "6h": 21_600,
    "3d": 259_200,
    "30d": PERIOD_S,
}


class Pace(NamedTuple):
    """A burn rate that is too high if it is reached over both windows. `spent` is the share of the budget by then."""

    name: str
    rate: float
    long: str
    short: str
    severity: Severity
    spent: str


PACES: Final = (
    Pace("fast", 14.4, "1h", "5m", "critical", "2 % of the month's error budget within an hour"),
    Pace("medium", 6.0, "6h", "30m", "critical", "5 % of the month's error budget within 6 hours"),
    Pace("slow", 1.0, "3d", "6h", "warning", "10 % of the month's error budget within 3 days"),
)


class Measured(NamedTuple):
    """How much was bad in a window, of how much. `count` is the bad part in whole things: runs, or seconds."""

    bad: float
    total: float

    @property
    def ratio(self) -> float:
        """The bad share, 0 if there was nothing."""
        return self.bad / self.total if self.total else 0.0


class Objective(NamedTuple):
    """What is promised: the share `target` (0 to 1) is good. `least_bad` is what must be bad before anybody is told.

    `measure` gives what was bad in the last so many seconds.
    """

    name: str
    title: str
    target: float
    least_bad: float
    measure: Callable[[int], Measured]

    @property
    def budget(self) -> float:
        """The share that may be bad."""
        return max(1.0 - self.target, 1e-9)


class Condition(NamedTuple):
    """Something that should be told while it holds. `name` is what it is known by, the same every time."""

    name: str
    severity: Severity
    summary: str
    details: Mapping[str, str]


def burn_rate(objective: Objective, window: str) -> float:
    """How many times faster than allowed the budget was used in a window."""
    return objective.measure(WINDOWS[window]).ratio / objective.budget


def budget_left(objective: Objective) -> float:
    """The share of the error budget of the last 30 days that is not used; below 0 if it is overdrawn."""
    return 1.0 - objective.measure(PERIOD_S).ratio / objective.budget


def burning(objective: Objective) -> Condition | None:
    """The most severe pace at which the budget is used up too fast, if there is one."""
    for pace in PACES:
        measured = objective.measure(WINDOWS[pace.long])
        long, short = measured.ratio / objective.budget, burn_rate(objective, pace.short)
        if long >= pace.rate and short >= pace.rate and measured.bad >= objective.least_bad:
            details = {
                "objective": f"{objective.target * 100:g} %",
                "burn_rate": f"{long:.1f} over {pace.long}, {short:.1f} over {pace.short}; {pace.rate:g} is too much",
                "bad": f"{measured.ratio * 100:.3g} % over {pace.long}",
                "budget_left": f"{budget_left(objective) * 100:.1f} %",
            }
            return Condition(f"slo.{objective.name}", pace.severity, f"{objective.title}: {pace.spent}", details)
    return None
