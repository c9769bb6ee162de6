"""One compiled CEL expression: checked when it is compiled, bounded and made JSON-like when it is run."""

import base64
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Protocol

import cel

from knhk.domain.cel_source import MAX_MACRO_DEPTH, MAX_OPERATORS, MAX_SOURCE_CHARS, Facts, Reference, examine
from knhk.domain.errors import InvalidExpression

ROOTS: Final = frozenset({"inputs", "steps", "run"})
MAX_WORK: Final = 50_000
"""The most elements that the comprehensions of one expression may visit, as estimated."""
MAX_RESULT: Final = 2_000_000
"""The most values (a string counts one per 64 characters) that one expression may produce, as estimated."""

_TYPE_NAMES: Final = frozenset(
    {"int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type", "timestamp", "duration"}
)
_FUNCTIONS: Final = frozenset(
    {
        "size",
        "contains",
        "startsWith",
        "endsWith",
        "matches",
        "has",
        "string",
        "int",
        "uint",
        "double",
        "bytes",
        "type",
        "dyn",
        "duration",
        "timestamp",
        "getFullYear",
        "getMonth",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getHours",
        "getMinutes",
        "getSeconds",
        "getMilliseconds",
        "all",
        "exists",
        "exists_one",
        "existsOne",
        "map",
        "filter",
        "of",
        "none",
        "ofNonZeroValue",
        "hasValue",
        "value",
        "orValue",
        "or",
        "optMap",
        "optFlatMap",
    }
)
_CALL: Final = re.compile(r"[A-Za-z_]\w*")
_MAX_INT, _MIN_INT = 2**63 - 1, -(2**63)
_HEAVY_REFERENCES: Final = 8


class Readable(Protocol):
    """What a program reads from; see knhk.domain.expressions.Scope."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    run: Mapping[str, Any]
    extra: Mapping[str, Any]


class Program:
    """A compiled expression. `roots` are the variables that it reads, `steps` and `inputs` the keys of these."""

    __slots__ = ("_facts", "_heavy", "_keys", "_program", "inputs", "roots", "source", "steps")

    def __init__(self, source: str, program: cel.Program, facts: Facts) -> None:
        outside = [reference for reference in facts.references if reference.root not in facts.bound]
        self.source = source
        self.roots = frozenset(reference.root for reference in outside) - _TYPE_NAMES - {"optional"}
        self.steps = frozenset(reference.path[0] for reference in outside if reference.root == "steps")
        self.inputs = frozenset(ref.path[0] for ref in outside if ref.root == "inputs" and ref.path)
        self._program = program
        self._facts = facts
        self._keys = _first_keys(outside)
        self._heavy = bool(facts.macros) or len(facts.references) > _HEAVY_REFERENCES

    def run(self, scope: Readable) -> Any:
        """The value as JSON-like data. Raises InvalidExpression."""
        context = self._context(scope)
        if self._heavy:
            _check_work(self.source, self._facts, context)
        try:
            return _plain(self._program.execute(context))
        except Exception as error:
            raise InvalidExpression(f"{_shown(self.source)}: {_explain(error, self, scope)}") from error

    def _context(self, scope: Readable) -> dict[str, Any]:
        """Only what the expression reads, since the whole context is copied into CEL's own values."""
        context: dict[str, Any] = {}
        for root in self.roots:
            if root == "steps":
                outputs = scope.outputs
                context["steps"] = {name: {"output": outputs[name]} if name in outputs else {} for name in self.steps}
                continue
            value = _variable(scope, root)
            if value is _ABSENT:
                continue
            keys = self._keys.get(root)
            if keys is not None and isinstance(value, Mapping):
                value = {key: value[key] for key in keys if key in value}
            elif isinstance(value, Mapping) and type(value) is not dict:
                value = dict(value)
            context[root] = value
        return context


_ABSENT: Final = object()


def _variable(scope: Readable, root: str) -> Any:
    if root == "inputs":
        return scope.inputs
    if root == "run":
        return scope.run
    return scope.extra.get(root, _ABSENT)


