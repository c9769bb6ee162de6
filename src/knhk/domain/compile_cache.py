"""From `cache` of a step to the plan."""

from typing import Final

from knhk.domain.block_scope import BlockScope
from knhk.domain.cache import Cache, identity_of
from knhk.domain.compile_values import ValueCompiler
from knhk.domain.complaints import Complaints
from knhk.domain.descriptor import StepPart
from knhk.domain.plan import ActionTraits

_WAITING: Final = frozenset({"wait", "wait_for", "approval", "workflow"})
"""Actions that let others or time decide: what they gave is nothing to be given again."""


def compile_cache(
    scope: BlockScope, index: int, part: StepPart, traits: ActionTraits, values: ValueCompiler, complaints: Complaints
) -> Cache | None:
    """When a step may give what it, or one like it, gave before; None if it never may."""
    written = part.cache
    if written is None:
        return None
    place = scope.at(index, "cache")
    if traits.name in _WAITING:
        complaints.add(f"what {traits.name!r} gives cannot be used again", place)
    if part.semantics == "at_most_once" and not written.at_most_once:
        complaints.add(
            "an effect that must not happen twice is not one that need not happen: say `at_most_once: true` if it is",
            place,
        )
    ttl_ns = values.duration(written.ttl, (*place, "ttl"))
    if ttl_ns <= 0 and not complaints:
        complaints.add("must be longer than nothing", (*place, "ttl"))
    key = values.template(written.key, (*place, "key"), scope, index)
    identity = identity_of(traits.name, traits.version, traits.queue, part.params, part.output_schema)
    return Cache(key, ttl_ns, identity)
