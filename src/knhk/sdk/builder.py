"""Descriptors in code: a workflow is built step by step, and becomes the same YAML that a person would write.

    flow = Workflow("orders", timeout="5m")
    order = flow.input("order", type="string")
    charge = flow.step("charge", "shop.charge", {"order": order, "amount": 14})
    flow.step("ship", "shop.ship", {"receipt": charge.output.receipt}, retries=3)
    flow.output("receipt", charge.output.receipt)
    client.submit(flow, {"order": "B-1"})

What a step reads in its params and conditions it depends on; nobody has to say it again.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

import msgspec
import yaml

from knhk.domain.descriptor import SpecPart, StepPart
from knhk.domain.document import read
from knhk.domain.errors import InvalidDescriptor

_ABSENT: Final = object()


class Expression:
    """CEL that is put together by using it: `order.items[0].price * 2 > 10`. In texts it stands as `${{ ... }}`.

    Comparisons and arithmetic give expressions, `&`, `|` and `~` stand for and, or and not. It is never true or false
    itself, so `if` and `and` raise TypeError.
    """

    __slots__ = ("source",)
    source: str
    __hash__ = None  # type: ignore[assignment]  # equality gives an expression

    def __init__(self, source: str) -> None:
        object.__setattr__(self, "source", source)

    def __getattr__(self, name: str) -> "Expression":
        if name.startswith("__"):
            raise AttributeError(name)
        return Expression(f"{self.source}.{name}" if name.isidentifier() else f"{self.source}[{json.dumps(name)}]")

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"an expression has no {name!r} to set")

    def __getitem__(self, key: "str | int | Expression") -> "Expression":
        return Expression(f"{self.source}[{_literal(key)}]")

    def __str__(self) -> str:
        return f"${{{{ {self.source} }}}}"

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"

    def __bool__(self) -> bool:
        raise TypeError("an expression has its value when the workflow runs; use &, | and ~ instead of and, or and not")

    def __iter__(self) -> Any:
        raise TypeError("an expression has its value when the workflow runs: it cannot be iterated over")

    def __add__(self, other: Any) -> "Expression":
        return _joined(self, "+", other)

    def __radd__(self, other: Any) -> "Expression":
        return _joined(other, "+", self)

    def __sub__(self, other: Any) -> "Expression":
        return _joined(self, "-", other)

    def __rsub__(self, other: Any) -> "Expression":
        return _joined(other, "-", self)

    def __mul__(self, other: Any) -> "Expression":
        return _joined(self, "*", other)

    def __rmul__(self, other: Any) -> "Expression":
        return _joined(other, "*", self)

    def __truediv__(self, other: Any) -> "Expression":
        return _joined(self, "/", other)

    def __mod__(self, other: Any) -> "Expression":
        return _joined(self, "%", other)

    def __eq__(self, other: object) -> "Expression":  # type: ignore[override]
        return _joined(self, "==", other)

    def __ne__(self, other: object) -> "Expression":  # type: ignore[override]
        return _joined(self, "!=", other)

    def __lt__(self, other: Any) -> "Expression":
        return _joined(self, "<", other)

    def __le__(self, other: Any) -> "Expression":
        return _joined(self, "<=", other)

    def __gt__(self, other: Any) -> "Expression":
        return _joined(self, ">", other)

    def __ge__(self, other: Any) -> "Expression":
        return _joined(self, ">=", other)

    def __and__(self, other: Any) -> "Expression":
        return _joined(self, "&&", other)

    def __or__(self, other: Any) -> "Expression":
        return _joined(self, "||", other)

    def __invert__(self) -> "Expression":
        return Expression(f"!({self.source})")


def cel(source: str) -> Expression:
    """An expression as it is written in a descriptor, without `${{ }}`: `cel("size(inputs.items)")`."""
    return Expression(source)


class StepRef:
    """A step of a workflow that is being built. `output` is what it will give."""

    __slots__ = ("name", "output")

    def __init__(self, name: str) -> None:
        self.name = name
        place = f"steps.{name}" if name.isidentifier() else f"steps[{json.dumps(name)}]"
        self.output = Expression(f"{place}.output")


class Workflow:
    """A descriptor that is being built. Two are equal if they say the same."""

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __init__(
        self,
        name: str,
        *,
        department: str | None = None,
        cost_center: str | None = None,
        labels: Mapping[str, str] | None = None,
        covenant: str | None = None,
        timeout: str | None = None,
        retries: int | None = None,
        retry: Mapping[str, Any] | None = None,
        invariants: Sequence[Any] | None = None,
        **spec: Any,
    ) -> None:
        """`spec` are further keys of the specification. Raises TypeError for one that there is not."""
        _known(spec, "spec")
        self._metadata = _given(name=name, department=department, cost_center=cost_center, labels=labels)
        given = _given(covenant=covenant, timeout=timeout, retries=retries, retry=retry, invariants=invariants, **spec)
        self._spec: dict[str, Any] = {"steps": [], **_plain(given)}

    def input(self, name: str, schema: Mapping[str, Any] | None = None, **keywords: Any) -> Expression:
        """Declare an input by its JSON Schema, or by keywords of one (`type="integer", default=3`)."""
        self._spec.setdefault("inputs", {})[name] = {**(schema or {}), **keywords}
        return Expression("inputs").__getattr__(name)

    def step(
        self,
        name: str,
        action: str | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        depends_on: Iterable[Any] | None = None,
        timeout: str | None = None,
        retries: int | None = None,
        retry: Mapping[str, Any] | None = None,
        semantics: str | None = None,
        queue: str | None = None,
        output_schema: Mapping[str, Any] | bool | None = None,
        **further: Any,
    ) -> StepRef:
        """Add a step. It depends on the steps that it reads, and on those in `depends_on`.

        `further` are other keys of a step, such as `when`. Raises TypeError for one that there is not.
        """
        _known(further, "step")
        part = _given(name=name, action=action, params=params, timeout=timeout, retries=retries, retry=retry)
        part = _plain({**part, **_given(semantics=semantics, queue=queue, output_schema=output_schema, **further)})
        named = [_plain(one.name if isinstance(one, StepRef) else one) for one in depends_on or ()]
        known = {one["name"] for one in self._spec["steps"]}
        said = {one if isinstance(one, str) else one.get("step") for one in named}
        read_steps = [one for one in sorted(_reads(part) & known) if one not in said]
        if named or read_steps:
            part["depends_on"] = [*named, *read_steps]
        self._spec["steps"].append(part)
        return StepRef(name)

    def output(self, name: str, value: Any, schema: Mapping[str, Any] | bool | None = None) -> None:
        """Declare what a run gives."""
        plain = _plain(value)
        self._spec.setdefault("outputs", {})[name] = plain if schema is None else {"value": plain, "schema": schema}

    def to_dict(self) -> dict[str, Any]:
        """The descriptor as data."""
        spec = {key: value for key, value in self._spec.items() if key != "steps"}
        copied: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "apiVersion": "knhk/v1",
                    "kind": "Workflow",
                    "metadata": self._metadata,
                    "spec": {**spec, "steps": self._spec["steps"]},
                }
            )
        )
        return copied

    def to_yaml(self) -> str:
        """The descriptor as YAML, for people."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120))

    @classmethod
    def from_yaml(cls, text: str | bytes) -> Self:
        """The workflow of a descriptor in YAML or JSON. Raises InvalidDescriptor if that is none."""
        raw = text.encode() if isinstance(text, str) else text
        found = read(raw, max_bytes=len(raw)).value
        metadata, spec = (found.get(key) for key in ("metadata", "spec")) if isinstance(found, dict) else (None, None)
        if not isinstance(metadata, dict) or not isinstance(spec, dict) or not isinstance(spec.get("steps"), list):
            raise InvalidDescriptor("a descriptor has `metadata`, and `spec` with `steps`")
        made = cls("")
        made._metadata, made._spec = dict(metadata), dict(spec)
        return made

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Workflow) else NotImplemented

    def __repr__(self) -> str:
        return f"<Workflow {self._metadata.get('name')!r}, {len(self._spec['steps'])} steps>"


