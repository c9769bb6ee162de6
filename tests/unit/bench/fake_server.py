"""A server that speaks the contract on loopback and runs nothing: for testing the harness, and for finding its ceiling.

`--fault NAME` makes it misbehave: `lose` (every tenth run is accepted and forgotten), `fail`, `refuse`, `hang`.
State is kept in a file beside the data, so that runs that wait are still there after a restart.
"""

import argparse
import asyncio
import json
from pathlib import Path

import uvloop
import yaml

COUNTS_FILE = "counts.json"


class State:
    """What the server claims to have run."""

    def __init__(self, data: Path, fault: str) -> None:
        self.file, self.fault = data / COUNTS_FILE, fault
        data.mkdir(parents=True, exist_ok=True)
        kept = json.loads(self.file.read_text()) if self.file.exists() else {"completed": 0, "failed": 0, "waiting": 0}
        self.completed, self.failed, self.waiting = kept["completed"], kept["failed"], kept["waiting"]
        self.submitted = 0
        self.names: set[bytes] = set()
        self.repeated = 0
        self.stop = asyncio.Event()

    def submit(self, target: bytes, body: bytes) -> bytes | None:
        self.submitted += 1
        name = body[body.find(b"  name: ") + 8 : body.find(b"\n", body.find(b"  name: "))]
        self.repeated += name in self.names
        self.names.add(name)
        if self.fault == "hang":
            return None
        if self.fault == "refuse":
            return answer(429, b'{"code": "KNHK-0000"}')
        state = b"running"
        if b"duration: 1h" in body:
            self.waiting += 1
        elif self.fault == "fail":
            self.failed += 1
            state = b"failed"
        elif self.fault != "lose" or self.submitted % 10:
            self.completed += 1
            state = b"completed"
        shown = state if b"wait=" in target else b"pending"
        return answer(202, b'{"workflow_id": "wf-%d", "state": "%b"}' % (self.submitted, shown))

    def save(self) -> None:
        kept = {"completed": self.completed, "failed": self.failed, "waiting": self.waiting}
        self.file.write_text(json.dumps(kept))


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class Face(asyncio.Protocol):
    """Both ports: one request at a time on each connection."""

    def __init__(self, state: State) -> None:
        self.state, self.buffer = state, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end]
        at = head.lower().find(b"content-length: ")
        length = int(head[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        reply = self.state.submit(target, body) if method == b"POST" and target != b"/shutdown" else self.ask(target)
        if reply is not None:
            self.transport.write(reply)

    def ask(self, target: bytes) -> bytes:
        state = self.state
        if target == b"/shutdown":
            asyncio.get_running_loop().call_later(0.01, state.stop.set)
        elif target == b"/metrics":
            text = (
                f'knhk_workflows_total{{status="completed"}} {state.completed}\n'
                f'knhk_workflows_total{{status="failed"}} {state.failed}\nknhk_journal_fsync_seconds_count 7\n'
            )
            return answer(200, text.encode())
        elif target.startswith(b"/workflows?state=running"):
            start = int(target.split(b"cursor=")[1]) if b"cursor=" in target else 0
            page = range(start, min(start + 100, state.waiting))
            listed = [{"workflow_id": f"wf-{i}", "state": "running", "waiting_on": [{"kind": "timer"}]} for i in page]
            cursor = str(page.stop) if page.stop < state.waiting else None
            return answer(200, json.dumps({"workflows": listed, "next_cursor": cursor}).encode())
        return answer(200, b"{}")


async def serve(config: Path, fault: str) -> None:
    settings = yaml.safe_load(config.read_text())
    state = State(Path(settings["persistence"]["path"]), fault)
    loop = asyncio.get_running_loop()
    ports = (settings["api"]["port"], settings["observability"]["metrics_port"])
    servers = [await loop.create_server(lambda: Face(state), "127.0.0.1", port) for port in ports]
    await state.stop.wait()
    for server in servers:
        server.close()
    state.save()
    if state.repeated:
        raise SystemExit(f"{state.repeated} descriptors came twice")


def verify(data: Path) -> None:
    kept = json.loads((data / COUNTS_FILE).read_text())
    print(json.dumps({"valid": True, "total_count": 3 * sum(kept.values())}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fault", default="")
    given = parser.parse_args()
    if given.data:
        verify(given.data)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(given.config, given.fault))


if __name__ == "__main__":
    main()
