"""The descriptor as people write it: its keys, their types, and what is wrong with one that does not fit.

A descriptor that fits is converted at once by msgspec. One that does not is gone through again with `SHAPE`, slowly, to
name everything that is wrong, and the rest is still looked at by the compiler. The published schema comes from `SHAPE`
too, so a key is described, accepted and checked in one place each; tests hold the two readings of it together.
"""

from typing import Any, Final

import msgspec

from knhk.domain.complaints import Complaints
from knhk.domain.descriptor_parts import (
    COVENANTS,
    KINDS,
    MAX_CATCH_UP,
    MAX_LIMIT,
    MAX_RETRIES,
    MAX_TIMES,
    CachePart,
    CasePart,
    CatchPart,
    CompensatePart,
    ConcurrencyPart,
    DependencyPart,
    Descriptor,
    ForeachPart,
    HandlerPart,
    InvariantPart,
    LoopPart,
    MetadataPart,
    ParallelPart,
    RateLimitPart,
    RetryPart,
    SpecPart,
    StepPart,
)
from knhk.domain.descriptor_shape import (
    DROP,
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Named,
    Number,
    Object,
    Schema,
    Text,
    Value,
    check,
)
from knhk.domain.limits import HIGHEST_PRIORITY

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
_STEPS: Final = ListOf(Named("step", lambda: _STEP))
_BLOCK_OUTPUT: Final = Field(Value(), "What the steps inside give together. Default: the outputs of the last, by name.")
_CASE: Final = Object(
    {
        "when": Field(Text(), "CEL: the case is taken if it holds and none before it did. Default: it is taken."),
        "steps": Field(_STEPS, "The steps of this case.", required=True),
        "output": _BLOCK_OUTPUT,
    }
)
_PARALLEL: Final = Object(
    {
        "branches": Field(_STEPS, "The branches; each is a step.", required=True),
        "compete": Field(Boolean(), "Whether the first that completes is all that counts. Default false."),
    }
)
_FOREACH: Final = Object(
    {
        "in": Field(Value(), "A list, or a map (its items are {key, value}), or an expression for one.", required=True),
        "as": Field(Text(), "The variable that holds the item. Default item."),
        "index": Field(Text(), "The variable that holds the item's index, from 0. Default index."),
        "concurrency": Field(Integer(1, MAX_TIMES), "How many items are worked on at a time. Default 10."),
        "max_failures": Field(Integer(0, MAX_TIMES), "How many items may fail before the step does. Default 0."),
    }
)
_LOOP: Final = Object(
    {
        "condition": Field(Text(), "CEL: whether to go on (`while`), or to stop (`until`).", required=True),
        "max": Field(Integer(1, MAX_TIMES), "The most times; the step fails if that was not enough.", required=True),
        "as": Field(Text(), "The variable that holds what the last time gave, null at first. Default last."),
        "index": Field(Text(), "The variable that counts the times, from 0. Default index."),
    }
)
_CATCH: Final = Object(
    {
        "when": Field(Text(), "CEL over the error: which failures are meant. Default all."),
        "as": Field(Text(), "The variable that holds the error (code, message, step, attempt). Default error."),
        "steps": Field(_STEPS, "What is done about the failure.", required=True),
        "output": _BLOCK_OUTPUT,
    }
)
_COMPENSATE: Final = Object(
    {
        "action": Field(Text(), "The action that undoes the step."),
        "steps": Field(_STEPS, "In place of an action: steps that undo it."),
        "params": Field(MapOf(Value()), "What the action is given; may read inputs, run, `input` and `output`."),
        "timeout": Field(Text(), f"How long one attempt may take: {_DURATION}."),
        "retry": Field(_RETRY, "How failed attempts are repeated."),
        "retries": Field(Integer(0, MAX_RETRIES), "How many more attempts there are after one that failed."),
        "queue": Field(Text(), "The queue from which remote workers take the attempts."),
    },
    one_of=("action", "steps"),
)
_CACHE: Final = Object(
    {
        "key": Field(Value(), "Text or data with ${{ CEL }}: what must be equal for it.", required=True),
        "ttl": Field(Text(), f"For how long after the step has completed: {_DURATION}.", required=True),
        "at_most_once": Field(Boolean(), "Whether also an effect that must not happen twice. Default false."),
    }
)
_HANDLER: Final = Object({"steps": Field(_STEPS, "The steps.", required=True)})
_STEP: Final[Object] = Object(
    {
        "name": Field(Text(), "Unique among its steps: a letter or _, then letters, digits, _ . or -.", required=True),
        "action": Field(Text(), "What the step does; `knhk actions list` shows what there is."),
        "steps": Field(_STEPS, "In place of an action: steps that together are this one."),
        "switch": Field(ListOf(_CASE), "In place of an action: the first case whose `when` holds."),
        "parallel": Field(_PARALLEL, "In place of an action: branches side by side."),
        "wait": Field(
            Either(Text(), MapOf(Value())),
            f"In place of an action: a pause, {_DURATION}, or the params of the action `wait`.",
        ),
        "wait_for": Field(MapOf(Value()), "In place of an action: an event to wait for, {event, correlate, timeout}."),
        "approval": Field(
            MapOf(Value()), "In place of an action: people who must agree, {approvers, required, timeout, message}."
        ),
        "foreach": Field(_FOREACH, "Do the step once for each item."),
        "while": Field(_LOOP, "Do the step again and again as long as a condition holds."),
        "until": Field(_LOOP, "Do the step again and again until a condition holds."),
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
        "output": _BLOCK_OUTPUT,
        "continue_on_error": Field(Boolean(), "Whether the rest goes on as if the step had completed, if it fails."),
        "catch": Field(_CATCH, "What is done if the step fails; then it has completed after all."),
        "compensate": Field(_COMPENSATE, "What undoes the step if it has completed and the run does not."),
        "cache": Field(_CACHE, "When the step gives what one like it gave before, and is not run."),
    },
    one_of=KINDS,
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
_WEBHOOK: Final = Object(
    {
        "secret_env": Field(Text(), "The server's variable with the secret: KNHK_WEBHOOK_...", required=True),
        "signature_header": Field(
            Text(), "The header with the HMAC-SHA256 of the body. Default X-Hub-Signature-256, as GitHub sends it."
        ),
        "id_header": Field(Text(), "The header that tells a repeated delivery. Default X-GitHub-Delivery."),
    }
)
_TRIGGER: Final = Object(
    {
        "name": Field(Text(), "Unique among the triggers.", required=True),
        "cron": Field(Text(), "A schedule: minute, hour, day of month, month, day of week."),
        "timezone": Field(Text(), "The zone of the schedule, such as Europe/Berlin. Default UTC."),
        "catch_up": Field(
            Choice(("none", "last", "all")), "Which of the times that the server missed are made up for. Default last."
        ),
        "max_catch_up": Field(Integer(1, MAX_CATCH_UP), "How many of them at most, the latest. Default 100."),
        "webhook": Field(_WEBHOOK, "A signed request to /hooks/{definition}/{trigger}."),
        "event": Field(Text(), "A published event of this name."),
        "inputs": Field(MapOf(Value()), "What the run is given; ${{ CEL }} over `trigger`."),
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
        "triggers": Field(ListOf(_TRIGGER), "What starts runs by itself, once the descriptor is a definition."),
        "priority": Field(
            Integer(0, HIGHEST_PRIORITY),
            "Among the runs of a department that wait, greater ones start first. Default 50.",
        ),
        "on_failure": Field(_HANDLER, "What is done if the run fails or times out."),
        "finally": Field(_HANDLER, "What is done at the end of every run, however it ends."),
        "steps": Field(_STEPS, "The steps. Each starts when those that it depends on have completed.", required=True),
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


__all__ = [
    "SHAPE",
    "CachePart",
    "CasePart",
    "CatchPart",
    "CompensatePart",
    "ConcurrencyPart",
    "DependencyPart",
    "Descriptor",
    "ForeachPart",
    "HandlerPart",
    "InvariantPart",
    "LoopPart",
    "MetadataPart",
    "ParallelPart",
    "RateLimitPart",
    "RetryPart",
    "SpecPart",
    "StepPart",
    "parse",
]
