"""An HTTP server that fails as a test tells it to, and remembers what it was sent."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], Any]


class Peer:
    """`reply` decides each answer from the number of the request (from 1); None breaks the connection off."""

    def __init__(self, reply: Callable[[int], Reply | None]) -> None:
        self.reply = reply
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                peer.requests.append((self.command, self.path, headers, body))
                answer = peer.reply(len(peer.requests))
                self.close_connection = True
                if answer is None:
                    return
                status, more, value = answer
                raw = json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"content-type": "application/json", **more}.items():
                    self.send_header(name, text)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any  # the names that http.server looks for

            def log_message(self, *_: Any) -> None:
                """Nothing: the tests look at `requests`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> "Peer":
        self._thread.start()
        return self

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


@contextmanager
def flaky(reply: Callable[[int], Reply | None]) -> Iterator[Peer]:
    peer = Peer(reply).start()
    try:
        yield peer
    finally:
        peer.close()
