"""The commands, routes, variables and files of the production guide do what it says, against a real server.

Left out is what later versions bring: containers, backups and recovery, TLS, authentication, costs.
"""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from knhk.config import Config
from tests.acceptance.server import free_port
from tests.acceptance.test_workloads import GUIDE
from tests.guide.conftest import GuideServer
from tests.unit.config.test_config_guide import ROCKSDB, VARIABLES

FAILS = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: fails}
spec:
  steps:
    - {name: good, action: process, params: {key: value}}
    - {name: bad, action: fail, depends_on: [good], params: {message: not today}}
"""
NAPS = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: naps}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 1500ms}}
    - {name: after, action: process, depends_on: [nap]}
"""


def lines(server: GuideServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


# -- Network requirements, configuration


def test_the_ports_of_the_guide_are_the_defaults() -> None:
    config = Config()
    assert (config.api.port, config.observability.metrics_port) == (8080, 9090)


def test_the_server_says_which_sections_of_the_file_have_no_effect(server: GuideServer) -> None:
    said = [line["event"] for line in lines(server) if line["level"] == "warning"]
    named = {word for sentence in said for word in re.findall(r"[a-z_.]+", sentence.partition(" (set by")[0])}
    assert {
        "platform.enable_learning",
        "learning",
        "platform.enable_cost_tracking",
        "cost_tracking",
        "auth",
        "audit",
    } <= named
    assert all(str(server.config) in sentence for sentence in said)
    (ready,) = [line for line in lines(server) if line["event"] == "ready"]
    assert (ready["api"], ready["operations"], ready["version"]) == (server.api, server.ops, "5.0.0")


def test_secrets_of_the_file_appear_nowhere(server: GuideServer) -> None:
    shown = json.dumps(server.cli("config", "show", "-o", "json"))
    texts = (shown, server.log.read_text())
    for secret in ("your-key-here", "https://hooks.slack.com/", "oauth-secret"):
        assert not any(secret in text for text in texts)
    assert "pagerduty" in shown


def test_a_secret_that_is_not_in_the_environment_is_named(fresh: GuideServer) -> None:
    del fresh.variables["SLACK_WEBHOOK"]
    assert "SLACK_WEBHOOK" in _refusal(fresh)


def test_every_variable_of_the_guide_is_taken(fresh: GuideServer, tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "elsewhere"
    own = {"KNHK_METRICS_PORT": str(port), "KNHK_PERSISTENCE_PATH": str(data), "KNHK_API_PORT": str(fresh.api_port)}
    (tmp_path / "rocksdb.yaml").write_text(ROCKSDB)
    fresh.config.write_text("persistence:\n  rocksdb: rocksdb.yaml\n")
    fresh.ops_port, fresh.data = port, data
    fresh.variables |= {**VARIABLES, **own}
    fresh.start()
    assert fresh.client.post("/workflows", content=GUIDE, params={"wait": "20s"}).json()["state"] == "completed"
    shown = fresh.cli("config", "show", "-o", "json")
    text = json.dumps(shown)
    for name in VARIABLES:
        assert f"env:{name}" in text, name
    said = " ".join(line["event"] for line in lines(fresh) if line["level"] == "warning")
    for section in ("cluster", "tls", "auth"):
        assert section in said
    assert fresh.stop() == 0
    assert any(data.iterdir())
    assert fresh.verify()["valid"]


# -- Operations: health, submitting


def test_health(server: GuideServer) -> None:
    answer = httpx.get(f"{server.ops}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})
    ready = httpx.get(f"{server.ops}/ready")
    assert ready.status_code == 200


def test_detailed_health_has_exactly_the_shape_of_the_guide(server: GuideServer) -> None:
    answer = httpx.get(f"{server.ops}/health/detailed")
    assert answer.status_code == 200
    shown = answer.json()
    assert list(shown) == ["status", "uptime_seconds", "version", "checks"]
    assert (shown["status"], shown["version"]) == ("healthy", "5.0.0")
    assert isinstance(shown["uptime_seconds"], int)
    rooms = ["persistence", "observability", "monitoring", "recovery", "scaling", "learning", "cost_tracking"]
    assert list(shown["checks"]) == rooms
    assert shown["checks"]["persistence"] == shown["checks"]["observability"] == "ok"
    assert set(shown["checks"].values()) <= {"ok", "absent"}


def test_a_workflow_is_submitted_over_http_and_its_status_shown(server: GuideServer) -> None:
    answer = server.client.post("/workflows", content=GUIDE, headers={"content-type": "application/yaml"})
    assert answer.status_code in (200, 202)
    name = answer.json()["workflow_id"]
    assert re.fullmatch(r"wf-\d+", name)
    server.wait_for(name)
    assert server.cli("workflow", "status", name, "-o", "json")["state"] == "completed"


def test_a_workflow_is_submitted_by_the_command(server: GuideServer, tmp_path: Path) -> None:
    (tmp_path / "workflow.yaml").write_text(GUIDE)
    shown = server.cli("workflow", "submit", str(tmp_path / "workflow.yaml"), "-o", "json")
    server.wait_for(shown["workflow_id"])


def test_curl_as_the_guide_calls_it(server: GuideServer, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    file = tmp_path / "workflow.yaml"
    file.write_text(GUIDE)

    def submit(option: str) -> dict[str, Any]:
        command = [curl, "-s", "-X", "POST", f"{server.api}/workflows", "-H", "Content-Type: application/yaml"]
        done = subprocess.run([*command, option, f"@{file}"], capture_output=True, timeout=20, check=True)
        return dict(json.loads(done.stdout))

    # With -d curl strips the line breaks, after which YAML is something else; the answer says so.
    refused = submit("-d")
    assert (refused["status"], refused["code"]) == (422, "KNHK-1001")
    assert "--data-binary" in refused["hint"]
    server.wait_for(submit("--data-binary")["workflow_id"])


def test_a_body_without_line_breaks_gets_the_hint(server: GuideServer) -> None:
    stripped = GUIDE.replace("\n", "")
    answer = server.client.post("/workflows", content=stripped, headers={"content-type": "application/yaml"})
    assert answer.status_code == 422
    assert "--data-binary" in answer.json()["hint"]


# -- Monitoring


def test_the_alert_rules_find_their_metrics(server: GuideServer) -> None:
    server.client.post("/workflows", content=FAILS, params={"wait": "10s"})
    deadline = time.monotonic() + 5
    while True:
        answer = httpx.get(f"{server.ops}/metrics")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        errors = families["knhk_workflow_errors"].samples
        if sum(sample.value for sample in errors) >= 1 or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert {sample.name for sample in errors} == {"knhk_workflow_errors_total"}
    assert sum(sample.value for sample in errors) >= 1
    durations = families["knhk_workflow_duration_seconds"]
    assert durations.type == "histogram"
    assert any(sample.labels.get("le") == "1.0" for sample in durations.samples)
    (uptime,) = families["knhk_uptime_percentage"].samples
    assert 0 < uptime.value <= 100


# -- Disaster recovery: checkpoint, init, verify


def test_a_checkpoint_is_made_and_verifies(server: GuideServer) -> None:
    server.client.post("/workflows", content=GUIDE, params={"wait": "10s"})
    answer = httpx.post(f"{server.ops}/checkpoint", timeout=30)
    assert answer.status_code == 201
    path = Path(answer.json()["path"])
    assert path.parent == server.directory / "checkpoints"
    report = server.cli("verify", "--data", str(path), "--full", "-o", "json")
    assert report["valid"] is True
    assert report["verified_count"] == report["total_count"] > 0


def test_a_new_instance_is_initialised(fresh: GuideServer) -> None:
    shown = fresh.cli("init", "--config", str(fresh.config), "-o", "json")
    assert (shown["data_created"], shown["signing_key_created"]) == (True, True)
    assert list(fresh.data.iterdir()) == []  # so that a backup can be copied there; see test_disaster_recovery.py


# -- Troubleshooting


def test_a_failure_is_inspected_its_receipts_verified_and_the_workflow_retried(server: GuideServer) -> None:
    name = server.client.post("/workflows", content=FAILS, params={"wait": "10s"}).json()["workflow_id"]
    shown = server.cli("workflow", "inspect", name, "--verbose", "-o", "json")
    assert shown["failure"]["step"] == "bad"
    assert "not today" in shown["failure"]["message"]
    assert shown["steps"][0]["output"] == {"key": "value"}
    report = server.cli("receipts", "verify", name, "-o", "json")
    assert report["valid"] is True
    assert {"total_count", "verified_count", "signature_failures", "chain_breaks", "time_reversals", "missing"} <= set(
        report
    )
    assert server.cli("workflow", "retry", name, "-o", "json")["workflow_id"] == name
    server.wait_for(name, "failed")
    server.cli("receipts", "verify", "wf-123", code=4)  # unknown is an error, never valid
    server.cli("workflow", "inspect", "wf-123", "--verbose", code=4)


def test_data_integrity_is_verified(server: GuideServer) -> None:
    for arguments in (["verify", "--full"], ["verify", "--data", str(server.data)]):
        report = server.cli(*arguments, "-o", "json")
        assert report["valid"] is True
        assert report["verified_count"] == report["total_count"] > 0


def test_debug_logging_is_switched_on_by_the_variable(fresh: GuideServer) -> None:
    fresh.variables["KNHK_LOG_LEVEL"] = "debug"
    shown = fresh.cli("config", "show", "-o", "json")
    assert "env:KNHK_LOG_LEVEL" in json.dumps(shown)
    fresh.variables["KNHK_LOG_LEVEL"] = "loud"
    assert "KNHK_LOG_LEVEL" in _refusal(fresh)


def _refusal(server: GuideServer) -> str:
    """What a server that does not start says."""
    with pytest.raises(AssertionError, match="ended with 2"):
        server.start()
    return server.log.read_text()


# -- Stopping


def test_the_graceful_shutdown_waits_for_workflows(fresh: GuideServer) -> None:
    fresh.start()
    names = [fresh.submit(NAPS) for _ in range(3)]
    answer = httpx.post(f"{fresh.ops}/shutdown")
    assert (answer.status_code, answer.json()) == (202, {"status": "draining"})
    assert fresh.process is not None
    assert fresh.process.wait(timeout=30) == 0
    report = fresh.cli("verify", "--full", "-o", "json")
    assert report["valid"] is True
    for name in names:
        kinds = [one["kind"] for one in fresh.cli("receipts", "show", name, "-o", "json")["receipts"]]
        assert kinds[-1] == "workflow.completed"
