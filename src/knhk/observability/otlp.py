"""The OpenTelemetry protocol (OTLP 1.x) on the wire: what a request is called, and sending it by gRPC or HTTP.

The messages are those of opentelemetry-proto. The SDK's span objects and exporters are not used: they take 69 us of
CPU for a span, these classes 7, and what span_encoding.py does about 3 (docs/dependencies.md).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from knhk import __version__

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = ("traces", "metrics", "logs")
SCOPE: Final = InstrumentationScope(name="knhk", version=__version__)
GRPC_PORT: Final = 4317
_HTTP_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_HTTP_UNKNOWN: Final = frozenset({404, 405, 501})
_LONGEST_REASON: Final = 300


class TryAgain(Exception):  # it says what to do
    """The collector cannot be reached, or is too busy: the same request may be taken later."""


class Rejected(Exception):
    """The collector will never take this request."""


class NotTaken(Exception):
    """The collector does not take this kind of signal at all, as Jaeger takes traces alone."""


class Sender(Protocol):
    """Sends one request and waits for the answer. Used by one thread."""

    def send(self, signal: Signal, request: bytes, timeout_s: float) -> int:
        """How many records of the request the collector did not want. Raises TryAgain, Rejected or NotTaken."""
        ...

    def close(self) -> None: ...


class Endpoint(NamedTuple):
    """Where telemetry goes. `url` is without a path for gRPC, and the base of `/v1/traces` for HTTP."""

    url: str
    protocol: Literal["grpc", "http"]
    secure: bool


def endpoint_of(url: str, protocol: Literal["auto", "grpc", "http"] = "auto") -> Endpoint:
    """What a configured URL means: `auto` takes gRPC for port 4317 and for scheme grpc or grpcs, HTTP for all others.

    Raises ValueError if it is no URL with a host.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise ValueError(f"{url!r} is no URL of a collector, such as http://otel-collector:4317")
    secure = parts.scheme in ("https", "grpcs")
    by_grpc = parts.scheme.startswith("grpc") or parts.port == GRPC_PORT
    if protocol == "grpc" or (protocol == "auto" and by_grpc):
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return Endpoint(f"{host}:{parts.port or GRPC_PORT}", "grpc", secure)
    netloc = parts.netloc.rpartition("@")[2]
    return Endpoint(f"{'https' if secure else 'http'}://{netloc}{parts.path.rstrip('/')}", "http", secure)


def headers_of(text: str) -> dict[str, str]:
    """Headers written as OpenTelemetry's environment variables have them: `name=value,name=value`."""
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def sender_to(endpoint: Endpoint, headers: Mapping[str, str]) -> Sender:
    """What sends to this endpoint. Heavy: call it in the thread that will use it."""
    return GrpcSender(endpoint, headers) if endpoint.protocol == "grpc" else HttpSender(endpoint, headers)


def resource(node_id: str, host: str) -> Resource:
    """Who sends: OpenTelemetry's semantic conventions for a service."""
    made = Resource()
    for key, value in (
        ("service.name", "knhk"),
        ("service.version", __version__),
        ("service.instance.id", node_id),
        ("host.name", host),
    ):
        made.attributes.add(key=key).value.string_value = value
    return made


def rejected_count(answer: Any) -> int:
    """How many records an answer says were not wanted (partial success)."""
    partial = answer.partial_success
    return sum(int(value) for field, value in partial.ListFields() if field.name.startswith("rejected_"))


class HttpSender:
    """OTLP/HTTP with binary protobuf."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        import httpx

        self._url = endpoint.url
        self._errors = httpx.HTTPError
        self._client = httpx.Client(headers={**headers, "content-type": "application/x-protobuf"}, trust_env=False)

    def send(self, signal: Signal, request: bytes, timeout_s: float) -> int:
        try:
            answer = self._client.post(f"{self._url}/v1/{signal}", content=request, timeout=timeout_s)
        except self._errors as error:
            raise TryAgain(f"{type(error).__name__}: {error}"[:_LONGEST_REASON]) from None
        if answer.status_code in _HTTP_RETRYABLE:
            raise TryAgain(f"HTTP {answer.status_code}")
        if answer.status_code in _HTTP_UNKNOWN:
            raise NotTaken(f"HTTP {answer.status_code}")
        if not answer.is_success:
            raise Rejected(f"HTTP {answer.status_code}: {answer.text[:_LONGEST_REASON]}")
        made = _service(signal).answer()
        try:
            made.ParseFromString(answer.content)
        except Exception:  # it took the request, whatever it says about it
            return 0
        return rejected_count(made)

    def close(self) -> None:
        self._client.close()


class GrpcSender:
    """OTLP/gRPC."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        import grpc

        self._grpc = grpc
        self._metadata = tuple(headers.items())
        self._channel = (
            grpc.secure_channel(endpoint.url, grpc.ssl_channel_credentials())
            if endpoint.secure
            else grpc.insecure_channel(endpoint.url)
        )
        codes = grpc.StatusCode
        self._retryable = {
            *(codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED, codes.RESOURCE_EXHAUSTED),
            *(codes.ABORTED, codes.CANCELLED, codes.OUT_OF_RANGE, codes.DATA_LOSS),
        }

    def send(self, signal: Signal, request: bytes, timeout_s: float) -> int:
        service = _service(signal)
        call: Any = self._channel.unary_unary(
            service.method, request_serializer=None, response_deserializer=service.answer.FromString
        )
        try:
            answer = call(request, timeout=timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as error:
            code = error.code()
            reason = f"{code.name}: {error.details()}"[:_LONGEST_REASON]
            if code in self._retryable:
                raise TryAgain(reason) from None
            if code is self._grpc.StatusCode.UNIMPLEMENTED:
                raise NotTaken(reason) from None
            raise Rejected(reason) from None
        return rejected_count(answer)

    def close(self) -> None:
        self._channel.close()


class _Service(NamedTuple):
    method: str
    answer: Any


def _service(signal: Signal) -> _Service:
    """The method of a signal's collector service, and the class of its answer."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    package = "/opentelemetry.proto.collector"
    return {
        "traces": _Service(f"{package}.trace.v1.TraceService/Export", ExportTraceServiceResponse),
        "metrics": _Service(f"{package}.metrics.v1.MetricsService/Export", ExportMetricsServiceResponse),
        "logs": _Service(f"{package}.logs.v1.LogsService/Export", ExportLogsServiceResponse),
    }[signal]
