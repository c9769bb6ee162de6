"""The processes of one machine: the others are asked over HTTP, and those that do not answer are named."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest

from knhk.scaling.asking import LOAD_PATH, Asking
from knhk.scaling.crew import Machine
from knhk.scaling.load import Load
from tests.unit.scaling.test_load import load


@pytest.fixture
def process() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The API of another process, and what it answers."""
    answers = {LOAD_PATH: msgspec.json.encode(load("knhk", 0.9))}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


async def own() -> Load:
    return load("knhk", 0.1)


async def test_the_others_are_asked_and_told_apart(process: tuple[str, dict[str, bytes]]) -> None:
    api, answers = process
    asking = Asking()
    gone = "http://127.0.0.1:9"
    machine = Machine(own, asking, lambda: [api, gone])
    fleet = await machine.loads()
    assert [(one.replica, one.cpu) for one in fleet.loads] == [("knhk", 0.1), (api, 0.9)]
    assert list(fleet.silent) == [gone]
    answers[LOAD_PATH] = b'{"replica": 1}'
    assert "cannot be read" in (await machine.loads()).silent[api]
    del answers[LOAD_PATH]
    assert "404" in (await machine.loads()).silent[api]
    await asking.aclose()
    assert (machine.leads(), list(machine.departing(3, 1))) == (True, [])
