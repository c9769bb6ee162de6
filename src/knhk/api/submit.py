"""POST /workflows, the hot path: from the bytes of a request to the bytes of its answer.

fast_path.py calls it straight from the HTTP parser, app.py for the documented route; both give the same answers. The
body is a descriptor in YAML or JSON, or the JSON envelope {"descriptor": ..., "inputs": {...}}, which may name a
registered definition in place of the descriptor: {"name": ..., "version": ..., "inputs": {...}}.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec.structs import replace

from knhk.domain.errors import InvalidDescriptor, InvalidParameter, KnhkError, PayloadTooLarge
from knhk.domain.identifier import to_text
from knhk.domain.problems import INTERNAL, MEDIA_TYPE, problem_of, problem_of_status, retry_after
from knhk.domain.units import parse_duration_ns
from knhk.engine.control import Accepted, Control, Submission
from knhk.engine.live import LiveRun

Headers = Iterable[tuple[bytes, bytes]]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

PATH: Final = "/workflows"
_LONGEST_WAIT_NS: Final = 300_000_000_000
_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", MEDIA_TYPE.encode())


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A descriptor, or the name and perhaps version of a registered one, together with what it is given."""

    descriptor: str | dict[str, Any] | None = None
    inputs: dict[str, Any] = {}
    name: str = ""
    version: str | int = ""


_HINT: Final = 'Send {"descriptor": ..., "inputs": {...}} or {"name": ..., "version": ..., "inputs": {...}}.'
_ENVELOPE = msgspec.json.Decoder(Envelope)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


class SubmitRoute:
    """Answers submissions. Used by the fast path and by the documented route of the application alike."""

    def __init__(self, control: Control, max_body_bytes: int) -> None:
        self._control, self.max_body_bytes = control, max_body_bytes

    async def answer(self, headers: Headers, query: bytes, body: bytes) -> Answer:
        """Status, headers and body for one submission; errors are answers too."""
        try:
            wait_s = _wait_s(query) if query else 0.0
            return _shown(await self._control.submit(_submission(headers, body), wait_s=wait_s))
        except KnhkError as error:
            return problem_answer(_explained(error, body))

    def begin(
        self, headers: Headers, query: bytes, body: bytes, _tell: Callable[[Answer], None]
    ) -> Awaitable[Answer] | None:
        """Answer one submission: what is to be awaited for that, or None if `_tell` is called with the answer."""
        return self.answer(headers, query, body)


class DirectSubmit(SubmitRoute):
    """The route of a node that takes in every submission itself: most need no task of their own to wait in."""

    def begin(
        self, headers: Headers, query: bytes, body: bytes, tell: Callable[[Answer], None]
    ) -> Awaitable[Answer] | None:
        try:
            wait_s = _wait_s(query) if query else 0.0
            submission = _submission(headers, body)
            if submission.idempotency_key or submission.definition:
                return self.answer(headers, query, body)
            live = self._control.begin(submission)
        except KnhkError as error:
            asyncio.get_running_loop().call_soon(tell, problem_answer(_explained(error, body)))
            return None
        batch = live.batch
        assert batch is not None
        if batch.failure is not None or (wait_s > 0 and not live.is_over):
            return self._accepted(live, wait_s)
        batch.answers.append(partial(_tell, live, tell))
        return None

    async def _accepted(self, live: LiveRun, wait_s: float) -> Answer:
        try:
            return _shown(await self._control.accepted(live, wait_s))
        except KnhkError as error:
            return problem_answer(error)


def _tell(live: LiveRun, tell: Callable[[Answer], None], error: KnhkError | None) -> None:
    try:
        answer = _shown(Accepted.of(live)) if error is None else problem_answer(error)
    except Exception as unforeseen:
        tell(internal_error(unforeseen))
        raise
    tell(answer)


