"""`knhk workflow test`: what passes, what does not, and what is said of it."""

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.server import ROOT
from tests.unit.cli.test_commands import knhk

EXAMPLE = ROOT / "examples" / "testing" / "refund.yaml"


def test_the_example_passes() -> None:
    text = knhk("workflow", "test", EXAMPLE).stdout
    assert "ok   pays back what the order cost, after a week\n" in text
    assert text.endswith("3 passed, 0 failed\n")
    assert knhk("workflow", "test", EXAMPLE.with_name("refund.test.yaml"), "--only", "busy").stdout.count("ok") == 1


EXPECTATIONS: list[tuple[str, str]] = [
    ("{state: failed}", 'state: expected "failed", got "completed"'),
    ("{outputs: {paid: 43}}", 'outputs: expected {"paid":43}, got {"paid":42}'),
    ("{steps: {pay: {attempts: 2}}}", "steps.pay.attempts: expected 2, got 1"),
    ("{steps: {pay: {params: {to: Bo}}}}", "steps.pay.params: expected"),
    ("{steps: {nope: {attempts: 2}}}", "there is no such step"),
    ("{calls: {http: 5}}", "calls.http: expected 5, got 1"),
    ("{takes_at_most: 1h}", "more than 1h"),
    ("{failure: {code: X}}", 'failure.code: expected "X", got null'),
    ("{rules: [result.outputs.paid > 100]}", "does not hold: result.outputs.paid > 100"),
]


@pytest.mark.parametrize(("expect", "said"), EXPECTATIONS)
def test_what_does_not_hold_is_said(tmp_path: Path, expect: str, said: str) -> None:
    (tmp_path / "refund.yaml").write_text(EXAMPLE.read_text())
    mocks = EXAMPLE.with_name("refund.test.yaml").read_text().partition("tests:")[0]
    test = f"tests: [{{name: x, inputs: {{order: B-1}}, expect: {expect}}}]\n"
    (tmp_path / "refund.test.yaml").write_text(mocks + test)
    result = knhk("workflow", "test", tmp_path / "refund.yaml", code=1)
    assert said in result.stdout
    assert "FAIL x" in result.stdout


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("tests: []", 2),
        ("a: 1", 2),
        ("tests: [{name: x, expct: {}}]", 2),
        ("{", 2),
        ("tests: [{name: x, inputs: {order: 3}}]", 1),
        ("tests: [{name: x, inputs: {order: B}, mocks: {steps: {order: {output: 1, fail: {}}}}}]", 1),
        ("tests: [{name: x, inputs: {order: B}, mocks: {steps: {order: {output: '${{ 1 + }}'}}}}]", 1),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "refund.yaml").write_text(EXAMPLE.read_text())
    (tmp_path / "refund.test.yaml").write_text(text)
    knhk("workflow", "test", tmp_path / "refund.yaml", code=code)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    knhk("workflow", "test", tmp_path / "none.yaml", code=4)
    knhk("workflow", "test", EXAMPLE, "--only", "no such name", code=2)


def test_for_programs() -> None:
    shown: dict[str, Any] = knhk("workflow", "test", EXAMPLE, "-o", "json")
    assert (shown["passed"], shown["failed"]) == (3, 0)
    assert shown["tests"][0]["elapsed_s"] > 7 * 86_400
