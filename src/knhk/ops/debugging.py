"""The /debug routes: what the process does, for whoever looks for a fault. Read only, bounded, one long one at a time.

Served by the thread of the operations port, so that they answer while the event loop is blocked. Unless the
configuration says otherwise, only to callers on the same machine. No answer holds a value of a workflow or a secret.
"""

import asyncio
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, Any, Final, Protocol

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.params import QueryParameter

from knhk.diagnostics.memory import LONGEST_S as LONGEST_MEMORY_S
from knhk.diagnostics.sampler import LONGEST_S as LONGEST_PROFILE_S
from knhk.domain.errors import Conflict, Refused
from knhk.ops.app import EXCEPTION_HANDLERS, UNCACHED, guard

_MOST_LINES: Final = 2_000
_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PROXIES: Final = ("forwarded", "x-forwarded-for", "x-real-ip")
_ProfileSeconds = Annotated[float, QueryParameter(gt=0, le=LONGEST_PROFILE_S)]
_MemorySeconds = Annotated[float, QueryParameter(gt=0, le=LONGEST_MEMORY_S)]
_ELSEWHERE: Final = "Call it on the server's own machine (`kubectl exec`, ssh), or set `diagnostics.remote: true`."


class Debugging(Protocol):
    """What the process can tell about itself. Called in the operations port's thread, or in a worker of it."""

    remote: bool
    """Whether other machines may ask."""

    def tasks(self) -> dict[str, Any]:
        """Threads and asyncio tasks with their stacks."""
        ...

    def logs(self, limit: int) -> list[str]:
        """The newest log lines."""
        ...

    def configuration(self) -> list[dict[str, str]]:
        """The effective configuration, secrets masked."""
        ...

    def resources(self) -> dict[str, Any]:
        """What the server has and uses, and what it is short of. Takes half a second."""
        ...

    def profile(self, seconds: float, stop: threading.Event) -> dict[str, Any]:
        """Where CPU time goes, looked at for so long; `stop` ends it early."""
        ...

    def heap(self) -> dict[str, Any]:
        """Objects by type, and the largest ones."""
        ...

    def allocations(self, seconds: float, stop: threading.Event) -> dict[str, Any]:
        """Lines of code by what they allocate in so many seconds; `stop` ends it early."""
        ...

    def collect(self) -> dict[str, Any]:
        """Collect garbage now."""
        ...


def create_debug_app(debugging: Debugging) -> Litestar:
    """The application behind /debug/."""

    def admit(request: Request[Any, Any, Any]) -> None:
        guard(request)
        if not debugging.remote and not _is_local(request):
            raise Refused(f"{request.url.path}: only for callers on the same machine", hint=_ELSEWHERE)

    return Litestar(
        route_handlers=[*_looks(debugging), *_work(debugging)],
        openapi_config=None,
        before_request=admit,
        exception_handlers=EXCEPTION_HANDLERS,
        logging_config=None,
    )


def _is_local(request: Request[Any, Any, Any]) -> bool:
    """Whether a caller is on this machine: not through a proxy, nor a page whose name was made to point here."""
    caller = request.client.host if request.client is not None else ""
    try:
        here = ip_address(caller).is_loopback
    except ValueError:
        here = False
    name = (request.url.hostname or "").strip("[]")
    return here and name in _NAMES and not any(header in request.headers for header in _PROXIES)


def _looks(debugging: Debugging) -> list[Any]:
    @get("/debug/tasks")
    async def tasks() -> Response[bytes]:
        """Threads and asyncio tasks with their stacks."""
        return _answer(debugging.tasks())

    @get("/debug/logs")
    async def logs(limit: Annotated[int, QueryParameter(ge=1, le=_MOST_LINES)] = 200) -> Response[bytes]:
        """The newest log lines."""
        return _answer({"lines": debugging.logs(limit)})

    @get("/debug/config")
    async def config() -> Response[bytes]:
        """The effective configuration without its secrets."""
        return _answer({"values": debugging.configuration()})

    @get("/debug/resources")
    async def resources() -> Response[bytes]:
        """What the server has and uses, and what it is short of."""
        return _answer(await asyncio.to_thread(debugging.resources))

    return [tasks, logs, config, resources]


def _work(debugging: Debugging) -> list[Any]:
    """What costs something: one at a time, in a thread that the answer waits for."""
    turn = _Turn()

    @post("/debug/profile")
    async def profile(seconds: _ProfileSeconds = 30.0) -> Response[bytes]:
        """Where CPU time goes."""
        return _answer(await turn.take(lambda stop: debugging.profile(seconds, stop)))

    @post("/debug/memory")
    async def memory(seconds: _MemorySeconds = 10.0) -> Response[bytes]:
        """Lines of code by what they allocate."""
        return _answer(await turn.take(lambda stop: debugging.allocations(seconds, stop)))

    @post("/debug/heap")
    async def heap() -> Response[bytes]:
        """Objects by type."""
        return _answer(await turn.take(lambda _stop: debugging.heap()))

    @post("/debug/gc")
    async def collect() -> Response[bytes]:
        """Collect garbage."""
        return _answer(await turn.take(lambda _stop: debugging.collect()))

    return [profile, memory, heap, collect]


class _Turn:
    """One piece of work at a time."""

    def __init__(self) -> None:
        self._taken = False

    async def take(self, work: Callable[[threading.Event], dict[str, Any]]) -> dict[str, Any]:
        """Do it in a thread; told to stop if whoever waits for it goes. Raises Conflict if another is being done."""
        if self._taken:
            raise Conflict("another profile or dump is being made", hint="Wait until it is done.")
        self._taken, stop = True, threading.Event()
        try:
            return await asyncio.to_thread(work, stop)
        finally:
            stop.set()
            self._taken = False


def _answer(shown: Any) -> Response[bytes]:
    return Response(
        msgspec.json.encode(shown, enc_hook=str), status_code=200, media_type=MediaType.JSON, headers=UNCACHED
    )
