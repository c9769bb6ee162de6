"""Clients of the API: `Client` for ordinary programs, `AsyncClient` for those with an event loop. They do the same.

What the server answers with an error is raised as that error (knhk.domain.errors). A request that may be sent again is:
after a broken connection, and when the server says that it is overloaded or unavailable. Submissions are among them,
since each has an idempotency key.
"""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from knhk.domain.errors import KnhkError, ServerUnreachable
from knhk.sdk import calls
from knhk.sdk.answers import ANSWER_S, CONNECT_S, SILENCE_S, checked_url, error_of, receipts_in
from knhk.sdk.blobs import AsyncBlobs, Blobs
from knhk.sdk.builder import Workflow
from knhk.sdk.calls import ActionInfo, Call, Page, Published, Receipt, Run, Signalled, State, Submitted

SERVER: Final = "http://127.0.0.1:8080"
LONGEST_WAIT_S: Final = 60.0
"""A longer wait is made of several requests, so that no proxy between takes it for a dead connection."""
Answer = TypeVar("Answer")
Descriptor = Workflow | Mapping[str, Any] | Path | str | bytes


class _Base:
    def __init__(self, server: str = SERVER, *, attempts: int = 5, headers: Mapping[str, str] | None = None) -> None:
        """`attempts` is how often a request is sent at most; `headers` go with each, such as Authorization."""
        self.server, self._through_proxies = checked_url(server)
        self._attempts, self._headers, self._rng = max(1, attempts), dict(headers or {}), random.Random()

    def _settings(self) -> dict[str, Any]:
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        return {
            "base_url": self.server,
            "headers": self._headers,
            "timeout": timeout,
            "trust_env": self._through_proxies,
        }

    def _request(self, call: Call[Any]) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": call.path,
            "params": call.query,
            "headers": call.headers,
            "content": call.body,
            "timeout": httpx.Timeout(ANSWER_S + call.wait_s, connect=CONNECT_S),
        }

    def _read(self, call: Call[Answer], answer: httpx.Response) -> Answer:
        if answer.is_error:
            raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))
        try:
            return msgspec.json.decode(answer.content, type=call.answer)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ServerUnreachable(
                f"{self.server} answered with something that is not KNHK's: {error}", hint="Is this the URL of the API?"
            ) from error

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"{self.server}: {error or type(error).__name__}")

    def _pause_s(self, call: Call[Any], error: KnhkError, failures: int) -> float:
        """How long to wait before the request is sent again. Raises the error if it is not."""
        if failures >= self._attempts or not (call.repeatable and error.retryable):
            raise error
        pause_s = min(5.0, 0.1 * 2.0**failures) * (0.5 + self._rng.random() / 2)
        return max(error.retry_after_s or 0.0, pause_s)

    def _submission(
        self,
        workflow: Descriptor | None,
        inputs: Mapping[str, Any] | None,
        name: str | None,
        version: str | int | None,
        key: str | None,
        wait_s: float,
    ) -> Call[Submitted]:
        key = key or f"sdk-{uuid.uuid4().hex}"
        wait_s = min(wait_s, LONGEST_WAIT_S)
        return calls.submit(workflow, inputs, name=name, version=version, key=key, wait_s=wait_s)


