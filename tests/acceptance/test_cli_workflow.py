"""`knhk workflow` against a real server, and offline verification beside it."""

from pathlib import Path

from tests.acceptance.server import ROOT, Server

HELLO = ROOT / "examples" / "hello.yaml"
NAPS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: naps, department: sleep}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 60s}}
    - {name: done, action: process, depends_on: [nap]}
"""
FAILS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: fails}
spec:
  steps:
    - {name: bad, action: fail, params: {message: no}}
"""


def test_a_workflow_from_submit_to_proof(server: Server) -> None:
    submitted = server.cli("workflow", "submit", str(HELLO), "-i", "quantity=2", "--wait", "20s", "-o", "json")
    name = submitted["workflow_id"]
    assert submitted["state"] == "completed"
    assert submitted["outputs"]["total"] == 28
    assert server.cli("workflow", "status", name, "-o", "json")["state"] == "completed"
    shown = server.cli("workflow", "inspect", name, "--verbose", "-o", "json")
    assert shown["inputs"]["quantity"] == 2
    assert [one["kind"] for one in shown["history"]][-1] == "workflow.completed"
    assert server.cli("workflow", "watch", name, "-o", "json")["state"] == "completed"
    data = ["--data", str(server.data)]
    assert server.cli("receipts", "verify", name, *data, "-o", "json")["valid"] is True
    assert server.cli("receipts", "verify", "--all", *data, "-o", "json")["valid"] is True
    assert server.cli("receipts", "prove", name, "--seq", "0", *data)["workflow_id"] == name
    assert server.verify()["valid"] is True


def test_the_same_key_gives_the_same_workflow(server: Server) -> None:
    arguments = ("workflow", "submit", str(HELLO), "--idempotency-key", "order-1", "-o", "json")
    first, again = server.cli(*arguments), server.cli(*arguments)
    assert again["workflow_id"] == first["workflow_id"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    server.cli(*arguments, "-i", "quantity=9", code=5)


def test_steering(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "naps.yaml"
    file.write_text(NAPS)
    name = server.cli("workflow", "submit", str(file), "-o", "json")["workflow_id"]
    assert server.cli("workflow", "pause", name, "--reason", "lunch", "-o", "json")["state"] == "paused"
    server.cli("workflow", "pause", name, code=5)
    assert server.cli("workflow", "resume", name, "-o", "json")["state"] == "running"
    server.cli("workflow", "delete", name, code=5)
    assert server.cli("workflow", "cancel", name, "--reason", "late", "-o", "json")["state"] == "cancelled"
    listed = server.cli("workflow", "list", "--state", "cancelled", "--department", "sleep", "-o", "json")
    assert [row["workflow_id"] for row in listed["workflows"]] == [name]
    server.cli("workflow", "watch", name, code=1)
    assert server.cli("workflow", "delete", name, "-o", "json")["erased"] is True
    assert server.verify()["valid"] is True
    server.cli("workflow", "status", "wf-123", code=4)


def test_a_failed_workflow_is_retried_under_its_id(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "fails.yaml"
    file.write_text(FAILS)
    name = server.cli("workflow", "submit", str(file), "--wait", "10s", "-o", "json", code=1)["workflow_id"]
    assert server.cli("workflow", "retry", name, "-o", "json")["workflow_id"] == name
    server.wait_for(name, "failed")
    kinds = [one["kind"] for one in server.cli("workflow", "inspect", name, "-v", "-o", "json")["history"]]
    assert kinds.count("step.failed") == 2
    assert "workflow.retried" in kinds


def test_the_servers_complaints_have_places(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(FAILS.replace("action: fail", "action: fali"))
    server.cli("workflow", "submit", str(file), code=2)
    assert server.cli("workflow", "list", "-o", "json")["workflows"] == []


def test_a_second_process_cannot_take_the_data_directory(server: Server) -> None:
    server.cli("run", str(HELLO), "--data", str(server.data), code=5)
    assert server.cli("init", "--config", str(server.config), "-o", "json")["data_created"] is False
