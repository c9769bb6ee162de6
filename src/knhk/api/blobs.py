"""Routes for blobs: large payloads are sent before the submission that refers to them, and read piece by piece."""

import asyncio
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from litestar import Request, Response, get, head, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import HeaderParameter, PathParameter
from litestar.response import Stream

from knhk.actions.blob_streams import pieces, receive
from knhk.api.description import problem_responses
from knhk.domain.blob import OCTETS, checked_digest, checked_media_type
from knhk.domain.errors import InvalidParameter
from knhk.ports.blobs import Blobs

_RANGE: Final = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?", re.ASCII)
_WRITES: Final = problem_responses(413, 501, 503)
_BYTES: Final = {
    200: ResponseSpec(bytes, generate_examples=False, description="The bytes.", media_type=OCTETS),
    206: ResponseSpec(bytes, generate_examples=False, description="The part that was asked for.", media_type=OCTETS),
    416: ResponseSpec(None, generate_examples=False, description="The blob has no such part."),
    **problem_responses(404, 501, 503),
}

Digest = Annotated[str, PathParameter(description="`sha256:` and 64 hexadecimal digits.")]


@dataclass
class BytesOperation(Operation):
    """Any bytes as the body, which the handler reads piece by piece."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            description="The bytes; the content type goes into the reference.",
            required=True,
            content={OCTETS: OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, content_media_type=OCTETS))},
        )


def blob_handlers(blobs: Blobs) -> list[Any]:
    """The routes under /blobs."""

    @post(
        "/blobs",
        status_code=201,
        summary="Send a blob",
        operation_class=BytesOperation,
        responses=_WRITES,
        request_max_body_size=None,
    )
    async def send_blob(request: Request[Any, Any, Any]) -> dict[str, Any]:
        """The answer is its reference, which can stand anywhere in the inputs of a workflow."""
        return await _received(blobs, request, "")

    @put(
        "/blobs/{digest:str}",
        status_code=201,
        summary="Send a blob whose digest is known",
        operation_class=BytesOperation,
        responses=_WRITES,
        request_max_body_size=None,
    )
    async def put_blob(request: Request[Any, Any, Any], digest: Digest) -> dict[str, Any]:
        """The same; bytes that have another digest are refused. Sending a blob again does no harm."""
        return await _received(blobs, request, checked_digest(digest))

    @get("/blobs/{digest:str}", summary="Read a blob", responses=_BYTES)
    async def get_blob(
        digest: Digest,
        part: Annotated[str | None, HeaderParameter(name="Range", description="A part: `bytes=0-99`.")] = None,
    ) -> Response[Any]:
        """Its bytes. The connection breaks off if they are not what the digest says."""
        digest = checked_digest(digest)
        size = await asyncio.to_thread(blobs.size, digest)
        wanted = None if part is None else _range(part, size)
        if wanted == (0, 0) and size:
            return Response(b"", status_code=416, media_type=OCTETS, headers={"content-range": f"bytes */{size}"})
        headers = _headers(digest, size)
        if wanted is None:
            return Stream(pieces(blobs.pieces(digest)), media_type=OCTETS, headers=headers)
        start, end = wanted
        headers |= {"content-length": str(end - start), "content-range": f"bytes {start}-{end - 1}/{size}"}
        found = pieces(blobs.pieces(digest, start, end - start))
        return Stream(found, media_type=OCTETS, headers=headers, status_code=206)

    @head("/blobs/{digest:str}", summary="Whether there is a blob", responses=problem_responses(404, 501, 503))
    async def has_blob(digest: Digest) -> Response[None]:
        """Its size is the content length."""
        digest = checked_digest(digest)
        size = await asyncio.to_thread(blobs.size, digest)
        return Response(None, headers={"content-type": OCTETS, **_headers(digest, size)})

    return [send_blob, put_blob, get_blob, has_blob]


async def _received(blobs: Blobs, request: Request[Any, Any, Any], expected: str) -> dict[str, Any]:
    media_type = checked_media_type(request.headers.get("content-type") or OCTETS)
    return (await receive(blobs, request.stream(), media_type, expected)).to_dict()


def _headers(digest: str, size: int) -> dict[str, str]:
    """A browser must not take what a workflow was given for a page of this server."""
    return {
        "content-length": str(size),
        "accept-ranges": "bytes",
        "etag": f'"{digest}"',
        "x-content-type-options": "nosniff",
        "content-disposition": "attachment",
    }


def _range(text: str, size: int) -> tuple[int, int] | None:
    """Start and end of the one part that is asked for, (0, 0) if there is none of it; None: all (RFC 9110, 14.2)."""
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        if not text.strip().startswith("bytes="):
            return None  # a unit that we do not know is ignored
        raise InvalidParameter("Range: one part only, such as bytes=0-99")
    first, last = found[1], found[2]
    if first is None and last is None:
        raise InvalidParameter("Range: one part only, such as bytes=0-99")
    start, end = (max(0, size - int(last)), size) if first is None else (int(first), size)
    if first is not None and last is not None:
        if int(last) < start:
            raise InvalidParameter("Range: it ends before it begins")
        end = min(size, int(last) + 1)
    return (start, end) if start < end else (0, 0)
