"""What remote workers ask for: work, more time, and that their results are taken. docs/workers.md is the protocol."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody

from knhk.actions.decorator import FAILED_CODE, RETRY_CODE
from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded, WaitUntil
from knhk.actions.transport import short
from knhk.actions.workers import Task
from knhk.api.description import problem_responses
from knhk.domain.errors import InvalidParameter
from knhk.domain.times import rfc3339
from knhk.domain.units import SECOND, parse_duration_ns

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Token = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")]


class Poll(msgspec.Struct, forbid_unknown_fields=True):
    """Who asks, for which queues; with `actions` only for those. `wait` and `lease` are durations such as `30s`."""

    worker: Name
    queues: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=100)]
    actions: Annotated[list[Name], msgspec.Meta(max_length=1000)] = []
    max: Annotated[int, msgspec.Meta(ge=1)] = 1
    wait: str = "30s"
    lease: str | None = None


class Attempt(msgspec.Struct):
    """One attempt to perform. `idempotency_key` is the same on every attempt of the step. `at_ns` is Unix time.

    `token` identifies the lease, and grows from lease to lease: hand it on to systems that can refuse an older one.
    """

    token: str
    lease_until: str
    lease_seconds: float
    workflow_id: str
    workflow_name: str
    step: str
    attempt: int
    idempotency_key: str
    action: str
    queue: str
    params: Any
    dependencies: dict[str, Any]
    at_ns: int
    traceparent: str


def attempt_of(task: Task) -> Attempt:
    """A task as a worker sees it."""
    given = task.assignment
    return Attempt(
        token=str(task.token),
        lease_until=rfc3339(task.until_ns),
        lease_seconds=task.lease_ns / SECOND,
        workflow_id=given.workflow_id,
        workflow_name=given.workflow_name,
        step=given.step,
        attempt=given.attempt,
        idempotency_key=given.idempotency_key,
        action=given.action,
        queue=task.queue,
        params=given.params,
        dependencies=dict(given.dependencies),
        at_ns=given.now_ns,
        traceparent=given.traceparent,
    )


class Attempts(msgspec.Struct):
    """What the worker was given; nothing if there was no work in time."""

    tasks: list[Attempt]


class Heartbeat(msgspec.Struct, forbid_unknown_fields=True):
    """The leases that a worker holds."""

    worker: Name
    tokens: Annotated[list[Token], msgspec.Meta(max_length=10_000)]


class Leases(msgspec.Struct):
    """`held` begin anew. `lost` are over: stop working on them, their results will be refused."""

    held: list[str]
    lost: list[str]


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """The result of an attempt. With `wait_until_ns` (Unix time) the step completes with it only then."""

    token: Token
    workflow_id: str
    step: Annotated[str, msgspec.Meta(min_length=1)]
    output: Any = None
    wait_until_ns: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Failing(msgspec.Struct, forbid_unknown_fields=True):
    """Why an attempt failed. One that is `retryable` is repeated as the step's policy says, not before `after`."""

    token: Token
    workflow_id: str
    step: Annotated[str, msgspec.Meta(min_length=1)]
    message: str
    code: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    guard: str = ""
    retryable: bool = True
    after: str | None = None


class Release(msgspec.Struct, forbid_unknown_fields=True):
    """Leases that a worker gives back without a result; without `tokens` all that it holds."""

    worker: Name
    tokens: Annotated[list[Token], msgspec.Meta(max_length=10_000)] | None = None


class Taken(msgspec.Struct):
    """The result is on disk. `repeated`: it had been taken before."""

    accepted: bool
    repeated: bool


