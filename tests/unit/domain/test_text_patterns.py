"""A text that fits the pattern of another gives the plan, or the complaints, that reading it gives."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from knhk.domain.shapes import Shapes
from knhk.domain.text_patterns import outline
from tests.unit.domain.test_shapes import compiled

BLOCK = """\
# What is this?
apiVersion: knhk/v1
kind: Workflow
metadata:
  name: @0
  department:   @1
  cost_center: "@2"
  labels: {team: '@3', "tier" : @4}
spec:
  steps:
    - name: first
      action: process
      params:
        plain: @5
        nested: {deep: {word: @6, last: '@7'}}
        several: @8 @9
        list: [@8, {in_list: @9}]
        text: |
          key: @8
        quoted: "key: @9"
    - {name: second, action: wait, params: {duration: @6}, depends_on: [first]}
    - name: third
      action: validate
      params: {data: @7}
      depends_on: [second]
"""
JSON = (
    '{"apiVersion": "knhk/v1", "kind": "Workflow", "metadata": {"name": "@0", "department": "@1"}, "spec": {"steps": ['
    '{"name": "a", "action": "process", "params": {"x":"@2","y": @3, "caf\\u00e9": "@4", "l": ["@8", @9]}},'
    '{"name": "b", "action": "process", "params": {"output": {"z": "@5", "v": "@6"}}, "timeout": "@7"}]}}'
)
ALIASES = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: @0}
spec:
  steps:
    - {name: a, action: process, params: &given {x: @1, y: &word @2}}
    - {name: b, action: process, params: *given}
    - {name: c, action: process, params: {z: *word}}
"""
ODD_WORDS = [
    *("true", "False", "NULL", "null", "yes", "no", "y", "0", "007", "12", "1e5", "1e999", "0x1F", "0o17", "0o9"),
    *("0b11", "1_000", "2024-01-01", "9223372036854775808", "-1", ".5", "1.5", "", "a b", "a,b", "a: b", "#", "a #b"),
    *("é", "x" * 300, "${{ inputs.x }}", "$${{ x }}", "*given", "&a", "!!str", "'", '"', "}", "\n", "\\", "5s", "~"),
]
WORDS = some.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,5}", fullmatch=True) | some.sampled_from(ODD_WORDS)
FILLINGS = some.lists(some.lists(WORDS, min_size=10, max_size=10), min_size=1, max_size=3)
GOOD = ["name", "dep", "cost", "33", "gold", "plain", "1s", "9s", "literal", "99"]
ALSO_GOOD = ["n2", "d-2", "c2", "34", "g2", "12", "2s", "9s", "literal", "99"]


def filled(template: str, words: list[str]) -> bytes:
    for number, word in enumerate(words):
        template = template.replace(f"@{number}", word)
    return template.encode()


def learned(template: str) -> Shapes:
    """What two texts of a template teach."""
    shapes = Shapes()
    for words in (GOOD, ALSO_GOOD):
        compiled(filled(template, words), shapes)
    return shapes


@pytest.mark.parametrize("template", [BLOCK, JSON, ALIASES])
@given(fillings=FILLINGS)
@example(fillings=[ODD_WORDS[at : at + 10] for at in range(0, len(ODD_WORDS) - 9, 5)])
def test_with_patterns_and_without_the_plans_are_the_same(template: str, fillings: list[list[str]]) -> None:
    shapes = learned(template)
    for words in fillings:
        for at in range(10):  # One odd word at a time: several mostly make a text that is not even read to its end.
            text = filled(template, [*GOOD[:at], words[at], *GOOD[at + 1 :]])
            assert compiled(text, shapes) == compiled(text, None)
        assert compiled(filled(template, words), shapes) == compiled(filled(template, words), None)


@pytest.mark.parametrize("template", [BLOCK, JSON, ALIASES])
@given(some.data())
def test_a_text_with_changes_anywhere_is_not_taken_for_another(template: str, data: Any) -> None:
    shapes, text = learned(template), bytearray(filled(template, GOOD))
    for _ in range(data.draw(some.integers(1, 3))):
        at = data.draw(some.integers(0, len(text) - 1))
        text[at : at + data.draw(some.integers(0, 2))] = data.draw(
            some.sampled_from([b"", b" ", b"a", b"7", b"-", b"\n"])
        )
    assert compiled(bytes(text), shapes) == compiled(bytes(text), None)


@pytest.mark.parametrize(("template", "holes"), [(BLOCK, 8), (JSON, 5)])
def test_texts_of_one_pattern_are_not_read(template: str, holes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = learned(template)
    text = filled(template, ["other", *ALSO_GOOD[1:]])
    assert len(shapes._patterns[outline(text)].pattern.holes) == holes
    expected = compiled(text, None)
    monkeypatch.setattr("knhk.domain.compile.read", None)
    assert compiled(text, shapes) == expected


def test_aliases_make_no_pattern() -> None:
    assert not learned(ALIASES)._patterns
