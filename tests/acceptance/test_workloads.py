"""Recorded scientific workflows, from 26 to 1,738 steps, and the guide's own example: to `completed`, and verified."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.acceptance.server import ROOT, Server

WORKLOADS = ROOT.parent / "shared" / "workloads"
STEPS = {
    "sarek-dirt02-001.yaml": 26,
    "epigenomics-chameleon-hep-1seq-50k-001.yaml": 73,
    "montage-chameleon-2mass-05d-001.yaml": 1738,
}
GUIDE = """\
apiVersion: knhk/v1
kind: Workflow
metadata:
  name: example-workflow
  department: engineering
  cost_center: R&D
spec:
  covenant: Sigma  # O, Sigma, Q, Pi, MAPEK, Chatman
  timeout: 60s
  retries: 3
  steps:
    - name: step1
      action: process
      params:
        key: value
      depends_on: []
    - name: step2
      action: validate
      depends_on: [step1]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("workloads"))
    try:
        yield running.start()
        assert running.stop() == 0
        verdict = running.verify()
        assert verdict["valid"], verdict
        assert verdict["verified_count"] == verdict["total_count"] > 0
    finally:
        running.close()


def recorded(name: str) -> Path:
    file = WORKLOADS / name
    if not file.exists():
        pytest.skip(f"the recorded workload {name} is not beside this checkout")
    return file


@pytest.mark.parametrize("name", STEPS)
def test_a_recorded_workflow_completes_over_http(server: Server, name: str) -> None:
    text = recorded(name).read_text()
    workflow_id = server.submit(text, **{"content-type": "application/yaml"})
    shown = server.wait_for(workflow_id)
    assert shown["steps_completed"] == shown["steps_total"] == len(shown["steps"]) == STEPS[name]
    assert {step["state"] for step in shown["steps"]} == {"completed"}
    _assert_dependencies_were_kept(server, workflow_id, text)
    _assert_verified(server, workflow_id, shown["receipts"])


@pytest.mark.parametrize("name", list(STEPS)[:2])
def test_a_recorded_workflow_completes_from_the_command_line(server: Server, name: str) -> None:
    shown = server.cli("workflow", "submit", str(recorded(name)), "--wait", "30s", "-o", "json")
    assert shown["state"] == "completed"
    _assert_verified(server, shown["workflow_id"], server.status(shown["workflow_id"])["receipts"])


def test_the_descriptor_of_the_guide_completes(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "workflow.yaml"
    file.write_text(GUIDE)
    submitted = server.cli("workflow", "submit", str(file), "--wait", "20s", "-o", "json")
    assert submitted["state"] == "completed"
    over_http = server.client.post("/workflows", content=GUIDE, params={"wait": "20s"}).json()
    assert over_http["state"] == "completed"
    shown = server.status(over_http["workflow_id"], verbose=True)
    assert (shown["department"], shown["cost_center"], shown["covenant"]) == ("engineering", "R&D", "Sigma")
    assert [step["output"] for step in shown["steps"]] == [{"key": "value"}, {"valid": True, "checked": 0}]
    for one in (submitted, over_http):
        _assert_verified(server, one["workflow_id"], shown["receipts"])


def _assert_dependencies_were_kept(server: Server, workflow_id: str, text: str) -> None:
    """No step begins before all that it depends on has completed, and none completes twice."""
    needs = {step["name"]: step.get("depends_on", []) for step in yaml.safe_load(text)["spec"]["steps"]}
    done: set[str] = set()
    for receipt in server.client.get(f"/workflows/{workflow_id}/receipts").json()["receipts"]:
        step = receipt["step"]
        if receipt["kind"].startswith("step."):
            assert step not in done, f"{step} went on after it had completed"
            assert done.issuperset(needs[step]), f"{step} came before {set(needs[step]) - done}"
        if receipt["kind"] == "step.completed":
            done.add(step)
    assert done == needs.keys()


def _assert_verified(server: Server, workflow_id: str, count: int) -> None:
    """Beside the running server, from what is on disk."""
    report = server.cli("receipts", "verify", workflow_id, "--data", str(server.data), "-o", "json")
    assert report["valid"], report
    assert report["verified_count"] == report["total_count"] == count
    assert not any(report[fault] for fault in ("signature_failures", "chain_breaks", "time_reversals", "missing"))
