"""What covenants promise before a run starts, and when invariants apply."""

from typing import Any

import pytest

from knhk.domain.compile import compile_descriptor
from knhk.domain.covenants import CHATMAN_MAX_STEPS, critical_path, violated
from knhk.domain.errors import InvalidDescriptor, InvalidExpression
from knhk.domain.expressions import Scope, compile_condition
from knhk.domain.plan import ActionTraits, Invariant, Plan

ACTIONS = {"process": ActionTraits("process", pure=True), "call": ActionTraits("call", pure=False)}


def plan(covenant: str, steps: str, more: str = "") -> Plan:
    text = f"""
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: w}}
spec:
  covenant: {covenant}
  {more}
  steps: [{steps}]
"""
    return compile_descriptor(
        text.encode(), ACTIONS, max_bytes=10**6, max_steps=100, default_timeout_ns=1, tick_ns=12_500_000
    )


def faults(*given: Any) -> list[str]:
    with pytest.raises(InvalidDescriptor) as caught:
        plan(*given)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def chain(length: int) -> str:
    return ", ".join(
        f"{{name: s{at}, action: process, depends_on: [{f's{at - 1}' if at else ''}]}}" for at in range(length)
    )


ONE = "{name: s, action: process}"


@pytest.mark.parametrize("covenant", ["O", "Sigma", "Pi", "MAPEK", "Chatman"])
def test_a_simple_workflow_can_have_every_covenant(covenant: str) -> None:
    assert plan(covenant, ONE).covenant == covenant


def test_sigma_is_the_default() -> None:
    assert plan("", ONE).covenant == "Sigma"


def test_pi_allows_only_pure_actions() -> None:
    found = faults("Pi", f"{ONE}, {{name: t, action: call}}, {{name: u, action: call}}")
    assert [line.split(":")[0] for line in found] == ["spec.steps[1].action", "spec.steps[2].action"]
    assert "only pure actions" in found[0]
    assert plan("Sigma", "{name: t, action: call}")


def test_chatman_bounds_the_critical_path() -> None:
    assert plan("Chatman", chain(CHATMAN_MAX_STEPS))
    (found,) = faults("Chatman", chain(CHATMAN_MAX_STEPS + 1))
    assert "at most 8 steps in a row, and there are 9: s0 -> s1" in found
    wide = ", ".join(f"{{name: s{at}, action: process}}" for at in range(20))
    assert plan("Chatman", wide)


def test_critical_path_is_the_longest() -> None:
    steps = """{name: d, action: process, depends_on: [c, a]}, {name: a, action: process},
               {name: c, action: process, depends_on: [b]}, {name: b, action: process, depends_on: [a]}"""
    found = plan("Sigma", steps)
    assert critical_path(found.root) == ["a", "b", "c", "d"]


def test_q_needs_invariants_and_only_q_has_them() -> None:
    assert "needs at least one rule" in faults("Q", ONE)[0]
    assert "have no effect under covenant Sigma" in faults("Sigma", ONE, 'invariants: ["inputs.a > 1"]')[0]
    found = plan("Q", ONE, 'invariants: ["inputs.a > 1", {name: cheap, rule: resources.attempts < 3}]')
    assert [invariant.name for invariant in found.invariants] == ["inputs.a > 1", "cheap"]


def test_an_invariant_applies_once_its_steps_have_completed() -> None:
    rules = [
        Invariant("r", compile_condition("steps.a.output > steps.b.output")),
        Invariant("i", compile_condition("inputs.x")),
    ]
    scope = Scope({"x": True}, {"a": 1}, {})
    assert violated(rules, scope, {"a"}) is None
    both = Scope({"x": True}, {"a": 1, "b": 2}, {})
    assert violated(rules, both, {"a", "b"}) is rules[0]
    assert violated(rules, Scope({"x": False}, {}, {}), set()) is rules[1]
    with pytest.raises(InvalidExpression):
        violated(rules, Scope({}, {}, {}), set())


def group(extra: str, action: str = "process") -> str:
    inside = f"{{name: a, action: process}}, {{name: b, action: {action}, depends_on: [a]}}"
    return f"{{name: g, {extra}, steps: [{inside}]}}"


@pytest.mark.parametrize(
    ("extra", "bounded"),
    [
        ("timeout: 1s", True),
        ("until: {condition: 'true', max: 4}", True),
        ("until: {condition: 'true', max: 5}", False),
        ("foreach: {in: [1, 2, 3, 4], concurrency: 1}", True),
        ("foreach: {in: [1, 2, 3, 4, 5], concurrency: 1}", False),
        ("foreach: {in: '${{ inputs.n }}'}", False),
    ],
)
def test_chatman_counts_the_steps_inside(extra: str, bounded: bool) -> None:
    if bounded:
        assert plan("Chatman", group(extra))
    else:
        assert "Chatman" in faults("Chatman", group(extra))[0]


def test_pi_looks_into_steps() -> None:
    (found,) = faults("Pi", group("timeout: 1s", "call"))
    assert found.startswith("spec.steps[0]: covenant Pi allows only pure actions, and 'call'")
