"""What each covenant promises, as far as it can be known before a run starts, and the check of invariants during it.

One small function a covenant, in one table. The promises that only the engine can keep (tracing, latency, tuning) are
listed in docs/covenants.md with the place where each is enforced.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

from knhk.domain.complaints import Complaints
from knhk.domain.expressions import Scope
from knhk.domain.plan import CovenantName, Invariant, Plan

CHATMAN_MAX_STEPS: Final = 8
"""The longest chain of dependent steps under covenant Chatman."""
CHATMAN_MAX_TICKS: Final = 8
"""The longest latency under covenant Chatman, in ticks of the platform."""


def check_covenant(plan: Plan, complaints: Complaints) -> None:
    """Complain of everything for which the plan cannot have the covenant that it asks for."""
    check = _CHECKS.get(plan.covenant)
    if check is not None:
        check(plan, complaints)
    if plan.invariants and plan.covenant != "Q":
        complaints.add(
            f"invariants have no effect under covenant {plan.covenant}; write covenant: Q", ("spec", "invariants")
        )


def violated(invariants: Sequence[Invariant], scope: Scope, completed: Set[str]) -> Invariant | None:
    """The first invariant that does not hold. One applies as soon as all the steps that it names have completed.

    Raises InvalidExpression if one cannot be evaluated.
    """
    for invariant in invariants:
        if invariant.rule.steps <= completed and not invariant.rule.evaluate(scope):
            return invariant
    return None


def critical_path(plan: Plan) -> list[int]:
    """The longest chain of dependent steps, as indexes from first to last."""
    length = [0] * len(plan.steps)
    before = [-1] * len(plan.steps)
    waiting = [len(step.depends_on) for step in plan.steps]
    ready = [step.index for step in plan.steps if not step.depends_on]
    for index in ready:
        length[index] += 1
        for dependent in plan.steps[index].dependents:
            if length[index] > length[dependent]:
                length[dependent], before[dependent] = length[index], index
            waiting[dependent] -= 1
            if not waiting[dependent]:
                ready.append(dependent)
    path: list[int] = []
    index = max(range(len(length)), key=length.__getitem__, default=-1)
    while index >= 0:
        path.append(index)
        index = before[index]
    return path[::-1]


def _quality(plan: Plan, complaints: Complaints) -> None:
    if not plan.invariants:
        complaints.add("covenant Q needs at least one rule in spec.invariants", ("spec", "covenant"))


def _deterministic(plan: Plan, complaints: Complaints) -> None:
    for step in plan.steps:
        if not step.traits.pure:
            complaints.add(
                f"covenant Pi allows only pure actions, and {step.action!r} has an effect or an answer that may change",
                ("spec", "steps", step.index, "action"),
            )


def _bounded(plan: Plan, complaints: Complaints) -> None:
    path = critical_path(plan)
    if len(path) > CHATMAN_MAX_STEPS:
        names = " -> ".join(plan.steps[index].name for index in path[: CHATMAN_MAX_STEPS + 1])
        more = " -> ..." if len(path) > CHATMAN_MAX_STEPS + 1 else ""
        complaints.add(
            f"covenant Chatman allows at most {CHATMAN_MAX_STEPS} steps in a row, "
            f"and there are {len(path)}: {names}{more}",
            ("spec", "covenant"),
        )


_CHECKS: Final[Mapping[CovenantName, Callable[[Plan, Complaints], None]]] = {
    "Q": _quality,
    "Pi": _deterministic,
    "Chatman": _bounded,
}
