"""`file`, `s3` and `notify` on a real server: a large file goes through a bucket to another directory."""

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.acceptance.server import Server
from tests.services.alert_receivers import HttpReceiver
from tests.services.s3 import S3

CARRY = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: carry}
spec:
  steps:
    - {name: read, action: file, params: {root: in, path: big.bin}}
    - name: upload
      action: s3
      depends_on: [read]
      params: {connection: lake, operation: put, key: big.bin, content: "${{ steps.read.output.content }}"}
    - name: download
      action: s3
      depends_on: [upload]
      params: {connection: lake, key: big.bin}
    - name: write
      action: file
      depends_on: [download]
      params:
        {operation: write, root: out, path: new/big.bin, content: "${{ steps.download.output.content }}"}
    - name: tell
      action: notify
      depends_on: [write]
      params: {channel: chat, title: carried, body: "${{ steps.write.output.sha256 }}"}
  outputs:
    size: ${{ steps.write.output.size }}
"""


@pytest.fixture
def web() -> Iterator[HttpReceiver]:
    receiver = HttpReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def server(tmp_path: Path, web: HttpReceiver) -> Iterator[Server]:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    store = S3(tmp_path / "s3").start()
    roots = [
        {"name": "in", "path": str(tmp_path / "in")},
        {"name": "out", "path": str(tmp_path / "out"), "write": True},
    ]
    lake = {
        "name": "lake",
        "bucket": "lake",
        "endpoint": store.endpoint,
        "access_key_id": "${AWS_ACCESS_KEY_ID}",
        "secret_access_key": "${AWS_SECRET_ACCESS_KEY}",
        "write": True,
    }
    chat = {"name": "chat", "url": f"json://{web.url.removeprefix('http://')}"}
    running = Server(
        tmp_path / "server",
        actions={"file": {"roots": roots}, "s3": {"connections": [lake]}, "notify": {"channels": [chat]}},
    )
    running.variables = store.variables
    try:
        yield running.start()
    finally:
        running.close()
        store.stop()


def test_a_large_file_is_carried(server: Server, tmp_path: Path, web: HttpReceiver) -> None:
    data = os.urandom(12_000_000)
    (tmp_path / "in" / "big.bin").write_bytes(data)
    shown = server.wait_for(server.submit(CARRY), timeout_s=60)
    assert server.status(shown["workflow_id"], verbose=True)["outputs"] == {"size": len(data)}
    assert (tmp_path / "out" / "new" / "big.bin").read_bytes() == data
    (body,) = web.bodies
    assert body["message"] == sha256(data).hexdigest()
    blobs = [path for path in (server.data / "blobs" / "data").rglob("*") if path.is_file()]
    assert len(blobs) == 1, "the same bytes are one blob"
    known = {one["name"]: one for one in server.client.get("/actions").json()["actions"]}
    for name in ("file", "s3", "notify"):
        assert (known[name]["guarantee"], known[name]["allowed"]) == ("at-least-once", True)
    secret = server.variables["AWS_SECRET_ACCESS_KEY"]
    assert secret not in server.log.read_text()
