"""`knhk diagnostics` and `knhk trace` on real runs, from a server and from its data directory."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.server import Server

ORDER = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: order}
spec:
  steps:
    - {name: stock, action: shop.stock}
    - {name: price, action: process, params: {total: 14}}
    - name: charge
      action: shop.charge
      depends_on: [stock, price]
      retry: {max_attempts: 3, delay: 50ms, jitter: false}
    - {name: settle, action: wait, depends_on: [charge], params: {duration: 30ms}}
"""
QUICK = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: quick}
spec:
  steps: [{name: only, action: process}]
"""
CRUNCH = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: crunch}
spec:
  steps: [{name: only, action: shop.crunch, params: {seconds: 12}}]
"""
NESTED = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: nested}
spec:
  steps:
    - name: each
      foreach: {in: "${{ [1, 2] }}", as: item}
      steps:
        - {name: reserve, action: shop.stock}
        - {name: charge, action: shop.charge, depends_on: [reserve], retry: {max_attempts: 2}}
"""
RUNS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("diagnostics")
    running = Server(directory, actions={"modules": ["tests.acceptance.shop_actions"]})
    try:
        running.start()
        for name in [running.submit(ORDER) for _ in range(RUNS)] + [running.submit(QUICK)]:
            running.wait_for(name)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def order(server: Server) -> str:
    rows = server.client.get("/workflows", params={"name": "order"}).json()["workflows"]
    return str(rows[0]["workflow_id"])


def text_of(server: Server, *arguments: str) -> str:
    """What a command prints for people, where it is not a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "knhk", *arguments],
        capture_output=True,
        env={**server.environment(), "KNHK_SERVER": server.api, "KNHK_OPERATIONS": server.ops},
        cwd=server.directory,
        timeout=60,
        check=True,
    )
    return done.stdout.decode()


def where(server: Server, offline: bool) -> list[str]:
    return ["--data", str(server.data)] if offline else []


@pytest.mark.parametrize("offline", [False, True], ids=["server", "data directory"])
def test_a_trace_tells_what_each_attempt_waited_for_and_took(server: Server, order: str, offline: bool) -> None:
    shown = server.cli("trace", "workflow", order, *where(server, offline), "-o", "json")
    assert shown["state"] == "completed"
    charge = shown["steps"]["charge"]
    assert charge["action"] == "shop.charge"
    first, second = charge["attempts"]
    assert (first["outcome"], second["outcome"]) == ("retrying", "completed")
    assert "card company" in first["failure"]["message"]
    took: dict[str, int] = {}
    for segment in shown["critical_path"]:
        took[segment["kind"]] = took.get(segment["kind"], 0) + segment["to_ns"] - segment["from_ns"]
    assert took["execution"] >= 500_000_000
    assert took["backoff"] >= 49_000_000
    assert took["waiting"] >= 29_000_000
    assert sum(took.values()) == shown["ended_ns"] - shown["submitted_ns"]


def test_a_trace_is_drawn(server: Server, order: str) -> None:
    lines = text_of(server, "trace", "workflow", order).splitlines()
    assert lines[0].startswith(f"{order} order  completed after ")
    (charge,) = [line for line in lines if line.startswith("charge ")]
    before, bar = charge[: charge.index("█")], charge[charge.index("█") :]
    assert "shop.charge" in before
    assert "█╌" in bar  # an attempt, the backoff
    assert any(line.startswith("execution") and "charge" in line and "%" in line for line in lines)


@pytest.mark.parametrize("offline", [False, True], ids=["server", "data directory"])
def test_the_step_and_the_action_to_blame_are_named(server: Server, offline: bool) -> None:
    found = server.cli("diagnostics", "bottlenecks", *where(server, offline), "-o", "json")
    assert found["runs"] == RUNS + 1
    worst = found["blames"][0]
    assert (worst["workflow"], worst["step"], worst["action"], worst["kind"]) == (
        "order",
        "charge",
        "shop.charge",
        "execution",
    )
    assert worst["runs"] == RUNS
    assert worst["share"] > 0.5
    assert "shop.charge" in found["verdict"]
    assert abs(sum(found["shares"].values()) - 1) < 1e-6
    assert found["failed_attempts"] == RUNS
    assert "shop.charge" in text_of(server, "diagnostics", "bottlenecks", *where(server, offline))


@pytest.mark.parametrize("offline", [False, True], ids=["server", "data directory"])
def test_the_slowest_workflows_come_first(server: Server, offline: bool) -> None:
    found: list[dict[str, Any]] = server.cli(
        "diagnostics", "slow-workflows", "--limit", "2", *where(server, offline), "-o", "json"
    )["workflows"]
    assert [one["name"] for one in found] == ["order", "order"]
    assert found[0]["took_ms"] >= found[1]["took_ms"] > 500
    assert found[0]["mostly"]["step"] == "charge"
    assert found[0]["workflow_id"] in text_of(server, "diagnostics", "slow-workflows", *where(server, offline))


