"""Three nodes as one: any of them answers, partitions move by order, and what is said while etcd fails.

What must survive which failure is in tests/chaos.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from knhk.cluster.assignment import partition_of_key
from knhk.domain.identifier import parse, partition_of
from tests.acceptance.acknowledged import until
from tests.acceptance.fleet import PARTITIONS, Fleet, verified
from tests.acceptance.server import Server
from tests.acceptance.steady import Steady
from tests.services import etcd, postgres

LONG = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: long}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 120s}}
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if why := etcd.missing() or postgres.missing():
        pytest.skip(why)
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        made.add_all("a", "b", "c")
        yield made
        made.mended()
        with ThreadPoolExecutor() as pool:
            list(pool.map(made.stop, sorted(made.running)))
        assert verified(made)["workflows"] > 0
    finally:
        made.close()


@pytest.fixture
def fleet(nodes: Fleet) -> Fleet:
    return nodes.mended()


@pytest.mark.timeout(280)
def test_the_restart_of_the_leader_under_load_is_noticed_by_nobody(fleet: Fleet) -> None:
    _restarted_under_load(fleet, fleet.status()["leader"])


@pytest.mark.soak
@pytest.mark.timeout(280)
def test_a_rolling_restart_under_load_is_noticed_by_nobody(fleet: Fleet) -> None:
    _restarted_under_load(fleet, *sorted(fleet.running))


def _restarted_under_load(fleet: Fleet, *names: str) -> None:
    clients = [Steady(fleet, seed) for seed in range(3)]
    for client in clients:
        client.start()
    for name in names:
        fleet.stop(name)
        fleet.start(name)
        fleet.settled()
    for client in clients:
        client.finish()
    print(f"{', '.join(names)} restarted under {sum(client.done for client in clients)} turns of clients: no error")


@pytest.mark.timeout(200)
def test_what_is_asked_of_a_node_that_is_stopped(fleet: Fleet) -> None:
    zombie, other = sorted(fleet.running)[:2]
    owned = {one["partition"] for one in fleet.status()["partitions"] if one["owner"] == zombie}
    keys = [f"zombie-{number}" for number in range(200)]
    keys = [key for key in keys if partition_of_key(key.encode(), PARTITIONS) in owned]
    name = fleet.nodes[other].submit(LONG, **{"Idempotency-Key": keys[0]})
    fleet.signal(zombie, signal.SIGSTOP)
    fleet.running.discard(zombie)
    with ThreadPoolExecutor() as pool:
        forwarded = pool.submit(fleet.nodes[other].submit, LONG, **{"Idempotency-Key": keys[1]})
        asked = pool.submit(httpx.get, f"{fleet.nodes[zombie].api}/workflows/{name}", timeout=120)
        took = fleet.settled()
        print(f"SIGSTOP: the partitions were taken over after {took:.1f} s")
        assert forwarded.result(timeout=60), "what was sent on to the zombie goes to the next owner"
        assert fleet.nodes[other].client.post(f"/workflows/{name}/cancel").json()["state"] == "cancelled"
        fleet.signal(zombie, signal.SIGCONT)
        answer = asked.result(timeout=60)
        assert answer.status_code == 503 or answer.json()["state"] == "cancelled", "told from the memory of a zombie"
    until(lambda: "everything stops" in fleet.log(zombie))
    fleet.running.add(zombie)
    fleet.settled()


@pytest.mark.timeout(200)
def test_what_can_be_said_while_etcd_fails(fleet: Fleet) -> None:
    fleet.etcd.kill(0)
    until(lambda: [bool(member["trouble"]) for member in fleet.status()["etcd"]] == [True, False, False])
    until(lambda: None not in {one["lag_blocks"] for one in fleet.status()["partitions"]})  # told by the owners
    shown = fleet.status()
    assert (shown["known"], shown["unknown"]) == ("now", [])

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
    nodes = [fleet.nodes[name] for name in ("a", "b", "c")]
    first, second, third = nodes
    name = first.submit(LONG, **{"Idempotency-Key": "one"})
    for node in nodes:
        assert node.submit(LONG, **{"Idempotency-Key": "one"}) == name
        assert node.client.post("/workflows", content="{}", headers={"Idempotency-Key": "one"}).status_code >= 400
        assert node.status(name)["state"] == "running"
    many = {node.submit(LONG) for node in nodes for _ in range(20)}
    until(lambda: set(_listed(second)) >= {name, *many})  # rows follow the journal
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


@pytest.mark.timeout(200)
def test_the_clock_of_one_node_is_an_hour_ahead(fleet: Fleet) -> None:
    node = fleet.nodes["c"]
    fleet.stop("c")
    node.module = "tests.acceptance.hour_ahead"
    try:
        fleet.start("c")
        fleet.settled()
        health = node.client.get(f"{node.ops}/health/detailed").json()["checks"]
        assert "this machine's clock is 3600" in health["cluster"], health
        assert health["observability"] == "ok", health
        mine = {one["partition"] for one in fleet.status()["partitions"] if one["owner"] == "c"}
        sleeping = [node.submit(LONG) for _ in range(PARTITIONS)]
        assert {partition_of(parse(name)) for name in sleeping} <= mine
        _times_are_right(node, sleeping)
    finally:
        fleet.stop("c")
        node.module = "knhk"
    other = fleet.any()
    fleet.settled()
    _times_are_right(other, sleeping)
    assert {other.status(name)["state"] for name in sleeping} == {"running"}, "no timer of others fires an hour early"
    keys = [f"clock-{number}" for number in range(3 * PARTITIONS)]
    _times_are_right(other, [other.submit(LONG, **{"Idempotency-Key": key}) for key in keys])


def _times_are_right(node: Server, names: list[str]) -> None:
    for name in names:
        for receipt in node.client.get(f"/workflows/{name}/receipts").json()["receipts"]:
            assert abs(time.time() - receipt["at_ns"] / 1e9) < 600, receipt


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
