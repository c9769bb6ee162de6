"""What can happen to a run: the closed union of journal events and their versioned encoding.

An `Event` is a receipt before it is sealed: it has no position in a chain yet. What is common to all kinds stands in
the event itself, what is peculiar to one kind in its `detail`, one small struct per kind. Adding a kind means one
struct here, one entry in `DETAILS` and one fold in run.py.

Records here and in receipt.py are made by the hundred thousand and never form cycles, so the garbage collector is told
to pass them over (gc=False).

Compatibility: fields are only ever added, at the end, with a default; a kind is never renamed or given a new meaning.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from knhk.domain.detail import Detail as Detail
from knhk.domain.failure import Failure as Failure
from knhk.domain.failure import error_variable as error_variable
from knhk.domain.failure import is_final as is_final
from knhk.domain.record_details import DefinitionPut as DefinitionPut
from knhk.domain.record_details import DefinitionRetired as DefinitionRetired
from knhk.domain.record_details import EventReceived as EventReceived
from knhk.domain.record_details import RecordDetail as RecordDetail
from knhk.domain.record_details import RecoveryDrilled as RecoveryDrilled
from knhk.domain.record_details import ScalingDecided as ScalingDecided
from knhk.domain.record_details import ScalingEnded as ScalingEnded


class Kind(StrEnum):
    """The kinds of receipts."""

    WORKFLOW_SUBMITTED = "workflow.submitted"
    WORKFLOW_STARTED = "workflow.started"
    WORKFLOW_PAUSED = "workflow.paused"
    WORKFLOW_RESUMED = "workflow.resumed"
    WORKFLOW_RETRIED = "workflow.retried"
    WORKFLOW_ENDING = "workflow.ending"
    WORKFLOW_COMPLETED = "workflow.completed"
    WORKFLOW_FAILED = "workflow.failed"
    WORKFLOW_CANCELLED = "workflow.cancelled"
    WORKFLOW_TIMED_OUT = "workflow.timed_out"
    STEP_STARTED = "step.started"
    STEP_COMPLETED = "step.completed"
    STEP_FAILED = "step.failed"
    STEP_RETRYING = "step.retrying"
    STEP_SKIPPED = "step.skipped"
    STEP_OPENED = "step.opened"
    STEP_ENTERED = "step.entered"
    STEP_CAUGHT = "step.caught"
    STEP_UNWINDING = "step.unwinding"
    STEP_COMPENSATED = "step.compensated"
    TIMER_SET = "timer.set"
    TIMER_FIRED = "timer.fired"
    PAYLOAD_ERASED = "payload.erased"
    STEP_REUSED = "step.reused"
    STEP_WAITING = "step.waiting"
    SIGNAL_RECEIVED = "signal.received"
    APPROVAL_GIVEN = "approval.given"
    CHILD_ENDED = "child.ended"
    WORKFLOW_SETTLED = "workflow.settled"
    EVENT_RECEIVED = "event.received"
    DEFINITION_PUT = "definition.put"
    DEFINITION_RETIRED = "definition.retired"
    RECOVERY_DRILLED = "recovery.drilled"
    SCALING_DECIDED = "scaling.decided"
    SCALING_ENDED = "scaling.ended"


class Origin(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The step of another run that a run comes from; `depth` counts the runs above it."""

    workflow_id: int = 0
    step: str = ""
    depth: int = 0


NO_ORIGIN: Final = Origin()


class Submitted(Detail, frozen=True, gc=False):
    """A run was accepted. `traceparent` is the submitter's W3C trace context, empty if there was none.

    `definition` and `version` name what the run was submitted from; empty and 0 if the descriptor came with it. The
    keys are those under which it counts for its limits, empty where it has none. `child_of` is the step whose child
    this run is, `fork_of` the step at which a fork began.

    There can be no more fields: with sixteen, msgspec writes a map's head in a form that is not the shortest.
    """

    name: str
    department: str = ""
    cost_center: str = ""
    covenant: str = "Sigma"
    steps: int = 0
    idempotency_key: str = ""
    traceparent: str = ""
    labels: Mapping[str, str] = {}
    definition: str = ""
    version: int = 0
    priority: int = 50
    concurrency_key: str = ""
    rate_key: str = ""
    child_of: Origin = NO_ORIGIN
    fork_of: Origin = NO_ORIGIN


class Started(Detail, frozen=True, gc=False):
    """A slot was given to the run. `deadline_ns` is when it times out (Unix time, 0 for never).

    `counts_until_ns` is until when this start counts for its rate limit, 0 if it has none.
    """

    deadline_ns: int = 0
    counts_until_ns: int = 0


class Paused(Detail, frozen=True, gc=False):
    reason: str = ""
    idempotency_key: str = ""


class Resumed(Detail, frozen=True, gc=False):
    reason: str = ""
    idempotency_key: str = ""


class Retried(Detail, frozen=True, gc=False):
    """An operator let an ended run go on; `steps` are those that are reset.

    `from_step` is where it went back to, empty if it was to what failed; then `completed` is how many completed steps
    are left, -1 if none of them was reset. `resumed` are those of the steps that go on with what had completed inside.
    """

    steps: tuple[str, ...] = ()
    deadline_ns: int = 0
    from_step: str = ""
    completed: int = -1
    idempotency_key: str = ""
    resumed: tuple[str, ...] = ()


