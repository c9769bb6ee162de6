"""Spans as bytes of OTLP, as quickly as Python can: 2 to 3 us for one, 7 by the generated classes, 69 by the SDK.

An encoded protobuf message may be put together of parts that were encoded apart, in any order: what is the same for
all spans of a run, or for all attempts of a step, is encoded once and kept. Only span ids and times are written anew.
Encoding: https://protobuf.dev/programming-guides/encoding/; fields: opentelemetry/proto/trace/v1/trace.proto.
"""

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from knhk.domain.event import Failure
from knhk.domain.trace_context import SpanContext, attempt_number
from knhk.observability.otlp import SCOPE

_KEPT: Final = 4_096
_LONGEST_TEXT: Final = 1_000
_SHORT: Final = 100
_OWN: Final = Struct("<HQBQBQ").pack
_OWN_BYTES: Final = 28
_SPAN_ID, _START, _END = 0x0812, 0x39, 0x41  # field 2 with 8 bytes, fields 7 and 8 with 64 bits
_TRACE_ID, _PARENT_ID = b"\x0a\x10", b"\x22\x08"  # fields 1 with 16 bytes and 4 with 8
_NAME, _KIND = 0x2A, 0x30
_ATTRIBUTE, _KEY, _VALUE, _STRING = 0x4A, 0x0A, 0x12, 0x0A
_RESOURCE, _SCOPE_SPANS, _SCOPE, _SPAN, _RESOURCE_SPANS = 0x0A, 0x12, 0x0A, 0x12, 0x0A
_INTERNAL: Final = bytes((_KIND, Span.SPAN_KIND_INTERNAL))


def _head(tag: int, length: int) -> bytes:
    """What is before a field of type bytes, text or message: its tag and its length."""
    if length < 0x80:
        return bytes((tag, length))
    head = bytearray((tag,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


_SPAN_HEADS: Final = tuple(_head(_SPAN, length) for length in range(1_024))
_NAME_HEADS: Final = tuple(_head(_NAME, length) for length in range(_SHORT))


def field(tag: int, raw: bytes) -> bytes:
    """A field of type bytes, text or message: its tag, its length, itself."""
    return _head(tag, len(raw)) + raw


class TextAttribute:
    """An attribute of one name, to be given a text."""

    __slots__ = ("_key", "_short")

    def __init__(self, name: str) -> None:
        self._key = field(_KEY, name.encode())
        self._short = tuple(map(self._before, range(_SHORT)))

    def of(self, value: str) -> bytes:
        """It, as a field of a span."""
        raw = value.encode("utf-8", "replace")
        length = len(raw)
        return (self._short[length] if length < _SHORT else self._before(length)) + raw

    def _before(self, length: int) -> bytes:
        """All that comes before a text of so many bytes."""
        text = _head(_STRING, length)
        value = self._key + _head(_VALUE, len(text) + length) + text
        return _head(_ATTRIBUTE, len(value) + length) + value


_WORKFLOW_ID: Final = TextAttribute("knhk.workflow.id")
_WORKFLOW_NAME: Final = TextAttribute("knhk.workflow.name")
_ACTION: Final = TextAttribute("knhk.action")


def span(shared: bytes, span_id: int, began_ns: int, ended_ns: int, rest: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """A span as a field of ScopeSpans, in parts to be joined. `shared` and `rest` are fields of a span, encoded;
    `span_id` is the id's 8 bytes read as little endian."""
    length = _OWN_BYTES + len(shared) + len(rest)
    head = _SPAN_HEADS[length] if length < len(_SPAN_HEADS) else _head(_SPAN, length)
    return head, shared, _OWN(_SPAN_ID, span_id, _START, began_ns, _END, ended_ns), rest


def request(spans: Iterable[bytes], resource: bytes) -> bytes:
    """An ExportTraceServiceRequest with these spans of a resource, which is encoded too."""
    scoped = b"".join((field(_SCOPE, SCOPE.SerializeToString()), *spans))
    return field(_RESOURCE_SPANS, field(_RESOURCE, resource) + field(_SCOPE_SPANS, scoped))


def trace(trace_id: bytes, workflow_id: str) -> bytes:
    """What all spans of a run share."""
    return _TRACE_ID + trace_id + _WORKFLOW_ID.of(workflow_id)


def below(parent_id: bytes) -> bytes:
    """That a span is below another one."""
    return _PARENT_ID + parent_id


def _named(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    length = len(raw)
    return (_NAME_HEADS[length] if length < _SHORT else _head(_NAME, length)) + raw


class Attempt(NamedTuple):
    """What the spans of a step's attempts with one number share over all runs: the bits of the id, and the rest."""

    number: int
    rest: bytes


@lru_cache(_KEPT)
def attempt_of(step: str, action: str, attempt: int) -> Attempt:
    """The name, the kind and the attributes of an attempt."""
    rest = _named(step) + _INTERNAL + _attempt_attribute(attempt)
    return Attempt(attempt_number(step, attempt), rest + _ACTION.of(action) if action else rest)


@lru_cache(_KEPT)
def _attempt_attribute(attempt: int) -> bytes:
    made = Span()
    made.attributes.add(key="knhk.step.attempt").value.int_value = attempt
    return made.SerializeToString()


def run_parts(name: str, suffix: str, state: str, covenant: str, department: str) -> bytes:
    """The name, the kind and the attributes of a run's span; what is added to the name is no part of the workflow's."""
    return _named(name + suffix) + _WORKFLOW_NAME.of(name) + _run_attributes(state, covenant, department)


@lru_cache(_KEPT)
def _run_attributes(state: str, covenant: str, department: str) -> bytes:
    made = Span(kind=Span.SPAN_KIND_SERVER)
    given = (("knhk.workflow.state", state), ("knhk.covenant", covenant), ("knhk.department", department))
    for key, value in given:
        if value:
            made.attributes.add(key=key).value.string_value = value
    return made.SerializeToString()


def failure_parts(failure: Failure) -> bytes:
    """The status of what failed."""
    made = Span(status=Status(code=Status.STATUS_CODE_ERROR, message=failure.message[:_LONGEST_TEXT]))
    made.attributes.add(key="error.type").value.string_value = failure.code
    return made.SerializeToString()


def link_parts(submitter: SpanContext) -> bytes:
    """The link to the span that the submitter named."""
    kind = KeyValue(key="knhk.link")
    kind.value.string_value = "submitter"
    made = Span()
    made.links.add(
        trace_id=submitter.trace_id, span_id=submitter.span_id, flags=int(submitter.sampled), attributes=[kind]
    )
    return made.SerializeToString()
