"""What /openapi.json says beyond the signatures of the handlers: problem details, and the bodies of a submission."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import HeaderParameter

from knhk.domain.problems import MEDIA_TYPE

KeyHeader = Annotated[
    str | None, HeaderParameter(name="Idempotency-Key", description="Makes repeating the request safe.")
]


class Place(msgspec.Struct, rename={"at": "path"}):
    """One thing that is wrong in what was sent; lines and columns count from 1."""

    message: str
    at: str | None = None
    line: int | None = None
    column: int | None = None
    suggestion: str | None = None


class ProblemDetails(msgspec.Struct):
    """RFC 9457. `code` is stable (docs/errors.md); `retryable`: the same request may succeed later."""

    type: str
    title: str
    status: int
    detail: str
    retryable: bool
    code: str | None = None
    hint: str | None = None
    problems: list[Place] | None = None


class Failure(msgspec.Struct):
    """Why a run ended without completing."""

    code: str
    message: str
    guard: str
    step: str


class Submitted(msgspec.Struct):
    """A run that is on disk. `outputs` and `failure` are there once it has ended."""

    workflow_id: str
    state: str
    replayed: bool
    outputs: dict[str, Any] | None = None
    failure: Failure | None = None


def problem_responses(*statuses: int) -> dict[int, ResponseSpec]:
    """Responses with problem details; 400 is possible everywhere."""
    return {
        status: ResponseSpec(
            ProblemDetails,
            generate_examples=False,
            description=HTTPStatus(status).phrase,
            media_type=MEDIA_TYPE,
        )
        for status in (400, *statuses)
    }


SUBMIT_RESPONSES: Final = {
    200: ResponseSpec(
        Submitted, generate_examples=False, description="It has ended already, or was known by its idempotency key."
    ),
    202: ResponseSpec(Submitted, generate_examples=False, description="It is on disk and runs, after a crash too."),
    **problem_responses(409, 413, 422, 429, 503),
}

EVENT_RESPONSES: Final = {
    200: ResponseSpec(
        str,
        generate_examples=False,
        description="`id` is the receipt's seq, `event` its kind, `data` the receipt.",
        media_type="text/event-stream",
    )
}

_ANY_OBJECT: Final = Schema(type=OpenAPIType.OBJECT)
_ENVELOPE: Final = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "name": Schema(type=OpenAPIType.STRING, description="A registered definition, in place of `descriptor`."),
        "version": Schema(
            any_of=[Schema(type=OpenAPIType.STRING), Schema(type=OpenAPIType.INTEGER)],
            description="Its number, label or digest; the newest, if it is left out.",
        ),
        "descriptor": Schema(
            any_of=[_ANY_OBJECT, Schema(type=OpenAPIType.STRING)], description="In JSON, or as text in YAML."
        ),
        "inputs": _ANY_OBJECT,
    },
)


@dataclass
class SubmitOperation(Operation):
    """The submission with its two kinds of body, which the handler reads by itself."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            description="A descriptor (docs/descriptor.md), in JSON also with what it is given.",
            required=True,
            content={
                "application/yaml": OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING)),
                "application/json": OpenAPIMediaType(schema=Schema(any_of=[_ANY_OBJECT, _ENVELOPE])),
            },
        )


@dataclass
class DefinitionOperation(Operation):
    """A descriptor as the body, which the handler reads by itself."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            description="A descriptor (docs/descriptor.md).",
            required=True,
            content={
                "application/yaml": OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING)),
                "application/json": OpenAPIMediaType(schema=_ANY_OBJECT),
            },
        )


@dataclass
class WebhookOperation(Operation):
    """Any body, which the handler reads by itself."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            description="What happened; JSON as data, anything else as text.",
            content={"application/json": OpenAPIMediaType(schema=Schema())},
        )


@dataclass
class ReasonOperation(Operation):
    """A decision whose reason may be left out."""

    def __post_init__(self) -> None:
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False