def _joined(left: Any, operator: str, right: Any) -> Expression:
    return Expression(f"({_literal(left)} {operator} {_literal(right)})")


def _literal(value: Any) -> str:
    """A value as CEL has it; that is JSON, but for expressions."""
    if isinstance(value, Expression):
        return value.source
    if isinstance(value, StepRef):
        raise TypeError(f"step {value.name!r} stands for itself; its result is its `.output`")
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(str(key))}: {_literal(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """The data of a descriptor, with expressions as texts."""
    match value:
        case Expression():
            return str(value)
        case StepRef():
            raise TypeError(f"step {value.name!r} stands for itself; its result is its `.output`")
        case dict() | Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _reads(part: Mapping[str, Any]) -> set[str]:
    """The names of the steps that a step's params and conditions read."""
    found: set[str] = set()
    for key, value in part.items():
        if key in _CONDITIONS and isinstance(value, str):
            found |= _named_in(value)
        elif key != "depends_on":
            for text in _texts(value):
                for expression in _EXPRESSION.findall(text):
                    found |= _named_in(expression)
    return found


def _named_in(expression: str) -> set[str]:
    return {match[1] or match[2] for match in _STEP.finditer(expression)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


_CONDITIONS: Final = frozenset({"when", "while", "until"})
_EXPRESSION: Final = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_STEP: Final = re.compile(r"""(?<![\w.])steps(?:\.([A-Za-z_]\w*)|\[\s*["']([^"']+)["'])""")


def _known(keys: Mapping[str, Any], place: str) -> None:
    """Refuse keys that descriptors do not have: a misspelt one must not be found out on the server."""
    known = [field.encode_name for field in msgspec.structs.fields(SpecPart if place == "spec" else StepPart)]
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise TypeError(f"a {place} has no {unknown[0]!r}; it has {', '.join(known)}")
