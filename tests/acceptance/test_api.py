"""The API on a real socket: what the fast path answers, what the application answers, and events while they happen."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.server import Server

HEAD = "apiVersion: knhk/v1\nkind: Workflow\n"
SUM = HEAD + (
    "metadata: {name: sum}\n"
    'spec: {steps: [{name: add, action: process, params: {output: "${{ 1 + 2 }}"}}], '
    'outputs: {sum: "${{ steps.add.output }}"}}\n'
)
NAPS = HEAD + (
    "metadata: {name: naps}\n"
    "spec:\n  steps:\n"
    "    - {name: one, action: wait, params: {duration: 400ms}}\n"
    "    - {name: two, action: wait, depends_on: [one], params: {duration: 400ms}}\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("api"), api={"max_body": "64KB"})
    try:
        yield running.start()
    finally:
        running.close()


def both_ways(server: Server, body: bytes, query: str = "", *headers: str) -> list[httpx.Response]:
    """The answers of the fast path and, because a request with `Expect` takes the usual way, of the application."""
    return [_exchange(server, body, query, headers), _exchange(server, body, query, (*headers, "Expect: 100-continue"))]


def _exchange(server: Server, body: bytes, query: str, headers: tuple[str, ...]) -> httpx.Response:
    lines = ["POST /workflows" + query + " HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close"]
    with socket.create_connection(("127.0.0.1", server.api_port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body)
        raw = b""
        while part := connection.recv(65536):
            raw += part
    if raw.startswith(b"HTTP/1.1 100"):
        raw = raw.partition(b"\r\n\r\n")[2]
    head, _, content = raw.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    named = [tuple(field.split(": ", 1)) for field in fields]
    return httpx.Response(int(status.split()[1]), headers=named, content=content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "query", "headers", "status"),
    [
        (SUM, "?wait=5s", (), 200),
        (SUM, "?wait=5s", ("Content-Type: application/yaml",), 200),
        (json.dumps({"descriptor": SUM}), "?wait=5s", ("Content-Type: application/json",), 200),
        (SUM, "?wait=5s", ("Content-Type: multipart/form-data; boundary=x",), 200),
        (SUM.replace("process", "proces"), "", (), 422),
        (SUM.replace("\n", ""), "", (), 422),
        ("", "", (), 422),
        (SUM, "?wait=soon", (), 400),
        (SUM, "?wiat=5s", (), 400),
        (SUM, "", ("Idempotency-Key: " + "k" * 300,), 400),
        (json.dumps({"descriptor": SUM, "input": {"a": 1}}), "", (), 400),
        (SUM + "#" * 70_000, "", (), 413),
    ],
)
def test_both_ways_give_the_same_answers(
    server: Server, body: str, query: str, headers: tuple[str, ...], status: int
) -> None:
    answers = both_ways(server, body.encode(), query, *headers)
    assert [answer.status_code for answer in answers] == [status, status]
    shown = [answer.json() for answer in answers]
    if status == 200:
        assert [one["outputs"] for one in shown] == [{"sum": 3}] * 2
        for answer, one in zip(answers, shown, strict=True):
            assert answer.headers["location"] == f"/workflows/{one['workflow_id']}"
    else:
        assert shown[0] == shown[1]
        assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}


def test_requests_that_are_sent_without_waiting_are_answered_in_order(server: Server) -> None:
    def request(key: str) -> bytes:
        head = f"POST /workflows?wait=5s HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}\r\n"
        return f"{head}Content-Length: {len(SUM)}\r\n\r\n{SUM}".encode()

    with socket.create_connection(("127.0.0.1", server.api_port), timeout=20) as connection:
        health = b"GET /workflows/wf-1 HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(request("p-1") + health + request("p-2") + request("p-1"))
        connection.settimeout(20)
        raw = b""
        while raw.count(b"HTTP/1.1 ") < 4 or not raw.rstrip().endswith(b"}"):
            raw += connection.recv(65536)
    statuses = [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 404, 200, 200]
    ids = [part.split(b'"')[3] for part in raw.split(b"\r\n\r\n")[1:] if b'"workflow_id"' in part]
    assert len(ids) == 3
    assert ids[0] == ids[2] != ids[1]


def test_a_client_that_leaves_while_it_waits_harms_nobody(server: Server) -> None:
    body = NAPS.encode()
    with socket.create_connection(("127.0.0.1", server.api_port), timeout=20) as connection:
        head = f"POST /workflows?wait=30s HTTP/1.1\r\nHost: x\r\nIdempotency-Key: gone\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        time.sleep(0.2)
    again = server.client.post("/workflows", content=NAPS, headers={"idempotency-key": "gone"})
    assert (again.status_code, again.json()["replayed"]) == (200, True)
    server.wait_for(again.json()["workflow_id"])


def test_events_come_while_they_happen_and_go_on_where_the_connection_broke(server: Server) -> None:
    name = server.submit(NAPS)
    first: list[tuple[int, str, float]] = []
    for seq, kind, at in _events(server, name):
        first.append((seq, kind, at))
        if kind == "timer.set":
            break  # the connection is closed here
    rest = list(_events(server, name, last=first[-1][0]))
    seen = [*first, *rest]
    assert [seq for seq, _, _ in seen] == list(range(len(seen)))
    assert seen[-1][1] == "workflow.completed"
    assert rest[-1][2] - rest[0][2] > 0.3, "they came all at once, at the end"
    receipts = server.client.get(f"/workflows/{name}/receipts").json()["receipts"]
    assert [kind for _, kind, _ in seen] == [one["kind"] for one in receipts]


def _events(server: Server, name: str, last: int | None = None) -> Iterator[tuple[int, str, float]]:
    headers = {} if last is None else {"last-event-id": str(last)}
    with server.client.stream("GET", f"/workflows/{name}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                field, _, value = line.partition(": ")
                fields[field] = value
            elif "id" in fields:
                assert json.loads(fields["data"])["seq"] == int(fields["id"])
                yield int(fields["id"]), fields["event"], time.monotonic()
                fields = {}


def test_many_clients_at_once(server: Server) -> None:
    problems: list[str] = []

    def work(number: int) -> None:
        with httpx.Client(base_url=server.api, timeout=30, verify=False) as client:
            for turn in range(20):
                key = {"idempotency-key": f"shared-{turn}"} if number % 2 else {}
                answer = client.post("/workflows", content=SUM, params={"wait": "20s"}, headers=key)
                if answer.status_code != 200 or answer.json()["outputs"] != {"sum": 3}:
                    problems.append(answer.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert problems == []
    shared = server.client.get("/workflows", params={"name": "sum", "limit": 1000}).json()["workflows"]
    assert len({row["workflow_id"] for row in shared}) == len(shared)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"POST /workflows HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /workflows HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /workflows HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nshort",
        b"POST /workflows?wait=\xff HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /workflows HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\xfe\r\nContent-Length: 1\r\n\r\n{",
        b"POST /workflows HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST /workflows HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=range(9),
)
def test_what_is_no_request_stops_nothing(server: Server, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.api_port), timeout=5) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
    assert b"HTTP/1.1 5" not in answer
    assert server.client.post("/workflows", content=SUM, params={"wait": "5s"}).json()["outputs"] == {"sum": 3}


def test_a_body_without_end_is_not_collected(server: Server) -> None:
    before = _resident_mb(server)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.api_port), timeout=20) as connection:
        connection.sendall(b"POST /workflows HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(800):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
            assert b" 413 " in connection.recv(65536)
        except ConnectionError:
            pass  # refused before the end, which is as good
    assert _resident_mb(server) - before < 30


def _resident_mb(server: Server) -> float:
    assert server.process is not None
    with open(f"/proc/{server.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 1e6


def test_scaling_that_is_switched_off_says_so(server: Server) -> None:
    shown = server.cli("scaling", "status", "-o", "json")
    assert shown["enabled"] is False
    assert "platform.enable_auto_scaling is off" in shown["reason"]
    assert shown["decisions"] == []
    assert "knhk_scaling_enabled 0.0" in httpx.get(f"{server.ops}/metrics").text
