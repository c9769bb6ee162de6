"""A blocked event loop is noticed and named while it is blocked, by the probes, the log and the metrics."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server

ACTIONS = Path(__file__).with_name("blocking_actions.py")
DESCRIPTOR = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: wedge}}
spec:
  steps:
    - {{name: charge, action: {action}, params: {{seconds: {seconds}}}}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path, actions={"modules": ["tests.acceptance.blocking_actions"]})
    try:
        yield running.start()
    finally:
        running.close()


def line_of(text: str) -> int:
    return 1 + ACTIONS.read_text().splitlines().index(text)


def logged(server: Server, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def blocked(server: Server) -> list[dict[str, Any]]:
    """What was said about stalls with a culprit: a busy machine makes some that have none."""
    return [line for line in logged(server, "the event loop is blocked") if "place" in line]


def read(server: Server, name: str) -> float:
    text = httpx.get(f"{server.ops}/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_a_blocking_action_is_named_while_it_blocks(server: Server) -> None:
    workflow_id = server.submit(DESCRIPTOR.format(action="test.block", seconds=6))
    began = time.monotonic()

    def detailed() -> dict[str, Any]:
        return dict(httpx.get(f"{server.ops}/health/detailed", timeout=5).json())

    shown = until(detailed, 5.0, holds=lambda found: found["status"] == "unhealthy")
    assert time.monotonic() - began < 5.5
    text = shown["checks"]["persistence"]
    place = f"fetch_slowly ({ACTIONS}:{line_of('    time.sleep(seconds)')})"
    for word in ("event loop", "'test.block'", "'charge'", workflow_id, place):
        assert word in text
    assert httpx.get(f"{server.ops}/health").status_code == 200  # it may yet go on by itself
    ready = httpx.get(f"{server.ops}/ready")
    assert ready.status_code == 503
    assert "fetch_slowly" in ready.json()["detail"]
    assert httpx.post(f"{server.ops}/checkpoint").json()["retryable"] is True
    assert read(server, "knhk_event_loop_blocked_seconds") >= 1
    tasks = httpx.get(f"{server.ops}/debug/tasks").json()
    (main,) = [thread for thread in tasks["threads"] if thread["name"] == "MainThread"]
    assert (main["workflow_id"], main["step"], main["action"]) == (workflow_id, "charge", "test.block")
    (line,) = blocked(server)[:1]
    assert (line["workflow_id"], line["step"], line["action"]) == (workflow_id, "charge", "test.block")
    assert line["place"] == place

    server.wait_for(workflow_id)
    until(detailed, holds=lambda found: found["status"] == "healthy")
    until(lambda: any(one["blocked_s"] >= 5 for one in logged(server, "the event loop turns again")))
    assert httpx.get(f"{server.ops}/ready").status_code == 200
    assert read(server, "knhk_event_loop_blocked_seconds") == 0
    assert read(server, "knhk_event_loop_stalls_total") >= 1
    assert read(server, "knhk_event_loop_stalled_seconds_total") >= 5


def test_native_code_that_keeps_the_lock_is_named_by_its_caller(server: Server) -> None:
    workflow_id = server.submit(DESCRIPTOR.format(action="test.lock", seconds=6))
    stuck = server.directory / "diagnostics" / "stuck.txt"
    dump = until(stuck.read_text, 10.0, holds=lambda text: "in lock" in text)  # while no Python code can run
    assert f'File "{ACTIONS}", line {line_of("    ctypes.PyDLL(None).waitpid(sleeper.pid, None, 0)")} in lock' in dump
    server.wait_for(workflow_id)
    (line,) = until(lambda: blocked(server))[:1]
    assert line["locked"] is True
    assert line["place"].startswith("lock (")


def test_a_process_that_was_stopped_for_a_while_goes_on(server: Server) -> None:
    """Whatever writes stacks when the loop stands still must not kill what wakes at the same moment."""
    assert server.process is not None
    for _ in range(2):
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        server.process.send_signal(signal.SIGCONT)
        server.wait_for(server.submit(DESCRIPTOR.format(action="test.block", seconds=0)))
    assert "most recent call first" in (server.directory / "diagnostics" / "stuck.txt").read_text()
    assert server.stop() == 0
