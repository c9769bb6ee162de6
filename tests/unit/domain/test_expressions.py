"""Expressions: values keep their types, faults are explained, and no expression can take long."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain.cel_source import examine
from knhk.domain.errors import InvalidExpression
from knhk.domain.expressions import Scope, compile_condition, compile_template

SCOPE = Scope(
    inputs={
        "a": 1,
        "name": "Ada",
        "big": 2**62,
        "items": [{"p": 2, "q": 3}] * 300,
        "none": None,
        "f": 1.5,
        "text": "x" * 5000,
    },
    outputs={"fetch": {"n": 5, "tags": ["x", "y"]}, "a-b": 7, "a.b": "dotted", "other": {"large": list(range(1000))}},
    run={"id": "wf-1"},
)


def value(template: Any) -> Any:
    return compile_template(template).evaluate(SCOPE)


def fault(template: Any) -> str:
    with pytest.raises(InvalidExpression) as caught:
        value(template)
    assert len(caught.value.message) < 600
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${{ inputs.a }}", 1),
        ("  ${{ inputs.a }}\n", 1),
        ("${{inputs.a}}${{inputs.a}}", "11"),
        ("n=${{ inputs.a }}!", "n=1!"),
        ("${{ inputs.none }}", None),
        ("<${{ inputs.none }}>", "<>"),
        ("<${{ steps.fetch.output }}>", '<{"n":5,"tags":["x","y"]}>'),
        ("<${{ true }}>", "<true>"),
        ("<${{ 1.5 }}>", "<1.5>"),
        ("${{ steps.fetch.output.tags }}", ["x", "y"]),
        ('${{ steps["a-b"].output + 1 }}', 8),
        ("${{ steps['a.b'].output }}", "dotted"),
        ("${{ run.id }}", "wf-1"),
        ('${{ {"a": {"b": "}}"}} }}', {"a": {"b": "}}"}}),
        ("${{ '}}' + r'\\' }}", "}}\\"),
        ("$${{ inputs.a }}", "${{ inputs.a }}"),
        ("$${{ x }} ${{ inputs.a }}", "${{ x }} 1"),
        ("$(cmd) ${VAR} $VAR }}", "$(cmd) ${VAR} $VAR }}"),
        ("${{ inputs.items.map(i, i.p * inputs.a).size() }}", 300),
        ("${{ inputs.items.filter(i, i.p > 1).exists(i, i.q == 3) }}", True),
        ("${{ has(inputs.zzz) ? 1 : 2 }}", 2),
        ("${{ has(steps.later.output) }}", False),
        ("${{ type(inputs.a) == int }}", True),
        ("${{ inputs.a // a comment\n + 1 }}", 2),
        ('${{ timestamp("2020-01-01T00:00:00Z") }}', "2020-01-01T00:00:00Z"),
        ('${{ duration("90s") }}', "90s"),
        ('${{ duration("1500ms") }}', "1.5s"),
        ('${{ b"abc" }}', "YWJj"),
        ("${{ optional.none() }}", None),
        ("${{ optional.of(3) }}", 3),
        ("${{ 7u }}", 7),
    ],
)
def test_values(text: str, expected: Any) -> None:
    got = value(text)
    assert got == expected
    assert type(got) is type(expected)


def test_templates_nest() -> None:
    template = compile_template({"k": ["${{ steps.fetch.output.n }}", 1, {"x": "${{ inputs.a }}-"}], "c": {"d": [1]}})
    assert template.dynamic
    assert template.steps == {"fetch"}
    assert template.inputs == {"a"}
    assert template.expressions == 2
    assert template.evaluate(SCOPE) == {"k": [5, 1, {"x": "1-"}], "c": {"d": [1]}}


def test_constants_are_returned_themselves() -> None:
    constant = {"a": [1, "x"]}
    template = compile_template(constant)
    assert not template.dynamic
    assert template.evaluate(SCOPE) is constant
    assert template.value is constant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a ${{ inputs.a", "character 3 has no `}}`"),
        ("${{ }}", "empty"),
        ("${{ 1 + }}", "the end of the expression (line 1, column 4"),
        ("${{ input.a }}", "'input' at character 1 (did you mean 'inputs'?)"),
        ("${{ inputs.nam }}", "no 'nam' (did you mean 'name'?)"),
        ("${{ steps.fetch.output.m }}", "there is no 'm'"),
        ("${{ steps.gone.output }}", "no output of step 'gone'"),
        ("${{ steps[inputs.name].output }}", "cannot be computed"),
        ("${{ steps }}", "followed by the name of a step"),
        ("${{ size(steps) }}", "followed by the name of a step"),
        ("${{ steps.fetch.result }}", "has only `output`"),
        ("${{ steps.a-b.output }}", "unknown variable 'b'"),
        ("${{ foo(1) }}", "unknown function 'foo'"),
        ("${{ 'a'.startswith('a') }}", "did you mean 'startsWith'"),
        ("${{ inputs.a + 'x' }}", "string(x)"),
        ("${{ inputs.a / 0 }}", "division by zero"),
        ("${{ inputs.big * 4 }}", "overflow"),
        ("${{ 18446744073709551615u }}", "64 bits"),
        ("${{ 1.0 / 0.0 }}", "finite"),
        ("${{ {1: 2} }}", "not a string"),
        ("${{ steps.fetch.output.tags[5] }}", "out of bounds"),
        ("${{ 'a'.matches('(') }}", "regex"),
        ("${{ inputs.items.map(inputs, 1) }}", "cannot be the variable"),
        ("${{ " + "1+" * 3000 + "1 }}", "has no `}}` within 4096 characters"),
        ("${{ " + "1+" * 1000 + "1 }}", "operators"),
        ("${{ " + "(" * 200 + "1" + ")" * 200 + " }}", "nested too deeply"),
        ("${{ [1].map(x, [1].map(y, [1].map(z, z))) }}", "2 deep"),
    ],
)
def test_faults_are_explained(text: str, said: str) -> None:
    assert said in fault(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source",
    [
        "inputs.items.map(x, inputs.items.map(y, x.p * y.p))",
        "inputs.items.all(x, inputs.items.all(y, true))",
        "[inputs.name]" + ".map(x, x + x)" * 40 + ".size()",
        "[1]" + ".map(x, [x, x, x, x, x, x, x, x])" * 20,
        "inputs.items.map(x, inputs.items)" + ".map(y, y.map(z, inputs.items))",
        "inputs.items.map(x, inputs)",
        "[" + ", ".join(["steps.other.output"] * 150) + "].map(x, steps.other.output).map(x, [x, x])",
        "[" + ", ".join(["inputs"] * 390) + "]",
    ],
    ids=lambda source: source[:40],
)
def test_what_could_take_long_is_refused(source: str) -> None:
    scope = Scope({**SCOPE.inputs, "wide": [["x"] * 100] * 100}, SCOPE.outputs, SCOPE.run)
    with pytest.raises(InvalidExpression, match="too much work"):
        compile_template(f"${{{{ {source} }}}}").evaluate(scope)


def test_text_and_number_of_expressions_are_bounded() -> None:
    big = Scope({"s": "x" * 1_000_000}, {}, {})
    with pytest.raises(InvalidExpression, match="longer than"):
        compile_template("${{ inputs.s }} " * 20).evaluate(big)
    with pytest.raises(InvalidExpression, match="expressions in one value"):
        compile_template(["${{ 1 }}"] * 1001)


def test_only_what_is_read_is_given_to_cel() -> None:
    class Unreadable:
        pass

    scope = Scope({"a": 1, "b": Unreadable()}, {"s": {"x": 1}, "t": Unreadable()}, {"r": Unreadable()})
    assert compile_template("${{ inputs.a + steps.s.output.x }}").evaluate(scope) == 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("inputs.a == 1", True),
        ("${{ inputs.a == 1 }}", True),
        ("  steps.fetch.output.n < 5 ", False),
        ("error.code == 'X'", True),
        ("data.n > 1", True),
        ("resources.elapsed_ms < 10", True),
    ],
)
def test_conditions(source: str, expected: bool) -> None:
    extra = {"error": {"code": "X"}, "data": {"n": 2}, "resources": {"elapsed_ms": 1}}
    scope = Scope(SCOPE.inputs, SCOPE.outputs, SCOPE.run, extra)
    assert compile_condition(source).evaluate(scope) is expected


def test_conditions_are_true_or_false() -> None:
    for source, kind in [("inputs.a", "an int"), ("inputs.name", "a string"), ("null", "null"), ("[1]", "a list")]:
        with pytest.raises(InvalidExpression, match=f"must be true or false, but is {kind}"):
            compile_condition(source).evaluate(SCOPE)


def test_names_that_are_not_allowed_here() -> None:
    with pytest.raises(InvalidExpression, match="unknown variable 'error'"):
        compile_condition("error.code == 1", frozenset())
    assert compile_condition("steps.a.output > 1 && inputs.b").steps == {"a"}
    assert compile_condition("steps.a.output > 1 && inputs.b").inputs == {"b"}


def test_references_in_text_and_comments_do_not_count() -> None:
    facts = examine('\'steps.a.output\' + """inputs.b""" + r\'\\\' + inputs.c // run.d')
    assert [reference.root for reference in facts.references] == ["inputs"]


SOURCES = st.lists(
    st.sampled_from(
        ["inputs", ".", "a", "steps", "[", "]", "(", ")", "'", '"', "}", "{", "}}", "1", "+", " ", "map", ".map(x, x)",
         "x", ",", "?", ":", "r'", "\\", "//", "\n", "&&", "é", "\x00", "$", "${{", "has(", "0x", "1e", "b'"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(SOURCES)
def test_any_text_is_a_value_or_refused(text: str) -> None:
    try:
        result = compile_template("${{ " + text + " }}").evaluate(SCOPE)
    except InvalidExpression:
        return
    json.dumps(result)
