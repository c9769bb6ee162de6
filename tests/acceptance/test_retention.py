"""Retention of a real server after a hundred days off, its archive in a real S3 bucket, by an operator's commands."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from knhk.bootstrap import Node
from knhk.config import Config
from knhk.domain.units import DAY
from knhk.engine.control import Submission
from knhk.platform.clock import SystemClock
from tests.acceptance.server import Server
from tests.services.s3 import S3

DESCRIPTOR = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: old, department: law}
spec:
  steps:
    - {name: a, action: process, params: {output: {client: Ada}}}
"""
WAITING = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: waits}
spec: {timeout: 1000d, steps: [{name: nap, action: wait, params: {duration: 900d}}]}
"""


class LongAgo(SystemClock):
    """The machine's clock a hundred days ago."""

    def now_ns(self) -> int:
        return super().now_ns() - 100 * DAY


async def filled(path: Path, count: int, encryption: bool) -> tuple[list[str], str]:
    """A data directory that was last used a hundred days ago: its ended runs, and one that waits."""
    node = Node(Config.model_validate({"persistence": {"path": path, "encryption": encryption}}))
    await node.start()
    control = node.engine.control
    runs = [(await control.submit(Submission(DESCRIPTOR), wait_s=30)).workflow_id for _ in range(count)]
    waiting = (await control.submit(Submission(WAITING))).workflow_id
    await node.stop()
    return [f"wf-{run}" for run in runs], f"wf-{waiting}"


def health(server: Server) -> str:
    return str(server.client.get(f"{server.ops}/health/detailed").json()["checks"]["persistence"])


def until_pruned(server: Server, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (shown := server.cli("retention", "status", "--output", "json"))["workflows_pruned"] < count:
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)
    return shown


@pytest.mark.parametrize("encryption", [pytest.param(False, marks=pytest.mark.soak), True], ids=["clear", "encrypted"])
def test_after_a_hundred_days_off_nothing_goes_until_confirmed_and_then_what_is_old_is_in_the_bucket(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, encryption: bool
) -> None:
    monkeypatch.setattr("knhk.bootstrap.node.SystemClock", LongAgo)
    runs, waiting = asyncio.run(filled(tmp_path / "data", 20, encryption))
    monkeypatch.undo()
    bucket = s3.bucket(f"retention-{'on' if encryption else 'off'}")
    settings = {"path": str(tmp_path / "data"), "encryption": encryption, "archive": f"{bucket}/knhk"}
    server = Server(tmp_path, persistence=settings)
    server.variables = s3.variables
    config = ("--config", str(server.config), "--output", "json")
    try:
        server.start()
        assert "knhk retention confirm" in health(server)
        assert server.cli("retention", "run", "--output", "json")["workflows"] == 0
        assert server.status(runs[0])["state"] == "completed"
        server.kill()
        server.start()
        assert "knhk retention confirm" in health(server), "a restart is no confirmation"

        server.cli("retention", "confirm", "--output", "json")
        shown = until_pruned(server, 20)
        assert health(server) == "ok"
        assert shown["records"][0]["archive"] == "0000-0000000001.knhk-archive"
        gone = server.client.get(f"/workflows/{runs[0]}")
        assert (gone.status_code, gone.json()["code"]) == (404, "KNHK-3011")
        assert server.status(waiting)["state"] == "running"
        listed = server.client.get("/workflows").json()["workflows"]
        assert [row["workflow_id"] for row in listed] == [waiting]

        report = server.cli("verify", "--full", *config)
        assert (report["valid"], report["pruned"] > 0, report["locked"]) == (True, True, 0), report["problems"]
        assert "archived in 0000-0000000001.knhk-archive" in report["notes"][0]
        archives = server.cli("archive", "list", *config)["archives"]
        assert [one["workflows"] for one in archives] == [20]
        found = server.cli("archive", "show", runs[7], *config)
        assert found["receipts"][0]["kind"] == "workflow.submitted"
        assert {"client": "Ada"} in [one["value"] for one in found["payloads"]]
        checked = server.cli("archive", "verify", *config)
        assert (checked["valid"], checked["verified_count"]) == (True, report["pruned"])
        server.cli("receipts", "keys", "--export", str(tmp_path / "pem"), "--config", str(server.config))
        (pem,) = (tmp_path / "pem").iterdir()
        assert server.cli("archive", "verify", "--public-key", str(pem), *config)["valid"]
        server.cli("archive", "show", waiting, *config, code=4)
        server.cli("receipts", "verify", runs[0], *config, code=4)
    finally:
        server.close()
