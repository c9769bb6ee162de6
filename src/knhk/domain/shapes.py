"""Descriptors that differ in nothing but names and constant params share what compiling has found out.

Clients mostly send one workflow again and again with other values in it. The *shape* of a descriptor is its `spec`
without the params in which no expression stands; of descriptors with one shape only the first is compiled whole.
"""

from collections import OrderedDict
from typing import Any, Final

import msgspec

from knhk.domain.compile_bodies import is_repeated
from knhk.domain.compile_steps import VALIDATE
from knhk.domain.descriptor import Descriptor, SpecPart
from knhk.domain.expressions import Template, mentions
from knhk.domain.json_schemas import matches
from knhk.domain.plan import Plan

_SHAPES_KEPT: Final = 256
_LARGEST_SHAPE_BYTES: Final = 64 << 10
_ENCODER: Final = msgspec.msgpack.Encoder()

Params = dict[str, Any] | None


class Shapes:
    """Plans by shape, the newest kept. All are compiled with the same actions and limits."""

    def __init__(self) -> None:
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()

    def keep(self, shape: bytes, plan: Plan) -> None:
        """Remember what a descriptor of this shape was compiled to."""
        if len(shape) <= _LARGEST_SHAPE_BYTES:
            self._plans[shape] = plan
            if len(self._plans) > _SHAPES_KEPT:
                self._plans.popitem(last=False)

    def plan(self, shape: bytes, taken: list[Params], descriptor: Descriptor, digest: bytes) -> Plan | None:
        """The plan of a descriptor whose metadata are good, from another of its shape.

        None if there is none, or if a step's params do not match its action: compiling it says what is wrong.
        """
        known = self._plans.get(shape)
        if known is None:
            return None
        steps = list(known.root.steps)
        for index, params in enumerate(taken):
            if params is None:
                continue
            step = steps[index]
            schema = step.traits.params_schema
            if schema is not None and not matches(schema, params):
                return None
            steps[index] = msgspec.structs.replace(step, params=Template(params, None, params))
        metadata = descriptor.metadata
        return msgspec.structs.replace(
            known,
            digest=digest,
            name=metadata.name,
            department=metadata.department or "",
            cost_center=metadata.cost_center or "",
            labels=metadata.labels or {},
            root=msgspec.structs.replace(known.root, steps=tuple(steps)),
        )


def shape_of(spec: SpecPart) -> tuple[bytes, list[Params]]:
    """The shape of a specification, and the constant params that are not part of it, None for a step that keeps its."""
    written = [part.params for part in spec.steps]
    taken: list[Params] = []
    for part, params in zip(spec.steps, written, strict=True):
        if part.action in (VALIDATE, None) or is_repeated(part) or (params is not None and mentions(params)):
            taken.append(None)
        else:
            taken.append(params or {})
            part.params = None
    shape = _ENCODER.encode(spec)
    for part, params in zip(spec.steps, written, strict=True):
        part.params = params
    return shape, taken
