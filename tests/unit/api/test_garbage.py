"""Whatever is sent, the answer is an answer: never a 500, and always problem details if it is a refusal."""

import random
from typing import Any

import httpx
import pytest

from tests.unit.api.descriptors import FAILS, NAPS, SUM
from tests.unit.api.node import Node

PATHS = ("", "/receipts", "/events", "/cancel", "/pause", "/resume", "/retry")
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "QUERY")
NAMES = ("wait", "state", "name", "department", "limit", "cursor", "verbose", "from_seq", "x", "")
VALUES = (
    "",
    "0",
    "-1",
    "1",
    "5ms",
    "true",
    "running",
    "null",
    "9" * 19,
    "9" * 400,
    "1e9",
    "NaN",
    "\x00",
    "é",
    "%",
    "[]",
)
BODIES = (
    b"",
    b"{}",
    b'{"reason": "because"}',
    b'{"reason": null}',
    b'{"descriptor": "x", "inputs": {"a": 1e999}}',
    b'{"descriptor": {"apiVersion": "\\ud800"}}',
    b'{"descriptor": "\\ud800"}',
    b"[" * 5000,
    b'{"a":' * 3000,
    b"- " * 3000,
    b"&a [*a]",
    b"!!python/object:os.system x",
    b"\xef\xbb\xbf" + SUM.encode(),
    SUM.encode(),
    FAILS.encode(),
    SUM.encode().replace(b"inputs.left", b"inputs.lft"),
    SUM.encode().replace(b"\n", b"\r\n"),
    SUM.encode("utf-16"),
)
HEADERS = {
    "content-type": ("application/json", "application/yaml", "multipart/form-data", "x", "", "text/plain; charset=x"),
    "last-event-id": ("0", "-1", "x", "9" * 30, ""),
    "idempotency-key": ("a", "", "k" * 300, "\u00e9"),
    "content-encoding": ("gzip", "x"),
    "accept": ("text/html", "x", ""),
    "traceparent": ("00-x", "é" * 200),
    "cookie": ("a=b; ;;=", "\u00ff"),
}


def mutated(rng: random.Random, body: bytes) -> bytes:
    """The body with a few bytes changed, cut or doubled."""
    raw = bytearray(body)
    for _ in range(rng.randrange(4)):
        if raw:
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.2 else raw)


def request(rng: random.Random, http: httpx.AsyncClient, known: list[str]) -> httpx.Request:
    names = [*known, "wf-1", "wf-", "x", "..", "%2e%2e", "%00", "%ff", "wf-" + "9" * rng.choice([18, 19, 20, 400]), "é"]
    path = rng.choice(
        ["/workflows", f"/workflows/{rng.choice(names)}{rng.choice(PATHS)}", "/openapi.json", "/", "//", "/*"]
    )
    query = {rng.choice(NAMES): rng.choice(VALUES) for _ in range(rng.choice([0, 0, 1, 2]))}
    headers = {
        name.encode(): rng.choice(values).encode("latin-1") for name, values in HEADERS.items() if rng.random() < 0.2
    }
    content: Any = mutated(rng, rng.choice(BODIES)) if rng.random() < 0.7 else None
    built = http.build_request(rng.choice(METHODS), path, params=query, content=content)
    built.headers = httpx.Headers([*built.headers.raw, *headers.items()])
    return built


@pytest.mark.parametrize("seed", range(6))
async def test_random_requests_are_answered(node: Node, seed: int) -> None:
    rng = random.Random(seed)
    known = [await node.id_of(text, "5s") for text in (SUM, FAILS)]
    refused = 0
    for number in range(250):
        sent = request(rng, node.http, known)
        if number % 50 == 0:
            known.append(await node.id_of(NAPS))
        if sent.url.path.endswith("/events") and sent.method == "GET":
            for name in known[2:]:
                await node.http.post(f"/workflows/{name}/cancel")  # else they would be followed for a minute
        answer = await node.http.send(sent)
        shown = (sent.method, str(sent.url), sent.headers.raw, sent.content, answer.text)
        assert answer.status_code < 500, shown
        if answer.status_code >= 400:
            refused += 1
            assert answer.headers["content-type"] == "application/problem+json", shown
            if sent.method != "HEAD":
                assert answer.json()["status"] == answer.status_code, shown
    assert 50 < refused < 250
    assert (await node.submit(SUM, "5s"))["outputs"] == {"sum": 3}
