"""An OTLP receiver on loopback, by gRPC and by HTTP, that decodes what it gets with OpenTelemetry's own classes.

`python -m tests.services.otlp` serves both until it is killed and prints their ports.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

REQUESTS: dict[str, Any] = {
    "traces": trace_service_pb2.ExportTraceServiceRequest,
    "metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "logs": logs_service_pb2.ExportLogsServiceRequest,
}
ANSWERS: dict[str, Any] = {
    "traces": trace_service_pb2.ExportTraceServiceResponse,
    "metrics": metrics_service_pb2.ExportMetricsServiceResponse,
    "logs": logs_service_pb2.ExportLogsServiceResponse,
}
METHODS = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
}


def attributes(record: Any) -> dict[str, Any]:
    """A record's attributes as plain values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in record.attributes}


class Receiver:
    """Both servers. `refuse` holds signals it does not know, `busy` says that it cannot take anything now, and
    `slow_s` is how long it thinks about each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: set[str] = set()
        self.busy = False
        self.slow_s = 0.0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._grpc = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._grpc.add_generic_rpc_handlers((_Methods(self),))
        self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()

    @property
    def http_port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def close(self) -> None:
        self._grpc.stop(0).wait(5)
        self._http.shutdown()
        self._http.server_close()

    def take(self, signal: str, raw: bytes, headers: dict[str, str]) -> None:
        if self.slow_s:
            time.sleep(self.slow_s)
        request = REQUESTS[signal]()
        request.ParseFromString(raw)
        self.requests.append((signal, request))
        self.headers.append(headers)

    def spans(self) -> list[Span]:
        return [
            span
            for signal, request in list(self.requests)
            if signal == "traces"
            for part in request.resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Metric]:
        """The newest of each name."""
        return {
            metric.name: metric
            for signal, request in list(self.requests)
            if signal == "metrics"
            for part in request.resource_metrics
            for scope in part.scope_metrics
            for metric in scope.metrics
        }

    def logs(self) -> list[LogRecord]:
        return [
            record
            for signal, request in list(self.requests)
            if signal == "logs"
            for part in request.resource_logs
            for scope in part.scope_logs
            for record in scope.log_records
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                signal = self.path.removeprefix("/v1/")
                status = 404 if signal not in REQUESTS or signal in receiver.refuse else 503 if receiver.busy else 200
                body = b""
                if status == 200:
                    assert self.headers["content-type"] == "application/x-protobuf"
                    receiver.take(signal, raw, {name.lower(): value for name, value in self.headers.items()})
                    body = ANSWERS[signal]().SerializeToString()
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_given: Any) -> None:
                pass

        return Handler


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def service(self, call: Any) -> Any:
        signal = METHODS.get(call.method, "")
        if not signal or signal in self._receiver.refuse:
            return None  # UNIMPLEMENTED

        def answer(raw: bytes, context: Any) -> Any:
            if self._receiver.busy:
                context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
            self._receiver.take(signal, raw, dict(context.invocation_metadata()))
            return ANSWERS[signal]()

        return grpc.unary_unary_rpc_method_handler(
            answer, response_serializer=lambda message: message.SerializeToString()
        )


if __name__ == "__main__":
    served = Receiver()
    print(served.grpc_port, served.http_port, flush=True)
    threading.Event().wait()
