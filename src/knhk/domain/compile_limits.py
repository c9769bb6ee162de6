"""From `concurrency`, `rate_limit` and `priority` of a descriptor to the limits in its plan."""

from knhk.domain.block_scope import EVERYWHERE, BlockScope
from knhk.domain.compile_values import ValueCompiler
from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor import SpecPart
from knhk.domain.expressions import Template
from knhk.domain.limits import DEFAULT_PRIORITY, NO_LIMITS, Concurrency, Limits, RateLimit


def compile_limits(spec: SpecPart, values: ValueCompiler, scope: BlockScope, complaints: Complaints) -> Limits:
    """The limits of a specification; complains of a key that reads what is not known when a run is submitted."""
    concurrency, rate_limit = spec.concurrency, spec.rate_limit
    if concurrency is None and rate_limit is None and spec.priority is None:
        return NO_LIMITS
    at_most = rate = None
    if concurrency is not None:
        key = _key(concurrency.key, ("spec", "concurrency", "key"), values, scope, complaints)
        at_most = Concurrency(concurrency.limit, concurrency.on_limit or "queue", key)
    if rate_limit is not None:
        key = _key(rate_limit.key, ("spec", "rate_limit", "key"), values, scope, complaints)
        path = ("spec", "rate_limit", "per")
        per_ns = values.duration(rate_limit.per, path)
        if per_ns <= 0 and not complaints:
            complaints.add("must be longer than nothing", path)
        rate = RateLimit(rate_limit.limit, per_ns, key)
    return Limits(DEFAULT_PRIORITY if spec.priority is None else spec.priority, at_most, rate)


def _key(
    text: str | None, path: Path, values: ValueCompiler, scope: BlockScope, complaints: Complaints
) -> Template | None:
    if text is None:
        return None
    key = values.template(text, path, scope, EVERYWHERE)
    if key.steps:
        complaints.add("is needed before any step runs, so it cannot read the output of one; read `inputs`", path)
    return key
