"""A loaded server decides to have more replicas: in dry run, written down, explained, and remembered over a restart."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.server import Server

NAP = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: nap}
spec:
  steps:
    - {name: nap, action: shell, params: {command: [sleep, "60"]}}
"""
SPIN = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: spin}
spec:
  steps:
    - {name: spin, action: shell, params: {command: [timeout, "60", sh, -c, "while :; do :; done"]}}
"""


def made(directory: Path, **scaling: Any) -> Server:
    return Server(
        directory,
        platform={"enable_auto_scaling": True, "max_concurrent_workflows": 4, "shutdown_grace": "0s"},
        actions={"shell": {"commands": ["sleep", "timeout"]}},
        scaling={"check_interval": "200ms", **scaling},
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = made(tmp_path)
    try:
        yield running.start()
    finally:
        running.close()


def until(server: Server, holds: Callable[[dict[str, Any]], bool], timeout_s: float = 45) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        shown = dict(server.client.get("/scaling/explain").json())
        if holds(shown):
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def signal(shown: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in shown["signals"] if one["signal"] == name)


def test_a_queue_leads_to_a_decision_with_a_receipt_and_an_explanation(server: Server) -> None:
    quiet = until(server, lambda shown: bool(shown["signals"]))
    assert (quiet["driver"], quiet["replicas"]["current"], quiet["leads"]) == ("dry-run", 1, True)
    for _ in range(12):
        server.submit(NAP)
    shown = until(server, lambda shown: bool(shown["decisions"]))
    runs = signal(shown, "runs")
    decision = shown["decisions"][0]
    assert decision["after"] > decision["before"] == 1
    assert (decision["outcome"], decision["driver"]) == ("advised", "dry-run")
    assert "runs is" in decision["reason"] or "cpu is" in decision["reason"]
    later = until(server, lambda shown: signal(shown, "runs")["value"] == 3.0)
    assert signal(later, "runs")["asks_for"] == 3  # 4 that run and 8 that wait, with places for 4
    assert runs["target"] == 1.0

    told = server.cli("scaling", "explain", "-o", "json")
    assert told["replicas"]["current"] == 1
    assert told["decisions"][0]["record"] == decision["record"]
    assert told["increase_from"] > told["decisions"][0]["at"]
    metrics = httpx.get(f"{server.ops}/metrics").text
    assert 'knhk_scaling_replicas{which="current"} 1.0' in metrics
    assert 'knhk_scaling_decisions_total{direction="up",outcome="advised"} 1.0' in metrics
    assert 'knhk_scaling_signal_ratio{signal="runs"} 3.0' in metrics
    assert httpx.get(f"{server.ops}/health/detailed").json()["checks"]["scaling"] == "ok"

    receipts = server.cli("receipts", "show", decision["record"], "--config", str(server.config), "-o", "json")[
        "receipts"
    ]
    assert [one["kind"] for one in receipts] == ["scaling.decided", "scaling.ended"]
    assert receipts[0]["detail"]["reason"] == decision["reason"]
    assert receipts[0]["actor"] == "scaling"
    server.kill()
    assert server.verify()["valid"]

    server.start()  # what was decided last is read from the receipts: the cooldown goes on
    again = until(server, lambda shown: bool(shown["signals"]) and shown["held_by"] == "cooldown")
    assert [(one["record"], one["outcome"]) for one in again["decisions"]] == [(decision["record"], "advised")]
    assert "at the earliest" in again["reason"]
    server.kill()


@pytest.mark.soak
def test_a_busy_processor_leads_to_a_decision(tmp_path: Path) -> None:
    """Of a server that is alone; what its children use counts too."""
    server = made(tmp_path, target_cpu=20, scale_up_cooldown="0s")
    try:
        server.start()
        for _ in range(3):
            server.submit(SPIN)
        shown = until(server, lambda shown: any("cpu is" in one["reason"] for one in shown["decisions"]))
        assert signal(shown, "cpu")["target"] == 0.2
        assert shown["loads"][0]["cores"] > 0
        for name in ("status", "explain"):
            assert server.cli("scaling", name, "-o", "json")["driver"] == "dry-run"
    finally:
        server.close()
