"""Log lines as OTLP: what was written to stderr, once more for the collector."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from knhk.observability.otlp import SCOPE

MOST_QUEUED: Final = 10_000
_SEVERITIES: Final = {
    "debug": SeverityNumber.SEVERITY_NUMBER_DEBUG,
    "info": SeverityNumber.SEVERITY_NUMBER_INFO,
    "warning": SeverityNumber.SEVERITY_NUMBER_WARN,
    "error": SeverityNumber.SEVERITY_NUMBER_ERROR,
    "critical": SeverityNumber.SEVERITY_NUMBER_FATAL,
}


class LogLines:
    """Lines in JSON, as logs.py renders them, until the exporter fetches them. `take` is for any thread."""

    def __init__(self, batch: int, enough: Callable[[], None]) -> None:
        self._batch, self._enough = batch, enough
        self._queue: deque[str] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def take(self, line: str) -> None:
        """Keep a line; count it as dropped if the queue is full."""
        if len(self._queue) >= MOST_QUEUED:
            self.dropped += 1
            return
        self._queue.append(line)
        if len(self._queue) == self._batch:
            self._enough()

    def fetch(self) -> list[str]:
        """The oldest lines, at most a request's worth."""
        return [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]


def request(lines: Sequence[str], resource: Resource, now_ns: int) -> ExportLogsServiceRequest:
    """The request with these lines, seen at `now_ns` (Unix time)."""
    made = ExportLogsServiceRequest()
    part = made.resource_logs.add()
    part.resource.CopyFrom(resource)
    scope = part.scope_logs.add()
    scope.scope.CopyFrom(SCOPE)
    for line in lines:
        _add(scope.log_records.add(observed_time_unix_nano=now_ns), line)
    return made


def _add(record: LogRecord, line: str) -> None:
    try:
        fields: dict[str, Any] = msgspec.json.decode(line)
    except msgspec.DecodeError:
        record.body.string_value = line
        return
    level = str(fields.pop("level", ""))
    record.severity_text = level.upper()
    record.severity_number = _SEVERITIES.get(level, SeverityNumber.SEVERITY_NUMBER_UNSPECIFIED)
    record.body.string_value = str(fields.pop("event", ""))
    record.time_unix_nano = _unix_ns(fields.pop("timestamp", "")) or record.observed_time_unix_nano
    record.trace_id = _id(fields, "trace_id", 32)
    record.span_id = _id(fields, "span_id", 16)
    for key, value in fields.items():
        attribute = record.attributes.add(key=key).value
        match value:
            case bool():
                attribute.bool_value = value
            case int() if -(1 << 63) <= value < 1 << 63:
                attribute.int_value = value
            case float():
                attribute.double_value = value
            case str():
                attribute.string_value = value
            case _:
                attribute.string_value = msgspec.json.encode(value).decode()


def _id(fields: Mapping[str, Any], name: str, length: int) -> bytes:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) != length:
        return b""
    try:
        return bytes.fromhex(value)
    except ValueError:
        return b""


def _unix_ns(text: object) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1e6) * 1_000
    except ValueError:
        return 0