def _first_keys(references: Iterable[Reference]) -> dict[str, frozenset[str]]:
    """For each variable that is only read by constant keys, these keys."""
    keys: dict[str, set[str]] = {}
    whole: set[str] = set()
    for reference in references:
        if reference.path:
            keys.setdefault(reference.root, set()).add(reference.path[0])
        else:
            whole.add(reference.root)
    return {root: frozenset(found) for root, found in keys.items() if root not in whole}


@lru_cache(maxsize=4096)
def compile_program(source: str, names: frozenset[str]) -> Program:
    """Compile an expression that may read `inputs`, `steps`, `run` and the variables in `names`.

    Raises InvalidExpression. The newest programs are kept, since descriptors of one kind share their expressions.
    """
    if not source:
        raise InvalidExpression("the expression is empty")
    if len(source) > MAX_SOURCE_CHARS:
        raise InvalidExpression(f"an expression may have {MAX_SOURCE_CHARS} characters; this one has {len(source)}")
    facts = examine(source)
    _check_facts(source, facts)
    try:
        program = cel.compile(source)
    except Exception as error:
        raise InvalidExpression(f"{_shown(source)}: {_syntax(error)}") from error
    _check_names(source, facts, names)
    _check_functions(source, program)
    return Program(source, program, facts)


def _check_facts(source: str, facts: Facts) -> None:
    if facts.operators > MAX_OPERATORS:
        raise InvalidExpression(f"{_shown(source)}: more than {MAX_OPERATORS} operators and brackets")
    if any(macro.depth > MAX_MACRO_DEPTH for macro in facts.macros):
        raise InvalidExpression(
            f"{_shown(source)}: comprehensions (map, filter, all, exists, exists_one) may be nested "
            f"{MAX_MACRO_DEPTH} deep; split the work into several steps"
        )


def _check_names(source: str, facts: Facts, names: frozenset[str]) -> None:
    allowed = ROOTS | names
    for name in facts.bound & allowed:
        raise InvalidExpression(f"{_shown(source)}: {name!r} cannot be the variable of a comprehension")
    known = allowed | facts.bound | _TYPE_NAMES | {"optional"}
    for reference in facts.references:
        if reference.root not in known:
            raise InvalidExpression(
                f"{_shown(source)}: unknown variable {reference.root!r} at character {reference.at + 1}"
                f"{_nearest(reference.root, allowed | facts.bound)}; known are {', '.join(sorted(allowed))}"
            )
        if reference.root == "steps":
            _check_step_reference(source, reference)


def _check_step_reference(source: str, reference: Reference) -> None:
    if not reference.path:
        raise InvalidExpression(
            f"{_shown(source)}: `steps` at character {reference.at + 1} must be followed by the name of a step, as in "
            'steps.name.output or steps["a-name"].output; it cannot be computed'
        )
    if len(reference.path) > 1 and reference.path[1] != "output":
        raise InvalidExpression(
            f"{_shown(source)}: a step has only `output`, so steps.{reference.path[0]}.{reference.path[1]} "
            f"at character {reference.at + 1} does not exist (a name with a dot or dash is written steps["
            '"a.name"].output)'
        )


def _check_functions(source: str, program: cel.Program) -> None:
    for name in program.functions():
        if _CALL.fullmatch(name) and not name.startswith("_") and name not in _FUNCTIONS:
            raise InvalidExpression(f"{_shown(source)}: unknown function {name!r}{_nearest(name, _FUNCTIONS)}")


