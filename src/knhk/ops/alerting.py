"""The routes of the service level and the alerts: what is promised, what fires, tests and silences."""

from typing import Any, Final, Protocol

import msgspec
from litestar import MediaType, Request, Response, delete, get, post

from knhk.domain.errors import InvalidParameter
from knhk.domain.units import parse_duration_ns

_UNCACHED: Final = {"cache-control": "no-store"}
AnyRequest = Request[Any, Any, Any]


class Alerting(Protocol):
    """The monitor as its operator sees it. What raises a KnhkError is answered as problem details."""

    def service_level(self) -> dict[str, Any]: ...

    def alerts(self) -> dict[str, Any]: ...

    async def test(self, channel: str = "") -> dict[str, str]:
        """What each channel said to a test alert, empty if it took it."""
        ...

    async def silence(self, pattern: str, for_ns: int, comment: str, actor: str) -> msgspec.Struct: ...

    async def unsilence(self, silence_id: str) -> None: ...


class Test(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a test: one channel, or all."""

    channel: str = ""


class Silencing(msgspec.Struct, forbid_unknown_fields=True, rename={"for_": "for"}):
    """The body of a silence: a pattern of alert names, and how long, such as `2h`."""

    pattern: str
    for_: str
    comment: str = ""
    actor: str = ""


def handlers(alerting: Alerting) -> list[Any]:
    """GET /sla, GET /alerts, POST /alerts/test, POST and DELETE of /alerts/silences."""

    @get("/sla")
    async def sla() -> Response[bytes]:
        """Uptime, latency and errors over rolling windows, error budgets and burn rates."""
        return _answer(alerting.service_level(), 200)

    @get("/alerts")
    async def alerts() -> Response[bytes]:
        """What fires, what is over, silences and channels."""
        return _answer(alerting.alerts(), 200)

    @post("/alerts/test")
    async def test(request: AnyRequest) -> Response[bytes]:
        """Send a test alert."""
        body = await _body(request, Test) if await request.body() else Test()
        said = await alerting.test(body.channel)
        return _answer({"channels": {name: text or "ok" for name, text in said.items()}}, 200)

    @post("/alerts/silences")
    async def silence(request: AnyRequest) -> Response[bytes]:
        """Tell nobody of some alerts for a while."""
        body = await _body(request, Silencing)
        try:
            for_ns = parse_duration_ns(body.for_)
        except ValueError as error:
            raise InvalidParameter(f"for: {error}") from None
        return _answer(await alerting.silence(body.pattern, for_ns, body.comment, body.actor), 201)

    @delete("/alerts/silences/{silence_id:str}", status_code=200)
    async def unsilence(silence_id: str) -> Response[bytes]:
        """End a silence."""
        await alerting.unsilence(silence_id)
        return _answer({"id": silence_id, "ended": True}, 200)

    return [sla, alerts, test, silence, unsilence]


async def _body(request: AnyRequest, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"the body is not as expected: {error}") from None


def _answer(shown: Any, status: int) -> Response[bytes]:
    return Response(msgspec.json.encode(shown), status_code=status, media_type=MediaType.JSON, headers=_UNCACHED)
