"""Large payloads on a real server: sent and read in pieces, passed between steps, kept, verified, restored, erased."""

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from knhk import Client
from knhk.bootstrap import Node
from knhk.config import Config
from knhk.domain.errors import BlobMismatch, BlobNotFound, InvalidInputs, PayloadTooLarge, Unsupported
from knhk.domain.identifier import parse, partition_of
from tests.acceptance import blob_callables
from tests.acceptance.server import Server
from tests.peak_memory import peak_of
from tests.services.postgres import missing, shared_server

MiB = 1 << 20
COPY = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: copy, department: %s}
spec:
  inputs:
    source: {type: object}
    to: {type: string}
  steps:
    - name: send
      action: http
      params: {url: "${{ inputs.to }}/echo", method: POST, body: "${{ inputs.source }}", timeout: 5m}
      timeout: 5m
  outputs:
    copied: ${{ steps.send.output.body }}
"""
KEEP = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: keep}
spec:
  inputs: {source: {type: object}}
  steps: [{name: pass, action: process, params: {output: "${{ inputs.source }}"}}]
  outputs: {same: "${{ steps.pass.output }}"}
"""


class Peer(BaseHTTPRequestHandler):
    """Answers a POST with what it was sent, read and written piece by piece."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        left = int(self.headers["content-length"])
        self.send_response(200)
        self.send_header("content-type", "text/csv")
        self.send_header("content-length", str(left))
        self.end_headers()
        with tempfile.TemporaryFile() as held:
            while left:
                piece = self.rfile.read(min(left, MiB))
                left -= len(piece)
                held.write(piece)
            held.seek(0)
            while piece := held.read(MiB):
                self.wfile.write(piece)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def peer() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that need nothing of their own; it encrypts."""
    path = tmp_path_factory.mktemp("blobs")
    actions = {
        "python": {"callables": ["tests.acceptance.blob_callables:*"]},
        "sql": {"connections": [{"name": "shop", "url": f"sqlite:///{path / 'shop.db'}"}], "timeout": "10m"},
    }
    persistence = {"encryption": True, "blobs": {"max": "100MB"}}
    running = Server(path, persistence=persistence, actions=actions)
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def server(shared: Server) -> Server:
    """The shared server, which a test that stopped it left stopped."""
    if shared.process is None or shared.process.poll() is not None:
        shared.start()
    return shared


