"""Descriptors that differ in nothing but names and constant params share what compiling has found out.

Clients mostly send one workflow again and again with other values in it. The *shape* of a descriptor is its `spec`
without the params in which no expression stands; of descriptors with one shape only the first is compiled whole. When
a shape comes again, the text is made a pattern (text_patterns.py); those that fit it are not even read.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from knhk.domain.compile_bodies import is_repeated
from knhk.domain.compile_steps import VALIDATE
from knhk.domain.descriptor import MetadataPart, SpecPart
from knhk.domain.expressions import Template, mentions
from knhk.domain.json_schemas import matches
from knhk.domain.plan import Plan
from knhk.domain.text_patterns import Pattern, outline, pattern_of
from knhk.domain.yaml_events import Path

_SHAPES_KEPT: Final = 256
_LARGEST_SHAPE_BYTES: Final = 64 << 10
_PATTERNS_A_SHAPE: Final = 4
"""Making a pattern costs more than reading: descriptors of one shape that are never alike in their text get no more."""
_ENCODER: Final = msgspec.msgpack.Encoder()

Params = dict[str, Any] | None


class _Shape:
    """A plan for all descriptors of a shape, and how many patterns were made of their texts."""

    __slots__ = ("patterns", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan, self.patterns = plan, 0


class _Known(NamedTuple):
    """A pattern, and what the text of which it was made was compiled to.

    `params` are the params in which there are holes, by the index of their step, encoded. `places` says where each hole
    is: in which of `params`, -1 for the metadata, and the keys to it there.
    """

    pattern: Pattern
    plan: Plan
    params: tuple[tuple[int, bytes], ...]
    places: tuple[tuple[int, tuple[str, ...], str], ...]


_DECODER: Final = msgspec.msgpack.Decoder(dict[str, Any])


class Shapes:
    """Plans by shape and patterns by outline, the newest kept. All are compiled with the same actions and limits."""

    def __init__(self) -> None:
        self._shapes: OrderedDict[bytes, _Shape] = OrderedDict()
        self._patterns: OrderedDict[bytes, _Known] = OrderedDict()

    def keep(self, shape: bytes, plan: Plan) -> None:
        """Remember what a descriptor of this shape was compiled to."""
        if len(shape) <= _LARGEST_SHAPE_BYTES:
            _put(self._shapes, shape, _Shape(plan))

    def plan(self, shape: bytes, taken: list[Params], metadata: MetadataPart, digest: bytes) -> Plan | None:
        """The plan of a descriptor whose metadata are good, from another of its shape.

        None if there is none, or if a step's params do not match its action: compiling it says what is wrong.
        """
        known = self._shapes.get(shape)
        if known is None:
            return None
        named = {
            "name": metadata.name,
            "department": metadata.department or "",
            "cost_center": metadata.cost_center or "",
            "labels": metadata.labels or {},
        }
        return _with(
            known.plan, digest, named, [(index, params) for index, params in enumerate(taken) if params is not None]
        )

    def plan_of_text(self, text: bytes, digest: bytes) -> Plan | None:
        """The plan of a text that fits a pattern; None if it must be read."""
        known = self._patterns.get(outline(text))
        if known is None or (values := known.pattern.values(text)) is None:
            return None
        named: dict[str, Any] = {}
        taken = [(index, _DECODER.decode(raw)) for index, raw in known.params]
        for value, (params, keys, last) in zip(values, known.places, strict=True):
            if params >= 0:
                part = taken[params][1]
                for key in keys:
                    part = part[key]
                part[last] = value
            elif type(value) is not str:
                return None
            elif keys:
                named.setdefault("labels", dict(known.plan.labels))[last] = value
            else:
                named[last] = value
        return _with(known.plan, digest, named, taken)

    def learn(
        self,
        text: bytes,
        plan: Plan,
        shape: bytes,
        taken: list[Params],
        metadata: MetadataPart,
        locate: Callable[[Path], tuple[int, int]],
    ) -> None:
        """Make a pattern of a text that was read and whose plan this is; its shape has come before."""
        known = self._shapes[shape]
        if known.patterns == _PATTERNS_A_SHAPE or len(text) > _LARGEST_SHAPE_BYTES:
            return
        known.patterns += 1
        leaves = dict(_leaves(msgspec.to_builtins(metadata), ("metadata",)))
        for index, params in enumerate(taken):
            leaves.update(_leaves(params or {}, ("params", index)))
        pattern = pattern_of(text, leaves, lambda path: locate(_in_document(path)))
        if pattern is None:
            return
        paths = [path for path, _ in pattern.holes]
        steps = sorted({int(path[1]) for path in paths if path[0] == "params"})
        holed = tuple([(index, _ENCODER.encode(taken[index])) for index in steps])
        places = tuple([_place(path, steps) for path in paths])
        _put(self._patterns, outline(text), _Known(pattern, plan, holed, places))


def _put(kept: OrderedDict[bytes, Any], key: bytes, value: Any) -> None:
    kept[key] = value
    if len(kept) > _SHAPES_KEPT:
        kept.popitem(last=False)


def _with(plan: Plan, digest: bytes, named: dict[str, Any], taken: list[tuple[int, dict[str, Any]]]) -> Plan | None:
    """A plan with other metadata and other params of some steps; None if these do not match their actions."""
    root = plan.root
    steps = list(root.steps)
    for index, params in taken:
        step = steps[index]
        schema = step.traits.params_schema
        if schema is not None and not matches(schema, params):
            return None
        steps[index] = msgspec.structs.replace(step, params=Template(params, None, params))
    return msgspec.structs.replace(plan, digest=digest, root=msgspec.structs.replace(root, steps=tuple(steps)), **named)


def _place(path: Path, steps: list[Any]) -> tuple[int, tuple[Any, ...], Any]:
    if path[0] == "metadata":
        return -1, path[1:-1], path[-1]
    return steps.index(path[1]), path[2:-1], path[-1]


def _leaves(part: dict[str, Any], path: Path) -> list[tuple[Path, Any]]:
    """The single values in mappings, by path."""
    found: list[tuple[Path, Any]] = []
    for key, value in part.items():
        if isinstance(value, dict):
            found += _leaves(value, (*path, key))
        elif not isinstance(value, list):
            found.append(((*path, key), value))
    return found


def _in_document(path: Path) -> Path:
    kind, *rest = path
    return path if kind == "metadata" else ("spec", "steps", rest[0], "params", *rest[1:])


def shape_of(spec: SpecPart) -> tuple[bytes, list[Params]]:
    """The shape of a specification, and the constant params that are not part of it, None for a step that keeps its."""
    written = [part.params for part in spec.steps]
    taken: list[Params] = []
    for part, params in zip(spec.steps, written, strict=True):
        kept = part.action in (VALIDATE, None) or part.cache is not None or is_repeated(part)
        if kept or (params is not None and mentions(params)):
            taken.append(None)
        else:
            taken.append(params or {})
            part.params = None
    shape = _ENCODER.encode(spec)
    for part, params in zip(spec.steps, written, strict=True):
        part.params = params
    return shape, taken
