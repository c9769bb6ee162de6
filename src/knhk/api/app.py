"""All other routes of the API, as a Litestar application with its OpenAPI description at /openapi.json."""

from collections.abc import AsyncIterator, Sequence
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, delete, get, post
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import License
from litestar.params import Body, HeaderParameter, PathParameter, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from knhk.api.definitions import definition_handlers
from knhk.api.description import (
    EVENT_RESPONSES,
    SUBMIT_RESPONSES,
    KeyHeader,
    ReasonOperation,
    SubmitOperation,
    problem_responses,
)
from knhk.api.hooks import hook_handlers
from knhk.api.places import UNANSWERED
from knhk.api.signals import signal_handlers
from knhk.api.submit import Answer, SubmitRoute, internal_error, problem_answer, too_long
from knhk.api.time_machine import time_machine_handlers
from knhk.domain import identifier
from knhk.domain.errors import InvalidParameter, KnhkError
from knhk.domain.problems import MEDIA_TYPE, problem_of_status
from knhk.domain.run import RunState
from knhk.engine.control import Control, Filter
from knhk.engine.loader import decode_receipts
from knhk.engine.requests import checked_key
from knhk.observability.logs import get as get_log

_LARGEST_PAGE = 1_000
_ACTOR = "api"
_READS = problem_responses(404, 503)
_CHANGES = problem_responses(404, 409, 503)


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    """Why an operator does something; kept in the receipt."""

    reason: str = ""


class Page(msgspec.Struct):
    """Runs, newest first. `next_cursor` is where the next page begins, null after the last.

    `unanswered` says which nodes of a cluster did not answer: their runs are missing.
    """

    workflows: list[dict[str, Any]]
    next_cursor: str | None
    unanswered: list[str] = msgspec.field(default_factory=list)


WorkflowId = Annotated[str, PathParameter(description="Such as wf-1234567890.")]
Reasoned = Annotated[Reason | None, Body(description="Optional: a reason, kept in the receipt.")]


def create_app(control: Control, route: SubmitRoute, *, version: str, further: Sequence[Any] = ()) -> Litestar:
    """The API as an ASGI application; `route` answers submissions, `further` are the handlers of other files."""
    return Litestar(
        route_handlers=[
            _submit_handler(route),
            *_read_handlers(control),
            *_change_handlers(control),
            *definition_handlers(control),
            *hook_handlers(control),
            *time_machine_handlers(control),
            *signal_handlers(control),
            *further,
        ],
        openapi_config=OpenAPIConfig(
            title="KNHK",
            version=version,
            description="Submit workflows, follow them, and prove what happened.",
            license=License(name="Apache-2.0", identifier="Apache-2.0"),
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
            use_handler_docstrings=True,
        ),
        before_request=_refuse_unknown_query,
        exception_handlers={
            KnhkError: _problem,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE: lambda _request, _error: _response(too_long(route.max_body_bytes)),
            HTTPException: _http_problem,
            Exception: _internal_problem,
        },
        request_max_body_size=route.max_body_bytes,
        logging_config=None,
    )


