"""The descriptor as people write it: its keys, their types, and what is wrong with one that does not fit.

A descriptor that fits is converted at once by msgspec. One that does not is gone through again with `SHAPE`, slowly, to
name everything that is wrong, and the rest is still looked at by the compiler. The published schema comes from `SHAPE`
too, so a key is described, accepted and checked in one place each; tests hold the two readings of it together.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from knhk.domain.complaints import Complaints
from knhk.domain.descriptor_shape import (
    DROP,
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Number,
    Object,
    Schema,
    Text,
    Value,
    check,
)
from knhk.domain.limits import HIGHEST_PRIORITY, OnLimit
from knhk.domain.plan import CovenantName, EndState, Semantics

MAX_RETRIES: Final = 1000
MAX_LIMIT: Final = 1_000_000
COVENANTS: Final = ("O", "Sigma", "Q", "Pi", "MAPEK", "Chatman")

Retries = Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)]
Attempts = Annotated[int, msgspec.Meta(ge=1, le=MAX_RETRIES + 1)]
Factor = Annotated[float, msgspec.Meta(ge=1, le=1000)]
LimitCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_PRIORITY)]
JsonSchema = dict[str, Any] | bool


class RetryPart(msgspec.Struct, forbid_unknown_fields=True):
    """`retry` of the specification or of a step. Durations are texts with a unit, conditions CEL."""

    max_attempts: Attempts | None = None
    delay: str | None = None
    factor: Factor | None = None
    max_delay: str | None = None
    jitter: bool | None = None
    when: str | None = None
    except_when: str | None = None


class DependencyPart(msgspec.Struct, forbid_unknown_fields=True):
    """One of `depends_on` that says in which end states of the other step this one runs."""

    step: str
    on: list[EndState] | None = None


class StepPart(msgspec.Struct, forbid_unknown_fields=True):
    """One of `spec.steps`."""

    name: str
    action: str
    params: dict[str, Any] | None = None
    depends_on: list[str | DependencyPart] | None = None
    when: str | None = None
    timeout: str | None = None
    retry: RetryPart | None = None
    retries: Retries | None = None
    semantics: Semantics | None = None
    output_schema: JsonSchema | None = None
    queue: str | None = None


class InvariantPart(msgspec.Struct, forbid_unknown_fields=True):
    """One of `spec.invariants` that has a name."""

    name: str
    rule: str


class ConcurrencyPart(msgspec.Struct, forbid_unknown_fields=True):
    """`spec.concurrency`."""

    limit: LimitCount
    key: str | None = None
    on_limit: OnLimit | None = None


class RateLimitPart(msgspec.Struct, forbid_unknown_fields=True):
    """`spec.rate_limit`."""

    limit: LimitCount
    per: str
    key: str | None = None


class SpecPart(msgspec.Struct, forbid_unknown_fields=True):
    """`spec`."""

    steps: list[StepPart]
    covenant: CovenantName | None = None
    timeout: str | None = None
    retries: Retries | None = None
    retry: RetryPart | None = None
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    invariants: list[str | InvariantPart] | None = None
    concurrency: ConcurrencyPart | None = None
    rate_limit: RateLimitPart | None = None
    priority: Priority | None = None


class MetadataPart(msgspec.Struct, forbid_unknown_fields=True):
    """`metadata`."""

    name: str
    department: str | None = None
    cost_center: str | None = None
    labels: dict[str, str] | None = None


class Descriptor(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A whole descriptor."""

    api_version: Literal["knhk/v1"]
    kind: Literal["Workflow"]
    metadata: MetadataPart
    spec: SpecPart


