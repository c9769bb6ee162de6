"""The requests of the API as data: what is sent, and how its answer is read. Both clients send these."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from knhk.domain.errors import InvalidParameter
from knhk.domain.identifier import parse, to_text
from knhk.sdk.builder import Workflow

Answer = TypeVar("Answer")
State = Literal["pending", "running", "paused", "completed", "failed", "cancelled", "timed_out"]
ENDED: Final = frozenset({"completed", "failed", "cancelled", "timed_out"})
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_JSON: Final = {"content-type": "application/json"}


class Failure(msgspec.Struct, frozen=True):
    """Why a run or a step did not complete; docs/errors.md explains the codes."""

    code: str
    message: str
    guard: str = ""
    step: str = ""


class Submitted(msgspec.Struct, frozen=True):
    """A run that is on disk. `outputs` and `failure` are there if it was waited for and has ended.

    `replayed`: the idempotency key was known, and this is the run of the first request.
    """

    workflow_id: str
    state: State
    replayed: bool = False
    outputs: dict[str, Any] | None = None
    failure: Failure | None = None


class Signalled(msgspec.Struct, frozen=True):
    """A signal that is on disk. `step` took it; without one it is kept for a step that waits later."""

    workflow_id: str
    signal_id: str
    step: str | None = None
    replayed: bool = False


class Published(msgspec.Struct, frozen=True):
    """An event that is on disk; these runs have it by now, and its triggers have started those."""

    event_id: str
    record: str
    delivered_to: list[str] = []
    started: list[str] = []
    kept_until: str = ""
    replayed: bool = False


class StepStatus(msgspec.Struct, frozen=True):
    """One step of a run."""

    name: str
    action: str = ""
    state: str = ""
    attempts: int = 0
    depends_on: list[Any] = []
    guarantee: str = ""
    worker: str = ""
    failure: Failure | None = None
    output: Any = None


class Run(msgspec.Struct, frozen=True):
    """The state of a run. `inputs`, `outputs` and the steps' outputs are there only after `inspect`."""

    workflow_id: str
    name: str
    state: State
    department: str = ""
    cost_center: str = ""
    covenant: str = ""
    labels: dict[str, str] = {}
    submitted_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_ms: float | None = None
    steps_total: int = 0
    steps_completed: int = 0
    waiting_on: list[dict[str, Any]] = []
    failure: Failure | None = None
    erased: bool = False
    steps: list[StepStatus] = []
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether it is in one of its end states."""
        return self.state in ENDED

    def step(self, name: str) -> StepStatus:
        """The step of this name. Raises KeyError."""
        for one in self.steps:
            if one.name == name:
                return one
        raise KeyError(name)


class Page(msgspec.Struct, frozen=True):
    """Runs, newest first. `next_cursor` is where the next page begins, None after the last.

    `unanswered` says which nodes of a cluster did not answer: their runs are missing.
    """

    workflows: list[Run]
    next_cursor: str | None = None
    unanswered: list[str] = msgspec.field(default_factory=list)


class Receipt(msgspec.Struct, frozen=True):
    """One link of a run's chain, with digests and hashes in hexadecimal (docs/receipts.md)."""

    workflow_id: str
    seq: int
    kind: str
    step: str
    attempt: int
    at_ns: int
    actor: str
    detail: dict[str, Any]
    hash: str
    previous_hash: str = ""
    input_digest: str = ""
    output_digest: str = ""
    descriptor_digest: str = ""


class Receipts(msgspec.Struct, frozen=True):
    """The answer of the route."""

    receipts: list[Receipt]


class ActionInfo(msgspec.Struct, frozen=True):
    """An action that steps may name. `reason` says why it is not `allowed`."""

    name: str
    guarantee: str
    about: str = ""
    pure: bool = False
    runs_in: str = ""
    allowed: bool = True
    reason: str = ""
    source: str = ""


class Actions(msgspec.Struct, frozen=True):
    """The answer of the route."""

    actions: list[ActionInfo]