def _submit_handler(route: SubmitRoute) -> Any:
    @post(
        "/workflows",
        status_code=202,
        media_type=MediaType.JSON,
        summary="Submit a workflow",
        operation_class=SubmitOperation,
        responses=SUBMIT_RESPONSES,
    )
    async def submit_workflow(
        request: Request[Any, Any, Any],
        wait: Annotated[
            str | None, QueryParameter(description="Answer when the run has ended, at most after this.")
        ] = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[bytes]:
        """The body is a descriptor (YAML or JSON), or {"descriptor": ..., "inputs": {...}} in JSON."""
        scope = request.scope
        return _response(await route.answer(scope["headers"], scope["query_string"], await request.body()))

    return submit_workflow


def _read_handlers(control: Control) -> list[Any]:
    @get("/workflows", summary="List workflows, newest first", responses=problem_responses(503))
    async def list_workflows(
        in_state: Annotated[
            RunState | None, QueryParameter(name="state", description="Only runs in this state.")
        ] = None,
        name: Annotated[str | None, QueryParameter(description="Only runs of this name.")] = None,
        department: Annotated[str | None, QueryParameter(description="Only runs of this department.")] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=_LARGEST_PAGE, description="At most so many.")] = 50,
        cursor: Annotated[str | None, QueryParameter(description="The `next_cursor` of the page before.")] = None,
    ) -> Page:
        """A page may be shorter than `limit` although more follow: go on while `next_cursor` is not null."""
        before = None if cursor is None else _cursor(cursor)
        wanted = Filter(state=in_state or "", name=name or "", department=department or "")
        missing = set[str]()
        token = UNANSWERED.set(missing)
        try:
            rows, following = await control.listing(wanted, before=before, limit=limit)
        finally:
            UNANSWERED.reset(token)
        return Page(rows, None if following is None else str(following), sorted(missing))

    @get("/workflows/{workflow_id:str}", summary="State of a workflow", responses=_READS)
    async def get_workflow(
        workflow_id: WorkflowId,
        verbose: Annotated[bool, QueryParameter(description="With inputs and outputs.")] = False,
    ) -> dict[str, Any]:
        """State, steps, failure and what it waits for, as its committed receipts tell it."""
        number = identifier.parse(workflow_id)
        return await (control.inspect(number) if verbose else control.status(number))

    @get("/workflows/{workflow_id:str}/receipts", summary="Receipts of a workflow", responses=_READS)
    async def get_receipts(
        workflow_id: WorkflowId,
        from_seq: Annotated[int, QueryParameter(ge=0, description="The first that is wanted.")] = 0,
    ) -> dict[str, list[dict[str, Any]]]:
        """The hash-chained receipts, oldest first; docs/receipts.md is their format."""
        number = identifier.parse(workflow_id)
        return {"receipts": decode_receipts(await control.receipts(number, from_seq), number)}

    @get("/workflows/{workflow_id:str}/events", summary="Follow a workflow", responses=EVENT_RESPONSES | _READS)
    async def get_events(
        workflow_id: WorkflowId,
        last_event_id: Annotated[
            int | None, HeaderParameter(name="Last-Event-ID", ge=0, description="The last one seen.")
        ] = None,
    ) -> ServerSentEvent:
        """Server-sent events, one per receipt as it is committed, until the run ends."""
        number = identifier.parse(workflow_id)
        await control.receipts(number)
        return ServerSentEvent(_events(control, number, 0 if last_event_id is None else last_event_id + 1))

    @get("/openapi.json", include_in_schema=False, sync_to_thread=False)
    def get_openapi(request: Request[Any, Any, Any]) -> dict[str, Any]:
        """This API's description (OpenAPI 3.1)."""
        return request.app.openapi_schema.to_schema()

    return [get_openapi, list_workflows, get_workflow, get_receipts, get_events]