class Completed(Detail, frozen=True, gc=False):
    """All steps are done. `results_root` (only `Pi`) is the Merkle root of the output digests in plan order."""

    results_root: bytes = b""


class Failed(Detail, frozen=True, gc=False):
    failure: Failure


class Cancelled(Detail, frozen=True, gc=False):
    reason: str = ""
    idempotency_key: str = ""


class TimedOut(Detail, frozen=True, gc=False):
    failure: Failure


class StepStarted(Detail, frozen=True, gc=False):
    """Journaled before the attempt runs, for `at_most_once`, for timeouts that must outlive a crash, and for leases.

    `worker` is the remote worker that was given the attempt, `token` the number by which its answer is known; a later
    lease has a greater one. Empty and 0 if the attempt runs in the server.
    """

    deadline_ns: int = 0
    worker: str = ""
    token: int = 0


class StepCompleted(Detail, frozen=True, gc=False):
    """`started_at_ns` is when the action began; `queued_ns` is how long before that the attempt waited for a place.

    Steps with `cache_key`, if there is one, may give the same until `reuse_until_ns` (Unix time).
    """

    started_at_ns: int = 0
    queued_ns: int = 0
    cache_key: bytes = b""
    reuse_until_ns: int = 0


class StepFailed(Detail, frozen=True, gc=False):
    """The step failed for good."""

    failure: Failure
    started_at_ns: int = 0
    queued_ns: int = 0


class StepRetrying(Detail, frozen=True, gc=False):
    """An attempt failed and the next one may start at `next_at_ns`."""

    failure: Failure
    next_at_ns: int
    started_at_ns: int = 0
    queued_ns: int = 0


class StepSkipped(Detail, frozen=True, gc=False):
    """The step is not run. `reason` is `when` if its condition does not hold, `dependency` if one ended otherwise."""

    reason: str = ""


class StepOpened(Detail, frozen=True, gc=False):
    """A step went into its steps inside.

    `choice` is the index of the case that was chosen, `count` how many instances there are now of what is repeated; of
    a `foreach`, the items are the receipt's output. `deadline_ns` is when the step times out (Unix time, 0 for never).
    """

    choice: int = 0
    count: int = 0
    deadline_ns: int = 0


class StepEntered(Detail, frozen=True, gc=False):
    """The step's action chose the block that it goes into next, which runs under a path below the step's own.

    The receipt's output is what the action keeps for its next call, and what the block is given. Nothing in the block
    begins before `not_before_ns`; `deadline_ns` is when the step times out (Unix time, 0 for none).
    """

    block: int = 0
    path: str = ""
    not_before_ns: int = 0
    deadline_ns: int = 0


class StepUnwinding(Detail, frozen=True, gc=False):
    """The step failed, and before that is dealt with, what completed inside of it is compensated."""

    failure: Failure


class StepCompensated(Detail, frozen=True, gc=False):
    """What the step had done is undone."""


class Ending(Detail, frozen=True, gc=False):
    """The run will end in a state, and before that compensates what was done and does `on_failure` and `finally`.

    `failure` is why it failed or timed out, `reason` why it was cancelled.
    """

    state: str
    failure: Failure | None = None
    reason: str = ""
    idempotency_key: str = ""


class StepCaught(Detail, frozen=True, gc=False):
    """The step failed, and what its `catch` says begins."""

    failure: Failure
    started_at_ns: int = 0
    queued_ns: int = 0


class TimerSet(Detail, frozen=True, gc=False):
    fire_at_ns: int


class TimerFired(Detail, frozen=True, gc=False):
    pass


class PayloadErased(Detail, frozen=True, gc=False):
    """All inputs and outputs of the run were deleted on request; their digests stay in the receipts."""

    reason: str = ""


class StepReused(Detail, frozen=True, gc=False):
    """A step has what it gave in another run, by the receipt `seq` there, and is not run. `why`: `fork` or `cache`."""

    source: int
    seq: int
    why: str


class StepWaiting(Detail, frozen=True, gc=False):
    """A step waits for what somebody else must do; the fields are those of waits.Waiting."""

    what: str
    until_ns: int = 0
    event: str = ""
    correlate: str = ""
    approvers: tuple[str, ...] = ()
    required: int = 1
    on_reject: str = "fail"
    message: str = ""
    child: int = 0


class SignalReceived(Detail, frozen=True, gc=False):
    """A signal came for the run, with its data as output. `source` is the record of the event that it came by, or 0."""

    event: str
    id: str
    correlate: str = ""
    source: int = 0


class ApprovalGiven(Detail, frozen=True, gc=False):
    """Somebody answered a step's request for approval."""

    approver: str
    approved: bool
    comment: str = ""


class ChildEnded(Detail, frozen=True, gc=False):
    """A child workflow that a step waited for has ended; what it gave is the output."""

    child: int
    state: str
    failure: Failure | None = None