def _submission(headers: Headers, body: bytes) -> Submission:
    key = traceparent = ""
    for name, value in headers:
        if name == b"idempotency-key":
            key = value.decode("latin-1")
        elif name == b"traceparent":
            traceparent = value.decode("latin-1")[:128]
    submission = Submission(body, {}, key, traceparent=traceparent)
    if body[:1] == b"{" and (b'"descriptor"' in body or b'"apiVersion"' not in body):
        return _opened(submission)
    return submission


def _shown(accepted: Accepted) -> Answer:
    shown: dict[str, Any] = {
        "workflow_id": to_text(accepted.workflow_id),
        "state": accepted.state,
        "replayed": accepted.replayed,
    }
    ended = accepted.results is not None
    if ended:
        shown["outputs"] = accepted.results
        shown["failure"] = accepted.failure
    location = (b"location", f"/workflows/{shown['workflow_id']}".encode())
    return 200 if ended or accepted.replayed else 202, [_JSON, location], _ENCODER.encode(shown)


def problem_answer(error: KnhkError) -> Answer:
    """An error as RFC 9457 problem details."""
    status, problem = problem_of(error)
    headers = [_PROBLEM]
    seconds = retry_after(error)
    if seconds is not None:
        headers.append((b"retry-after", seconds.encode()))
    return status, headers, _ENCODER.encode(problem)


def too_long(most_bytes: int) -> Answer:
    """The answer to a body of more bytes."""
    return problem_answer(PayloadTooLarge(f"the body is longer than {most_bytes} bytes (api.max_body)"))


def internal_error(error: Exception) -> Answer:
    """What nobody foresaw: the log has it whole, the client gets its kind."""
    problem = problem_of_status(INTERNAL, "Internal error", f"{type(error).__name__}; the server's log has more")
    return INTERNAL, [_PROBLEM], _ENCODER.encode(problem)


def _opened(submission: Submission) -> Submission:
    """What an envelope asks for; a JSON descriptor that merely contains its words is left as it is."""
    body = submission.descriptor
    try:
        envelope = _ENVELOPE.decode(body)
    except _UNREADABLE as error:
        if not _is_envelope(body):
            return submission
        raise InvalidParameter(f"the envelope is wrong: {error}", hint=_HINT) from error
    named, descriptor = envelope.name, envelope.descriptor
    if (descriptor is None) is not bool(named):
        raise InvalidParameter("the envelope must have either `descriptor` or `name`", hint=_HINT)
    if descriptor is not None:
        if envelope.version != "":
            raise InvalidParameter("`version` goes with the `name` of a definition", hint=_HINT)
        text = descriptor.encode() if isinstance(descriptor, str) else _ENCODER.encode(descriptor)
        return replace(submission, descriptor=text, inputs=envelope.inputs)
    return replace(submission, descriptor=b"", inputs=envelope.inputs, definition=named, version=str(envelope.version))


def _is_envelope(body: bytes) -> bool:
    """Whether its words are among the outermost keys; what cannot be read at all is left to the descriptor's reader."""
    try:
        keys = _KEYS.decode(body)
    except _UNREADABLE:
        return False
    return "descriptor" in keys or ("name" in keys and "apiVersion" not in keys)


@lru_cache(maxsize=64)
def _wait_s(query: bytes) -> float:
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    unknown = set(values) - {"wait"}
    if unknown:
        raise InvalidParameter(f"unknown query parameter {sorted(unknown)[0]!r}; this route takes `wait`")
    try:
        wait_ns = parse_duration_ns(values["wait"][-1])
    except ValueError as error:
        raise InvalidParameter(f"wait: {error}") from error
    return min(wait_ns, _LONGEST_WAIT_NS) / 1e9


def _explained(error: KnhkError, body: bytes) -> KnhkError:
    """Name a cause that the parser cannot see: `curl -d @file` sends YAML without its line breaks."""
    if isinstance(error, InvalidDescriptor) and b"\n" not in body and body.lstrip().startswith(b"apiVersion:"):
        hint = "The body has no line breaks: `curl -d @FILE` removes them, `curl --data-binary @FILE` sends them."
        return InvalidDescriptor(error.message, problems=error.problems, hint=hint)
    return error
