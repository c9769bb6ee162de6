"""What each covenant promises, as far as it can be known before a run starts, and the check of invariants during it.

One small function a covenant, in one table. The promises that only the engine can keep (tracing, latency, tuning) are
listed in docs/covenants.md with the place where each is enforced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final

from knhk.domain.complaints import Complaints
from knhk.domain.expressions import Scope
from knhk.domain.plan import (
    Block,
    CovenantName,
    Foreach,
    Group,
    Invariant,
    Loop,
    Parallel,
    Plan,
    Step,
    Switch,
    blocks_in,
)

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


def critical_path(block: Block) -> list[str]:
    """The longest chain of dependent steps, as names from first to last, steps inside counted one by one.

    Raises ValueError if there is no bound, because of the step that it names.
    """
    inside = [_inside(step) for step in block.steps]
    length = [0] * len(block.steps)
    before = [-1] * len(block.steps)
    waiting = list(block.waits_for)
    ready = list(block.first)
    for index in ready:
        length[index] += len(inside[index])
        for dependent in block.steps[index].dependents:
            if length[index] > length[dependent]:
                length[dependent], before[dependent] = length[index], index
            waiting[dependent] -= 1
            if not waiting[dependent]:
                ready.append(dependent)
    chain: list[int] = []
    index = max(range(len(length)), key=length.__getitem__, default=-1)
    while index >= 0:
        chain.append(index)
        index = before[index]
    return [name for index in reversed(chain) for name in inside[index]]


def _inside(step: Step) -> list[str]:
    """The names of the steps that run one after another when a step does, at worst."""
    caught = [] if step.catch is None else critical_path(step.catch.block)
    match step.body:
        case None:
            return [step.name, *caught]
        case Group(block=block) | Parallel(block=block):
            path = critical_path(block)
        case Switch(cases=cases):
            path = max([critical_path(case.block) for case in cases], key=len)
        case Loop(block=block, bound=bound):
            path = critical_path(block)
            path = _times(path, bound)
        case Foreach(block=block, items=items, concurrency=concurrency):
            if not isinstance(items.constant, list | dict):
                raise ValueError(f"step {step.name!r} has a `foreach` over items that are not known before")
            path = _times(critical_path(block), -(-len(items.constant) // concurrency))
    return path + caught


def _times(path: list[str], times: int) -> list[str]:
    """A path so many times over, but no longer than is needed to see that it is too long."""
    return (path * min(times, CHATMAN_MAX_STEPS + 1))[: CHATMAN_MAX_STEPS + 1]


def _quality(plan: Plan, complaints: Complaints) -> None:
    if not plan.invariants:
        complaints.add("covenant Q needs at least one rule in spec.invariants", ("spec", "covenant"))


def _deterministic(plan: Plan, complaints: Complaints) -> None:
    for index, step in enumerate(plan.steps):
        for one in _actions_in(step):
            if not one.traits.pure:
                complaints.add(
                    f"covenant Pi allows only pure actions, and {one.action!r} has an effect or an answer that may "
                    f"change",
                    ("spec", "steps", index, *(("action",) if one is step else ())),
                )


def _actions_in(step: Step) -> Iterator[Step]:
    if step.body is None:
        yield step
    if step.compensate is not None:
        yield from _actions_in(step.compensate)
    for block in blocks_in(step):
        for one in block.steps:
            yield from _actions_in(one)


def _bounded(plan: Plan, complaints: Complaints) -> None:
    try:
        path = critical_path(plan.root)
    except ValueError as error:
        complaints.add(f"covenant Chatman needs a bounded path, and {error}", ("spec", "covenant"))
        return
    if len(path) > CHATMAN_MAX_STEPS:
        names = " -> ".join(path[: CHATMAN_MAX_STEPS + 1])
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