def content(size: int) -> bytes:
    block = os.urandom(MiB)
    return b"".join(block[number % MiB :] + block[: number % MiB] for number in range(size // MiB + 1))[:size]


def set_pace(server: Server, turns: int) -> None:
    """How long the database of the server takes over a row."""
    with contextlib.closing(sqlite3.connect(server.directory / "shop.db")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS pace (turns INTEGER)")
        database.execute("DELETE FROM pace")
        database.execute("INSERT INTO pace VALUES (?)", (turns,))


def incoming(server: Server) -> list[int]:
    """The sizes of what is being written."""
    found = []
    for path in (server.data / "blobs").glob("incoming-*"):
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found


def blob_files(server: Server) -> list[Path]:
    return [path for path in (server.data / "blobs" / "data").rglob("*") if path.is_file()]


def test_the_life_of_a_blob(server: Server, peer: str, tmp_path: Path) -> None:
    data, before = content(3 * MiB + 5), len(blob_files(server))
    (tmp_path / "big.csv").write_bytes(data)
    reference = server.cli("blob", "put", str(tmp_path / "big.csv"), "-o", "json")
    assert reference == {"$blob": f"sha256:{sha256(data).hexdigest()}", "size": len(data), "media_type": "text/csv"}
    with Client(server.api) as client:
        run = client.run(COPY % "sales", {"source": reference, "to": peer})
        assert run.state == "completed", run
        assert run.outputs == {"copied": reference}, "the same bytes are the same blob"
        other = client.run(COPY % "hr", {"source": client.blobs.put(data[:MiB], "text/plain"), "to": peer})
        assert other.outputs is not None
        copied = other.outputs["copied"]
        server.kill()
        server.start()
        assert b"".join(client.blobs.read(reference)) == data
        assert b"".join(client.blobs.read(reference, 1_000_000, 7)) == data[1_000_000:1_000_007]
        assert client.blobs.save(run.outputs["copied"], tmp_path / "back.csv") == len(data)
        assert (tmp_path / "back.csv").read_bytes() == data
        assert server.cli("blob", "show", reference["$blob"], "-o", "json")["size"] == len(data)
        client.delete(run.workflow_id)
        with pytest.raises(BlobNotFound):
            client.blobs.size(reference)
        assert b"".join(client.blobs.read(copied)) == data[:MiB]
    assert len(blob_files(server)) == before + 1


def test_what_is_refused(server: Server, peer: str) -> None:
    missing = {"$blob": f"sha256:{'0' * 64}", "size": 1, "media_type": "text/plain"}
    before = blob_files(server)
    with Client(server.api, attempts=1) as client:
        with pytest.raises(BlobNotFound):
            client.submit(COPY % "x", {"source": missing, "to": peer})
        with pytest.raises(PayloadTooLarge):
            client.blobs.put(bytes(101 * MiB))
        answer = server.client.put(f"/blobs/{missing['$blob']}", content=b"other")
        assert (answer.status_code, answer.json()["code"]) == (400, BlobMismatch.code)
        assert server.client.get("/blobs/sha256:xyz").status_code == 400
        assert server.client.get(f"/blobs/{missing['$blob']}").status_code == 404
        assert server.client.head(f"/blobs/{missing['$blob']}").status_code == 404
        with pytest.raises(InvalidInputs):
            client.submit(COPY % "x", {"source": "text", "to": peer})
    assert blob_files(server) == before


def test_parts(server: Server) -> None:
    data = content(700_000)
    sent = server.client.post("/blobs", content=data, headers={"content-type": "image/png"})
    assert (sent.status_code, sent.json()["media_type"]) == (201, "image/png")
    path = f"/blobs/{sent.json()['$blob']}"
    whole = server.client.get(path)
    assert whole.content == data
    assert whole.headers["content-type"] == "application/octet-stream"
    assert int(server.client.head(path).headers["content-length"]) == len(data)
    cases = [("bytes=0-0", 206, data[:1]), ("bytes=699999-", 206, data[-1:]), ("bytes=-5", 206, data[-5:])]
    cases += [("bytes=262100-262200", 206, data[262100:262201]), ("bytes=5-9999999", 206, data[5:])]
    cases += [("bytes=700000-", 416, b""), ("lines=1-2", 200, data)]
    for wanted, status, expected in cases:
        answer = server.client.get(path, headers={"range": wanted})
        assert (answer.status_code, answer.content) == (status, expected), wanted
    for wrong in ("bytes=5-1", "bytes=0-1,3-4", "bytes=-"):
        assert server.client.get(path, headers={"range": wrong}).status_code == 400, wrong


def test_a_snapshot_has_the_blobs_and_a_restore_brings_them_back(server: Server, peer: str) -> None:
    data = content(MiB)
    with Client(server.api) as client:
        reference = client.blobs.put(data)
        run = client.run(COPY % "sales", {"source": reference, "to": peer})
        snapshot = server.client.post(f"{server.ops}/checkpoint").json()["path"]
        assert server.cli("verify", "--data", snapshot, "--full", "-o", "json")["valid"]
        server.stop()
        done = server.cli("recover", "--snapshot", snapshot, "--config", str(server.config), "-o", "json")
        assert done["verification"]["valid"], done
        server.start()
        assert b"".join(client.blobs.read(reference)) == data
        client.delete(run.workflow_id)  # the marks are there again
        with pytest.raises(BlobNotFound):
            client.blobs.size(reference)


def test_verification_finds_what_is_missing_and_what_is_altered(server: Server, peer: str) -> None:
    with Client(server.api) as client:
        client.run(COPY % "sales", {"source": client.blobs.put(content(MiB)), "to": peer})
    server.stop()
    kept = {file: file.read_bytes() for file in blob_files(server)}
    for file, raw in kept.items():
        file.unlink()  # it may be a hard link to what a snapshot has
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    report = server.cli("verify", "--data", str(server.data), "--full", "-o", "json", code=1)
    assert "its blob sha256:" in report["problems"][0], report
    for file in kept:
        file.unlink()
    report = server.cli("verify", "--data", str(server.data), "--full", "-o", "json", code=1)
    assert (report["missing"] > 0, "is missing" in report["problems"][0]) == (True, True), report
    for file, raw in kept.items():
        file.write_bytes(raw)


def test_blobs_are_shipped_with_the_journal(tmp_path: Path, peer: str) -> None:
    place = tmp_path / "place"
    shipping = {"backup_to": str(place), "ship_interval": "100ms"}
    server = Server(tmp_path / "server", recovery=shipping, persistence={"encryption": True})
    try:
        server.start()
        with Client(server.api) as client:
            reference = client.blobs.put(content(MiB))
            run = client.run(COPY % "sales", {"source": reference, "to": peer})
            later = client.blobs.put(content(MiB // 2))
            client.run(COPY % "sales", {"source": later, "to": peer})
            assert run.state == "completed"
            server.stop()  # ships what is left
            shutil.rmtree(server.data)
            done = server.cli("recover", "--config", str(server.config), "-o", "json")
            assert done["verification"]["valid"], done
            server.start()
            for one in (reference, later):
                assert sum(map(len, client.blobs.read(one))) == one.size
    finally:
        server.close()


def test_dying_in_the_middle_of_a_blob_leaves_nothing(server: Server, tmp_path: Path) -> None:
    data = content(20 * MiB)
    stalled, slow = threading.Event(), threading.Event()

    class Stalling(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data[: 10 * MiB])
                if not slow.is_set():
                    slow.set()
                    stalled.wait(60)
                self.wfile.write(data[10 * MiB :])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    peer = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=peer.serve_forever, daemon=True).start()
    marker, before = tmp_path / "marker", blob_files(server)
    set_pace(server, 10**12)
    fetch = f"""
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: fetch}}
spec:
  timeout: 10m
  steps:
    - {{name: get, action: http, params: {{url: "http://127.0.0.1:{peer.server_port}/", timeout: 5m}}}}
    - name: call
      action: python
      params: {{callable: "tests.acceptance.blob_callables:lines", args: {{marker: "{marker}"}}, timeout: 5m}}
    - name: query
      action: sql
      params:
        connection: shop
        mode: read
        timeout: 5m
        statement: |
          WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20),
          spin(j) AS (SELECT 1 UNION ALL SELECT j + 1 FROM spin WHERE j < (SELECT turns FROM pace))
          SELECT i, hex(zeroblob(500000)) AS text, CASE WHEN i > 15 THEN (SELECT count(*) FROM spin) END AS slow FROM n
  outputs:
    got: "${{{{ steps.get.output.body }}}}"
    called: "${{{{ steps.call.output }}}}"
    queried: "${{{{ steps.query.output.rows }}}}"
"""
    try:
        workflow_id = server.submit(fetch)
        assert slow.wait(60)
        deadline = time.monotonic() + 90
        while len([size for size in incoming(server) if size > MiB]) < 3 or not marker.exists():
            assert time.monotonic() < deadline, incoming(server)
            time.sleep(0.005)
        server.kill()
        set_pace(server, 1)
        assert len(incoming(server)) == 3
        assert blob_files(server) == before, "nothing of an unfinished blob is there"
        server.start()
        server.wait_for(workflow_id, timeout_s=110)
        with Client(server.api) as client:
            outputs = client.inspect(workflow_id).outputs
            assert outputs is not None
            client.blobs.save(outputs["got"], tmp_path / "back")
            assert sum(map(len, client.blobs.read(outputs["called"]))) == blob_callables.SIZE
            rows = b"".join(client.blobs.read(outputs["queried"])).splitlines()
            assert [json.loads(row)["i"] for row in rows] == list(range(1, 21))
    finally:
        stalled.set()
        peer.shutdown()
        peer.server_close()
    assert (tmp_path / "back").read_bytes() == data
    assert incoming(server) == []
    server.stop()
    assert server.verify()["valid"]


def test_with_postgresql_blobs_need_a_directory(tmp_path: Path, peer: str) -> None:
    if why := missing():
        pytest.skip(why)
    url, shared = shared_server().new_database(), tmp_path / "shared"
    with pytest.raises(Unsupported, match=r"persistence\.blobs\.path"):
        Node(Config.model_validate({"persistence": {"url": url, "key_path": tmp_path / "other"}})).blobs.begin()
    keys = {"key_path": str(tmp_path / "keys"), "encryption": True}
    server = Server(tmp_path / "with", persistence={"url": url, "blobs": {"path": str(shared)}, **keys})
    try:
        server.start()
        with Client(server.api) as client:
            reference = client.blobs.put(content(MiB))
            run = client.run(COPY % "sales", {"source": reference, "to": peer})
            assert run.outputs == {"copied": reference.to_dict() | {"media_type": "text/csv"}}
            assert all(len(path.name) == 32 for path in (shared / "data").rglob("*") if path.is_file()), "encrypted"
            report = server.cli("verify", "--config", str(server.config), "--full", "-o", "json")
            assert report["valid"], report
            client.delete(run.workflow_id)
            with pytest.raises(BlobNotFound):
                client.blobs.size(reference)
            kept = client.blobs.put(content(MiB))
            client.run(COPY % "sales", {"source": kept, "to": peer})
            snapshot = server.client.post(f"{server.ops}/checkpoint").json()["path"]
        server.close()
        other = {"url": shared_server().new_database(), "blobs": {"path": str(tmp_path / "other")}, **keys}
        server = Server(tmp_path / "restored", persistence=other)
        server.cli("recover", "--snapshot", snapshot, "--config", str(server.config), "-o", "json")
        server.start()
        with Client(server.api) as client:
            assert sum(map(len, client.blobs.read(kept))) == kept.size
    finally:
        server.close()


def test_several_processes_share_what_was_sent_to_one_of_them(tmp_path: Path) -> None:
    server = Server(tmp_path, platform={"processes": 2})
    data, found = content(MiB), dict[int, str]()
    try:
        server.start()
        with Client(server.api) as client:
            reference = client.blobs.put(data, "text/plain")
        for _ in range(200):
            with Client(server.api) as client:  # new connections come to either process
                assert client.blobs.size(reference) == len(data)
                run = client.run(KEEP, {"source": reference})
            assert run.state == "completed", run
            found[partition_of(parse(run.workflow_id))] = run.workflow_id
            if len(found) == 2:
                break
        assert sorted(found) == [0, 1]
        server.kill()
        server.start()
        for _ in range(10):
            with Client(server.api) as client:
                assert b"".join(client.blobs.read(reference)) == data
        assert server.verify()["valid"]
        with Client(server.api) as client:
            client.delete(found[0])
            assert b"".join(client.blobs.read(reference, 5, 5)) == data[5:10], "the other workflow still has it"
        server.stop()
        assert server.verify()["valid"]
    finally:
        server.close()


def test_the_memory_of_the_server_does_not_grow_with_the_blob(server: Server, peer: str, tmp_path: Path) -> None:
    assert memory_that_a_blob_costs(server, peer, 64 * MiB, tmp_path) < 64 * MiB


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_gigabyte_through_the_server_and_through_a_function(peer: str, tmp_path: Path) -> None:
    actions = {"python": {"callables": ["tests.acceptance.blob_callables:*"]}}
    server = Server(tmp_path, persistence={"encryption": True}, actions=actions)
    try:
        more = memory_that_a_blob_costs(server.start(), peer, 1024 * MiB, tmp_path)
        called = memory_that_a_call_costs(server, 1024)
    finally:
        server.close()
    print(f"http: {more / MiB:.0f} MiB more than before; python: {called / MiB:.0f}")  # for `pytest -s`
    assert max(more, called) < 64 * MiB


def memory_that_a_blob_costs(server: Server, peer: str, size: int, tmp_path: Path) -> int:
    """Send a blob, let it go to a peer and back, and read it; the most memory beyond what the server had before."""
    path = tmp_path / "big"
    with path.open("wb") as file:
        for _ in range(size // (16 * MiB)):
            file.write(content(16 * MiB))
    with peak_of(pid_of(server)) as peak, Client(server.api) as client:
        reference = client.blobs.put(path)
        run = client.run(COPY % "sales", {"source": reference, "to": peer})
        assert run.outputs is not None
        client.blobs.save(run.outputs["copied"], tmp_path / "back")
    assert (tmp_path / "back").stat().st_size == size  # `save` has compared the digest
    return max(peak) - peak[0]


def memory_that_a_call_costs(server: Server, megabytes: int) -> int:
    """Let a function make a blob, and another one read it."""
    make = f"{{callable: 'tests.acceptance.blob_callables:made', args: {{megabytes: {megabytes}}}, timeout: 10m}}"
    read = "{callable: 'tests.acceptance.blob_callables:measured', args: {blob: '${{ steps.a.output }}'}, timeout: 10m}"
    text = f"""
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: calls}}
spec:
  timeout: 15m
  steps:
    - {{name: a, action: python, params: {make}}}
    - {{name: b, action: python, depends_on: [a], params: {read}}}
  outputs: {{read: "${{{{ steps.b.output }}}}"}}
"""
    with peak_of(pid_of(server)) as peak, Client(server.api) as client:
        run = client.run(text)
    assert run.outputs == {"read": megabytes * MiB}, run
    return max(peak) - peak[0]


def pid_of(server: Server) -> int:
    assert server.process is not None
    return server.process.pid
