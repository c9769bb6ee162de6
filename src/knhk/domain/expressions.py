"""Expressions: CEL (https://cel.dev) over a run's inputs, step outputs and facts.

A *template* is any JSON-like value in which texts may hold `${{ CEL }}`. A text that is one expression and nothing else
(white space around it does not count) has the value of the expression, with its type; otherwise the values are put into
the text: strings as they are, null as nothing, all else as compact JSON with sorted keys. `$${{` stands for a literal
`${{`. A *condition* is CEL that says true or false.

CEL always ends, but nested comprehensions and repeated concatenation can still take seconds; so before such an
expression is evaluated its work is estimated from the sizes of what it reads, and refused beyond a bound.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from knhk.domain.cel_program import Program, compile_program
from knhk.domain.cel_source import MAX_SOURCE_CHARS, end_of_template
from knhk.domain.errors import InvalidExpression

EXTRA_NAMES: Final = frozenset({"data", "error", "resources"})
MAX_TEXT_CHARS: Final = 16_000_000
MAX_EXPRESSIONS: Final = 1000
"""How many expressions one template can hold."""

_OPEN: Final = "${{"
_EMPTY: Final[frozenset[str]] = frozenset()


class Scope(msgspec.Struct):
    """What an expression can read: the run's inputs, step outputs by step name, facts about the run, and others.

    `extra` holds further variables by name, such as `error` when a retry is decided.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    run: Mapping[str, Any]
    extra: Mapping[str, Any] = {}


class Template:
    """A value with expressions in it. Immutable and shared.

    `value` is the value as written, `dynamic` whether it holds any expression. Without any, `evaluate` returns
    `constant`, itself and not a copy: callers must not change it. (It is `value`, but that `$${{` has become `${{`.)
    `steps` are the names of the steps whose outputs the expressions read, `inputs` those of the inputs,
    `expressions` says how many there are.
    """

    __slots__ = ("_node", "constant", "dynamic", "expressions", "inputs", "steps", "value")

    def __init__(self, value: Any, node: "_Node | None", constant: Any) -> None:
        self.value = value
        self.dynamic = node is not None
        self.expressions = 0
        self.steps: frozenset[str] = _EMPTY
        self.inputs: frozenset[str] = _EMPTY
        self._node = node
        self.constant = constant
        if node is not None:
            programs = list(_programs(node))
            self.expressions = len(programs)
            self.steps = _EMPTY.union(*(program.steps for program in programs))
            self.inputs = _EMPTY.union(*(program.inputs for program in programs))

    def evaluate(self, scope: Scope) -> Any:
        """The value with all expressions replaced. Raises InvalidExpression if one cannot be evaluated."""
        return self.constant if self._node is None else _evaluate(self._node, scope)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.value == other.value

    def __hash__(self) -> int:
        return hash(msgspec.json.encode(self.value, order="deterministic"))

    def __repr__(self) -> str:
        return f"Template({self.value!r})"


class Condition:
    """CEL that says true or false. Immutable and shared; `steps` and `inputs` are the names of those that it reads."""

    __slots__ = ("_program", "inputs", "source", "steps")

    def __init__(self, program: Program) -> None:
        self._program = program
        self.source = program.source
        self.steps = program.steps
        self.inputs = program.inputs

    def evaluate(self, scope: Scope) -> bool:
        """Whether it holds. Raises InvalidExpression if it cannot be evaluated or is neither true nor false."""
        result = self._program.run(scope)
        if result is True or result is False:
            return bool(result)
        raise InvalidExpression(f"{self.source!r} must be true or false, but is {_kind(result)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self.source == other.source

    def __hash__(self) -> int:
        return hash(self.source)

    def __repr__(self) -> str:
        return f"Condition({self.source!r})"


class _Text(msgspec.Struct, frozen=True):
    """Literal pieces and expressions in their order."""

    parts: tuple["str | Program", ...]


class _List(msgspec.Struct, frozen=True):
    items: tuple[Any, ...]


class _Map(msgspec.Struct, frozen=True):
    entries: tuple[tuple[str, Any], ...]


class _Constant(msgspec.Struct, frozen=True):
    value: Any


_Node = Program | _Text | _List | _Map | _Constant


def compile_template(value: Any, names: frozenset[str] = EXTRA_NAMES) -> Template:
    """Find and compile the expressions in a JSON-like value, not nested deeper than Python can recurse.

    `names` are the variables allowed besides `inputs`, `steps` and `run`. Raises InvalidExpression.
    """
    if not mentions(value):
        return Template(value, None, value)
    if _count(value) > MAX_EXPRESSIONS:
        raise InvalidExpression(f"more than {MAX_EXPRESSIONS} expressions in one value")
    node = _compile(value, names)
    if isinstance(node, _Constant):
        return Template(value, None, node.value)
    return Template(value, node, None)


def compile_condition(source: str, names: frozenset[str] = EXTRA_NAMES) -> Condition:
    """Compile a condition, written with or without `${{ }}` around it. Raises InvalidExpression."""
    text = source.strip()
    if text.startswith(_OPEN) and end_of_template(text, len(_OPEN)) == len(text) - 2:
        text = text[len(_OPEN) : -2]
    return _condition(text.strip(), names)


@lru_cache(maxsize=2048)
def _condition(source: str, names: frozenset[str]) -> Condition:
    return Condition(compile_program(source, names))


def mentions(value: Any) -> bool:
    """Whether any text in the value may hold an expression."""
    if type(value) is str:
        return _OPEN in value
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return False
    for part in value:  # noqa: SIM110  # a generator costs more than the search itself
        if mentions(part):
            return True
    return False


def _count(value: Any) -> int:
    """How many expressions there may be in a value."""
    if isinstance(value, str):
        return value.count(_OPEN)
    if isinstance(value, dict):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, list) else 0


