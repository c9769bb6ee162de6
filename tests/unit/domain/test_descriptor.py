"""Descriptors: all faults at once with their places, the plan that comes of a good one, and no crash on any bytes."""

import contextlib
import copy
import hashlib
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain.compile import compile_descriptor
from knhk.domain.complaints import Complaints
from knhk.domain.descriptor import SHAPE, Descriptor
from knhk.domain.descriptor_shape import check
from knhk.domain.document import read
from knhk.domain.errors import InvalidDescriptor, Problem
from knhk.domain.plan import ActionTraits, Plan, RetryPolicy

WORKLOADS = Path(__file__).parents[4] / "shared" / "workloads"
HTTP_PARAMS = {
    "type": "object",
    "properties": {"url": {"type": "string"}, "tries": {"type": "integer"}},
    "required": ["url"],
    "additionalProperties": False,
}
ACTIONS = {
    "process": ActionTraits("process", pure=True, reads_dependencies=False),
    "validate": ActionTraits("validate", pure=True),
    "http": ActionTraits("http", pure=False, params_schema=HTTP_PARAMS, reads_dependencies=False),
    "custom": ActionTraits("custom", pure=False),
}
GUIDE = b"""apiVersion: knhk/v1
kind: Workflow
metadata:
  name: example-workflow
  department: engineering
  cost_center: R&D
spec:
  covenant: Sigma  # O, Sigma, Q, Pi, MAPEK, Chatman
  timeout: 60s
  retries: 3
  steps:
    - name: step1
      action: process
      params:
        key: value
      depends_on: []
    - name: step2
      action: validate
      depends_on: [step1]
"""
FULL = b"""apiVersion: knhk/v1
kind: Workflow
metadata: {name: full, department: d, cost_center: c, labels: {team: a}}
spec:
  covenant: Q
  timeout: 1h30m
  retry:
    {max_attempts: 5, delay: 1s, factor: 3, max_delay: 1m, jitter: false,
     when: error.code != "X", except_when: error.n == 3}
  inputs: {n: {type: integer}, name: {type: string, default: x}}
  outputs: {a: "${{ steps.b.output }}", c: {value: "${{ steps.a.output.n }}", schema: {type: integer}}}
  invariants: [inputs.n > 0, {name: small, rule: steps.a.output.n < 10}]
  steps:
    - {name: a, action: process, params: {n: "${{ inputs.n }}"}, output_schema: {type: object}}
    - {name: b, action: http, params: {url: "http://x/${{ inputs.name }}"}, depends_on: [a], timeout: 5s,
       semantics: at_most_once}
    - {name: c, action: custom, depends_on: [b], retry: {max_attempts: 2}, semantics: at_least_once}
    - {name: d, action: process, depends_on: [c], retries: 0}
"""


def build(text: bytes, max_steps: int = 20_000) -> Plan:
    return compile_descriptor(
        text, ACTIONS, max_bytes=4_000_000, max_steps=max_steps, default_timeout_ns=7, tick_ns=12_500_000
    )


def with_spec(spec: str) -> bytes:
    return f"apiVersion: knhk/v1\nkind: Workflow\nmetadata: {{name: w}}\nspec:\n{spec}".encode()


def with_steps(*steps: str, spec: str = "") -> bytes:
    lines = "".join(f"    - {{{step}}}\n" for step in steps)
    return with_spec(f"{spec}  steps:\n{lines}")


def problems(text: bytes) -> tuple[Problem, ...]:
    with pytest.raises(InvalidDescriptor) as caught:
        build(text)
    return caught.value.problems


def said(text: bytes) -> list[str]:
    return [str(problem) for problem in problems(text)]


A = "name: a, action: process"


def test_the_guides_example() -> None:
    plan = build(GUIDE)
    assert plan.digest == hashlib.sha256(GUIDE).digest()
    assert (plan.name, plan.department, plan.cost_center) == ("example-workflow", "engineering", "R&D")
    assert (plan.covenant, plan.timeout_ns) == ("Sigma", 60_000_000_000)
    first, second = plan.steps
    assert (first.name, first.params.value, first.dependents) == ("step1", {"key": "value"}, (1,))
    assert (second.depends_on, second.retry) == ((0,), RetryPolicy(max_attempts=4))
    assert (first.keep_output, second.keep_output) == (True, False)
    assert plan.index_of == {"step1": 0, "step2": 1}