class Client(_Base):
    """One server, for programs without an event loop. It may be used by several threads."""

    def __init__(self, server: str = SERVER, *, attempts: int = 5, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(server, attempts=attempts, headers=headers)
        self._http = httpx.Client(**self._settings())
        self.blobs = Blobs(self, self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        workflow: Descriptor | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        version: str | int | None = None,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
    ) -> Submitted:
        """Submit a workflow: one that was built, a file, its text or its data; or a registered definition by `name`.

        Returns when it is on disk; with `wait_s` when it has ended, or at most after that. Without an idempotency key
        it gets one of its own, so that sending it again after a broken connection is safe.
        """
        return self._send(self._submission(workflow, inputs, name, version, idempotency_key, wait_s))

    def run(self, workflow: Descriptor | None = None, inputs: Mapping[str, Any] | None = None, **given: Any) -> Run:
        """Submit a workflow and wait for its end, however long that takes; its state with inputs and outputs."""
        submitted = self.submit(workflow, inputs, wait_s=LONGEST_WAIT_S, **given)
        self.wait(submitted.workflow_id)
        return self.inspect(submitted.workflow_id)

    def status(self, workflow_id: str) -> Run:
        """The state of a run, its steps, and what it waits for."""
        return self._send(calls.status(workflow_id, verbose=False))

    def inspect(self, workflow_id: str) -> Run:
        """The same with inputs and outputs."""
        return self._send(calls.status(workflow_id, verbose=True))

    def wait(self, workflow_id: str, timeout_s: float | None = None) -> Run:
        """Wait until a run has ended. Raises TimeoutError if that takes longer than `timeout_s`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        if until is None:
            for _ in self.events(workflow_id):
                pass
        pause_s = 0.01
        while not (run := self.status(workflow_id)).ended:
            left = pause_s if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{workflow_id} is {run.state} after {timeout_s:g} s")
            time.sleep(min(pause_s, left))
            pause_s = min(1.0, pause_s * 1.5)
        return run

    def list(
        self,
        *,
        state: State | None = None,
        name: str | None = None,
        department: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """A page of runs, newest first. A page may be short: go on while `next_cursor` is not None."""
        return self._send(calls.listing(state=state, name=name, department=department, limit=limit, cursor=cursor))

    def cancel(self, workflow_id: str, reason: str = "") -> Run:
        """End a run."""
        return self._send(calls.change(workflow_id, "cancel", reason))

    def pause(self, workflow_id: str, reason: str = "") -> Run:
        """Begin no further steps of a run."""
        return self._send(calls.change(workflow_id, "pause", reason))

    def resume(self, workflow_id: str, reason: str = "") -> Run:
        """Let a paused run go on."""
        return self._send(calls.change(workflow_id, "resume", reason))

    def retry(self, workflow_id: str) -> Run:
        """Run the failed steps of an ended run again."""
        return self._send(calls.change(workflow_id, "retry", None))

    def signal(
        self, workflow_id: str, event: str, data: Any = None, *, correlate: str = "", signal_id: str | None = None
    ) -> Signalled:
        """Give an event to a run: to the step that waits for it, or to the next one that will."""
        signal_id = signal_id or f"sdk-{uuid.uuid4().hex}"
        return self._send(calls.signal(workflow_id, event, data, correlate=correlate, signal_id=signal_id))

    def approve(self, workflow_id: str, approver: str, *, step: str = "", comment: str = "") -> Run:
        """Say yes to a step that waits for approval; `step` may be left out if only one does."""
        return self._send(calls.judgement(workflow_id, "approve", approver=approver, step=step, comment=comment))

    def reject(self, workflow_id: str, approver: str, *, step: str = "", comment: str = "") -> Run:
        """Say no to it: it fails, or goes on if it says `on_reject: continue`."""
        return self._send(calls.judgement(workflow_id, "reject", approver=approver, step=step, comment=comment))

    def publish(
        self, event: str, correlate: str, data: Any = None, *, event_id: str | None = None, keep: str = "1h"
    ) -> Published:
        """Give an event to every run that waits for it with this correlation, now or while it is kept."""
        event_id = event_id or f"sdk-{uuid.uuid4().hex}"
        return self._send(calls.event(event, correlate, data, event_id=event_id, keep=keep))

    def delete(self, workflow_id: str) -> None:
        """Erase the inputs and outputs of an ended run. Its receipts stay."""
        self._send(calls.delete(workflow_id))

    def receipts(self, workflow_id: str, from_seq: int = 0) -> "tuple[Receipt, ...]":
        """The receipts of a run, oldest first."""
        return tuple(self._send(calls.receipts(workflow_id, from_seq)).receipts)

    def actions(self) -> "tuple[ActionInfo, ...]":
        """What steps may do on this server, and what each action guarantees."""
        return tuple(self._send(calls.actions()).actions)

    def events(self, workflow_id: str, from_seq: int = 0) -> Iterator[Receipt]:
        """The receipts of a run as they are committed, until its end. A broken connection is made again."""
        seq, failures, path = from_seq, 0, f"{calls.path_of(workflow_id)}/events"
        while True:
            try:
                with self._http.stream("GET", path, headers=_after(seq), timeout=_silence()) as answer:
                    if answer.is_error:
                        raise error_of(answer.status_code, answer.read(), answer.headers.get("retry-after"))
                    for found in receipts_in(answer.iter_lines()):
                        receipt = msgspec.convert(found, Receipt)
                        seq, failures = receipt.seq + 1, 0
                        yield receipt
                return
            except httpx.HTTPError as error:
                failures += 1
                time.sleep(self._pause_s(_FOLLOW, self._unreachable(error), failures))

    def _send(self, call: Call[Answer]) -> Answer:
        return self.attempt(call, lambda: self._read(call, self._http.request(**self._request(call))))

    def attempt(self, call: Call[Any], send: Callable[[], Answer]) -> Answer:
        """What `send` gives, sent again while that may help."""
        failures = 0
        while True:
            try:
                return send()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failures += 1
                time.sleep(self._pause_s(call, self._unreachable(error), failures))
            except KnhkError as error:
                failures += 1
                time.sleep(self._pause_s(call, error, failures))


class AsyncClient(_Base):
    """One server, for programs with an event loop: every method of `Client`, to be awaited."""

    def __init__(self, server: str = SERVER, *, attempts: int = 5, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(server, attempts=attempts, headers=headers)
        self._http = httpx.AsyncClient(**self._settings())
        self.blobs = AsyncBlobs(self, self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self,
        workflow: Descriptor | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        version: str | int | None = None,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
    ) -> Submitted:
        """As `Client.submit`."""
        return await self._send(self._submission(workflow, inputs, name, version, idempotency_key, wait_s))

    async def run(
        self, workflow: Descriptor | None = None, inputs: Mapping[str, Any] | None = None, **given: Any
    ) -> Run:
        """As `Client.run`."""
        submitted = await self.submit(workflow, inputs, wait_s=LONGEST_WAIT_S, **given)
        await self.wait(submitted.workflow_id)
        return await self.inspect(submitted.workflow_id)

    async def status(self, workflow_id: str) -> Run:
        """As `Client.status`."""
        return await self._send(calls.status(workflow_id, verbose=False))

    async def inspect(self, workflow_id: str) -> Run:
        """As `Client.inspect`."""
        return await self._send(calls.status(workflow_id, verbose=True))

    async def wait(self, workflow_id: str, timeout_s: float | None = None) -> Run:
        """As `Client.wait`."""
        async with asyncio.timeout(timeout_s):
            async for _ in self.events(workflow_id):
                pass
            return await self.status(workflow_id)

    async def list(
        self,
        *,
        state: State | None = None,
        name: str | None = None,
        department: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """As `Client.list`."""
        page = calls.listing(state=state, name=name, department=department, limit=limit, cursor=cursor)
        return await self._send(page)

    async def cancel(self, workflow_id: str, reason: str = "") -> Run:
        """As `Client.cancel`."""
        return await self._send(calls.change(workflow_id, "cancel", reason))

    async def pause(self, workflow_id: str, reason: str = "") -> Run:
        """As `Client.pause`."""
        return await self._send(calls.change(workflow_id, "pause", reason))

    async def resume(self, workflow_id: str, reason: str = "") -> Run:
        """As `Client.resume`."""
        return await self._send(calls.change(workflow_id, "resume", reason))

    async def retry(self, workflow_id: str) -> Run:
        """As `Client.retry`."""
        return await self._send(calls.change(workflow_id, "retry", None))

    async def signal(
        self, workflow_id: str, event: str, data: Any = None, *, correlate: str = "", signal_id: str | None = None
    ) -> Signalled:
        """As `Client.signal`."""
        signal_id = signal_id or f"sdk-{uuid.uuid4().hex}"
        return await self._send(calls.signal(workflow_id, event, data, correlate=correlate, signal_id=signal_id))

    async def approve(self, workflow_id: str, approver: str, *, step: str = "", comment: str = "") -> Run:
        """As `Client.approve`."""
        return await self._send(calls.judgement(workflow_id, "approve", approver=approver, step=step, comment=comment))

    async def reject(self, workflow_id: str, approver: str, *, step: str = "", comment: str = "") -> Run:
        """As `Client.reject`."""
        return await self._send(calls.judgement(workflow_id, "reject", approver=approver, step=step, comment=comment))

    async def publish(
        self, event: str, correlate: str, data: Any = None, *, event_id: str | None = None, keep: str = "1h"
    ) -> Published:
        """As `Client.publish`."""
        event_id = event_id or f"sdk-{uuid.uuid4().hex}"
        return await self._send(calls.event(event, correlate, data, event_id=event_id, keep=keep))

    async def delete(self, workflow_id: str) -> None:
        """As `Client.delete`."""
        await self._send(calls.delete(workflow_id))

    async def receipts(self, workflow_id: str, from_seq: int = 0) -> "tuple[Receipt, ...]":
        """As `Client.receipts`."""
        return tuple((await self._send(calls.receipts(workflow_id, from_seq))).receipts)

    async def actions(self) -> "tuple[ActionInfo, ...]":
        """As `Client.actions`."""
        return tuple((await self._send(calls.actions())).actions)

    async def events(self, workflow_id: str, from_seq: int = 0) -> AsyncIterator[Receipt]:
        """As `Client.events`."""
        seq, failures, path = from_seq, 0, f"{calls.path_of(workflow_id)}/events"
        while True:
            try:
                async with self._http.stream("GET", path, headers=_after(seq), timeout=_silence()) as answer:
                    if answer.is_error:
                        raise error_of(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
                    data: list[str] = []
                    async for line in answer.aiter_lines():
                        data.append(line)
                        if line:
                            continue
                        for found in receipts_in(iter(data)):
                            receipt = msgspec.convert(found, Receipt)
                            seq, failures = receipt.seq + 1, 0
                            yield receipt
                        data.clear()
                return
            except httpx.HTTPError as error:
                failures += 1
                await asyncio.sleep(self._pause_s(_FOLLOW, self._unreachable(error), failures))

    async def _send(self, call: Call[Answer]) -> Answer:
        async def send() -> Answer:
            return self._read(call, await self._http.request(**self._request(call)))

        return await self.attempt(call, send)

    async def attempt(self, call: Call[Any], send: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `send` gives, sent again while that may help."""
        failures = 0
        while True:
            try:
                return await send()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failures += 1
                await asyncio.sleep(self._pause_s(call, self._unreachable(error), failures))
            except KnhkError as error:
                failures += 1
                await asyncio.sleep(self._pause_s(call, error, failures))


_FOLLOW: Final = Call("GET", "", dict[str, Any])


def _after(seq: int) -> dict[str, str]:
    return {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(seq - 1)} if seq else {})


def _silence() -> httpx.Timeout:
    return httpx.Timeout(SILENCE_S, connect=CONNECT_S)
