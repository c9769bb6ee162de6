"""kill -9 at random moments: nothing acknowledged is lost, nothing completed runs again, everything verifies."""

import random
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.acceptance.server import Server

KILLS = 20
SEED = 20260117

DESCRIPTOR = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: crash-{number}}}
spec:
  retries: 3
  timeout: 300s
  steps:
    - name: a
      action: test.append
      params: {{path: "{path}", line: "{number} a", milliseconds: {pause}}}
    - name: b
      action: test.append
      params: {{path: "{path}", line: "{number} b", milliseconds: {pause}}}
      depends_on: [a]
    - {{name: shape, action: process, params: {{output: "${{{{ steps.b.output.line }}}}"}}, depends_on: [b]}}
    - {{name: nap, action: wait, params: {{duration: {nap}ms}}, depends_on: [shape]}}
    - {{name: c, action: test.append, params: {{path: "{path}", line: "{number} c"}}, depends_on: [nap]}}
"""

ONCE = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: once-{number}}}
spec:
  timeout: 300s
  steps:
    - name: once
      action: test.append
      semantics: at_most_once
      params: {{path: "{path}", line: "{number} once", milliseconds: {pause}}}
"""


class Submitter(threading.Thread):
    """Submits workflows until told to stop, and remembers what was acknowledged."""

    def __init__(self, server: Server, effects: Path, rng: random.Random, first: int) -> None:
        super().__init__(daemon=True)
        self.server, self.effects, self.rng, self.number = server, effects, rng, first
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.server.api, timeout=10) as client:
            while not self.stopped.is_set():
                self.number += 1
                kind = "once" if self.number % 4 == 0 else "crash"
                text = (ONCE if kind == "once" else DESCRIPTOR).format(
                    number=self.number,
                    path=self.effects,
                    pause=self.rng.choice([0, 0, 5, 40]),
                    nap=self.rng.choice([1, 50, 300]),
                )
                try:
                    answer = client.post("/workflows", content=text)
                except httpx.TransportError:
                    continue
                if answer.status_code == 202 or answer.status_code == 200:
                    self.acknowledged[answer.json()["workflow_id"]] = (self.number, kind)


@pytest.mark.timeout(280)
def test_twenty_kills_lose_nothing(crashing: Server, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    effects = tmp_path / "effects.txt"
    acknowledged: dict[str, tuple[int, str]] = {}
    completed_before: dict[str, set[str]] = {}
    number = 0
    for _ in range(KILLS):
        crashing.start()
        submitter = Submitter(crashing, effects, random.Random(rng.random()), number)
        submitter.start()
        time.sleep(rng.uniform(0.15, 0.6))
        crashing.kill()
        submitter.stopped.set()
        submitter.join(timeout=20)
        acknowledged.update(submitter.acknowledged)
        number = submitter.number
    assert len(acknowledged) >= 200, "too few workflows for the test to mean anything"

    crashing.start()
    lost: list[str] = []
    for workflow_id, (_, kind) in acknowledged.items():
        shown = _ended(crashing, workflow_id)
        if kind == "crash":
            assert shown["state"] == "completed", (workflow_id, shown)
        elif shown["state"] != "completed":
            assert shown["failure"]["code"] == "KNHK-STEP-OUTCOME-UNKNOWN", shown
            lost.append(workflow_id)
        completed_before[workflow_id] = {step["name"] for step in shown["steps"] if step["state"] == "completed"}
    lines = Counter(effects.read_text().splitlines())
    for workflow_id, (index, kind) in acknowledged.items():
        if kind == "once":
            assert lines[f"{index} once"] <= 1, f"{workflow_id}: an at_most_once step ran twice"
        else:
            for step in "abc":
                assert lines[f"{index} {step}"] >= 1, f"{workflow_id}: step {step} is said to be done and did nothing"
    _assert_completed_steps_ran_once(crashing, acknowledged)
    assert crashing.stop() == 0
    verdict = crashing.verify()
    assert verdict["valid"], verdict
    assert verdict["verified_count"] == verdict["total_count"] > len(acknowledged)


def _ended(server: Server, workflow_id: str) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        shown = server.status(workflow_id)
        if shown["state"] in ("completed", "failed", "cancelled", "timed_out"):
            return shown
        time.sleep(0.02)
    raise AssertionError(f"{workflow_id} did not end: {shown}")


def _assert_completed_steps_ran_once(server: Server, acknowledged: dict[str, tuple[int, str]]) -> None:
    """A step has at most one `step.completed`, and no attempt after it."""
    for workflow_id in acknowledged:
        receipts = server.client.get(f"/workflows/{workflow_id}/receipts").json()["receipts"]
        done: set[str] = set()
        for receipt in receipts:
            assert not (receipt["step"] in done and receipt["kind"].startswith("step.")), (workflow_id, receipt)
            if receipt["kind"] == "step.completed":
                done.add(receipt["step"])


def test_durable_timers_fire_after_a_restart(crashing: Server, tmp_path: Path) -> None:
    crashing.start()
    waiting = crashing.submit(
        """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: nap}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 7s}}
"""
    )
    late = crashing.submit(
        """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: late}
spec:
  timeout: 2s
  steps:
    - {name: nap, action: wait, params: {duration: 60s}}
"""
    )
    crashing.kill()
    time.sleep(2.5)
    crashing.start()
    assert crashing.wait_for(late, "timed_out")["failure"]["code"] == "KNHK-RUN-TIMEOUT"
    crashing.wait_for(waiting, "completed", timeout_s=20)
    assert crashing.stop() == 0
    assert crashing.verify()["valid"]