def test_everything_there_is() -> None:
    plan = build(FULL)
    a, b, c, d = plan.steps
    assert plan.timeout_ns == 5_400_000_000_000
    assert (a.retry.max_attempts, a.retry.delay_ns, a.retry.factor) == (5, 10**9, 3.0)
    assert (a.retry.max_delay_ns, a.retry.jitter) == (60 * 10**9, False)
    assert a.retry.when is not None
    assert a.retry.except_when is not None
    assert (b.retry.max_attempts, b.timeout_ns, b.semantics) == (1, 5 * 10**9, "at_most_once")
    assert (c.retry, d.retry) == (RetryPolicy(max_attempts=2), RetryPolicy(max_attempts=1))
    assert a.output_schema == {"type": "object"}
    assert plan.labels == {"team": "a"}
    assert [(output.name, output.schema) for output in plan.outputs] == [("a", None), ("c", {"type": "integer"})]
    assert [invariant.name for invariant in plan.invariants] == ["inputs.n > 0", "small"]
    assert plan.inputs_schema is not None
    assert plan.inputs_schema["required"] == ["n"]


def test_all_faults_at_once_with_their_places() -> None:
    text = (
        GUIDE.replace(b"covenant: Sigma ", b"covenant: sigma ")
        .replace(b"timeout: 60s", b"timeout: 60")
        .replace(b"retries", b"retires")
        .replace(b"key: value", b"key: ${{ steps.step9.output + foo }}")
        .replace(b"action: validate", b"action: validte")
        .replace(b"[step1]", b"[step-1, step2, step1, step1]")
    )
    found = [(problem.line, problem.path, problem.suggestion) for problem in problems(text)]
    assert found == [
        (8, "spec.covenant", "Sigma"),
        (9, "spec.timeout", ""),
        (10, "spec.retires", "retries"),
        (15, "spec.steps[0].params.key", ""),
        (18, "spec.steps[1].action", "validate"),
        (19, "spec.steps[1].depends_on[0]", "step1"),
        (19, "spec.steps[1].depends_on[1]", ""),
        (19, "spec.steps[1].depends_on[3]", ""),
    ]
    with pytest.raises(InvalidDescriptor, match=r"and 7 more problems"):
        build(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{}", "'apiVersion' is missing"),
        (b"a: 1", "unknown key 'a'"),
        (with_spec("  steps: []\n"), "at least one step"),
        (with_spec("  covenant: Sigma\n"), "'steps' is missing"),
        (with_spec("  steps: {a: 1}\n"), "spec.steps: must be a list, not a mapping"),
        (with_spec("  steps: [a]\n"), "spec.steps[0]: must be a mapping, not the text 'a'"),
        (with_spec("  steps: [{name: a}]\n"), "one of action, steps, switch, parallel, wait, wait_for"),
        (GUIDE.replace(b"knhk/v1", b"knhk/v2"), "apiVersion: must be knhk/v1, not the text 'knhk/v2'"),
        (GUIDE.replace(b"name: example-workflow", b"name:"), "metadata.name: must be a text, not empty"),
        (GUIDE.replace(b"name: example-workflow", b"name: ''"), "the name is empty"),
        (GUIDE.replace(b"name: example-workflow", b'name: "a\\0b"'), "printable"),
        (GUIDE.replace(b"department: eng", b"departmnet: eng"), "did you mean 'department'"),
        (GUIDE.replace(b"R&D", b"12"), "not the number 12; put it in quotes"),
        (GUIDE.replace(b"60s", b"60"), "write a unit, as in 60s"),
        (GUIDE.replace(b"60s", b"soon"), "is not a duration"),
        (GUIDE.replace(b"retries: 3", b"retries: -1"), "a whole number from 0 to 1000"),
        (GUIDE.replace(b"retries: 3", b"retries: true"), "not the boolean true"),
        (GUIDE.replace(b"retries: 3", b"retries: 3\n  retry: {}"), "`retries` or `retry`, not both"),
        (with_steps(A, A), "the step name 'a' is used twice; steps[0] has it already"),
        (with_steps("name: 1a, action: process"), "'1a' is no step name"),
        (with_steps("name: 'a b', action: process"), "'a b' is no step name"),
        (with_steps(f"name: {'a' * 129}, action: process"), "is no step name"),
        (with_steps('name: "\\0", action: process'), "is no step name"),
        (with_steps('name: a, action: "\\0"'), "there is no action"),
        (with_steps(f"{A}, depends_on: a"), "must be a list"),
        (with_steps(f"{A}, depends_on: [a]"), "depends on itself"),
        (with_steps(f"{A}, depends_on: [b]", "name: b, action: process, depends_on: [a]"), "a cycle: a -> b -> a"),
        (with_steps(f"{A}, params: [1]"), "params: must be a mapping, not a list"),
        (with_steps(f"{A}, params: {{x: '${{{{ 1 + }}}}'}}"), "steps[0].params.x: `1 +`"),
        (with_steps(f"{A}, params: {{x: [1, '${{{{ steps.b.output }}}}']}}"), "there is no step 'b'"),
        (with_steps(A, "name: b, action: process, params: {x: '${{ steps.a.output }}'}"), "add 'a' to depends_on"),
        (with_steps(f"{A}, params: {{x: '${{{{ steps.a.output }}}}'}}"), "cannot read its own output"),
        (with_steps(f"{A}, retries: 1, retry: {{max_attempts: 2}}"), "not both"),
        (with_steps(f"{A}, retries: 1, semantics: at_most_once"), "cannot be retried"),
        (with_steps(f"{A}, retry: {{}}, semantics: at_most_once"), "cannot be retried"),
        (with_steps(f"{A}, semantics: exactly_once"), "at_least_once, at_most_once"),
        (with_steps(f"{A}, retry: {{delay: 5}}"), "retry.delay: must be a text"),
        (with_steps(f"{A}, retry: {{factor: 0.5}}"), "a number from 1 to 1000"),
        (with_steps(f"{A}, retry: {{when: inputs.}}"), "retry.when"),
        (with_steps(f"{A}, retry: {{when: data.x}}"), "unknown variable 'data'"),
        (with_steps(f"{A}, output_schema: {{type: strin}}"), "not a usable JSON Schema"),
        (with_steps(f"{A}, output_schema: {{$ref: 'http://localhost/x'}}"), "not a usable JSON Schema"),
        (with_steps(f"{A}, output_schema: {{$ref: 'file:///etc/passwd'}}"), "not a usable JSON Schema"),
        (with_steps("name: a, action: http"), "action 'http': \"url\" is a required property"),
        (with_steps("name: a, action: http, params: {url: 1}"), "steps[0].params.url: action 'http'"),
        (with_steps(A, spec="  inputs: {n: {type: int}}\n"), "spec.inputs.n: not a usable JSON Schema"),
        (with_steps(A, spec="  inputs: {n: text}\n"), "spec.inputs.n: must be a JSON Schema"),
        (with_steps(A, spec="  inputs: {n: {type: string, default: 1}}\n"), "spec.inputs.n.default"),
        (
            with_steps(f"{A}, params: {{x: '${{{{ inputs.nam }}}}'}}", spec="  inputs: {name: true}\n"),
            "did you mean 'name'",
        ),
        (with_steps(A, spec="  outputs: {'a b': 1}\n"), "is no name"),
        (with_steps(A, spec="  outputs: {o: '${{ steps.b.output }}'}\n"), "spec.outputs.o: there is no step 'b'"),
        (with_steps(A, spec="  outputs: {o: {value: 1, schema: 1}}\n"), "spec.outputs.o.schema"),
        (with_steps(A, spec="  covenant: Q\n  invariants: [steps.b.output > 1]\n"), "there is no step 'b'"),
        (with_steps(A, spec="  covenant: Q\n  invariants: [inputs.a, inputs.a]\n"), "two invariants"),
        (with_steps("name: a, action: validate, params: {rules: ['data.n >']}"), "params.rules[0]: `data.n >`"),
        (with_steps("name: a, action: validate, params: {rules: [{name: r, rule: foo}]}"), "params.rules[0].rule"),
    ],
)  # fmt: skip
def test_faults(text: bytes, expected: str) -> None:
    found = said(text)
    assert any(expected in line for line in found), found


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(InvalidDescriptor, match="2 steps; at most 1"):
        build(GUIDE, max_steps=1)