def _compile(value: Any, names: frozenset[str]) -> _Node:
    if isinstance(value, str):
        return _compile_text(value, names) if _OPEN in value else _Constant(value)
    if isinstance(value, dict):
        entries = tuple((key, _compile(part, names)) for key, part in value.items())
        if all(isinstance(node, _Constant) for _, node in entries):
            return _Constant({key: node.value for key, node in entries if isinstance(node, _Constant)})
        return _Map(entries)
    if isinstance(value, list):
        items = tuple(_compile(part, names) for part in value)
        if all(isinstance(node, _Constant) for node in items):
            return _Constant([node.value for node in items if isinstance(node, _Constant)])
        return _List(items)
    return _Constant(value)


def _compile_text(text: str, names: frozenset[str]) -> _Node:
    parts: list[str | Program] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        if start > position and text[start - 1] == "$":
            parts.append(text[position : start - 1] + _OPEN)
            position = start + len(_OPEN)
            continue
        end = end_of_template(text, start + len(_OPEN))
        if end < 0:
            within = f" within {MAX_SOURCE_CHARS} characters" if len(text) - start > MAX_SOURCE_CHARS else ""
            raise InvalidExpression(f"`${{{{` at character {start + 1} has no `}}}}`{within}: {_short(text[start:])!r}")
        parts.append(text[position:start])
        parts.append(compile_program(text[start + len(_OPEN) : end].strip(), names))
        position = end + 2
    parts.append(text[position:])
    programs = [part for part in parts if isinstance(part, Program)]
    if not programs:
        return _Constant("".join(part for part in parts if isinstance(part, str)))
    if len(programs) == 1 and not any(isinstance(part, str) and part.strip() for part in parts):
        return programs[0]
    return _Text(tuple(part for part in parts if part != ""))


def _programs(node: Any) -> Any:
    """All programs in a node, in the order in which they are evaluated."""
    if isinstance(node, Program):
        yield node
    elif isinstance(node, _Text):
        yield from (part for part in node.parts if isinstance(part, Program))
    elif isinstance(node, _List):
        for item in node.items:
            yield from _programs(item)
    elif isinstance(node, _Map):
        for _, part in node.entries:
            yield from _programs(part)


def _evaluate(node: Any, scope: Scope) -> Any:
    match node:
        case Program():
            return node.run(scope)
        case _Map():
            return {key: _evaluate(part, scope) for key, part in node.entries}
        case _List():
            return [_evaluate(part, scope) for part in node.items]
        case _Text():
            return _join(node, scope)
    return node.value


def _join(node: _Text, scope: Scope) -> str:
    size = 0
    texts: list[str] = []
    for part in node.parts:
        text = part if isinstance(part, str) else _as_text(part.run(scope))
        size += len(text)
        if size > MAX_TEXT_CHARS:
            raise InvalidExpression(f"the text becomes longer than {MAX_TEXT_CHARS} characters")
        texts.append(text)
    return "".join(texts)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value, order="deterministic").decode()


def _kind(value: Any) -> str:
    """What a value is, in the words of CEL."""
    names = {"NoneType": "null", "str": "a string", "float": "a double", "dict": "a map", "list": "a list"}
    return names.get(type(value).__name__, f"an {type(value).__name__}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."


__all__ = ["EXTRA_NAMES", "Condition", "Scope", "Template", "compile_condition", "compile_template", "mentions"]
