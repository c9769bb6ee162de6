"""What can be known of a CEL expression from its text alone: what it reads, and how much work it may be.

A lexer and a few scans over its tokens, no parser: whether the expression is well formed is left to the CEL compiler.
Everything here is linear in the length of the text, which is bounded by MAX_SOURCE_CHARS.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

MAX_SOURCE_CHARS: Final = 4096
MAX_OPERATORS: Final = 400
"""The CEL library recurses over chains such as `a + b + c`; so many fit in the stack of any thread."""
MAX_MACRO_DEPTH: Final = 2
MACROS: Final = frozenset({"map", "filter", "all", "exists", "exists_one", "existsOne"})

_TOKEN: Final = re.compile(
    r"(?P<space>\s+|//[^\n]*)"
    r"|(?P<string>[bB]?[rR][bB]?(?:\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''|\"[^\"\n]*\"|'[^'\n]*')"
    r"|[bB]?(?:\"\"\"(?s:(?:\\.|[^\\])*?)\"\"\"|'''(?s:(?:\\.|[^\\])*?)'''"
    r"|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'))"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<number>[0-9](?:[eE][+-]|[A-Za-z0-9_]|\.(?=[0-9]))*)"
    r"|(?P<sign>&&|\|\||[<>=!]=|.)",
    re.DOTALL,
)
_PLAIN_STRING: Final = re.compile(r"([rR]?)(\"\"\"|'''|\"|')(.*)\2", re.DOTALL)


class Token(msgspec.Struct, frozen=True):
    """One token: `kind` is string, name, number or sign; `at` counts characters from 0."""

    kind: str
    text: str
    at: int


class Reference(msgspec.Struct, frozen=True):
    """A variable and the constant keys that directly follow it: `inputs.a["b"]` is `inputs`, (`a`, `b`)."""

    root: str
    path: tuple[str, ...]
    at: int
    rest: str = ""
    """The text of the token that follows the path, or nothing at the end."""


class Macro(msgspec.Struct, frozen=True):
    """One comprehension. `repeats` is how often its body names its own variable, `depth` 1 if it is in no other one.

    `outer` are the variables that its body reads from outside, `nests` whether it contains a `map`.
    """

    name: str
    variable: str
    depth: int
    repeats: int
    outer: tuple[Reference, ...]
    nests: bool


class Facts(msgspec.Struct, frozen=True):
    """What `examine` found. `width` is the largest number of elements that a literal in the text can have."""

    references: tuple[Reference, ...]
    macros: tuple[Macro, ...]
    bound: frozenset[str]
    operators: int
    width: int


def tokens(source: str, start: int = 0) -> Iterator[Token]:
    """The tokens from `start` on. What is no CEL comes as single signs; the compiler will refuse it."""
    for match in _TOKEN.finditer(source, start):
        kind = match.lastgroup or "sign"
        if kind != "space":
            yield Token(kind, match[0], match.start())


def end_of_template(source: str, start: int) -> int:
    """Where the `}}` is that ends an expression beginning at `start`, -1 if there is none."""
    depth = 0
    limit = start + MAX_SOURCE_CHARS + 64
    for token in tokens(source[:limit], start):
        if token.text == "{":
            depth += 1
        elif token.text == "}":
            if depth:
                depth -= 1
            elif source.startswith("}}", token.at):
                return token.at
    return -1


def examine(source: str) -> Facts:
    """The references, macros and size of an expression."""
    found = list(tokens(source))
    macros, bound = _macros(found)
    references = tuple(_reference(found, place) for place in range(len(found)) if _is_variable(found, place))
    operators = sum(token.kind == "sign" and token.text not in ",)]}:" for token in found)
    width = 1 + sum(token.text in (",", "+") for token in found)
    return Facts(references, macros, bound, operators, width)


def _is_variable(found: list[Token], place: int) -> bool:
    token = found[place]
    if token.kind != "name" or token.text in ("true", "false", "null", "in"):
        return False
    if place and found[place - 1].text == ".":
        return False
    return _text(found, place + 1) != "("


def _text(found: list[Token], place: int) -> str:
    return found[place].text if place < len(found) else ""


def _reference(found: list[Token], place: int) -> Reference:
    path: list[str] = []
    at = place + 1
    while True:
        if _text(found, at) == "." and at + 1 < len(found) and found[at + 1].kind == "name":
            if _text(found, at + 2) == "(":
                break
            path.append(found[at + 1].text)
            at += 2
        elif _text(found, at) == "[" and _text(found, at + 2) == "]" and found[at + 1].kind == "string":
            key = constant(found[at + 1].text)
            if key is None:
                break
            path.append(key)
            at += 3
        else:
            break
    return Reference(found[place].text, tuple(path), found[place].at, _text(found, at))


def constant(literal: str) -> str | None:
    """The value of a string literal without escapes; None for bytes and literals with escapes."""
    match = _PLAIN_STRING.fullmatch(literal)
    if match is None or (not match[1] and "\\" in match[3]):
        return None
    return match[3]


class _Open(msgspec.Struct):
    """A bracket that is open. `macro` is the name of the comprehension whose arguments it holds, if any."""

    place: int
    macro: str = ""
    variable: str = ""


def _macros(found: list[Token]) -> tuple[tuple[Macro, ...], frozenset[str]]:
    """The comprehensions in the order in which they close, innermost first, and the variables that they bind."""
    macros: list[Macro] = []
    bound: set[str] = set()
    stack: list[_Open] = []
    for place, token in enumerate(found):
        if token.kind != "sign":
            continue
        if token.text in "([{":
            entry = _Open(place)
            before = _text(found, place - 1) if place else ""
            is_call = token.text == "(" and place > 1 and found[place - 2].text == "." and before in MACROS
            if is_call and place + 1 < len(found) and found[place + 1].kind == "name":
                entry = _Open(place, before, found[place + 1].text)
                bound.add(entry.variable)
            stack.append(entry)
        elif token.text in ")]}" and stack:
            entry = stack.pop()
            if entry.macro:
                depth = 1 + sum(bool(other.macro) for other in stack)
                macros.append(_macro(found, entry, place, depth))
    return tuple(macros), frozenset(bound)


def _macro(found: list[Token], entry: _Open, end: int, depth: int) -> Macro:
    body = [place for place in range(entry.place + 2, end) if _is_variable(found, place)]
    inner = {
        found[place + 1].text
        for place in range(entry.place + 1, end - 1)
        if found[place].text == "(" and found[place - 1].text in MACROS
    }
    return Macro(
        entry.macro,
        entry.variable,
        depth,
        sum(found[place].text == entry.variable for place in body),
        tuple(
            _reference(found, place)
            for place in body
            if found[place].text != entry.variable and found[place].text not in inner
        ),
        any(found[place].text == "map" and _text(found, place + 1) == "(" for place in range(entry.place + 2, end)),
    )
