"""`retry --from`, `fork` and `bulk` through the CLI."""

import time

from tests.acceptance.server import ROOT, Server

HELLO = ROOT / "examples" / "hello.yaml"
NAPS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: many, department: bulk}
spec:
  steps: [{name: nap, action: wait, params: {duration: 60s}}]
"""


def test_back_forked_and_many(server: Server) -> None:
    submit = ("workflow", "submit", str(HELLO), "-i", "quantity=2", "--wait", "20s", "-o", "json")
    first = server.cli(*submit)["workflow_id"]
    steps = [one["name"] for one in server.status(first)["steps"]]
    assert server.cli("workflow", "retry", first, "--from", steps[-1], "-o", "json")["workflow_id"] == first
    server.wait_for(first)
    forked = server.cli("workflow", "fork", first, "--from", steps[0], "-i", "quantity=3", "-o", "json")["workflow_id"]
    server.wait_for(forked)
    shown = server.status(forked, verbose=True)
    assert shown["forked_from"] == {"workflow_id": first, "step": steps[0]}
    assert shown["outputs"]["total"] == 42
    server.cli("workflow", "fork", first, "--from", "nothing", code=2)

    ids = {server.submit(NAPS) for _ in range(120)}
    bulk = ("workflow", "bulk", "cancel", "--department", "bulk", "-o", "json")
    deadline = time.monotonic() + 30
    while set(server.cli(*bulk, "--dry-run")["matched"]) != ids and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.cli(*bulk, "--limit", "30")["done"] == 30
    assert server.cli(*bulk)["done"] >= 90
    assert {server.status(one)["state"] for one in ids} == {"cancelled"}
    server.cli("workflow", "bulk", "cancel", code=2)
    server.cli("workflow", "bulk", "explode", "--name", "x", code=2)
