"""The compiled workflow: what the engine runs. Built once per descriptor, immutable, shared by all its runs."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from knhk.domain.cache import Cache
from knhk.domain.expressions import Condition, Scope, Template
from knhk.domain.limits import NO_LIMITS, Limits, key_of
from knhk.domain.triggers import Trigger

EndState = Literal["completed", "failed", "skipped"]
Semantics = Literal["at_least_once", "at_most_once"]
CovenantName = Literal["O", "Sigma", "Q", "Pi", "MAPEK", "Chatman"]
NEVER: Final = 0
GIVEN: Final = "given"
"""The variable under which what a block was given is found by what runs in it."""


class ActionTraits(msgspec.Struct, frozen=True):
    """What the compiler must know of an action.

    `pure` actions have no effect outside: running them twice gives the same answer. `guarantee` is exactly-once,
    at-least-once or at-most-once, as the API shows it. The schemas are JSON Schemas, or None where anything is allowed.
    `reads_dependencies` is false for an action that takes nothing but its params, never the outputs of the steps that
    its step depends on; then those need not be kept for it. `disabled` says why the configuration does not allow the
    action, empty if it does. `literal` are paths of params that no expression may fill, `*` standing for every element.
    `queue` is where remote workers take the attempts, empty for those that this process performs. What one `version` of
    an action gave is never given for another.
    """

    name: str
    pure: bool
    guarantee: str = "at-least-once"
    params_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    reads_dependencies: bool = True
    disabled: str = ""
    literal: tuple[str, ...] = ()
    queue: str = ""
    version: str = ""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How failed attempts are repeated. `max_attempts` counts the first one too; times are in nanoseconds.

    The pause before attempt n+1 is `delay * factor**(n-1)`, at most `max_delay`; with `jitter` it is drawn uniformly
    from 0 to that ("full jitter", M. Brooker, Exponential Backoff And Jitter, AWS 2015). `when` and `except_when` are
    CEL over `error` (code, message, attempt): retry only when the one holds and the other does not.
    """

    max_attempts: int = 1
    delay_ns: int = 100_000_000
    factor: float = 2.0
    max_delay_ns: int = 30_000_000_000
    jitter: bool = True
    when: Condition | None = None
    except_when: Condition | None = None


class Invariant(msgspec.Struct, frozen=True):
    """A rule of covenant Q. It applies as soon as every step that it names has completed."""

    name: str
    rule: Condition


class Step(msgspec.Struct, frozen=True):
    """One node of a block's DAG. `depends_on` and `dependents` are indexes into Block.steps; timeouts 0 mean none.

    `keep_output` says whether another step, an output or an invariant reads this step's output, so that a running
    workflow holds in memory only the values that it will need. `given` are the names of the steps whose outputs the
    action is given.

    `body` is what a step has in place of an action, for example steps of its own; then `action` is the key by which
    the descriptor says so. `definition` is what an action is told of its step besides params. `catch` is what is done
    if the step fails, `compensate` what undoes it once it has completed, `cache` when it need not run at all.

    `accepts` says, for a dependency by its index, in which end states it lets this step run; one that is not in it must
    have completed. `failure_is_handled`: the failure of this step is not that of its block, because
    `continue_on_error` is set or a dependent waits for it.
    """

    index: int
    name: str
    action: str
    traits: ActionTraits
    params: Template
    depends_on: tuple[int, ...]
    dependents: tuple[int, ...]
    timeout_ns: int
    retry: RetryPolicy
    semantics: Semantics
    keep_output: bool
    output_schema: Mapping[str, Any] | None = None
    given: tuple[str, ...] = ()
    when: Condition | None = None
    accepts: Mapping[int, frozenset[EndState]] = {}
    continue_on_error: bool = False
    failure_is_handled: bool = False
    body: "Body | None" = None
    catch: "Catch | None" = None
    compensate: "Step | None" = None
    definition: Any = None
    cache: Cache | None = None


class Block(msgspec.Struct, frozen=True):
    """A DAG of steps that is run as a whole: that of the workflow, or one inside a step.

    `waits_for` is how many dependencies each step has, `first` are the steps that have none, `last` those on which no
    other depends. `plain`: every dependency must have completed and every failure is the block's, as in most.
    `output` is what the block gives; without it, the outputs of the `last` steps by name.

    A block that `repeats` has one step, of which there are as many instances as its frame says.
    """

    steps: tuple[Step, ...]
    index_of: Mapping[str, int]
    waits_for: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    plain: bool
    output: Template | None = None
    repeats: bool = False


def block_of(steps: tuple[Step, ...], output: Template | None = None, *, repeats: bool = False) -> Block:
    """The block of these steps, each of which is at its index."""
    return Block(
        steps,
        {step.name: step.index for step in steps},
        tuple([len(step.depends_on) for step in steps]),
        tuple([step.index for step in steps if not step.depends_on]),
        tuple([step.index for step in steps if not step.dependents]),
        not any(step.accepts or step.failure_is_handled or step.body or step.compensate for step in steps),
        output,
        repeats,
    )


class Group(msgspec.Struct, frozen=True):
    """`steps`: a block that runs as one step."""

    block: Block


