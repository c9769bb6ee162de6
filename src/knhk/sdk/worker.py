"""The Python worker: takes attempts from a server over HTTP, performs them with `@knhk.action` functions, and reports.

Its protocol is that of every worker (docs/workers.md). It asks for as much as it has room for, keeps its leases with
heartbeats, stops what is lost, and on its end finishes what it has, or gives it back.
"""

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Protocol

import httpx
import msgspec

from knhk.actions.blob_access import provide
from knhk.actions.registry import INVOCATION, Cancelled, Failed, Invocation, Outcome, Registry, RetryLater
from knhk.actions.transport import CANCELLED_CODE, Assignment, normalised, report_of, run_blocking
from knhk.domain.errors import Conflict, InvalidInput, KnhkError, NotFound, ServerUnreachable, Unavailable
from knhk.sdk.answers import CONNECT_S, checked_url, error_of
from knhk.sdk.client import Client

_ANSWER_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
THREAD_NAME: Final = "knhk-worker-action"


class Tell(Protocol):
    """Where a worker says what it does: an event with fields."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


class Offer(msgspec.Struct):
    """An attempt as the server gives it; docs/workers.md has the other fields."""

    token: str
    lease_seconds: float
    workflow_id: str
    workflow_name: str
    step: str
    attempt: int
    idempotency_key: str
    action: str
    params: Any = None
    dependencies: dict[str, Any] = {}
    at_ns: int = 0
    traceparent: str = ""

    def invocation(self) -> Invocation:
        """What the action is called with."""
        return Assignment(
            workflow_id=self.workflow_id,
            workflow_name=self.workflow_name,
            step=self.step,
            attempt=self.attempt,
            idempotency_key=self.idempotency_key,
            action=self.action,
            params=self.params,
            dependencies=self.dependencies,
            now_ns=self.at_ns,
            traceparent=self.traceparent,
        ).invocation()


class _Offers(msgspec.Struct):
    tasks: list[Offer]


class _Leases(msgspec.Struct):
    held: list[str]
    lost: list[str]


class Worker:
    """Performs attempts of one server, at most `concurrency` at a time.

    `name` must be this process's alone. `lease_s` is how long the server waits for a sign of life before it gives an
    attempt to somebody else, `grace_s` how long a worker that is stopped finishes what it has.
    """

    def __init__(
        self,
        server: str,
        registry: Registry,
        queues: Sequence[str],
        *,
        name: str,
        concurrency: int = 1,
        lease_s: float = 60.0,
        grace_s: float = 30.0,
        wait_s: float = 30.0,
        tell: Tell,
        rng: random.Random | None = None,
    ) -> None:
        self._server, self._through_proxies = checked_url(server)
        self._registry, self._queues, self.name = registry, list(queues), name
        self._concurrency, self._lease_s, self._grace_s, self._wait_s = concurrency, lease_s, grace_s, wait_s
        self._tell, self._rng = tell, rng or random.Random()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=THREAD_NAME)
        self._changed = asyncio.Event()
        self._http: httpx.AsyncClient

    async def run(self, stopping: asyncio.Event) -> bool:
        """Work until `stopping` is set, then finish; whether all that was under way came to its end in time."""
        client = Client(self._server)
        provide(client.blobs)
        async with httpx.AsyncClient(
            base_url=self._server,
            timeout=httpx.Timeout(_ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=self._concurrency + 4),
            trust_env=self._through_proxies,
        ) as self._http:
            beating = asyncio.create_task(self._beat())
            try:
                await self._take_until(stopping)
                return await self._finish()
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
                self._threads.shutdown(wait=False, cancel_futures=True)
                await self._registry.aclose()
                client.close()

    async def _take_until(self, stopping: asyncio.Event) -> None:
        stop = asyncio.create_task(stopping.wait())
        failures = 0
        try:
            while not stopping.is_set():
                self._changed.clear()
                room = self._concurrency - len(self._running)
                step = asyncio.create_task(self._take(room) if room > 0 else self._wait_for_room())
                await asyncio.wait({step, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    step.cancel()
                    await asyncio.gather(step, return_exceptions=True)
                    return
                error = step.exception()
                if error is None:
                    failures = 0
                    continue
                if not isinstance(error, Unavailable):
                    raise error
                failures += 1
                self._tell("the server cannot be asked", reason=error.message, failures=failures)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), self._pause_s(failures))
        finally:
            stop.cancel()

    async def _wait_for_room(self) -> None:
        await self._changed.wait()

    async def _take(self, room: int) -> None:
        body = {
            "worker": self.name,
            "queues": self._queues,
            "actions": sorted(self._registry.traits()),
            "max": room,
            "wait": f"{self._wait_s:g}s",
            "lease": f"{self._lease_s:g}s",
        }
        found = await self._post("poll", body, _Offers, self._wait_s)
        for offer in found.tasks:
            task = asyncio.create_task(self._perform(offer), name=offer.idempotency_key)
            self._running[offer.token] = task
            task.add_done_callback(partial(self._leave, offer.token))

    def _leave(self, token: str, _task: "asyncio.Task[None]") -> None:
        self._running.pop(token, None)
        self._changed.set()

    async def _perform(self, offer: Offer) -> None:
        outcome = await self._outcome(offer)
        verb, body = _report(offer, outcome)
        failures = 0
        while True:
            try:
                await self._post(verb, body, dict[str, Any])
                return
            except (Conflict, NotFound) as error:
                self._tell("a result was refused", step=offer.idempotency_key, reason=error.message)
                return
            except Unavailable as error:
                failures += 1
                self._tell("a result cannot be reported", step=offer.idempotency_key, reason=error.message)
                await asyncio.sleep(self._pause_s(failures))
            except InvalidInput as error:  # too large, most likely: the server must hear of it
                if verb == "fail":
                    raise
                verb, body = _report(offer, Failed(error.code, error.message))

    async def _outcome(self, offer: Offer) -> Outcome:
        try:
            action, invocation = self._registry.get(offer.action), offer.invocation()
            INVOCATION.set(invocation)  # a task has a context of its own
            if action.mode == "async":
                return await action.run(invocation)  # type: ignore[misc, no-any-return]  # mode says that it is awaitable
            if action.mode == "inline":
                return run_blocking(action, invocation)
            call = partial(copy_context().run, run_blocking, action, invocation)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise  # its lease is lost, or the worker ends
            return RetryLater(CANCELLED_CODE, "the action cancelled itself")
        except Exception as error:
            return normalised(error)

    async def _beat(self) -> None:
        """Keep the leases of what is under way, and stop what is lost."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            tokens = list(self._running)
            if not tokens:
                continue
            try:
                leases = await self._post("heartbeat", {"worker": self.name, "tokens": tokens}, _Leases)
            except KnhkError as error:
                self._tell("a heartbeat failed", reason=error.message)
                continue
            for token in leases.lost:
                task = self._running.get(token)
                if task is not None:
                    self._tell("a lease is lost", step=task.get_name())
                    task.cancel()

    async def _finish(self) -> bool:
        """Let what is under way end in time; give back the rest."""
        if self._running:
            self._tell("finishing", attempts=len(self._running), grace_s=self._grace_s)
            await asyncio.wait(list(self._running.values()), timeout=self._grace_s)
        left = list(self._running.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        with contextlib.suppress(KnhkError):  # else the leases run out
            await self._post("release", {"worker": self.name}, dict[str, Any])
        return not left

    async def _post(self, verb: str, body: Mapping[str, Any], kind: Any, wait_s: float = 0.0) -> Any:
        timeout = httpx.Timeout(_ANSWER_S + wait_s, connect=CONNECT_S)
        headers = {"content-type": "application/json"}
        try:
            answer = await self._http.post(
                f"/workers/{verb}", content=msgspec.json.encode(body), headers=headers, timeout=timeout
            )
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"{self._server}: {error or type(error).__name__}") from error
        if answer.is_error:
            raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.DecodeError as error:
            raise ServerUnreachable(f"{self._server} answered with something that is not KNHK's") from error

    def _pause_s(self, failures: int) -> float:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, 10))
        return longest * (0.5 + self._rng.random() / 2)


def _report(offer: Offer, outcome: Outcome) -> tuple[str, dict[str, Any]]:
    """The route and the body that tell the server of an outcome."""
    report = report_of(outcome if not isinstance(outcome, Cancelled) else RetryLater(CANCELLED_CODE, "gave up"))
    lease = {"token": offer.token, "workflow_id": offer.workflow_id, "step": offer.step}
    match report.kind:
        case "succeeded":
            return "complete", {**lease, "output": report.output}
        case "wait":
            return "complete", {**lease, "output": report.output, "wait_until_ns": max(1, report.fire_at_ns)}
        case _:
            after = None if report.after_ns is None else f"{report.after_ns}ns"
            retryable = report.kind == "retry"
            failure = {"code": report.code, "message": report.message, "guard": report.guard}
            return "fail", {**lease, **failure, "retryable": retryable, "after": after}
