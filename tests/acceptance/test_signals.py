"""Signals, approvals and events through the CLI, with `kill -9` while everybody waits."""

import time
from pathlib import Path

from tests.acceptance.server import ROOT, Server

EXAMPLE = ROOT / "examples" / "approval.yaml"


def test_the_example_waits_over_kills_and_says_for_what(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        submit = ("workflow", "submit", str(EXAMPLE), "-o", "json", "-i")
        first = server.cli(*submit, "order=A-1")["workflow_id"]
        other = server.cli(*submit, "order=A-2")["workflow_id"]
        server.kill()
        server.start()
        waiting = server.cli("workflow", "status", first, "-o", "json")["waiting_on"]
        assert [(one["kind"], one["event"], one["correlate"]) for one in waiting] == [("event", "paid", "A-1")]
        publish = ("event", "publish", "paid", "--correlate", "A-1", "--value", '{"amount": 120}', "--id", "bank-1")
        assert server.cli(*publish, "-o", "json")["delivered_to"] == [first]
        server.kill()
        server.start()
        assert server.cli(*publish, "-o", "json")["replayed"] is True
        assert server.cli("workflow", "status", other, "-o", "json")["waiting_on"][0]["kind"] == "event"
        server.cli("workflow", "approve", first, "--as", "dave", code=5)
        server.cli("workflow", "approve", first, "--as", "anna", "-o", "json")
        server.kill()
        server.start()
        shown = server.cli("workflow", "status", first, "-o", "json")["waiting_on"][0]
        assert (shown["kind"], shown["given_by"], shown["message"]) == ("approval", ["anna"], "Ship A-1?")
        _listed(server, first, "approval")
        server.cli("workflow", "approve", first, "--as", "ben", "--comment", "fine", "-o", "json")
        server.wait_for(first)
        shown = server.status(first, verbose=True)
        assert shown["outputs"]["ship"] == {"order": "A-1", "amount": 120, "released_by": ["anna", "ben"]}
        server.cli("workflow", "signal", other, "paid", "--value", '{"amount": 1}', "-o", "json")
        server.cli("workflow", "reject", other, "--as", "cleo", "--comment", "no", "-o", "json")
        server.wait_for(other, "failed")
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        server.close()


def _listed(server: Server, workflow_id: str, kind: str) -> None:
    """The list says so too, once it has caught up."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        rows = server.cli("workflow", "list", "-o", "json")["workflows"]
        kinds = [one["kind"] for row in rows if row["workflow_id"] == workflow_id for one in row["waiting_on"]]
        if kinds == [kind]:
            return
        time.sleep(0.1)
    raise AssertionError(f"the list shows {kinds}")
