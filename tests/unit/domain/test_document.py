"""Reading text: hostile inputs are refused with a place, and the two YAML readers agree on everything they accept."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knhk.domain import document
from knhk.domain.document import read
from knhk.domain.errors import InvalidDescriptor
from knhk.domain.yaml_events import MAX_DEPTH, Refused, read_yaml

MAX_BYTES = 4_000_000
WORKLOADS = Path(__file__).parents[4] / "shared" / "workloads"


def fault(text: bytes, max_bytes: int = MAX_BYTES) -> Any:
    with pytest.raises(InvalidDescriptor) as caught:
        read(text, max_bytes=max_bytes)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        (b"", "empty", 1, 1),
        (b"\n # nothing\n", "empty", 1, 1),
        (b"- a\n", "must be a mapping", 1, 1),
        (b"text\n", "must be a mapping", 1, 1),
        (b"a: 1\na: 2\n", "here twice, first in line 1", 2, 1),
        (b"a:\n  b: 1\n  b: 2\n", "here twice, first in line 2", 3, 3),
        (b"a: !!python/object/apply:os.system [ls]\n", "tags are not allowed", 1, 4),
        (b"a: !x y\n", "tags are not allowed", 1, 4),
        (b"!x a: 1\n", "tags are not allowed", 1, 1),
        (b"%TAG ! tag:x,2000:\n---\na: 1\n", "TAG", 1, 1),
        (b"a: 1\n---\nb: 2\n", "more than one document", 2, 1),
        (b"1: a\n", "keys must be strings", 1, 1),
        (b"a:\n  null: 1\n", "keys must be strings", 2, 3),
        (b"a: {true: 1}\n", "keys must be strings", 1, 5),
        (b"[a]: 1\n", "keys must be strings", 1, 1),
        (b"? {a: b}\n: 1\n", "keys must be strings", 1, 3),
        (b"a: &x b\n*x : 1\n", "alias cannot be a key", 2, 1),
        (b"a: *x\n", "no anchor", 1, 4),
        (b"a: &x [*x]\n", "no anchor before it that is complete", 1, 8),
        (b"a: .nan\n", "finite", 1, 4),
        (b"a: -.inf\n", "finite", 1, 4),
        (b"a: 1e999\n", "too large", 1, 4),
        (b"a: 9223372036854775808\n", "64 bits", 1, 4),
        (b"a: -9223372036854775809\n", "64 bits", 1, 4),
        (b"a: 0xffffffffffffffff\n", "64 bits", 1, 4),
        (b"a: 1\nb: \x00\n", "U+0000", 2, 4),
        (b"a: \x1b[0m\n", "U+001B", 1, 4),
        (b"\xef\xbb\xbfa: 1\n", "byte order mark", 1, 1),
        ("a: x\u2028y\n".encode(), "U+2028", 1, 5),
        (b"a: 1\nb: \xff\n", "not UTF-8", 2, 4),
        (b"a: [1\n", "not YAML", 2, 1),
        (b"a: b: c\n", "not YAML", 1, 5),
        (b"a:\n\tb: 1\n", "not YAML", 2, 1),
        (b'{"a": 1, "a": 2}', "here twice", 0, 0),
        (b'{"a": NaN}', "finite", 0, 0),
        (b'{"a": 1e999}', "too large", 0, 0),
        (b'{"a": 99999999999999999999}', "64 bits", 0, 0),
        (b'{"a": "\\ud800"}', "surrogate", 0, 0),
    ],
)
def test_faults_have_a_place(text: bytes, message: str, line: int, column: int) -> None:
    problem = fault(text)
    assert message in problem.message
    assert (problem.line, problem.column) == (line, column)


BOMB = b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 8)) for i in range(20)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        b"- " * 2_000_000,
        b"? " * 2_000_000,
        b": " * 2_000_000,
        b"- ? " * 1_000_000,
        b"[" * 4_000_000,
        b"{a: " * 1_000_000,
        b"{a: 1, " * 500_000,
        b'{"a":' * 800_000,
        b"".join(b" " * depth + b"a:\n" for depth in range(2000)),
        BOMB,
        b"a: " + b"9" * 3_000_000,
        b'{"a": ' + b"9" * 3_000_000 + b"}",
        b"a: 1e" + b"9" * 3_000_000,
        b"a: " + b"-" * 3_000_000 + b"\n- b",
        b"a:\n" + b"- x\n" * 900_000,
        b"a: [" + b"x," * 1_900_000 + b"]",
        b"x: 1\n" * 800_000,
        b"a: '" + b"''" * 1_900_000,
        b'a: "' + b"{'" * 1_900_000,
        b"a: " + b"1_" * 1_900_000 + b": b",
        b"& " * 2_000_000,
        b"*a " * 1_300_000,
        b"---\n" * 1_000_000,
        b"\x00" * 4_000_000,
        b"\xff" * 4_000_000,
        b" " * 4_000_000,
        b"\n" * 4_000_000,
        b"x" * 3_900_000 + b": 1",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_refused(text: bytes) -> None:
    assert fault(text[:MAX_BYTES]).message


def test_size_is_checked_first() -> None:
    assert "too large: 5 bytes; at most 4" in fault(b"\xff\xff\xff\xff\xff", max_bytes=4).message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", "1_000"),
        ("_1", "_1"),
        ("1e_3", "1e_3"),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("-0x1", "-0x1"),
        ("0b11", "0b11"),
        ("12:30:45", "12:30:45"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("+1", 1),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("~", None),
        ("null", None),
        ("", None),
        ("True", True),
        ("=", "="),
        ("2020-01-01", "2020-01-01"),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("a && b 2>&1 | c > d", "a && b 2>&1 | c > d"),
        ("$(cmd) ${VAR} $${{ x }}", "$(cmd) ${VAR} $${{ x }}"),
        ("|\n  x\n  y", "x\ny\n"),
        ("'it''s'", "it's"),
        ('"\\x41\\u00e9\\n"', "Aé\n"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("{<<: {b: 1}}", {"<<": {"b": 1}}),
        ("&x [1]\nb: *x", [1]),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    got = read(f"a: {text}".encode(), max_bytes=MAX_BYTES).value["a"]
    assert got == value
    assert type(got) is type(value)


def test_ordinary_text_goes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_careful", lambda _source: pytest.fail("read carefully"))
    text = b"""
