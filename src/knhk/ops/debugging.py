"""The /debug routes: what the process does, for whoever looks for a fault. Read only, bounded, one long one at a time.

Served by the thread of the operations port, so that they answer while the event loop is blocked. Unless the
configuration says otherwise, only to callers on the same machine. No answer holds a value of a workflow or a secret.
"""

from typing import Annotated, Any, Final, Protocol

import msgspec
from litestar import Litestar, MediaType, Request, Response, get
from litestar.params import QueryParameter

from knhk.domain.errors import Refused
from knhk.ops.app import EXCEPTION_HANDLERS, UNCACHED, guard

_MOST_LINES: Final = 2_000
_HERE: Final = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
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


def create_debug_app(debugging: Debugging) -> Litestar:
    """The application behind /debug/."""

    def admit(request: Request[Any, Any, Any]) -> None:
        guard(request)
        caller = request.client.host if request.client is not None else ""
        if not debugging.remote and caller not in _HERE:
            raise Refused(f"{request.url.path}: only for callers on the same machine", hint=_ELSEWHERE)

    return Litestar(
        route_handlers=_looks(debugging),
        openapi_config=None,
        before_request=admit,
        exception_handlers=EXCEPTION_HANDLERS,
        logging_config=None,
    )


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

    return [tasks, logs, config]


def _answer(shown: Any) -> Response[bytes]:
    return Response(msgspec.json.encode(shown), status_code=200, media_type=MediaType.JSON, headers=UNCACHED)
