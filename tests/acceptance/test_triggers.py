"""Triggers with a real server that is killed: a schedule of seconds, a signed request, an event."""

import hmac
import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from tests.acceptance.server import ROOT, Server

EXAMPLE = ROOT / "examples" / "nightly_report.yaml"
EVERY_SECOND = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: ticks}
spec:
  inputs: {at: {type: string}}
  triggers: [{name: tick, cron: "* * * * * *", catch_up: all, inputs: {at: "${{ trigger.time }}"}}]
  steps: [{name: a, action: process, params: {output: "${{ inputs.at }}"}}]
"""


def test_every_second_is_one_run_over_kills(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        assert server.client.put("/definitions/ticks", content=EVERY_SECOND).status_code == 201
        for _ in range(3):
            time.sleep(1.3)
            server.kill()
            server.start()
        deadline = time.monotonic() + 30
        while len(ids := _runs(server)) < 4 and time.monotonic() < deadline:
            time.sleep(0.2)
        server.client.delete("/definitions/ticks")
        found = sorted(server.status(one, verbose=True)["inputs"]["at"] for one in ids)
        assert len(found) >= 4
        assert len(set(found)) == len(found)
        seconds = [int(at[17:19]) for at in found]
        assert all((later - first) % 60 == 1 for first, later in pairwise(seconds))
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        server.close()


def _runs(server: Server) -> list[str]:
    rows = server.client.get("/workflows", params={"name": "ticks", "limit": 1000}).json()["workflows"]
    return [row["workflow_id"] for row in rows]


def test_the_example_starts_for_requests_and_events(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.variables["KNHK_WEBHOOK_REPORT"] = "s3cret"
    try:
        server.start()
        server.cli("definition", "put", str(EXAMPLE), "-o", "json")
        shown = server.cli("definition", "show", "nightly-report", "-o", "json")["triggers"]
        assert [len(one.get("next", [])) for one in shown] == [5, 0, 0]
        body = b'{"day": "monday"}'
        sign = "sha256=" + hmac.new(b"s3cret", body, sha256).hexdigest()
        headers = {"X-Hub-Signature-256": sign, "X-GitHub-Delivery": "17"}
        answers = []
        for _ in range(2):
            answers.append(server.client.post("/hooks/nightly-report/on-demand", content=body, headers=headers))
            server.kill()
            server.start()
        assert [one.status_code for one in answers] == [202, 202], answers[0].text
        first, again = (one.json() for one in answers)
        assert (first["workflow_id"], again["replayed"]) == (again["workflow_id"], True)
        server.wait_for(first["workflow_id"])
        assert server.status(first["workflow_id"], verbose=True)["outputs"]["report"] == "report of monday"
        refused = server.client.post("/hooks/nightly-report/on-demand", content=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "KNHK-2005")
        done = server.cli("event", "publish", "books-closed", "--correlate", "friday", "-o", "json")
        server.wait_for(done["started"][0])
        assert server.status(done["started"][0], verbose=True)["outputs"]["report"] == "report of friday"
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        server.close()
