"""Three nodes as one: any of them answers, partitions move by order, and what is said while etcd fails.

What must survive which failure is in tests/chaos.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.acknowledged import until
from tests.acceptance.fleet import Fleet
from tests.acceptance.server import Server
from tests.services import etcd, postgres

LONG = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: long}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 120s}}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    if why := etcd.missing() or postgres.missing():
        pytest.skip(why)
    made = Fleet(tmp_path)
    try:
        for name in ("a", "b", "c"):
            made.add(name)
        made.settled()
        yield made
    finally:
        made.close()


@pytest.mark.timeout(200)
def test_what_can_be_said_while_etcd_fails(fleet: Fleet) -> None:
    fleet.etcd.kill(0)
    until(lambda: [bool(member["trouble"]) for member in fleet.status()["etcd"]] == [True, False, False])
    shown = fleet.status()
    assert (shown["known"], shown["unknown"]) == ("now", [])
    assert None not in {one["lag_blocks"] for one in shown["partitions"]}, "the owners say how far their lists are"

    fleet.etcd.kill(1)
    until(lambda: bool(fleet.status()["trouble"]))
    until(lambda: not any(fleet.status(name)["member"] for name in fleet.running))
    shown = fleet.status()
    assert [bool(member["trouble"]) for member in shown["etcd"]] == [True, True, True]
    assert shown["known"].startswith("what one member of etcd has"), shown["known"]
    assert "which is no majority" in shown["unknown"][0]
    assert [(one["answers"], one["lease_left_s"]) for one in shown["nodes"]] == [(True, 0.0)] * 3
    health = fleet.any().client.get(f"{fleet.any().ops}/health/detailed").json()
    assert "etcd does not answer" in health["checks"]["cluster"]
    assert fleet.any().client.get(f"{fleet.any().ops}/ready").status_code == 503
    fleet.etcd.start_member(0)
    fleet.etcd.start_member(1)
    fleet.settled()


@pytest.mark.timeout(200)
def test_any_node_answers_any_request(fleet: Fleet) -> None:
    nodes = list(fleet.nodes.values())
    first, second, third = nodes
    name = first.submit(LONG, **{"Idempotency-Key": "one"})
    for node in nodes:
        assert node.submit(LONG, **{"Idempotency-Key": "one"}) == name
        assert node.client.post("/workflows", content="{}", headers={"Idempotency-Key": "one"}).status_code >= 400
        assert node.status(name)["state"] == "running"
    many = {node.submit(LONG) for node in nodes for _ in range(20)}
    until(lambda: set(_listed(second)) == {name, *many})  # rows follow the journal
    assert _listed(second) == sorted(_listed(second), key=lambda one: -int(one.removeprefix("wf-")))
    for node, verb, state in (
        (second, "pause", "paused"),
        (third, "resume", "running"),
        (first, "cancel", "cancelled"),
    ):
        assert node.client.post(f"/workflows/{name}/{verb}").json()["state"] == state
    assert third.client.post(f"/workflows/{name}/cancel").status_code == 409
    with second.client.stream("GET", f"/workflows/{name}/events") as events:
        assert any("workflow.cancelled" in line for line in events.iter_lines())
    assert second.client.put("/definitions/long", content=LONG).status_code in (200, 201)
    assert third.client.get("/definitions/long").status_code == 200
    run = third.client.post("/workflows", json={"name": "long"})
    assert run.status_code == 202, run.text
    for path in ("/keys/rotate", "/retention/run"):
        assert first.client.post(path, json={}).status_code == 501, path
    assert first.client.post("/workflows/nonsense/cancel").status_code == 404
    assert first.client.get("/workflows/wf-1").status_code == 404

    drained = fleet.status()["leader"]
    other = next(node for name, node in fleet.nodes.items() if name != drained)
    other.cli("cluster", "drain", drained, "--server", other.api)
    until(lambda: all(one["owner"] not in (None, drained) for one in fleet.status()["partitions"]))
    assert fleet.nodes[drained].submit(LONG), "a drained node still answers"
    assert other.cli("cluster", "drain", "nobody", code=4) == {}
    assert other.cli("cluster", "rebalance", "--output", "json")["moving"] > 0
    until(lambda: any(one["owner"] == drained for one in fleet.status()["partitions"]))
    shown = other.cli("cluster", "status", "--output", "json")
    assert {node["state"] for node in shown["nodes"]} == {"active"}


def _listed(node: Server) -> list[str]:
    """All workflows, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = node.client.get("/workflows", params={"limit": 7, **({"cursor": cursor} if cursor else {})}).json()
        found += [row["workflow_id"] for row in page["workflows"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
