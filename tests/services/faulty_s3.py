"""A proxy in front of an S3 server that misbehaves as a test says: in errors, in time, in bytes, in honesty."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.services.s3 import S3


class FaultyS3:
    """`mode` is one of

    ""          everything is passed on
    "error"     each request is answered with 500
    "slow"      each answer takes `delay_s`
    "lie"       a PUT is answered with 200 and thrown away
    "half"      of a PUT only the first half is kept, and 200 is answered
    "truncate"  of the answer to a GET of an object only the first half comes
    "flip"      one bit of the answer to a GET of an object is another
    """

    def __init__(self, s3: S3) -> None:
        self._s3 = s3
        self.mode, self.delay_s, self.requests = "", 0.0, 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def variables(self) -> dict[str, str]:
        return {**self._s3.variables, "AWS_ENDPOINT_URL": self.endpoint}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        mode = self.mode
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        if mode == "slow":
            time.sleep(self.delay_s)
        if mode == "error":
            self._answer(request, 500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        if request.command == "PUT" and mode == "lie":
            self._answer(request, 200, {"etag": '"0"'}, b"")
            return
        status, headers, answer = self._forward(request, body)
        if request.command == "PUT" and mode == "half" and status == 200:
            bucket, _, key = urlsplit(request.path).path.lstrip("/").partition("/")
            self._s3.store(bucket).put(key, body[: len(body) // 2])
        if request.command == "GET" and status == 200 and "list-type" not in request.path and answer:
            if mode == "truncate":
                answer = answer[: len(answer) // 2]
            elif mode == "flip":
                middle = len(answer) // 2
                answer = answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :]
        self._answer(request, status, headers, answer)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._s3.port, timeout=60)
        try:
            # The Host header stays the proxy's, since the signature covers it.
            connection.request(request.command, request.path, body=body or None, headers=dict(request.headers))
            answer = connection.getresponse()
            wanted = ("etag", "last-modified", "content-type")
            headers = {name: value for name, value in answer.getheaders() if name.lower() in wanted}
            length = answer.getheader("content-length")
            if request.command == "HEAD" and length:
                headers["content-length"] = length
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if "content-length" not in headers:
            request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