def test_a_fault_of_one_step_hides_none_of_the_next() -> None:
    found = said(with_steps("nam: a, action: process", "name: b, action: proces, depends_on: [1, x]"))
    assert len(found) == 5
    assert any("spec.steps[1].depends_on[1]: there is no step 'x'" in line for line in found)


def test_cycles_are_named_whole_and_all() -> None:
    edges = {"a": "c", "b": "a", "c": "b", "d": "e", "e": "d", "f": "a"}
    found = said(with_steps(*(f"name: {name}, action: process, depends_on: [{on}]" for name, on in edges.items())))
    assert len(found) == 2
    assert "a -> c -> b -> a" in found[0]
    assert "d -> e -> d" in found[1]


def test_reading_through_others_is_reading_what_one_depends_on() -> None:
    text = with_steps(
        "name: c, action: process, depends_on: [b], params: {x: '${{ steps.a.output }}'}",
        "name: b, action: process, depends_on: [a]",
        A,
    )
    assert [step.keep_output for step in build(text).steps] == [False, False, True]


@pytest.mark.parametrize(
    ("steps", "spec", "kept"),
    [
        ((A, "name: b, action: process, depends_on: [a]"), "", ""),
        ((A, "name: b, action: validate, depends_on: [a]"), "", "a"),
        ((A, "name: b, action: validate, depends_on: [a], params: {data: 1}"), "", ""),
        ((A, "name: b, action: validate, depends_on: [a], params: {data: 1, rules: [steps.a.output > 1]}"), "", "a"),
        ((A, "name: b, action: custom, depends_on: [a]"), "", "a"),
        ((A, "name: b, action: process, depends_on: [a], params: {x: '${{ steps.a.output }}'}"), "", "a"),
        ((A, "name: b, action: process, depends_on: [a], retry: {when: steps.a.output}"), "", "a"),
        ((A, "name: b, action: process"), "  outputs: {o: '${{ steps.b.output }}'}\n", "b"),
        ((A, "name: b, action: process"), "  covenant: Q\n  invariants: [steps.a.output > 1]\n", "a"),
    ],
)
def test_outputs_are_kept_that_something_reads(steps: tuple[str, ...], spec: str, kept: str) -> None:
    plan = build(with_steps(*steps, spec=spec))
    assert "".join(step.name for step in plan.steps if step.keep_output) == kept


