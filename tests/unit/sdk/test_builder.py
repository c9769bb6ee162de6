"""Workflows that are built in code say the same as those that are written."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knhk
from knhk.actions.catalogue import catalogue
from knhk.actions.registry import Registry
from knhk.config import Actions
from knhk.domain.compile import compile_descriptor
from knhk.domain.errors import InvalidDescriptor
from knhk.domain.expressions import Scope, compile_template
from knhk.sdk.builder import Expression, _literal, cel

WRITTEN = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: orders, department: sales, labels: {tier: gold}}
spec:
  timeout: 5m
  retries: 3
  inputs:
    quantity: {type: integer, default: 3}
  steps:
    - name: price
      action: process
      params: {output: {total: "${{ (inputs.quantity * 14) }}"}}
    - name: check
      action: validate
      params: {data: "${{ steps.price.output }}", rules: [data.total > 0]}
      depends_on: [price]
    - name: note
      action: process
      params: {output: "order of ${{ steps.price.output.total }}"}
      when: ${{ (steps.check.output.valid == true) }}
      depends_on: [check, price]
  outputs:
    total: ${{ steps.price.output.total }}
"""
LIMITS: dict[str, Any] = {"max_bytes": 1 << 20, "max_steps": 1000, "default_timeout_ns": 10**9, "tick_ns": 1}


def built() -> knhk.Workflow:
    flow = knhk.Workflow("orders", department="sales", labels={"tier": "gold"}, timeout="5m", retries=3)
    quantity = flow.input("quantity", type="integer", default=3)
    price = flow.step("price", "process", {"output": {"total": quantity * 14}})
    check = flow.step("check", "validate", {"data": price.output, "rules": ["data.total > 0"]})
    flow.step("note", "process", {"output": f"order of {price.output.total}"}, when=check.output.valid == True)  # noqa: E712
    flow.output("total", price.output.total)
    return flow


def test_it_says_what_a_person_would_write() -> None:
    assert built() == knhk.Workflow.from_yaml(WRITTEN)


def test_it_goes_to_yaml_and_back() -> None:
    flow = built()
    assert knhk.Workflow.from_yaml(flow.to_yaml()) == flow
    plan = compile_descriptor(flow.to_yaml().encode(), Registry.load().traits(), **LIMITS)
    assert [step.name for step in plan.steps] == ["price", "check", "note"]
    assert plan.steps[2].depends_on == (0, 1) or set(plan.steps[2].depends_on) == {0, 1}


def test_dependencies_follow_from_what_is_read_and_can_be_said() -> None:
    flow = knhk.Workflow("x")
    first = flow.step("first-one", "process", {"output": 1})
    flow.step("second", "process", {"output": 2})
    flow.step("third", "process", {"output": [first.output, "steps.second is only text"]}, depends_on=["second"])
    flow.step("fourth", "process", {}, depends_on=[first, {"step": "third", "on": ["failed"]}])
    third, fourth = flow.to_dict()["spec"]["steps"][2:]
    assert third["depends_on"] == ["second", "first-one"]
    assert third["params"]["output"][0] == '${{ steps["first-one"].output }}'
    assert fourth["depends_on"] == ["first-one", {"step": "third", "on": ["failed"]}]


def test_mistakes_are_found_where_they_are_made() -> None:
    flow = knhk.Workflow("x")
    step = flow.step("a", "process")
    with pytest.raises(TypeError, match="has no 'retrys'"):
        flow.step("b", "process", retrys=3)
    with pytest.raises(TypeError, match="has no 'time_out'"):
        knhk.Workflow("x", time_out="5m")
    with pytest.raises(TypeError, match=r"its `.output`"):
        flow.step("c", "process", {"output": step})
    with pytest.raises(TypeError, match="when the workflow runs"):
        assert step.output.total > 3 and step.output.total < 5  # noqa: PT018
    with pytest.raises(TypeError, match="iterated"):
        list(step.output)
    with pytest.raises(AttributeError):
        step.output.total = 3
    with pytest.raises(InvalidDescriptor):
        knhk.Workflow.from_yaml("a: 1")
    with pytest.raises(TypeError):
        hash(step.output)


def value_of(expression: Expression, **inputs: Any) -> Any:
    return compile_template(str(expression)).evaluate(Scope(inputs, {}, {}))


def test_operators() -> None:
    flow = knhk.Workflow("x")
    a, b = flow.input("a", type="integer"), flow.input("b", type="integer")
    cases = [
        ((a + b) * 2 - 1, 9),
        (10 - a, 8),
        (a % 2 == 0, True),
        ((a < b) & ~(a >= b), True),
        ((a > b) | (a != b), True),
        (knhk.cel("[inputs.a, inputs.b]")[1] / 1, 3),
    ]
    for expression, expected in cases:
        assert value_of(expression, a=2, b=3) == expected, expression.source


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_values_in_expressions_stay_what_they_are(value: Any) -> None:
    found = compile_template(f"${{{{ inputs.x == {_literal(value)} }}}}").evaluate(Scope({"x": value}, {}, {}))
    assert found is True


@given(st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=4))
def test_params_go_to_yaml_and_back(params: dict[str, Any]) -> None:
    flow = knhk.Workflow("x")
    flow.step("a", "process", params)
    written = flow.to_yaml()
    try:
        again = knhk.Workflow.from_yaml(written)
    except InvalidDescriptor:
        return  # characters that no descriptor may hold
    assert again == flow


REACHING = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: report}
spec:
  steps:
    - name: fetch
      action: s3
      params: {connection: lake, operation: get, key: raw/day.csv}
      cache: {key: raw/day.csv, ttl: 1h}
    - name: keep
      action: file
      params: {operation: write, root: out, path: day.csv, content: "${{ steps.fetch.output.content }}"}
      depends_on: [fetch]
    - name: each
      foreach: {in: [1, 2], as: one, concurrency: 2}
      steps:
        - {name: say, action: notify, params: {channel: ops, body: "part ${{ one }} of ${{ steps.keep.output.path }}"}}
      depends_on: [keep]
    - {name: ok, approval: {approvers: [ann], timeout: 1h}, depends_on: [each]}
"""


def test_actions_that_reach_outside_caches_and_blocks_are_built_too() -> None:
    flow = knhk.Workflow("report")
    cache = {"key": "raw/day.csv", "ttl": "1h"}
    fetch = flow.step("fetch", "s3", {"connection": "lake", "operation": "get", "key": "raw/day.csv"}, cache=cache)
    content = fetch.output.content
    keep = flow.step("keep", "file", {"operation": "write", "root": "out", "path": "day.csv", "content": content})
    body = f"part {cel('one')} of {keep.output.path}"
    say = {"name": "say", "action": "notify", "params": {"channel": "ops", "body": body}}
    each = flow.step("each", foreach={"in": [1, 2], "as": "one", "concurrency": 2}, steps=[say])
    flow.step("ok", approval={"approvers": ["ann"], "timeout": "1h"}, depends_on=[each])
    assert flow == knhk.Workflow.from_yaml(REACHING)
    traits = {one.name: msgspec.structs.replace(one.traits, disabled="") for one in catalogue(Actions())}
    plan = compile_descriptor(flow.to_yaml().encode(), {**Registry.load().traits(), **traits}, **LIMITS)
    assert [step.name for step in plan.steps] == ["fetch", "keep", "each", "ok"]
