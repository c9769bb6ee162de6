"""Three nodes that are killed, stopped, restarted; etcd and PostgreSQL that fail: nothing acknowledged is lost, no
at_most_once effect doubled, everything verifies."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.fleet import TTL_S, Fleet, Load, until, verified
from tests.acceptance.server import Server
from tests.services import etcd, postgres
from tests.services.proxy import Proxy

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


@pytest.mark.timeout(280)
def test_nodes_die_are_stopped_and_restarted(fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 1)
    load.start()

    leader = fleet.status()["leader"]
    time.sleep(1)
    fleet.kill(leader)
    took = fleet.settled()
    print(f"SIGKILL of the leader: its partitions were taken over after {took:.1f} s")
    assert fleet.status()["leader"] not in (None, leader)
    fleet.start(leader)
    fleet.settled()

    zombie = sorted(fleet.running)[0]
    fleet.signal(zombie, signal.SIGSTOP)
    fleet.running.discard(zombie)
    took = fleet.settled()
    print(f"SIGSTOP: the partitions were taken over after {took:.1f} s")
    fleet.signal(zombie, signal.SIGCONT)
    until(lambda: "everything stops" in fleet.log(zombie))
    fleet.running.add(zombie)
    fleet.settled()
    fenced = _metric(fleet, zombie, "knhk_store_fenced_total")
    print(f"the zombie came back: {fenced:.0f} of its commits were refused")

    before = load.refused.copy()
    for name in sorted(fleet.running):
        fleet.stop(name)
        fleet.start(name)
        fleet.settled()
    gone = load.refused - before
    print(f"a rolling restart: refused {dict(gone)}")
    # A client that meets a closing port takes another node; no node answers with an error.
    assert not [code for code in gone if code.startswith("KNHK")], gone
    load.finish()
    print(f"{len(load.acknowledged)} workflows, refused on the way: {dict(load.refused)}")
    for name in sorted(fleet.running):
        fleet.stop(name)
    assert verified(fleet)["workflows"] >= len(load.acknowledged)


def _metric(fleet: Fleet, name: str, metric: str) -> float:
    node = fleet.nodes[name]
    lines = node.client.get(f"{node.ops}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


@pytest.mark.timeout(280)
def test_etcd_fails(fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 2)
    load.start()
    time.sleep(1)
    epochs = [one["epoch"] for one in fleet.status()["partitions"]]

    fleet.etcd.kill(0)
    time.sleep(2 * TTL_S)
    shown = fleet.status()
    assert [bool(member["trouble"]) for member in shown["etcd"]] == [True, False, False]
    assert (shown["known"], shown["unknown"]) == ("now", [])
    assert None not in {one["lag_blocks"] for one in shown["partitions"]}, "the owners say how far their lists are"
    assert not load.refused, f"one member of three is not needed: {load.refused}"
    assert [one["epoch"] for one in shown["partitions"]] == epochs

    fleet.etcd.kill(1)
    taken = len(load.acknowledged)
    until(lambda: bool(fleet.status()["trouble"]), 20)
    until(lambda: not any(fleet.status(name)["member"] for name in fleet.running), 20)
    print(
        f"without etcd {len(load.acknowledged) - taken} workflows were taken until the leases ended; then all stopped"
    )
    shown = fleet.status()
    assert [bool(member["trouble"]) for member in shown["etcd"]] == [True, True, True]
    assert shown["known"].startswith("what one member of etcd has"), shown["known"]
    assert "which is no majority" in shown["unknown"][0]
    assert [(one["answers"], one["lease_left_s"]) for one in shown["nodes"]] == [(True, 0.0)] * 3
    health = fleet.any().client.get(f"{fleet.any().ops}/health/detailed").json()
    assert "etcd does not answer" in health["checks"]["cluster"]
    assert fleet.any().client.get(f"{fleet.any().ops}/ready").status_code == 503
    began = time.monotonic()
    fleet.etcd.start_member(0)
    fleet.etcd.start_member(1)
    fleet.settled()
    print(f"etcd was back: all partitions were owned {time.monotonic() - began:.1f} s later")

    load.finish()
    for name in sorted(fleet.running):
        fleet.stop(name)
    assert verified(fleet)["workflows"] >= len(load.acknowledged)


@pytest.mark.soak
@pytest.mark.timeout(280)
def test_postgresql_fails(fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 2)
    load.start()
    time.sleep(1)
    fleet.postgres.kill()
    time.sleep(1)
    fleet.postgres.start()
    began = time.monotonic()
    taken = len(load.acknowledged)
    until(lambda: len(load.acknowledged) > taken + 5)
    print(f"PostgreSQL was back: workflows were taken {time.monotonic() - began:.1f} s later")
    load.finish()
    for name in sorted(fleet.running):
        fleet.stop(name)
    assert verified(fleet)["workflows"] >= len(load.acknowledged)


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


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nodes_come_and_go_and_networks_are_cut(fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 3)
    load.start()
    to_postgres = Proxy(fleet.postgres.port)
    to_etcd = [Proxy(port) for port in fleet.etcd.client_ports]
    try:
        database = fleet.url.rpartition("/")[2]
        endpoints = [f"http://127.0.0.1:{proxy.port}" for proxy in to_etcd]
        fleet.add("d", url=fleet.postgres.url(database, to_postgres.port), etcd=endpoints)
        fleet.add("e")
        fleet.settled()
        for proxies, what in ((to_etcd, "etcd"), ([to_postgres], "PostgreSQL")):
            for mode in ("refuse", "swallow"):
                fleet.running.discard("d")
                for proxy in proxies:
                    proxy.set(mode)  # type: ignore[arg-type]
                time.sleep(3 * TTL_S)
                for proxy in proxies:
                    proxy.set("forward")
                fleet.running.add("d")
                print(f"cut from {what} ({mode}): settled {fleet.settled():.1f} s after it")
        for name in ("a", "e", "d"):
            fleet.stop(name) if name != "e" else fleet.kill(name)
            print(f"{name} went: settled after {fleet.settled():.1f} s")
        load.finish(300)
        print(f"{len(load.acknowledged)} workflows, refused on the way: {dict(load.refused)}")
        for name in sorted(fleet.running):
            fleet.stop(name)
        assert verified(fleet)["workflows"] >= len(load.acknowledged)
    finally:
        for proxy in (to_postgres, *to_etcd):
            proxy.close()