def test_rules_of_validate_stay_conditions() -> None:
    text = with_steps("name: a, action: validate, params: {rules: ['${{ data.n > 1 }}', {name: r, rule: data.m}]}")
    step = build(text).steps[0]
    assert not step.params.dynamic
    assert step.params.value == {"rules": ["data.n > 1", {"name": "r", "rule": "data.m"}]}


def test_empty_optional_keys_are_as_if_left_out() -> None:
    text = with_steps(f"{A}, params: , depends_on: , timeout: , retry: ", spec="  inputs:\n  outputs:\n  timeout:\n")
    assert build(text).timeout_ns == 7


def test_at_most_once_does_not_take_the_default_retries() -> None:
    text = with_steps(f"{A}, semantics: at_most_once", "name: b, action: process", spec="  retries: 3\n")
    assert [step.retry.max_attempts for step in build(text).steps] == [1, 4]


def test_json_is_taken_too() -> None:
    spec = b'{"steps":[{"name":"a","action":"process"}]}'
    text = b'{"apiVersion":"knhk/v1","kind":"Workflow","metadata":{"name":"w"},"spec":' + spec + b"}"
    assert build(text).steps[0].name == "a"


OUTPUTS = ", ".join(f"o{at}: '${{{{ {at} + inputs.a }}}}'" for at in range(20_000))
RULES = ", ".join(f"inputs.a > {at}" for at in range(20_000))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        with_steps(*(f"name: s{at}, action: proces, depends_on: [t{at}]" for at in range(9000))),
        with_steps(*(f"name: a{at}, action: process, depends_on: [b{at}]" for at in range(9000)), A),
        with_steps(*(f"name: s{at}, action: process, depends_on: [s{(at + 1) % 9000}]" for at in range(9000))),
        with_steps(A, spec=f"  outputs: {{{OUTPUTS}}}\n"),
        with_steps(f"{A}, params: {{x: [{', '.join(['${{ 1'] * 20_000)}]}}"),
        with_steps(A, spec=f"  covenant: Q\n  invariants: [{RULES}]\n"),
        b"\n".join(b"k%d: 1" % at for at in range(100_000)),
        with_steps(A + ", output_schema: {pattern: '(" + "a{1000}" * 30 + "){1000}'}"),
    ],
    ids=["names", "unknown", "ring", "outputs", "params", "invariants", "keys", "pattern"],
)  # fmt: skip
def test_hostile_descriptors_are_refused(text: bytes) -> None:
    assert 1 <= len(problems(text)) <= 100


