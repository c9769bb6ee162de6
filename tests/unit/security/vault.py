"""HashiCorp Vault's transit engine at the wire, as its API documentation gives it: encrypt, decrypt, rotate, tokens."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.test"


class FakeVault:
    """Serves one key on loopback. `failing` makes it answer with that status; `rotate` adds a version of the key."""

    def __init__(self) -> None:
        self.versions = [AESGCM.generate_key(256)]
        self.failing = 0
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/transit/keys/knhk"

    def rotate(self) -> None:
        self.versions.append(AESGCM.generate_key(256))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, given: dict[str, str], token: str | None) -> tuple[int, dict[str, Any]]:
        self.requests.append(path)
        if self.failing:
            return self.failing, {"errors": ["failing"]}
        if token != TOKEN:
            return 403, {"errors": ["permission denied"]}
        if path == "/v1/transit/encrypt/knhk":
            raw = base64.b64decode(given["plaintext"], validate=True)
            box = bytes(12) + AESGCM(self.versions[-1]).encrypt(bytes(12), raw, None)
            return 200, {"data": {"ciphertext": f"vault:v{len(self.versions)}:{base64.b64encode(box).decode()}"}}
        if path == "/v1/transit/decrypt/knhk":
            try:
                _, version, text = given["ciphertext"].split(":")
                box = base64.b64decode(text, validate=True)
                raw = AESGCM(self.versions[int(version[1:]) - 1]).decrypt(box[:12], box[12:], None)
            except (ValueError, IndexError, InvalidTag):
                return 400, {"errors": ["cipher: message authentication failed"]}
            return 200, {"data": {"plaintext": base64.b64encode(raw).decode()}}
        return 404, {"errors": []}


def _handler(vault: FakeVault) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = vault.answer(self.path, given, self.headers.get("X-Vault-Token"))
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
