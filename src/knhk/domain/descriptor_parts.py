"""The descriptor as data: one struct for each mapping in it. What each key means is said in descriptor.py."""

from typing import Annotated, Any, Final, Literal

import msgspec

from knhk.domain.limits import HIGHEST_PRIORITY, OnLimit
from knhk.domain.plan import CovenantName, EndState, Semantics
from knhk.domain.triggers import CatchUp

MAX_RETRIES: Final = 1000
MAX_CATCH_UP: Final = 1000
MAX_LIMIT: Final = 1_000_000
KINDS: Final = ("action", "steps", "switch", "parallel", "wait", "wait_for", "approval")
"""What a step can be; it is one of them."""
MAX_TIMES: Final = 100_000
"""The most items of a `foreach`, and times of a `while` or `until`."""
COVENANTS: Final = ("O", "Sigma", "Q", "Pi", "MAPEK", "Chatman")

Retries = Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)]
Attempts = Annotated[int, msgspec.Meta(ge=1, le=MAX_RETRIES + 1)]
Factor = Annotated[float, msgspec.Meta(ge=1, le=1000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMES)]
Count0 = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMES)]
CatchUpCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_CATCH_UP)]
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


class CachePart(msgspec.Struct, forbid_unknown_fields=True):
    """`cache` of a step."""

    key: Any
    ttl: str
    at_most_once: bool | None = None


class StepPart(msgspec.Struct, forbid_unknown_fields=True, rename={"while_": "while"}):
    """A step, wherever steps stand."""

    name: str
    action: str | None = None
    steps: list["StepPart"] | None = None
    switch: list["CasePart"] | None = None
    parallel: "ParallelPart | None" = None
    wait: str | dict[str, Any] | None = None
    wait_for: dict[str, Any] | None = None
    approval: dict[str, Any] | None = None
    foreach: "ForeachPart | None" = None
    while_: "LoopPart | None" = None
    until: "LoopPart | None" = None
    params: dict[str, Any] | None = None
    depends_on: list[str | DependencyPart] | None = None
    when: str | None = None
    timeout: str | None = None
    retry: RetryPart | None = None
    retries: Retries | None = None
    semantics: Semantics | None = None
    output_schema: JsonSchema | None = None
    queue: str | None = None
    output: Any = None
    continue_on_error: bool | None = None
    catch: "CatchPart | None" = None
    compensate: "CompensatePart | None" = None
    cache: CachePart | None = None


class CasePart(msgspec.Struct, forbid_unknown_fields=True):
    """One of `switch`; without `when` it is the way to take otherwise."""

    steps: list["StepPart"]
    when: str | None = None
    output: Any = None


class ParallelPart(msgspec.Struct, forbid_unknown_fields=True):
    """`parallel` of a step."""

    branches: list["StepPart"]
    compete: bool | None = None


class ForeachPart(msgspec.Struct, forbid_unknown_fields=True, rename={"items": "in", "item": "as"}):
    """`foreach` of a step."""

    items: Any
    item: str | None = None
    index: str | None = None
    concurrency: Count | None = None
    max_failures: Count0 | None = None


class LoopPart(msgspec.Struct, forbid_unknown_fields=True, rename={"last": "as"}):
    """`while` or `until` of a step."""

    condition: str
    max: Count
    last: str | None = None
    index: str | None = None


class CatchPart(msgspec.Struct, forbid_unknown_fields=True, rename={"error": "as"}):
    """`catch` of a step."""

    steps: list["StepPart"]
    when: str | None = None
    error: str | None = None
    output: Any = None


class CompensatePart(msgspec.Struct, forbid_unknown_fields=True):
    """`compensate` of a step."""

    action: str | None = None
    steps: list["StepPart"] | None = None
    params: dict[str, Any] | None = None
    timeout: str | None = None
    retry: RetryPart | None = None
    retries: Retries | None = None
    queue: str | None = None


class HandlerPart(msgspec.Struct, forbid_unknown_fields=True):
    """`spec.on_failure` and `spec.finally`."""

    steps: list["StepPart"]


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


class WebhookPart(msgspec.Struct, forbid_unknown_fields=True):
    """`webhook` of a trigger."""

    secret_env: str
    signature_header: str | None = None
    id_header: str | None = None


class TriggerPart(msgspec.Struct, forbid_unknown_fields=True):
    """One of `spec.triggers`."""

    name: str
    cron: str | None = None
    timezone: str | None = None
    catch_up: CatchUp | None = None
    max_catch_up: CatchUpCount | None = None
    webhook: WebhookPart | None = None
    event: str | None = None
    inputs: dict[str, Any] | None = None


class SpecPart(msgspec.Struct, forbid_unknown_fields=True, rename={"finally_": "finally"}):
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
    triggers: list[TriggerPart] | None = None
    on_failure: HandlerPart | None = None
    finally_: HandlerPart | None = None


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