class Settled(Detail, frozen=True, gc=False):
    """All that had to follow from the end of the run is done: its parent knows of it, its children are cancelled."""


AnyDetail = (
    Submitted
    | Started
    | Paused
    | Resumed
    | Retried
    | Completed
    | Failed
    | Cancelled
    | TimedOut
    | StepStarted
    | StepCompleted
    | StepFailed
    | StepRetrying
    | StepSkipped
    | StepOpened
    | StepEntered
    | StepCaught
    | StepUnwinding
    | StepCompensated
    | Ending
    | TimerSet
    | TimerFired
    | PayloadErased
    | StepReused
    | StepWaiting
    | SignalReceived
    | ApprovalGiven
    | ChildEnded
    | Settled
    | EventReceived
    | DefinitionPut
    | DefinitionRetired
    | RecoveryDrilled
    | ScalingDecided
    | ScalingEnded
)

DETAILS: Final[dict[Kind, type[Detail]]] = {
    Kind.WORKFLOW_SUBMITTED: Submitted,
    Kind.WORKFLOW_STARTED: Started,
    Kind.WORKFLOW_PAUSED: Paused,
    Kind.WORKFLOW_RESUMED: Resumed,
    Kind.WORKFLOW_RETRIED: Retried,
    Kind.WORKFLOW_COMPLETED: Completed,
    Kind.WORKFLOW_FAILED: Failed,
    Kind.WORKFLOW_CANCELLED: Cancelled,
    Kind.WORKFLOW_TIMED_OUT: TimedOut,
    Kind.STEP_STARTED: StepStarted,
    Kind.STEP_COMPLETED: StepCompleted,
    Kind.STEP_FAILED: StepFailed,
    Kind.STEP_RETRYING: StepRetrying,
    Kind.STEP_SKIPPED: StepSkipped,
    Kind.STEP_OPENED: StepOpened,
    Kind.STEP_ENTERED: StepEntered,
    Kind.STEP_CAUGHT: StepCaught,
    Kind.STEP_UNWINDING: StepUnwinding,
    Kind.STEP_COMPENSATED: StepCompensated,
    Kind.WORKFLOW_ENDING: Ending,
    Kind.TIMER_SET: TimerSet,
    Kind.TIMER_FIRED: TimerFired,
    Kind.PAYLOAD_ERASED: PayloadErased,
    Kind.STEP_REUSED: StepReused,
    Kind.STEP_WAITING: StepWaiting,
    Kind.SIGNAL_RECEIVED: SignalReceived,
    Kind.APPROVAL_GIVEN: ApprovalGiven,
    Kind.CHILD_ENDED: ChildEnded,
    Kind.WORKFLOW_SETTLED: Settled,
    Kind.EVENT_RECEIVED: EventReceived,
    Kind.DEFINITION_PUT: DefinitionPut,
    Kind.DEFINITION_RETIRED: DefinitionRetired,
    Kind.RECOVERY_DRILLED: RecoveryDrilled,
    Kind.SCALING_DECIDED: ScalingDecided,
    Kind.SCALING_ENDED: ScalingEnded,
}


def family_of(kind: str) -> str:
    """What the kinds of one record have in common: the kind up to its dot."""
    return kind.partition(".")[0]


def record_name(detail: RecordDetail) -> str:
    """The name by which the record is found, unique in its family."""
    return detail.id if isinstance(detail, EventReceived) else detail.name


KIND_OF: Final[dict[type[Detail], str]] = {detail: kind.value for kind, detail in DETAILS.items()}
TERMINAL: Final = frozenset(
    {
        Kind.WORKFLOW_COMPLETED.value,
        Kind.WORKFLOW_FAILED.value,
        Kind.WORKFLOW_CANCELLED.value,
        Kind.WORKFLOW_TIMED_OUT.value,
    }
)
AFTER_THE_END: Final = TERMINAL | {Kind.PAYLOAD_ERASED.value, Kind.WORKFLOW_SETTLED.value}
"""A run whose last receipt is of these kinds has ended."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to one run.

    `step` is the step's path, empty for the run itself. `attempt` counts from 1, 0 where it has no meaning. `at_ns` is
    Unix time in nanoseconds. `actor` is who caused it: `engine`, or the caller's name. Digests are SHA-256 of the
    payload's bytes, empty where there is no payload.
    """

    at_ns: int
    detail: AnyDetail
    step: str = ""
    attempt: int = 0
    actor: str = "engine"
    input_digest: bytes = b""
    output_digest: bytes = b""


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODERS = {kind.value: msgspec.msgpack.Decoder(detail) for kind, detail in DETAILS.items()}


def encode_detail(detail: AnyDetail) -> bytes:
    """Canonical msgpack of a detail: a map, keys in the order of the struct, defaults left out."""
    return _ENCODER.encode(detail)


def decode_detail(kind: str, raw: bytes) -> AnyDetail:
    """The detail of a receipt of this kind.

    Raises:
        msgspec.ValidationError: the bytes are not of this kind's shape.
        KeyError: the kind is unknown to this version.
    """
    return _DECODERS[kind].decode(raw)  # type: ignore[return-value]  # DETAILS holds exactly the members of AnyDetail
