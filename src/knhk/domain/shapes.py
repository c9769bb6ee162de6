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


class _Written(msgspec.Struct, array_like=True):
    """What in a descriptor is not its shape."""

    metadata: dict[str, Any]
    params: list[Params]


class _Known(NamedTuple):
    """A pattern, and of the text of which it was made the shape and, encoded, the rest."""

    pattern: Pattern
    shape: bytes
    written: bytes


_WRITTEN: Final = msgspec.msgpack.Decoder(_Written)


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
        root = known.plan.root
        steps = list(root.steps)
        for index, params in enumerate(taken):
            if params is None:
                continue
            step = steps[index]
            schema = step.traits.params_schema
            if schema is not None and not matches(schema, params):
                return None
            steps[index] = msgspec.structs.replace(step, params=Template(params, None, params))
        return msgspec.structs.replace(
            known.plan,
            digest=digest,
            name=metadata.name,
            department=metadata.department or "",
            cost_center=metadata.cost_center or "",
            labels=metadata.labels or {},
            root=msgspec.structs.replace(root, steps=tuple(steps)),
        )

    def plan_of_text(self, text: bytes, digest: bytes) -> Plan | None:
        """The plan of a text that fits a pattern; None if it must be read."""
        known = self._patterns.get(outline(text))
        if known is None or (values := known.pattern.values(text)) is None:
            return None
        written = _WRITTEN.decode(known.written)
        for (kind, *keys, last), value in values:
            part: Any = written.metadata if kind == "metadata" else written.params
            for key in keys:
                part = part[key]
            part[last] = value
        try:
            metadata = msgspec.convert(written.metadata, MetadataPart)
        except msgspec.ValidationError:
            return None
        return self.plan(known.shape, written.params, metadata, digest)

    def learn(
        self,
        text: bytes,
        shape: bytes,
        taken: list[Params],
        metadata: MetadataPart,
        locate: Callable[[Path], tuple[int, int]],
    ) -> None:
        """Make a pattern of a text that was read; its shape has come before, its metadata are good."""
        known = self._shapes[shape]
        if known.patterns == _PATTERNS_A_SHAPE or len(text) > _LARGEST_SHAPE_BYTES:
            return
        known.patterns += 1
        written = _Written(msgspec.to_builtins(metadata), taken)
        leaves = dict(_leaves(written.metadata, ("metadata",)))
        for index, params in enumerate(taken):
            leaves.update(_leaves(params or {}, ("params", index)))
        pattern = pattern_of(text, leaves, lambda path: locate(_in_document(path)))
        if pattern is not None:
            _put(self._patterns, outline(text), _Known(pattern, shape, _ENCODER.encode(written)))


def _put(kept: OrderedDict[bytes, Any], key: bytes, value: Any) -> None:
    kept[key] = value
    if len(kept) > _SHAPES_KEPT:
        kept.popitem(last=False)


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
