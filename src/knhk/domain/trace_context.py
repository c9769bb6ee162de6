"""The trace of a run: ids that follow from the workflow id alone, and the W3C header that carries them.

Nobody has to remember an id: after a restart, or on another node, the same run has the same trace, and the span of an
attempt is known before it has begun. W3C Trace Context, https://www.w3.org/TR/trace-context/.
"""

import re
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

TRACE_BYTES: Final = 16
SPAN_BYTES: Final = 8
ALWAYS_SAMPLED: Final = "O"
"""The covenant whose runs are traced whatever the sampling rate."""

_KEPT: Final = 4_096
_HEADER: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SCALE: Final = 1 << 56


class SpanContext(NamedTuple):
    """A span as others refer to it: 16 and 8 bytes, not all zero."""

    trace_id: bytes
    span_id: bytes
    sampled: bool

    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{'01' if self.sampled else '00'}"


def run_ids(workflow_id: int) -> tuple[bytes, bytes]:
    """The trace of a run, and its span from the submission to the end."""
    digest = sha256(b"knhk.run/%d" % workflow_id).digest()
    return digest[:TRACE_BYTES], digest[TRACE_BYTES : TRACE_BYTES + SPAN_BYTES]


def trace_id(workflow_id: int) -> bytes:
    """The trace of a run."""
    return run_ids(workflow_id)[0]


def run_span_id(workflow_id: int, retried_at_ns: int = 0) -> bytes:
    """The span of a run; for one that an operator retried after its end, that of what came from then on."""
    if not retried_at_ns:
        return run_ids(workflow_id)[1]
    return sha256(b"knhk.retry/%d/%d" % (workflow_id, retried_at_ns)).digest()[:SPAN_BYTES]


def attempt_span_id(workflow_id: int, step: str, attempt: int) -> bytes:
    """The span of one attempt of a step; attempts count from 1 over all retries of the run."""
    run = int.from_bytes(run_span_id(workflow_id), "little")
    return (run ^ attempt_number(step, attempt)).to_bytes(SPAN_BYTES, "little")


@lru_cache(_KEPT)
def attempt_number(step: str, attempt: int) -> int:
    """By which bits (64) the spans of such attempts differ from those of their runs: hashed once for many runs."""
    digest = sha256(b"knhk.attempt/%d/%s" % (attempt, step.encode())).digest()
    return int.from_bytes(digest[:SPAN_BYTES], "little")


def is_sampled(workflow_id: int, rate: float, covenant: str = "") -> bool:
    """Whether a run is traced, `rate` (0 to 1) being the share of those that are.

    The last 7 bytes of the trace id decide, as in OpenTelemetry's TraceIdRatioBased: other samplers that see the trace
    id come to the same answer.
    """
    if rate >= 1.0 or covenant == ALWAYS_SAMPLED:
        return True
    return rate > 0.0 and int.from_bytes(trace_id(workflow_id)[-7:]) < rate * _SCALE


def attempt_context(workflow_id: int, step: str, attempt: int, rate: float, covenant: str) -> SpanContext:
    """The span of an attempt, for those whom it calls."""
    sampled = is_sampled(workflow_id, rate, covenant)
    return SpanContext(trace_id(workflow_id), attempt_span_id(workflow_id, step, attempt), sampled)


def parse(header: str) -> SpanContext | None:
    """The span that a `traceparent` names, None if it is not valid. A later version's extra fields are passed over."""
    match = _HEADER.fullmatch(header)
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    found = SpanContext(bytes.fromhex(match[2]), bytes.fromhex(match[3]), bool(int(match[4], 16) & 1))
    return found if any(found.trace_id) and any(found.span_id) else None
