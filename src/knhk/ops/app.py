"""The operations server as a Litestar application: health, readiness, metrics, checkpoint, shutdown.

It has no authentication, as load balancers and Prometheus expect, so it must be reachable from the operator's network
only. Reads what `Operations` tells; changes nothing but through `checkpoint`, `drill` and `shutdown`.
"""

from typing import Any, Final

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException

from knhk.domain.errors import Conflict, KnhkError, PayloadTooLarge, Refused, Unavailable
from knhk.domain.problems import INTERNAL, MEDIA_TYPE, problem_of, problem_of_status, retry_after
from knhk.observability.logs import get as get_log
from knhk.ops import alerting, log_level
from knhk.ops.alerting import Alerting
from knhk.ops.operations import Operations, all_rooms, status_of

_MOST_BODY_BYTES: Final = 64 << 10
UNCACHED: Final = {"cache-control": "no-store"}
_HARMLESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SENT_BY_PAGES: Final = frozenset({"cross-site", "same-site"})
_OTHER_SITE: Final = "Call it from a shell, or from a page that this server has delivered."

AnyRequest = Request[Any, Any, Any]


def create_app(operations: Operations, alerts: Alerting | None = None) -> Litestar:
    """The application on port 9090; `alerts` adds the routes of the service level and the alerts."""
    return Litestar(
        route_handlers=[
            *_health_handlers(operations),
            _metrics_handler(operations),
            *_action_handlers(operations),
            *log_level.handlers(),
            *(alerting.handlers(alerts) if alerts is not None else ()),
        ],
        openapi_config=None,
        before_request=guard,
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=_MOST_BODY_BYTES,
        logging_config=None,
    )


def _health_handlers(operations: Operations) -> list[Any]:
    @get("/health")
    async def health() -> Response[bytes]:
        """Liveness: 503 only when a restart can help. A full disk is `unhealthy`, and a restart would not free it."""
        checks, halted = all_rooms(await operations.health()), operations.halted
        return _answer({"status": status_of(checks, halted)}, 200 if halted is None else 503)

    @get("/health/detailed")
    async def detailed() -> Response[bytes]:
        """The same with what each room says."""
        checks, halted = all_rooms(await operations.health()), operations.halted
        if halted is not None and checks["persistence"] == "ok":
            checks["persistence"] = f"halted: {halted}"
        shown = {
            "status": status_of(checks, halted),
            "uptime_seconds": int(operations.uptime_s),
            "version": operations.version,
            "checks": checks,
        }
        return _answer(shown, 200 if halted is None else 503)

    @get("/ready")
    async def ready() -> Response[bytes]:
        """Readiness: whether a workflow would be admitted now."""
        can, why = await operations.ready()
        if operations.halted is not None:
            can, why = False, operations.halted
        if not can:
            raise Unavailable(why, hint="See /health/detailed for the cause.")
        return _answer({"status": "ready"}, 200)

    return [health, detailed, ready]


def _metrics_handler(operations: Operations) -> Any:
    @get("/metrics")
    async def metrics(request: AnyRequest) -> Response[bytes]:
        """Everything that is counted, for Prometheus."""
        body, content_type = await operations.metrics(request.headers.get("accept", ""))
        return Response(body, status_code=200, headers={"content-type": content_type, **UNCACHED})

    return metrics


def _action_handlers(operations: Operations) -> list[Any]:
    under_way = drilling = False

    @post("/checkpoint")
    async def checkpoint() -> Response[bytes]:
        """Write a consistent copy of the store; one at a time."""
        nonlocal under_way
        if under_way:
            raise Conflict("a checkpoint is being written already", hint="Wait until it is done.")
        under_way = True
        try:
            written = await operations.checkpoint()
        finally:
            under_way = False
        return _answer(dict(written), 201)

    @post("/drill")
    async def drill() -> Response[bytes]:
        """Restore the newest backup on trial; one at a time, in a process of its own."""
        nonlocal drilling
        if drilling:
            raise Conflict("a restore drill is under way already", hint="Wait until it is done.")
        drilling = True
        try:
            outcome = await operations.drill()
        finally:
            drilling = False
        return _answer(dict(outcome), 200)

    @post("/shutdown")
    async def shutdown() -> Response[bytes]:
        """Admit nothing more, let what runs come to an end, then stop."""
        await operations.shutdown()
        return _answer({"status": "draining"}, 202)

    return [checkpoint, drill, shutdown]


def guard(request: AnyRequest) -> None:
    """Refuse bodies that no route needs, and actions that a page of another site makes a browser send."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > _MOST_BODY_BYTES:
        raise PayloadTooLarge(f"the body is longer than {_MOST_BODY_BYTES} bytes; no route here needs one")
    if request.method not in _HARMLESS and _from_another_site(request):
        raise Refused(f"{request.url.path}: sent by a page of another site", hint=_OTHER_SITE)


def _from_another_site(request: AnyRequest) -> bool:
    """Whether a browser says so (Fetch Metadata, or the Origin header of older ones). Other clients send neither."""
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    return foreign or request.headers.get("sec-fetch-site") in _SENT_BY_PAGES


def _answer(shown: dict[str, Any], status: int) -> Response[bytes]:
    raw = msgspec.json.encode(shown)
    return Response(raw, status_code=status, media_type=MediaType.JSON, headers=UNCACHED)


def _problem_answer(problem: dict[str, Any], headers: dict[str, str]) -> Response[bytes]:
    return Response(
        msgspec.json.encode(problem, enc_hook=str),
        status_code=problem["status"],
        media_type=MEDIA_TYPE,
        headers=UNCACHED | headers,
    )


def _problem(_request: AnyRequest, error: KnhkError) -> Response[bytes]:
    _, problem = problem_of(error)
    seconds = retry_after(error)
    headers = {} if seconds is None else {"retry-after": seconds}
    if isinstance(error, PayloadTooLarge):
        headers["connection"] = "close"  # the rest of the body is not wanted
    return _problem_answer(problem, headers)


def _http_problem(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """What the framework refuses: unknown routes, wrong methods."""
    title = type(error).__name__.removesuffix("Exception")
    problem = problem_of_status(error.status_code, title, f"{request.method} {request.url.path}: {error.detail}")
    return _problem_answer(problem, dict(error.headers or {}))


def _internal_problem(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A fault of ours: the client learns its kind, the log has the rest."""
    get_log("knhk.ops").error("a request failed", path=request.url.path, exc_info=error)
    detail = f"{type(error).__name__}; the server's log has more"
    return _problem_answer(problem_of_status(INTERNAL, "Internal error", detail), {})


EXCEPTION_HANDLERS: Final[dict[int | type[Exception], Any]] = {
    KnhkError: _problem,
    HTTPException: _http_problem,
    Exception: _internal_problem,
}
"""Whatever goes wrong in a route becomes problem details."""