class Call(msgspec.Struct, Generic[Answer], frozen=True):
    """A request and the type of its answer. `repeatable`: sending it twice does no more than sending it once."""

    method: str
    path: str
    answer: type[Answer]
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    body: bytes | None = None
    wait_s: float = 0.0
    repeatable: bool = True


def submit(
    workflow: Workflow | Mapping[str, Any] | Path | str | bytes | None,
    inputs: Mapping[str, Any] | None,
    *,
    name: str | None,
    version: str | int | None,
    key: str,
    wait_s: float,
) -> Call[Submitted]:
    """Submit a descriptor, or a registered definition by its name."""
    if not _KEY.fullmatch(key):
        raise InvalidParameter("the idempotency key must be 1 to 255 characters of printable ASCII")
    envelope: dict[str, Any] = {"inputs": dict(inputs or {})}
    match workflow:
        case None if name:
            envelope |= {"name": name} | ({} if version is None else {"version": version})
        case None:
            raise InvalidParameter("submit: give a workflow, or the name of a registered definition")
        case Workflow():
            envelope["descriptor"] = workflow.to_dict()
        case Path():
            envelope["descriptor"] = workflow.read_text()
        case bytes():
            envelope["descriptor"] = workflow.decode()
        case str() | Mapping():
            envelope["descriptor"] = workflow
    query = {"wait": f"{wait_s:g}s"} if wait_s > 0 else {}
    headers = {**_JSON, "idempotency-key": key}
    return Call("POST", "/workflows", Submitted, query, headers, msgspec.json.encode(envelope), wait_s)


def status(workflow_id: str, *, verbose: bool) -> Call[Run]:
    """The state of a run."""
    return Call("GET", path_of(workflow_id), Run, {"verbose": "true"} if verbose else {})


def listing(**query: Any) -> Call[Page]:
    """A page of runs."""
    return Call("GET", "/workflows", Page, {key: str(value) for key, value in query.items() if value is not None})


def change(workflow_id: str, verb: str, reason: str | None) -> Call[Run]:
    """An operator's decision. Not sent again by itself: the second one would be told that it is not possible now."""
    body = None if reason is None else msgspec.json.encode({"reason": reason})
    return Call("POST", f"{path_of(workflow_id)}/{verb}", Run, {}, _JSON if body else {}, body, repeatable=False)


def signal(workflow_id: str, event: str, data: Any, *, correlate: str, signal_id: str) -> Call[Signalled]:
    """An event for one run. Sending it again is safe, because of its id."""
    body = {"event": event, "data": data, "correlate": correlate, "id": signal_id}
    return Call("POST", f"{path_of(workflow_id)}/signals", Signalled, {}, _JSON, msgspec.json.encode(body))


def judgement(workflow_id: str, verb: str, *, approver: str, step: str, comment: str) -> Call[Run]:
    """Somebody's answer to a step that waits for approval. The same one again does nothing."""
    body = {"approver": approver, "step": step, "comment": comment}
    return Call("POST", f"{path_of(workflow_id)}/{verb}", Run, {}, _JSON, msgspec.json.encode(body))


def event(name: str, correlate: str, data: Any, *, event_id: str, keep: str) -> Call[Published]:
    """An event for all runs that wait for it. Sending it again is safe, because of its id."""
    body = {"event": name, "correlate": correlate, "data": data, "id": event_id, "keep": keep}
    return Call("POST", "/events", Published, {}, _JSON, msgspec.json.encode(body))


def receipts(workflow_id: str, from_seq: int) -> Call[Receipts]:
    """The receipts of a run."""
    return Call("GET", f"{path_of(workflow_id)}/receipts", Receipts, {"from_seq": str(from_seq)} if from_seq else {})


def actions() -> Call[Actions]:
    """What steps may do."""
    return Call("GET", "/actions", Actions)


def delete(workflow_id: str) -> Call[dict[str, Any]]:
    """Erase the inputs and outputs of an ended run."""
    return Call("DELETE", path_of(workflow_id), dict[str, Any])


def path_of(workflow_id: str) -> str:
    """The route of a run. Raises WorkflowNotFound for what is no id, so that nothing else gets into the path."""
    return f"/workflows/{to_text(parse(workflow_id))}"