def test_a_verbose_inspection_has_the_attempts_and_the_time_line(server: Server, order: str) -> None:
    shown = server.cli("workflow", "inspect", order, "--verbose", "-o", "json")
    assert len(shown["timeline"]["charge"]["attempts"]) == 2
    text = text_of(server, "workflow", "inspect", order, "--verbose")
    assert "ConnectionError: card company: reset" in text
    assert "critical path" in text


def test_what_is_not_there_is_said(server: Server) -> None:
    for arguments in (["trace", "workflow", "wf-1"], ["trace", "workflow", "wf-1", "--data", str(server.data)]):
        server.cli(*arguments, code=4)
    server.cli("diagnostics", "bottlenecks", "--data", str(server.directory / "nothing"), code=4)
    assert server.cli("diagnostics", "bottlenecks", "--name", "nobody", "-o", "json")["runs"] == 0


def test_what_burns_cpu_time_is_in_the_flame_graph(server: Server) -> None:
    name = server.submit(CRUNCH)
    shown = server.cli("profile", "cpu", "--duration", "1s", "-o", "json")
    assert server.status(name)["state"] == "running"
    assert any(one["name"].startswith("factor.<locals>") and one["self_share"] > 0.3 for one in shown["top"])
    page = (server.directory / shown["file"]).read_text()
    assert "factor" in page
    assert "flame" in page.lower()
    server.wait_for(name)


def test_memory_is_told_by_type_and_by_line_and_collected(server: Server) -> None:
    dump = server.cli("debug", "heap-dump", "-o", "json")
    assert {"dict", "str"} <= {one["type"] for one in dump["types"]}
    assert (server.directory / dump["file"]).stat().st_size > 1_000
    grown = server.cli("debug", "memory-profile", "--duration", "300ms", "-o", "json")
    assert grown["after"]["resident_bytes"] > 0
    assert server.cli("debug", "gc", "-o", "json")["took_ms"] > 0
    assert "resident" in text_of(server, "debug", "heap-dump")


def test_tasks_and_resources(server: Server) -> None:
    tasks = server.cli("debug", "tasks", "-o", "json")
    assert {"MainThread", "operations", "watchdog"} <= {one["name"] for one in tasks["threads"]}
    assert any(one["name"] == "projector" for one in tasks["tasks"])
    found = server.cli("diagnostics", "resources", "-o", "json")
    assert found["engine"]["commits"] > 0
    assert found["checks"]["persistence"] == "ok"
    text = text_of(server, "diagnostics", "resources")
    assert "memory" in text
    assert "projector" in text_of(server, "debug", "tasks")


def test_top_shows_what_happens_between_two_looks(server: Server) -> None:
    stop, names = threading.Event(), []

    def drive() -> None:
        while not stop.wait(0.2):
            names.append(server.submit(ORDER))

    load = threading.Thread(target=drive)
    load.start()
    try:
        shown = server.cli("top", "--once", "--interval", "2s", "-o", "json")
    finally:
        stop.set()
        load.join()
    assert shown["ready"] is True
    assert shown["wrong"] == []
    assert shown["receipts_per_s"] > 0
    assert {one["action"] for one in shown["actions"]} >= {"shop.charge"}
    for name in names:
        server.wait_for(name)
    text = text_of(server, "top", "--once", "--interval", "100ms")
    assert text.startswith("knhk top")
    assert "longest active run" in text
    server.cli("top", "--once", "--operations", "http://127.0.0.1:9", code=6)


@pytest.mark.parametrize("offline", [False, True], ids=["server", "data directory"])
def test_steps_inside_of_steps_are_traced_by_their_paths(server: Server, offline: bool) -> None:
    name = server.submit(NESTED)
    server.wait_for(name)
    shown = server.cli("trace", "workflow", name, *where(server, offline), "-o", "json")
    assert shown["steps"]["each[1]/charge"]["action"] == "shop.charge"
    assert len(shown["steps"]["each[0]/charge"]["attempts"]) == 2
    executed = [one["step"] for one in shown["critical_path"] if one["kind"] == "execution"]
    assert {"reserve", "charge"} == {path.rpartition("/")[2] for path in executed}
    assert len({path.partition("/")[0] for path in executed}) == 1  # the path stays in one instance
    lines = text_of(server, "trace", "workflow", name, *where(server, offline)).splitlines()
    assert any(line.startswith("  charge") for line in lines)