def _check_work(source: str, facts: Facts, context: dict[str, Any]) -> None:
    """Refuse what could take long. An upper bound: every comprehension over the largest list or map there is."""
    longest, size = _measure(context)
    elements = max(longest, facts.width)
    work = sum(elements**macro.depth for macro in facts.macros)
    result = size + facts.width
    for macro in facts.macros:
        if macro.name != "map":
            continue
        outer = sum(_measure(_resolve(context, reference))[1] for reference in macro.outer)
        bound = any(reference.root in facts.bound for reference in macro.outer)
        inner = result if macro.nests or bound else 0
        result = max(1, macro.repeats) * result + elements * (outer + inner)
    if not facts.macros:
        result *= len(facts.references)
    if work > MAX_WORK or result > MAX_RESULT:
        raise InvalidExpression(
            f"{_shown(source)}: too much work for an expression over a list or map of {longest}; "
            "use fewer elements or a step of its own"
        )


def _resolve(context: Any, reference: Reference) -> Any:
    value = context.get(reference.root)
    for key in reference.path:
        if not isinstance(value, Mapping) or key not in value:
            break
        value = value[key]
    return value


def _measure(value: Any) -> tuple[int, int]:
    """The length of the longest list or map in a value, and its size as MAX_RESULT counts it; stops when too large."""
    longest = size = 0
    stack = [value]
    while stack and size <= MAX_RESULT:
        part = stack.pop()
        size += 1
        if isinstance(part, str | bytes):
            size += len(part) // 64
        elif isinstance(part, Mapping):
            longest = max(longest, len(part))
            stack.extend(part.values())
        elif isinstance(part, list | tuple):
            longest = max(longest, len(part))
            stack.extend(part)
    return longest, size


def _plain(value: Any) -> Any:
    """A result of CEL as JSON-like data. Raises ValueError if it has no such form."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        if not _MIN_INT <= value <= _MAX_INT:
            raise ValueError(f"{value} does not fit in 64 bits")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise ValueError("the result is not a finite number")
        return value
    if kind is list:
        return [_plain(part) for part in value]
    if kind is dict:
        return {_plain_key(key): _plain(part) for key, part in value.items()}
    return _plain_special(value)


def _plain_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise ValueError(f"the key {key!r} of a map is not a string")


def _plain_special(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds:.6f}".rstrip("0") + "s"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, cel.OptionalValue):
        return _plain(value.value()) if value.has_value() else None
    raise ValueError(f"a result of type {type(value).__name__} has no JSON form")


def _explain(error: Exception, program: Program, scope: Readable) -> str:
    """What went wrong, for people."""
    text = str(error)
    if isinstance(error, KeyError):
        key = text.strip("'\"")
        absent = sorted(program.steps - scope.outputs.keys())
        if key == "output" and absent:
            return f"there is no output of step {absent[0]!r}{_nearest(absent[0], scope.outputs)}"
        return f"there is no {key!r}{_nearest(key, _keys_in(program, scope))}"
    if text.startswith("No such overload"):
        return (
            "the operation is not defined for values of these types; CEL does not convert between them "
            "(use int(x), double(x) or string(x))"
        )
    if text.startswith("Undefined variable or function"):
        name = text.split("'")[1] if "'" in text else "?"
        return f"{name!r} is not defined here"
    return text.partition("\n")[0].removesuffix(" Check function arguments and their types.")[:200]


def _keys_in(program: Program, scope: Readable) -> list[str]:
    found: list[str] = []
    for root in program.roots:
        value = scope.outputs if root == "steps" else _variable(scope, root)
        if isinstance(value, Mapping):
            found.extend(list(value)[:1000])
    for name in program.steps:
        output = scope.outputs.get(name)
        if isinstance(output, Mapping):
            found.extend(list(output)[:1000])
    return found


def _syntax(error: Exception) -> str:
    """The first complaint of the parser, with its place, without the list of all tokens that it would have taken."""
    text = str(error)
    match = re.search(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)", text)
    if match is None:
        return "not a CEL expression"
    said = match[3].partition(" expecting {")[0].replace("'<EOF>'", "the end of the expression")
    if "Recursion limit" in said:
        said = "nested too deeply"
    return f"{said[:120]} (line {match[1]}, column {match[2]} of the expression)"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [key for key in known if isinstance(key, str)], 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(source: str) -> str:
    return "`" + (source if len(source) <= 80 else source[:77] + "...") + "`"