def test_many_steps() -> None:
    text = with_steps(
        *(f"name: s{at}, action: process, depends_on: [{f's{at - 1}' if at else ''}]" for at in range(10_000))
    )
    assert len(build(text).steps) == 10_000


@pytest.mark.skipif(not WORKLOADS.is_dir(), reason="the sample workloads are not there")
def test_real_workloads_compile() -> None:
    for path in sorted(WORKLOADS.glob("*.yaml")):
        assert build(path.read_bytes()).steps, path.name


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
def test_a_graph_is_refused_exactly_if_it_has_a_cycle(graph: list[set[int]]) -> None:
    def cyclic(at: int, above: frozenset[int]) -> bool:
        return at in above or any(cyclic(other, above | {at}) for other in graph[at])

    names = [", ".join(f"s{other}" for other in sorted(on)) for on in graph]
    text = with_steps(*(f"name: s{at}, action: process, depends_on: [{on}]" for at, on in enumerate(names)))
    try:
        build(text)
        refused = False
    except InvalidDescriptor:
        refused = True
    assert refused == any(cyclic(at, frozenset()) for at in range(len(graph)))


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 3, -1, 1.5, 2.0, "", "a", "5s", "Q", "at_most_once", [], ["a"], [1], {}, {"a": 1}, {"a": "b"},
     {"name": "a"}, {"name": "a", "action": "b"}, [{"name": "a", "action": "b"}], {"steps": []}, {"max_attempts": 2},
     [None], "\x00"]
)  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, part in parts for inner in paths(part, (*path, key)))]


def mutated(value: Any, data: st.DataObject) -> Any:
    """The value with some parts replaced, keys removed or added."""
    value = msgspec.msgpack.decode(msgspec.msgpack.encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        *above, last = data.draw(st.sampled_from([path for path in paths(value) if path] or [("x",)]))
        part = value
        for key in above:
            part = part[key]
        match data.draw(st.integers(0, 3)), part:
            case 0, dict():
                part.pop(last, None)
            case 1, dict():
                part[data.draw(st.sampled_from(["x", "name", "retry", "steps", "timeout"]))] = copy.deepcopy(
                    data.draw(VALUES)
                )
            case _:
                part[last] = copy.deepcopy(data.draw(VALUES))
    return value


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_the_quick_reading_accepts_what_the_thorough_one_accepts(data: st.DataObject) -> None:
    value = mutated(read(data.draw(st.sampled_from([GUIDE, FULL])), max_bytes=10**6).value, data)
    complaints = Complaints(lambda _path: (1, 1))
    cleaned = check(SHAPE, value, (), complaints)
    try:
        msgspec.convert(value, Descriptor)
        accepted = True
    except msgspec.ValidationError:
        accepted = False
    assert accepted == (not complaints), complaints.problems()
    msgspec.convert(cleaned, Descriptor)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_descriptor_is_a_plan_or_refused(data: st.DataObject) -> None:
    value = mutated(read(FULL, max_bytes=10**6).value, data)
    with contextlib.suppress(InvalidDescriptor):
        build(msgspec.json.encode(value))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([GUIDE, FULL]))
def test_a_descriptor_with_random_damage_is_a_plan_or_refused(seed: int, text: bytes) -> None:
    draw = random.Random(seed)
    damaged = bytearray(text)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(damaged))
        match draw.randint(0, 2):
            case 0:
                damaged[at] = draw.choice(b" \n:-[]{}&*!?|>'\"#%@`,0a\x00\xff")
            case 1:
                del damaged[at : at + draw.randint(1, 20)]
            case _:
                damaged[at:at] = damaged[draw.randrange(len(damaged)) :][: draw.randint(1, 30)]
        damaged = damaged or bytearray(b"x")
    with contextlib.suppress(InvalidDescriptor):
        build(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidDescriptor):
        build(text)
