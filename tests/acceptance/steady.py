"""Clients that do what clients do, and may meet no error at all while nodes come and go one after the other."""

import random
import threading
import time
from typing import Any

import httpx

from tests.acceptance.fleet import Fleet

QUICK = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: quick}
spec: {steps: [{name: one, action: process, params: {output: 1}}]}
"""
NAP = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: nap}
spec: {steps: [{name: nap, action: wait, params: {duration: 300ms}}]}
"""
WAITS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: waits}
spec:
  timeout: 1h
  steps: [{name: hold, action: wait_for, params: {event: go}}]
"""


class Steady(threading.Thread):
    """One client of all nodes that run. It goes to another node only if it cannot connect to one, as the ports of those
    that stop are closed; whatever else goes wrong is in `failures`.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        super().__init__(daemon=True)
        self.fleet, self.random = fleet, random.Random(seed)
        self.failures: list[str] = []
        self.done = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stopped.is_set():
                try:
                    self._turn(client)
                except (httpx.TransportError, AssertionError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.done += 1
                time.sleep(0.01)

    def _turn(self, client: httpx.Client) -> None:
        self._ask(client, "POST", "/workflows", content=QUICK)  # which nobody may repeat
        self._ask(client, "POST", "/workflows?wait=10s", content=NAP)
        name = self._ask(client, "POST", "/workflows", content=WAITS)["workflow_id"]
        self._ask(client, "GET", f"/workflows/{name}")
        self._ask(client, "POST", f"/workflows/{name}/signals", json={"event": "go", "id": "once"})

    def _ask(self, client: httpx.Client, method: str, path: str, **body: Any) -> dict[str, Any]:
        while True:
            names = sorted(self.fleet.running)
            url = self.fleet.nodes[self.random.choice(names)].api
            try:
                answer = client.request(method, url + path, **body)
            except httpx.ConnectError:
                continue
            assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
            return dict(answer.json())

    def finish(self) -> None:
        self.stopped.set()
        self.join(timeout=90)
        assert not self.failures, self.failures
        assert self.done > 0
