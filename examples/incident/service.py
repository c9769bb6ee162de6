"""A service that breaks, and a chat: what the runbook works with, so that there is something to see.

`python service.py [PORT] [RESTARTS]`: the service answers 503 until it has been restarted so many times.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

needed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
restarts: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    """GET /health, POST /restart, POST /chat."""

    def do_GET(self) -> None:
        healthy = len(restarts) >= needed
        self._answer(200, {"healthy": healthy, "restarts": len(restarts)})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/restart":
            restarts.add(self.headers["Idempotency-Key"])  # The same request again is no further restart.
        elif self.path == "/chat":
            print("chat:", json.loads(body)["text"], flush=True)
        self._answer(200, {"restarts": len(restarts)})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # the name that the base class has
        """Only the chat is shown."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8901), Handler).serve_forever()
