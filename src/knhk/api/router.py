"""Asking the node that owns a partition, and asking again while a partition is between two owners.

A request that was sent on is not sent on again. The answer of a node is waited for as long as it is one of those that
own partitions: one that was stopped, or cut off, leaves when its lease is over, and does not answer. What can be
repeated without harm then goes to the next owner; of anything else it is not known what became of it, and the client is
told so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import httpx
import msgspec

from knhk.api.places import Places
from knhk.api.relaying import OWN_HEADERS, relay
from knhk.api.submit import Headers
from knhk.domain import identifier
from knhk.domain.errors import Fenced, NodeGone, PartitionMoving, ShuttingDown
from knhk.engine.control import Control
from knhk.sdk.answers import error_of

FORWARDED_HEADER: Final = b"x-knhk-forwarded"
REFUSALS: Final = (409, 503)
_PAUSE_S: Final = 0.05
_LOOK_S: Final = 0.25
_GONE_S: Final = 5.0
_ANSWER_S: Final = 330.0
_CONNECT_S: Final = 2.0
_JSON: Final = (b"content-type", b"application/json")
_NOT_TAKEN: Final = (PartitionMoving.code.encode(), ShuttingDown.code.encode(), Fenced.code.encode())
"""Codes of answers that say that nothing was done, and another owner may do it."""
_READS: Final = ("GET", "HEAD", "OPTIONS")
_NOT_THERE: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_Answer = TypeVar("_Answer")


class _Gone(Exception):
    """A node has left while its answer was waited for."""


class Router:
    """Sends requests to the nodes that own what they are about."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._hurried = False
        timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, pool=_CONNECT_S)
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False, limits=httpx.Limits(max_connections=512))

    def hurry(self) -> None:
        """Wait for no owner any more: this process is about to end, and what it owned moves only then."""
        self._hurried = True

    async def patiently(
        self, attempt: Callable[[], Awaitable[_Answer | None]], partition: int | None, *, once: bool = False
    ) -> _Answer:
        """What an attempt gives, made again while it gives None: there was nobody who took anything in.

        Raises PartitionMoving when that has gone on for `places.wait_s`, or with `once` at the first time; NodeGone if
        nobody will own the partition soon. The time that a node took which did take something in, and then went
        away, does not count.
        """
        now = asyncio.get_running_loop().time
        over = now() + self.places.wait_s
        while True:
            began = now()
            found = await attempt()
            if found is not None:
                return found
            if partition is not None and (absent := self.places.absent(partition)):
                raise NodeGone(absent, retry_after_s=_GONE_S)
            over += max(0.0, now() - began - 2 * _CONNECT_S)
            if once or self._hurried or now() >= over:
                what = "no node takes workflows" if partition is None else f"partition {partition} has no owner"
                raise PartitionMoving(f"{what} just now", retry_after_s=1.0)
            await asyncio.sleep(_PAUSE_S)

    def place(self, partition: int, *, forwarded: bool) -> Control | str | None:
        """The control of a partition, or the URL of its node; None if neither is known."""
        control = self.places.local(partition)
        return control if control is not None or forwarded else self.places.remote(partition)

    async def owner(self, partition: int, *, forwarded: bool) -> Control | str:
        """The same, once it is known. Raises PartitionMoving if that is not in time."""

        async def attempt() -> Control | str | None:
            return self.place(partition, forwarded=forwarded)

        return await self.patiently(attempt, partition, once=forwarded)

    async def send(
        self,
        url: str,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
        *,
        streamed: bool = False,
        repeatable: bool = False,
    ) -> httpx.Response | None:
        """The answer of another node, its body unread if it is to be `streamed`.

        None if the node took nothing in, because it is not there or not the owner; or if it went away, and what it was
        sent is `repeatable` without harm, as all reading is.

        Raises PartitionMoving if it is not known what became of the request.
        """
        kept = [(name, value) for name, value in headers if name.lower() not in OWN_HEADERS]
        request = self._client.build_request(
            method, url + target, headers=[*kept, (FORWARDED_HEADER, b"1")], content=body if method != "GET" else None
        )
        try:
            response = await self._while_there(url, self._exchange(request, streamed))
        except _NOT_THERE:
            return None
        except (httpx.HTTPError, _Gone) as error:
            if (repeatable or method in _READS) and not isinstance(error, httpx.TimeoutException):
                return None
            why = "went away before it answered" if isinstance(error, _Gone) else f"broke off ({type(error).__name__})"
            raise PartitionMoving(
                f"the node that owns the workflow {why}; repeat with the same Idempotency-Key, or look what became of "
                "it",
                retry_after_s=1.0,
            ) from error
        refused = response.status_code in REFUSALS and is_refusal(response.content)
        return None if refused else response

    async def relay(self, url: str, response: httpx.Response, send: Any) -> None:
        """Pass the answer of a node on as it comes. One that breaks off ends the connection to the client too."""
        try:
            await self._while_there(url, relay(response, send))
        except (httpx.HTTPError, _Gone):
            return

    async def at(self, url: str, method: str, target: str, body: Any = None) -> Any:
        """What a node answers to a request, as JSON. Raises the error that it stands for, or PartitionMoving."""
        raw = b"" if body is None else msgspec.json.encode(body)
        response = await self.send(url, method, target, [] if body is None else [_JSON], raw)
        if response is None:
            raise PartitionMoving(f"{url} does not answer", retry_after_s=1.0)
        return decoded(response)

    async def ask(self, partition: int, target: str, headers: Headers = ()) -> httpx.Response:
        """What the owner of a partition, another process, answers to a GET. Raises PartitionMoving."""

        async def attempt() -> httpx.Response | None:
            url = self.places.remote(partition)
            return None if url is None else await self.send(url, "GET", target, headers, b"")

        return await self.patiently(attempt, partition)

    async def claimed(self, partition: int, key_digest: bytes) -> bool:
        """Whether an idempotency key stands for a run of a partition. Raises PartitionMoving."""
        control = self.places.local(partition)
        if control is not None:
            return await control.claim(key_digest) is not None
        answer = await self.ask(partition, f"/partitions/{partition}/claims/{key_digest.hex()}")
        return answer.status_code == 200 and bool(answer.json()["claimed"])

    async def call(
        self,
        partition: int,
        here: Callable[[Control], Awaitable[_Answer]],
        method: str,
        target: str,
        body: Any = None,
        *,
        key: str = "",
        repeatable: bool = False,
    ) -> _Answer | Any:
        """What the owner of a partition answers: by `here` if that is this process, else its node's JSON.

        `body` is sent as JSON, `key` as Idempotency-Key, with which it may be repeated. A partition between two owners
        is waited for. Raises what the owner raises; PartitionMoving if there is none in time, or it is not known
        whether it did it.
        """
        raw = b"" if body is None else msgspec.json.encode(body)
        headers = [] if body is None else [_JSON]
        if key:
            headers, repeatable = [*headers, (b"idempotency-key", key.encode())], True

        async def attempt() -> tuple[_Answer | Any] | None:
            place = self.place(partition, forwarded=False)
            if place is None:
                return None
            if isinstance(place, str):
                response = await self.send(place, method, target, headers, raw, repeatable=repeatable)
                return None if response is None else (decoded(response),)
            try:
                return (await here(place),)
            except (Fenced, ShuttingDown, PartitionMoving, NodeGone):
                return None  # nothing was done

        return (await self.patiently(attempt, partition))[0]

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()

    async def _exchange(self, request: httpx.Request, streamed: bool) -> httpx.Response:
        response = await self._client.send(request, stream=True)
        if not streamed or response.status_code in REFUSALS:
            await response.aread()
        return response

    async def _while_there(self, url: str, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        """What comes of work that waits for a node, unless the node leaves before: then it is given up with _Gone."""
        waiting = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait((waiting,), timeout=_LOOK_S))[0]:
                if not self.places.is_there(url):
                    raise _Gone
            return waiting.result()
        finally:
            waiting.cancel()


async def give_event(router: Router, workflow_id: int, record_id: int) -> bool:
    """Have the owner of a run give it an event that is kept; whether a step took it. See engine.signals.Elsewhere."""
    target = f"/workflows/{identifier.to_text(workflow_id)}/kept-events/{identifier.to_text(record_id)}"

    async def here(control: Control) -> dict[str, bool]:
        return {"taken": await control.signals.give_kept(workflow_id, record_id)}

    partition = identifier.partition_of(workflow_id)
    return bool((await router.call(partition, here, "POST", target, repeatable=True))["taken"])


def decoded(response: httpx.Response) -> Any:
    """The JSON of another node's answer. Raises the error that it stands for."""
    if response.is_error:
        raise error_of(response.status_code, response.content, response.headers.get("retry-after"))
    return msgspec.json.decode(response.content)


def is_refusal(body: bytes) -> bool:
    """Whether an answer says that nothing was done, because the partition is on its way to another owner."""
    return any(code in body for code in _NOT_TAKEN)
