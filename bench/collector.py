"""An OpenTelemetry collector that takes everything, by gRPC and by HTTP, and throws it away.

`python -m bench.collector [GRPC_PORT HTTP_PORT]` prints its two ports; 0, the default, takes any that is free.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from bench.server_config import HOST


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_given: Any) -> None:
        """Requests are not reported."""


class _Grpc(grpc.GenericRpcHandler):
    def service(self, _call: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")


def main(grpc_port: int = 0, http_port: int = 0) -> None:
    """Serve until the process is killed."""
    by_http = ThreadingHTTPServer((HOST, http_port), _Http)
    by_grpc = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    by_grpc.add_generic_rpc_handlers((_Grpc(),))
    grpc_port = by_grpc.add_insecure_port(f"{HOST}:{grpc_port}")
    by_grpc.start()
    print(grpc_port, by_http.server_port, flush=True)
    by_http.serve_forever()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