class Want(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody would take: attempts of these queues, and of these actions unless there are none."""

    queues: list[str]
    actions: list[str] = []


class Sought(msgspec.Struct, forbid_unknown_fields=True):
    """What is looked for, and how long."""

    wants: Annotated[list[Want], msgspec.Meta(max_length=1000)]
    wait: str = "20s"


class Found(msgspec.Struct):
    """How many attempts there are for each want."""

    counts: list[int]


class Face(Protocol):
    """What is asked of the engine's workers: see engine.workers.Workers. In a cluster it is asked of all nodes."""

    async def poll(
        self,
        worker: str,
        queues: Sequence[str],
        actions: Sequence[str],
        *,
        limit: int,
        wait_s: float,
        lease_ns: int | None = None,
    ) -> Sequence[Task | Attempt]: ...
    async def sought(self, wants: Sequence[tuple[Sequence[str], Sequence[str]]], wait_s: float) -> list[int]: ...
    async def heartbeat(self, worker: str, tokens: Sequence[int]) -> tuple[list[int], list[int]]: ...
    async def report(self, workflow_id: str, step: str, token: int, outcome: Outcome) -> bool: ...
    async def release(self, worker: str, tokens: Sequence[int] | None = None) -> list[int]: ...
    async def overview(self) -> dict[str, Any]: ...


_RESULT = problem_responses(404, 409, 413, 503)


def worker_handlers(workers: Face, *, max_wait_ns: int, max_batch: int) -> list[Any]:
    """The routes under /workers."""

    @post("/workers/poll", status_code=200, summary="Take work", responses=problem_responses(503))
    async def poll(data: JSONBody[Poll], request: Request[Any, Any, Any]) -> Attempts:
        """Waits until there is work in one of the queues, at most `wait`, and leases up to `max` attempts."""
        lease_ns = None if data.lease is None else max(_duration("lease", data.lease), SECOND)
        asked = workers.poll(
            data.worker,
            data.queues,
            data.actions,
            limit=min(data.max, max_batch),
            wait_s=min(_duration("wait", data.wait), max_wait_ns) / SECOND,
            lease_ns=lease_ns,
        )
        return Attempts(await _while_connected(request, asked))

    @post("/workers/heartbeat", status_code=200, summary="Keep leases", responses=problem_responses())
    async def heartbeat(data: JSONBody[Heartbeat]) -> Leases:
        """Begins the leases anew. A worker sends it well before they run out, and stops work on those that are lost.

        In a cluster a lease may be in neither list, while its partition moves: the worker goes on.
        """
        held, lost = await workers.heartbeat(data.worker, [int(token) for token in data.tokens])
        return Leases([str(token) for token in held], [str(token) for token in lost])

    @post("/workers/complete", status_code=200, summary="Complete an attempt", responses=_RESULT)
    async def complete(data: JSONBody[Completion]) -> Taken:
        """Answers when the result is on disk. Repeating it is safe. 409: the lease is over, the result is refused."""
        outcome: Outcome = Succeeded(data.output)
        if data.wait_until_ns is not None:
            outcome = WaitUntil(data.wait_until_ns, data.output)
        return Taken(True, await workers.report(data.workflow_id, data.step, int(data.token), outcome))

    @post("/workers/fail", status_code=200, summary="Fail an attempt", responses=_RESULT)
    async def fail(data: JSONBody[Failing]) -> Taken:
        """Answers when the failure is on disk. Repeating it is safe. 409: the lease is over."""
        message = short(data.message)
        outcome: Outcome = Failed(data.code or FAILED_CODE, message, data.guard)
        if data.retryable:
            after_ns = None if data.after is None else _duration("after", data.after)
            outcome = RetryLater(data.code or RETRY_CODE, message, after_ns)
        return Taken(True, await workers.report(data.workflow_id, data.step, int(data.token), outcome))

    @post("/workers/release", status_code=200, summary="Give leases back", responses=problem_responses())
    async def release(data: JSONBody[Release]) -> Leases:
        """For a worker that stops: the attempts are given to others at once."""
        tokens = None if data.tokens is None else [int(token) for token in data.tokens]
        return Leases([], [str(token) for token in await workers.release(data.worker, tokens)])

    @get("/workers", summary="Queues and workers", responses=problem_responses())
    async def overview() -> dict[str, Any]:
        """How many attempts wait and are held in each queue, and which workers asked for work lately."""
        return await workers.overview()

    @post("/workers/sought", status_code=200, summary="Ask whether there is work", responses=problem_responses())
    async def sought(data: JSONBody[Sought]) -> Found:
        """Waits until there are attempts that somebody wants, and gives none out. The nodes of a cluster ask this."""
        wants = [(one.queues, one.actions) for one in data.wants]
        return Found(await workers.sought(wants, min(_duration("wait", data.wait), max_wait_ns) / SECOND))

    return [poll, heartbeat, complete, fail, release, overview, sought]


async def _while_connected(request: Request[Any, Any, Any], asked: Any) -> list[Attempt]:
    """What the poll gives; if the worker goes away first, it is broken off and nothing stays leased to nobody."""
    polling = asyncio.ensure_future(asked)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({polling, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not polling.done():
            return []
        return [one if isinstance(one, Attempt) else attempt_of(one) for one in polling.result()]
    finally:
        for one in (polling, gone):
            one.cancel()
        await asyncio.gather(polling, gone, return_exceptions=True)


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _duration(name: str, text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise InvalidParameter(f"{name}: {error}") from error