_DURATION: Final = "a number and a unit (d, h, m, s, ms, us, ns), such as 300s or 1h30m"
_RETRY: Final = Object(
    {
        "max_attempts": Field(
            Integer(1, MAX_RETRIES + 1), "How often the step is tried in all, the first time included."
        ),
        "delay": Field(Text(), f"The pause before the second attempt: {_DURATION}. Default 100ms."),
        "factor": Field(Number(1, 1000), "By how much each pause is longer than the one before. Default 2."),
        "max_delay": Field(Text(), f"The longest pause: {_DURATION}. Default 30s."),
        "jitter": Field(Boolean(), "Whether each pause is drawn at random from nothing to its length. Default true."),
        "when": Field(Text(), "CEL over `error` (code, message, attempt): retry only if it holds."),
        "except_when": Field(Text(), "CEL over `error`: do not retry if it holds."),
    }
)
_DEPENDENCY: Final = Object(
    {
        "step": Field(Text(), "The name of the step.", required=True),
        "on": Field(
            ListOf(Choice(("completed", "failed", "skipped"))),
            "How it may have ended for this step to run. Default [completed].",
        ),
    }
)
_STEP: Final = Object(
    {
        "name": Field(Text(), "Unique among the steps: a letter or _, then letters, digits, _ . or -.", required=True),
        "action": Field(Text(), "What the step does; `knhk actions list` shows what there is.", required=True),
        "params": Field(MapOf(Value()), "What the action is given. Texts may hold ${{ CEL }}."),
        "depends_on": Field(
            ListOf(Either(Text(), _DEPENDENCY)),
            "The steps that must have ended before: names of those that must have completed, or {step, on}.",
        ),
        "when": Field(Text(), "CEL over inputs, steps and run: the step is skipped if it does not hold."),
        "timeout": Field(Text(), f"How long one attempt may take: {_DURATION}."),
        "retry": Field(_RETRY, "How failed attempts are repeated."),
        "retries": Field(Integer(0, MAX_RETRIES), "How many more attempts there are after one that failed."),
        "semantics": Field(
            Choice(("at_least_once", "at_most_once")),
            "What a crash does to a step that was under way. Default at_least_once.",
        ),
        "output_schema": Field(Schema(), "JSON Schema that the step's output must match."),
        "queue": Field(Text(), "The queue from which remote workers take this step's attempts."),
    }
)
_INVARIANT: Final = Object(
    {
        "name": Field(Text(), "What the rule is called when it is violated.", required=True),
        "rule": Field(Text(), "CEL over inputs, steps.<name>.output, run and resources.", required=True),
    }
)
_KEY: Final = "Text with ${{ CEL }} over inputs; runs that give the same count together. Default: the workflow's name."
_CONCURRENCY: Final = Object(
    {
        "limit": Field(Integer(1, MAX_LIMIT), "How many runs with the same key may be under way.", required=True),
        "key": Field(Text(), _KEY),
        "on_limit": Field(
            Choice(("queue", "cancel", "fail")),
            "What becomes of a further one: it waits, or ends at once as cancelled or failed. Default queue.",
        ),
    }
)
_RATE_LIMIT: Final = Object(
    {
        "limit": Field(Integer(1, MAX_LIMIT), "How many runs with the same key may start within `per`.", required=True),
        "per": Field(Text(), f"{_DURATION}.", required=True),
        "key": Field(Text(), _KEY),
    }
)
_SPEC: Final = Object(
    {
        "covenant": Field(Choice(COVENANTS), "What the platform promises about each run. Default Sigma."),
        "timeout": Field(Text(), f"How long a run may take: {_DURATION}. 0s means no limit."),
        "retries": Field(Integer(0, MAX_RETRIES), "The `retries` of all steps that say nothing else."),
        "retry": Field(_RETRY, "The `retry` of all steps that say nothing else."),
        "inputs": Field(
            MapOf(Value()), "JSON Schema of each input by name, or one with `type: object` for all of them."
        ),
        "outputs": Field(MapOf(Value()), "What a run gives: expressions by name, or {value, schema}."),
        "invariants": Field(ListOf(Either(Text(), _INVARIANT)), "Rules of covenant Q, as CEL."),
        "concurrency": Field(_CONCURRENCY, "How many runs may be under way at the same time."),
        "rate_limit": Field(_RATE_LIMIT, "How often runs may start."),
        "priority": Field(
            Integer(0, HIGHEST_PRIORITY),
            "Among the runs of a department that wait, greater ones start first. Default 50.",
        ),
        "steps": Field(
            ListOf(_STEP), "The steps. Each starts when those that it depends on have completed.", required=True
        ),
    }
)
_METADATA: Final = Object(
    {
        "name": Field(Text(), "The name of the workflow.", required=True),
        "department": Field(Text(), "Who it belongs to; quotas and costs are counted by department."),
        "cost_center": Field(Text(), "Who pays for it."),
        "labels": Field(MapOf(Text()), "Free texts by which workflows can be found."),
    }
)
SHAPE: Final = Object(
    {
        "apiVersion": Field(Choice(("knhk/v1",)), "The version of this format.", required=True),
        "kind": Field(Choice(("Workflow",)), "What the document describes.", required=True),
        "metadata": Field(_METADATA, "What the workflow is called and who it belongs to.", required=True),
        "spec": Field(_SPEC, "What the workflow does.", required=True),
    }
)


def parse(value: Any, complaints: Complaints) -> Descriptor | None:
    """The descriptor in a document. Complains of all that does not fit and returns what is left, None if too little."""
    try:
        return msgspec.convert(value, Descriptor)
    except msgspec.ValidationError as error:
        cleaned = check(SHAPE, value, (), complaints)
        if not complaints:  # the two readings disagree, which tests hold impossible: still refuse
            complaints.add(f"not a descriptor: {error}", ())
            return None
    try:
        return None if cleaned is DROP else msgspec.convert(cleaned, Descriptor)
    except msgspec.ValidationError:
        return None


__all__ = ["SHAPE", "DependencyPart", "Descriptor", "InvariantPart", "RetryPart", "SpecPart", "StepPart", "parse"]