def _change_handlers(control: Control) -> list[Any]:
    async def shown(number: int) -> dict[str, Any]:
        return await control.status(number)

    @post(
        "/workflows/{workflow_id:str}/cancel",
        status_code=200,
        summary="Cancel a workflow",
        responses=_CHANGES,
        operation_class=ReasonOperation,
    )
    async def cancel_workflow(
        workflow_id: WorkflowId, data: Reasoned = None, idempotency_key: KeyHeader = None
    ) -> dict[str, Any]:
        """Stops what is under way and begins nothing more."""
        number = identifier.parse(workflow_id)
        key = checked_key(idempotency_key or "")
        await control.cancel(number, actor=_ACTOR, reason=data.reason if data else "", key=key)
        return await shown(number)

    @post(
        "/workflows/{workflow_id:str}/pause",
        status_code=200,
        summary="Pause a workflow",
        responses=_CHANGES,
        operation_class=ReasonOperation,
    )
    async def pause_workflow(
        workflow_id: WorkflowId, data: Reasoned = None, idempotency_key: KeyHeader = None
    ) -> dict[str, Any]:
        """Begins no further steps; those under way finish."""
        number = identifier.parse(workflow_id)
        key = checked_key(idempotency_key or "")
        await control.pause(number, actor=_ACTOR, reason=data.reason if data else "", key=key)
        return await shown(number)

    @post(
        "/workflows/{workflow_id:str}/resume",
        status_code=200,
        summary="Resume a paused workflow",
        responses=_CHANGES,
        operation_class=ReasonOperation,
    )
    async def resume_workflow(
        workflow_id: WorkflowId, data: Reasoned = None, idempotency_key: KeyHeader = None
    ) -> dict[str, Any]:
        """Lets a paused run go on."""
        number = identifier.parse(workflow_id)
        key = checked_key(idempotency_key or "")
        await control.resume(number, actor=_ACTOR, reason=data.reason if data else "", key=key)
        return await shown(number)

    @delete("/workflows/{workflow_id:str}", status_code=200, summary="Delete a workflow's data", responses=_CHANGES)
    async def delete_workflow(workflow_id: WorkflowId) -> dict[str, Any]:
        """Erases the inputs and outputs of an ended run. Its receipts stay and still verify."""
        number = identifier.parse(workflow_id)
        await control.erase(number, actor=_ACTOR)
        return {"workflow_id": workflow_id, "erased": True}

    return [cancel_workflow, pause_workflow, resume_workflow, delete_workflow]


async def _events(control: Control, number: int, from_seq: int) -> AsyncIterator[ServerSentEventMessage]:
    async for sealed in control.follow(number, from_seq):
        if sealed is None:
            yield ServerSentEventMessage(comment="still here")
            continue
        shown = decode_receipts([sealed], number)[0]
        data = msgspec.json.encode(shown).decode()
        yield ServerSentEventMessage(data=data, event=shown["kind"], id=str(shown["seq"]))


def _cursor(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InvalidParameter("cursor: not one that this route gave")
    return int(text)


def _response(answer: Answer) -> Response[bytes]:
    status, headers, raw = answer
    named = {name.decode(): value.decode() for name, value in headers}
    return Response(raw, status_code=status, media_type=named.pop("content-type"), headers=named)


def _problem(_request: Request[Any, Any, Any], error: KnhkError) -> Response[bytes]:
    return _response(problem_answer(error))


def _http_problem(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What the framework refuses (unknown route, wrong method, bad parameter) in the same form as our own errors."""
    title = type(error).__name__.removesuffix("Exception")
    problem = problem_of_status(error.status_code, title, f"{request.method} {request.url.path}: {error.detail}")
    if error.extra:
        problem["problems"] = [_place(one) for one in error.extra] if isinstance(error.extra, list) else [error.extra]
    raw = msgspec.json.encode(problem, enc_hook=str)
    return Response(raw, status_code=error.status_code, media_type=MEDIA_TYPE, headers=error.headers)


def _place(one: Any) -> Any:
    """A parameter that the framework refused, in the form of our own errors."""
    return {"message": one["message"], "path": one["key"]} if isinstance(one, dict) and "key" in one else one


def _refuse_unknown_query(request: Request[Any, Any, Any]) -> None:
    """A misspelt filter must not give an answer to another question."""
    unknown = sorted(set(request.query_params) - _query_of(request.route_handler))
    if unknown:
        known = ", ".join(f"`{name}`" for name in sorted(_query_of(request.route_handler))) or "none"
        raise InvalidParameter(f"unknown query parameter {unknown[0]!r}; this route takes {known}")


@cache
def _query_of(handler: Any) -> frozenset[str]:
    """The names of the query parameters that a handler takes."""
    marked = ((name, field.kwarg_definition) for name, field in handler.parsed_fn_signature.parameters.items())
    return frozenset(mark.name or name for name, mark in marked if isinstance(mark, QueryParameter))


def _internal_problem(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    get_log("knhk.api").error("a request failed", path=request.url.path, exc_info=error)
    return _response(internal_error(error))