class Foreach(msgspec.Struct, frozen=True):
    """`foreach`: the step once for each of the items, at most `concurrency` at a time.

    Expressions find the item and its index under these names. It fails once more than `max_failures` of them have.
    """

    block: Block
    items: Template
    item_name: str
    index_name: str
    concurrency: int
    max_failures: int


class Loop(msgspec.Struct, frozen=True):
    """`while` and `until`: the step again and again, at most `bound` times.

    `while` asks before each time and goes on if the condition holds, `until` asks after it and goes on if not.
    Expressions find what the time before gave, and how many there were before, under these names.
    """

    block: Block
    condition: Condition
    until: bool
    bound: int
    last_name: str
    index_name: str


class Case(msgspec.Struct, frozen=True):
    """One way of a switch, to be taken if the condition holds; None is the way to take otherwise."""

    condition: Condition | None
    block: Block


class Switch(msgspec.Struct, frozen=True):
    """`switch`: the first case whose condition holds."""

    cases: tuple[Case, ...]


class Parallel(msgspec.Struct, frozen=True):
    """`parallel`: branches side by side. If they compete, the first that completes is all that counts."""

    block: Block
    compete: bool


class Directed(msgspec.Struct, frozen=True):
    """A step whose action says which of these blocks it goes into next, and is called again when that has ended.

    With `compete` the first step of a block that completes ends the others.
    """

    blocks: tuple[Block, ...]
    compete: bool = False


Body = Group | Foreach | Loop | Switch | Parallel | Directed


class Catch(msgspec.Struct, frozen=True):
    """`catch`: what is done about a failure for which the condition holds, which expressions find under a name."""

    block: Block
    when: Condition | None
    error_name: str


def blocks_in(step: Step) -> tuple[Block, ...]:
    """All blocks that a step has inside."""
    inside: list[Block] = [] if step.catch is None else [step.catch.block]
    match step.body:
        case Switch(cases=cases):
            inside += [case.block for case in cases]
        case Directed():
            inside += step.body.blocks
        case Group() | Foreach() | Loop() | Parallel():
            inside.append(step.body.block)
    return tuple(inside)


def is_resumable(step: Step) -> bool:
    """Whether a retry can go on inside of a step that has not completed."""
    body = step.body
    return body is not None and not isinstance(body, Directed) and not (isinstance(body, Parallel) and body.compete)


WHOLE: Final = ""
"""The name of an output that is all that a workflow gives, and need be no mapping."""


class Output(msgspec.Struct, frozen=True):
    """One declared output of the workflow."""

    name: str
    value: Template
    schema: Mapping[str, Any] | None = None


class Plan(msgspec.Struct, frozen=True):
    """A workflow ready to run. `digest` is SHA-256 of the descriptor's bytes as they were submitted."""

    digest: bytes
    name: str
    department: str
    cost_center: str
    labels: Mapping[str, str]
    covenant: CovenantName
    timeout_ns: int
    root: Block
    inputs_schema: Mapping[str, Any] | None
    outputs: tuple[Output, ...]
    invariants: tuple[Invariant, ...]
    limits: Limits = NO_LIMITS
    triggers: tuple[Trigger, ...] = ()
    on_failure: Block | None = None
    finally_: Block | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the workflow itself."""
        return self.root.steps

    @property
    def index_of(self) -> Mapping[str, int]:
        """Where in `steps` each of them stands, by name."""
        return self.root.index_of

    def action_of(self, path: str) -> str:
        """The action of the step with a path, empty if there is no such step."""
        index = self.index_of.get(path)
        step = self.step_at(path) if index is None else self.steps[index]
        return "" if step is None else step.action

    def step_at(self, path: str) -> Step | None:
        """The step with a path, None if there is none. Of cases with steps of one name it is the first."""
        blocks: tuple[Block, ...] = (self.root,)
        at_the_end, _, rest = path.partition("/")
        if (handler := {":on_failure": self.on_failure, ":finally": self.finally_}.get(at_the_end)) is not None:
            blocks, path = (handler,), rest
        step: Step | None = None
        for part in path.split("/"):
            name, _, role = part.partition(":")
            name, repeated, _ = name.partition("[")
            found = next((block.steps[block.index_of[name]] for block in blocks if name in block.index_of), None)
            if found is None and step is not None and isinstance(step.body, Directed):
                continue  # It is part of where the step's action put the block.
            step = found
            if step is not None and repeated:
                step = step.body.block.steps[0] if isinstance(step.body, Foreach | Loop) else None
            if step is None:
                return None
            if role == "compensate" and step.compensate is not None:
                step = step.compensate
                blocks = blocks_in(step)
            else:
                blocks = (step.catch.block,) if role and step.catch is not None else blocks_in(step)
        return step


def keys_of(plan: Plan, inputs: Mapping[str, Any]) -> tuple[str, str]:
    """The concurrency key and the rate key of a run with these inputs. Raises InvalidInputs."""
    facts = {"name": plan.name, "department": plan.department, "labels": dict(plan.labels), "covenant": plan.covenant}
    scope, limits = Scope(inputs, {}, facts), plan.limits
    return (
        key_of(limits.concurrency, "concurrency", plan.name, scope),
        key_of(limits.rate_limit, "rate_limit", plan.name, scope),
    )