# the guide's
metadata: {name: w, cost_center: R&D}
spec:
  steps:
    - name: step_1
      params: {run: "a && b 2>&1 | tee *.log", url: "http://x/y?a=1&b=2", n: -1.5e3}
      when: ${{ inputs.a != 1 }}
      script: |
        if [ "$1" ]; then echo "!"; fi | sort > out
      depends_on: [chr22_1-40001]
"""
    assert read(text, max_bytes=MAX_BYTES).value["spec"]["steps"][0]["name"] == "step_1"


@pytest.mark.skipif(not WORKLOADS.is_dir(), reason="the sample workloads are not there")
def test_real_workloads_go_the_fast_path_and_read_the_same() -> None:
    for path in sorted(WORKLOADS.glob("*.yaml")):
        text = path.read_bytes()
        value = document._fast(text, text.decode())
        assert value is not None, path.name
        assert value == read_yaml(text.decode())[0]


def test_places_of_keys_and_elements() -> None:
    found = read(b"a:\n  - b: 1\n  - {c: [x, y]}\nd: e\n", max_bytes=MAX_BYTES)
    assert found.locate(("a", 0, "b")) == (2, 5)
    assert found.locate(("a", 1, "c", 1)) == (3, 13)
    assert found.locate(("d",)) == (4, 1)
    assert found.locate(("a", 7, "x")) == (1, 1)
    assert found.locate(("a", 1, "c", "none")) == (3, 6)


def test_places_in_json() -> None:
    found = read(b'{"a": [\n  {"b": 1}]}', max_bytes=MAX_BYTES)
    assert found.value == {"a": [{"b": 1}]}
    assert found.locate(("a", 0, "b")) == (2, 4)


def test_flow_mapping_that_is_no_json_is_yaml() -> None:
    assert read(b"{a: 1}", max_bytes=MAX_BYTES).value == {"a": 1}


def test_depth_limit_is_the_same_for_all_readers() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * levels + b"1" + b"}" * levels

    assert read(nested(MAX_DEPTH), max_bytes=MAX_BYTES).value
    assert "deep" in fault(nested(MAX_DEPTH + 1)).message
    assert read(b"{b: 1, a: " * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, max_bytes=MAX_BYTES).value
    assert "deep" in fault(b"{b: 1, a: " * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)).message


def test_aliases_in_moderation() -> None:
    text = b"a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]\n"
    assert read(text, max_bytes=MAX_BYTES).value["c"] == [{"x": [1, 2]}] * 2


PIECES = [
    "a",
    "b",
    ": ",
    ":",
    "- ",
    "-",
    "? ",
    "?",
    " ",
    "  ",
    '"',
    "'",
    "[",
    "]",
    "{",
    "}",
    ", ",
    ",",
    "#",
    " # c",
    "&a ",
    "*a",
    "!t ",
    "@",
    "%",
    "0",
    "1",
    "017",
    "0o17",
    "0x1F",
    "0b11",
    "-0x1",
    "1_000",
    "_1",
    "1.5",
    ".5",
    "1e3",
    "1e400",
    "-.inf",
    ".nan",
    "no",
    "on",
    "true",
    "null",
    "~",
    "<<",
    "=",
    "---",
    "...",
    "12:30",
    "2020-01-01",
    "\\\\n",
    "\\\\x41",
    "é",
    "$",
    "${{ x }}",
    "&",
    "*",
    "!",
    "a b",
    "k: v",
    '"a"',
    "'b'",
    '"a": ',
    "- - ",
    "[a, b]",
    "{a: b}",
    "{a}",
    "[a: b]",
    "{? a : b}",
    "[]",
    "{}",
    '""',
    "x y",
    "+",
    "_",
    "0_1",
    "-1_0",
    "1__0",
    ".1_0",
    "0x_F",
    "99999999999999999999",
    "NaN",
    ".Inf",
    "00",
    "0o",
    "1e",
]
LINES = ["\n", "\n ", "\n  ", "\n    ", "\n- ", "\n  - ", "\na: ", "\nb: ", "\nc:\n  ", "\n\n", "\n---\n", "\n...\n"]
BLOCKS = ["|", ">", "|-", ">+", "|2", " |\n  x\n", " >\n  x\n\n  y\n", "\t", "\r\n", "\x00", "\ufeff", "\x85", "\u2028"]
PIECE = st.sampled_from(PIECES + LINES + BLOCKS)
FRAMES = st.sampled_from(["{}", "k: {}", "k:\n  {}", "k: [{}]", "k: {{z: {}}}", "k:\n  - {}\n  - b"])


def typed(value: Any) -> Any:
    """A value in which 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return [(key, typed(part)) for key, part in value.items()]
    return [typed(part) for part in value] if isinstance(value, list) else (type(value), repr(value))


@settings(max_examples=1500, deadline=None)
@given(FRAMES, st.lists(PIECE, max_size=14))
@example("{}", ["k: |\n"])
@example("{}", ["k: {z: 1,000\nc:\n  }"])
@example("{}", ["k: [a:]"])
def test_the_fast_reader_accepts_nothing_that_the_careful_one_reads_differently(frame: str, pieces: list[str]) -> None:
    source = frame.format("".join(pieces)) + "\n"
    fast = document._fast(source.encode(), source)
    if fast is not None:
        try:
            careful = read_yaml(source)[0]
        except Refused as refused:
            pytest.fail(f"{source!r}: {refused}")
        assert typed(fast) == typed(careful)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(InvalidDescriptor):
        assert isinstance(read(text, max_bytes=MAX_BYTES).value, dict)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back_as_it_is(value: Any) -> None:
    assert typed(read(json.dumps(value).encode(), max_bytes=MAX_BYTES).value) == typed(value)
