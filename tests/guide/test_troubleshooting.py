"""The guide on troubleshooting, debug commands and support information: each command, as it is written there."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.guide.conftest import GuideServer
from tests.guide.test_guide import FAILS


@pytest.fixture(scope="module")
def failed(server: GuideServer) -> str:
    """A workflow that failed, in the place of the guide's wf-123."""
    return str(server.client.post("/workflows", content=FAILS, params={"wait": "20s"}).json()["workflow_id"])


# -- High latency


def test_resource_usage(server: GuideServer) -> None:
    found = server.cli("diagnostics", "resources", "-o", "json")
    assert found["process"]["resident_bytes"] > 0
    assert found["disks"][0]["path"] == str(server.data)


def test_slow_workflows(server: GuideServer, failed: str) -> None:
    found = server.cli("diagnostics", "slow-workflows", "--limit", "10", "-o", "json")
    assert 1 <= len(found["workflows"]) <= 10
    server.cli("diagnostics", "slow-workflows", "--limit", "10")


def test_bottlenecks(server: GuideServer, failed: str) -> None:
    found = server.cli("diagnostics", "bottlenecks", "-o", "json")
    assert found["runs"] >= 1
    assert found["verdict"]
    server.cli("diagnostics", "bottlenecks")


# -- Workflow failures


def test_failure_details(server: GuideServer, failed: str) -> None:
    server.cli("workflow", "inspect", failed, "--verbose")
    shown = server.cli("workflow", "inspect", failed, "--verbose", "-o", "json")
    assert shown["failure"]["step"] == "bad"
    assert shown["timeline"]["bad"]["attempts"][-1]["outcome"] == "failed"
    assert shown["inputs"] == {}
    assert shown["history"][-1]["kind"] == "workflow.failed"


# -- Memory issues


def test_heap_dump_memory_profile_and_garbage_collection(server: GuideServer) -> None:
    dump = server.cli("debug", "heap-dump", "-o", "json")
    assert (server.directory / dump["file"]).exists()
    profile = server.cli("debug", "memory-profile", "--duration", "200ms", "-o", "json")
    assert profile["after"]["resident_bytes"] > 0
    assert server.cli("debug", "gc", "-o", "json")["after"]["resident_bytes"] > 0


# -- Debug commands


def test_a_workflow_is_traced(server: GuideServer, failed: str) -> None:
    server.cli("trace", "workflow", failed)
    shown = server.cli("trace", "workflow", failed, "-o", "json")
    assert (shown["state"], set(shown["steps"])) == ("failed", {"good", "bad"})


def test_cpu_usage_is_profiled(server: GuideServer) -> None:
    shown = server.cli("profile", "cpu", "--duration", "1s", "-o", "json")
    page = (server.directory / shown["file"]).read_text()
    assert page.startswith("<!doctype html>")


# -- Support information


def test_a_support_bundle_has_what_the_guide_lists(server: GuideServer, tmp_path: Path) -> None:
    path = tmp_path / "support.tar.gz"
    server.cli("support", "bundle", "--output", str(path))
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        file = archive.extractfile("support/manifest.json")
        assert file is not None
        manifest = json.loads(file.read())
    listed = {
        "System information": "system.json",
        "Configuration (sanitized)": "config.json",
        "Recent logs": "recent.log",
        "Metrics snapshot": "metrics.txt",
        "Heap profile": "heap.json",
        "Goroutine dump": "tasks.json",
    }
    assert set(listed.values()) <= names
    assert manifest["missing"] == []
