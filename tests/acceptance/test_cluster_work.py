"""What reaches the runs of all partitions, asked of any of three nodes: events, decisions, erasure, remote work."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from knhk import __version__
from knhk.domain.identifier import parse, partition_of
from tests.acceptance.acknowledged import until
from tests.acceptance.fleet import PARTITIONS, Fleet, verified
from tests.acceptance.server import Server
from tests.chaos.load import Load
from tests.services import etcd, postgres
from tests.services.alert_receivers import HttpReceiver

WAITS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: waits, department: {department}}}
spec:
  timeout: 1h
  steps:
    - {{name: paid, wait_for: {{event: paid, correlate: "{order}"}}}}
    - {{name: got, action: process, depends_on: [paid], params: {{output: "${{{{ steps.paid.output.data }}}}"}}}}
"""


REMOTE = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: remote}}
spec:
  timeout: 1h
  steps: [{{name: a, action: render, queue: {queue}, params: {{}}}}]
  outputs: {{by: "${{{{ steps.a.output }}}}"}}
"""

CHILD = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: child}}
spec:
  timeout: 1h
  retries: 5
  concurrency: {{limit: 1}}
  steps:
    - {{name: begin, action: test.append, params: {{path: "{path}", line: "${{{{ 'begin ' + inputs.order }}}}"}}}}
    - {{name: nap, action: wait, depends_on: [begin], params: {{duration: 200ms}}}}
    - name: end
      action: test.append
      depends_on: [nap]
      params: {{path: "{path}", line: "${{{{ 'end ' + inputs.order }}}}"}}
"""
PARENT = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: parent}}
spec:
  timeout: 1h
  steps: [{{name: sub, action: workflow, params: {{name: child, input: {{order: "{order}"}}}}}}]
"""
EVERY_MINUTE = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: every-minute}
spec:
  triggers: [{name: tick, cron: "* * * * *", catch_up: all, inputs: {at: "${{ trigger.time }}"}}]
  steps: [{name: a, action: process, params: {output: "${{ inputs.at }}"}}]
"""


FAILS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: fails}
spec:
  steps: [{name: a, action: fail, params: {message: "no"}}]
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[HttpReceiver]:
    made = HttpReceiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, receiver: HttpReceiver) -> Iterator[Fleet]:
    if why := etcd.missing() or postgres.missing():
        pytest.skip(why)
    monitoring = {
        "latency_target": "0s",
        "min_failures": 20,
        "check_interval": "300ms",
        "alert_channels": [{"type": "webhook", "webhook_url": receiver.url}],
    }
    made = Fleet(tmp_path_factory.mktemp("fleet"), monitoring=monitoring)
    try:
        made.add_all("a", "b", "c")
        assert made.any().client.put("/definitions/every-minute", content=EVERY_MINUTE).status_code == 201
        yield made
        made.settled()
        with ThreadPoolExecutor() as pool:
            list(pool.map(made.stop, sorted(made.running)))
        assert verified(made)["workflows"] > 0
    finally:
        made.close()


def spread(node: Server, descriptor: str, most: int = 3 * PARTITIONS) -> list[str]:
    """Runs in partitions of every node: keys decide where they lie."""
    return [node.submit(descriptor, **{"Idempotency-Key": f"{time.time_ns()}-{number}"}) for number in range(most)]


def ended(node: Server, runs: list[str], state: str = "completed") -> None:
    until(lambda: all(node.status(one)["state"] == state for one in runs))


def post(node: Server, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    answer = node.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


@pytest.mark.timeout(120)
def test_an_event_reaches_the_runs_of_all_partitions(fleet: Fleet) -> None:
    first, second, third = fleet.nodes.values()
    early = {"event": "paid", "correlate": "early", "data": 7, "id": "bank-1"}
    assert post(second, "/events", early)["delivered_to"] == []
    runs = spread(first, WAITS.format(department="sales", order="early"))
    assert len({partition_of(parse(one)) for one in runs}) > PARTITIONS / 2
    ended(third, runs)
    assert third.status(runs[0], verbose=True)["outputs"] == {"got": 7}

    runs = spread(first, WAITS.format(department="sales", order="late"), 12)
    until(lambda: all(first.status(one)["waiting_on"] for one in runs))
    late = {"event": "paid", "correlate": "late", "data": 8, "id": "bank-2"}
    done = post(third, "/events", late)
    assert (sorted(done["delivered_to"]), done["pending"]) == (sorted(runs), [])
    assert post(second, "/events", late)["replayed"]
    ended(second, runs)
    receipts = second.client.get(f"/workflows/{runs[0]}/receipts").json()["receipts"]
    assert [one["kind"] for one in receipts].count("signal.received") == 1

    (run,) = spread(first, WAITS.format(department="sales", order="one"), 1)
    for node in (first, second, third):  # the owner gets it, whoever is asked; the same id is the same signal
        post(node, f"/workflows/{run}/signals", {"event": "paid", "correlate": "one", "data": 9, "id": "bank-3"})
    ended(third, [run])


@pytest.mark.timeout(120)
def test_one_decision_about_the_runs_of_all_partitions(fleet: Fleet) -> None:
    first, second, third = fleet.nodes.values()
    runs = spread(first, WAITS.format(department="ops", order="never"))
    wanted = {"department": "ops", "limit": 500}
    until(lambda: len(post(second, "/workflows/bulk", {**wanted, "action": "pause", "dry_run": True})["matched"]) == 36)
    done = post(second, "/workflows/bulk", {**wanted, "action": "pause", "reason": "stock-taking"})
    assert (done["done"], done["failed"], sorted(done["matched"])) == (len(runs), [], sorted(runs))
    ended(third, runs, "paused")
    until(lambda: post(third, "/workflows/bulk", {**wanted, "action": "cancel", "limit": 20})["done"] == 20)
    until(lambda: post(first, "/workflows/bulk", {**wanted, "action": "cancel"})["done"] == 16)
    ended(first, runs, "cancelled")


@pytest.mark.timeout(120)
def test_a_departments_data_are_erased_in_all_partitions(fleet: Fleet) -> None:
    first, second, third = fleet.nodes.values()
    runs = spread(first, WAITS.format(department="gdpr", order="gdpr"))
    problem = post(second, "/departments/erase", {"department": "gdpr"}, 409)
    assert "have not ended" in problem["detail"]
    post(third, "/events", {"event": "paid", "correlate": "gdpr", "data": "secret"})
    ended(third, runs)
    assert post(second, "/departments/erase", {"department": "gdpr"})["workflows_erased"] == len(runs)
    assert post(third, "/departments/erase", {"department": "gdpr"})["workflows_erased"] == 0
    assert all(first.status(one, verbose=True)["outputs"] == {} for one in runs)


def take(node: Server, queue: str, most: int = 1, wait: str = "30s") -> list[dict[str, Any]]:
    body = {"worker": "w", "queues": [queue], "max": most, "wait": wait, "lease": "60s"}
    return list(post(node, "/workers/poll", body)["tasks"])


def done(node: Server, task: dict[str, Any], status: int = 200) -> dict[str, Any]:
    result = {"token": task["token"], "workflow_id": task["workflow_id"], "step": "a", "output": task["token"]}
    return post(node, "/workers/complete", result, status)


@pytest.mark.timeout(200)
def test_a_worker_that_asks_one_node_gets_work_of_all_partitions(fleet: Fleet) -> None:
    first, second, third = fleet.nodes.values()
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(take, first, "early") for _ in range(4)]
        time.sleep(0.5)
        early = spread(second, REMOTE.format(queue="early"), 4)
        tasks = [task for one in waiting for task in one.result()]
    assert sorted(task["workflow_id"] for task in tasks) == sorted(early)
    runs = spread(second, REMOTE.format(queue="gpu"))
    tasks = []
    while len(tasks) < len(runs):
        tasks += take(first, "gpu", 5)
    assert len({partition_of(parse(task["workflow_id"])) for task in tasks}) > PARTITIONS / 2
    assert sorted(task["workflow_id"] for task in tasks) == sorted(runs), "each was given out once"
    tokens = [task["token"] for task in tasks]
    assert take(second, "gpu", wait="0s") == []
    beat = post(third, "/workers/heartbeat", {"worker": "w", "tokens": [*tokens, "17"]})
    assert (sorted(beat["held"]), beat["lost"]) == (sorted(tokens), ["17"])
    shown = third.client.get("/workers").json()
    assert {"queue": "gpu", "waiting": 0, "held": len(runs)} in shown["queues"]
    assert shown["missing"] == []
    given = tasks.pop()
    assert post(second, "/workers/release", {"worker": "w", "tokens": [given["token"]]})["lost"] == [given["token"]]
    (again,) = take(third, "gpu")
    assert (again["workflow_id"], int(again["token"]) > int(given["token"])) == (given["workflow_id"], True)
    done(second, given, 409)
    for number, task in enumerate([*tasks, again]):
        node = (first, second, third)[number % 3]
        assert done(node, task) == {"accepted": True, "repeated": False}
        assert done(node, task) == {"accepted": True, "repeated": True}
    ended(third, runs)


@pytest.mark.timeout(200)
def test_the_owners_of_leases_die(fleet: Fleet) -> None:
    first = fleet.nodes[sorted(fleet.running)[0]]
    runs = spread(first, REMOTE.format(queue="tpu"))
    tasks = list[dict[str, Any]]()
    while len(tasks) < len(runs):
        tasks += take(first, "tpu", 10)
    gone = sorted(fleet.running)[1]
    fleet.kill(gone)
    beat = post(first, "/workers/heartbeat", {"worker": "w", "tokens": [task["token"] for task in tasks]})
    assert beat["lost"] == [], "a lease whose owner died is not over"
    for task in tasks:  # taken by the next owner, under the same lease
        assert done(first, task) == {"accepted": True, "repeated": False}
    ended(first, runs)
    receipts = first.client.get(f"/workflows/{runs[0]}/receipts").json()["receipts"]
    assert [one["kind"] for one in receipts].count("step.started") == 1
    fleet.start(gone)
    fleet.settled()


@pytest.mark.soak
@pytest.mark.timeout(200)
def test_a_rolling_upgrade(fleet: Fleet, tmp_path: Path) -> None:
    """Nodes of the next version among those of this one, forth and back; one that does not fit is refused."""
    name = sorted(fleet.running)[0]
    node, others = fleet.nodes[name], [fleet.nodes[one] for one in sorted(fleet.running) if one != name]
    load = Load(fleet, tmp_path / "effects.txt", 4).start()
    load.release()
    fleet.stop(name)
    node.module = "tests.acceptance.next_version"
    node.variables["NEXT_LEAST"] = "2"
    with pytest.raises(AssertionError, match="KNHK-4006"):
        node.start(timeout_s=60)
    shown = fleet.status()
    assert (name in {one["node_id"] for one in shown["nodes"]}, shown["moving"]) == (False, 0)

    node.variables["NEXT_LEAST"] = "1"
    fleet.start(name)
    fleet.settled()
    assert {one["version"] for one in fleet.status()["nodes"]} == {"6.1.0", __version__}
    owned = {one["partition"] for one in fleet.status()["partitions"] if one["owner"] == name}
    runs = spread(node, WAITS.format(department="sales", order="next"))
    assert owned & {partition_of(parse(one)) for one in runs}
    assert all(one.status(run)["state"] == "running" for one in others for run in runs)
    time.sleep(1)
    fleet.stop(name)  # the others go on with what the next version has written
    node.module = "knhk"
    fleet.start(name)
    fleet.settled()
    post(node, "/events", {"event": "paid", "correlate": "next", "data": 1})
    ended(others[0], runs)
    load.finish().check()
    print(f"{len(load.acknowledged)} workflows during an upgrade and back; refused {dict(load.refused)}")
    assert not [code for code in load.refused if code.startswith("KNHK")], load.refused


def told(receiver: HttpReceiver) -> list[str]:
    """The alerts about failures that were told."""
    alerts = [alert for body in receiver.bodies for alert in body["alerts"]]
    return [alert["status"] for alert in alerts if "success" in str(alert)]


@pytest.mark.soak
@pytest.mark.timeout(200)
def test_a_deposed_leader_does_nothing_and_each_alert_is_told_once(fleet: Fleet, receiver: HttpReceiver) -> None:
    deposed = fleet.status()["leader"]
    fleet.signal(deposed, signal.SIGSTOP)
    fleet.running.discard(deposed)
    fleet.settled()
    runs = spread(fleet.any(), FAILS, 30)
    ended(fleet.any(), runs, "failed")
    until(lambda: told(receiver) == ["firing"])
    fleet.signal(deposed, signal.SIGCONT)
    until(lambda: "everything stops" in fleet.log(deposed))
    fleet.running.add(deposed)
    fleet.settled()

    def failed(node: Server) -> int:
        return int(httpx.get(f"{node.ops}/sla").json()["windows"]["1h"]["failed"])

    until(lambda: [failed(node) for node in fleet.nodes.values()] == [30, 30, 30])
    time.sleep(2)
    assert told(receiver) == ["firing"]

    def firing(node: Server) -> list[str]:
        return [one["name"] for one in httpx.get(f"{node.ops}/alerts").json()["firing"]]

    until(lambda: all("slo.success" in firing(node) for node in fleet.nodes.values()))


@pytest.mark.timeout(200)
def test_the_leader_dies_in_the_middle_of_everything_it_does(
    fleet: Fleet, tmp_path: Path, receiver: HttpReceiver
) -> None:
    path, orders = tmp_path / "effects.txt", [f"order-{number}" for number in range(30)]
    nodes = list(fleet.nodes.values())
    assert nodes[1].client.put("/definitions/child", content=CHILD.format(path=path)).status_code == 201
    runs = {order: spread(nodes[0], WAITS.format(department="sales", order=order), 3) for order in orders}
    leader = fleet.status()["leader"]
    taken = dict[str, dict[str, Any]]()

    def publish() -> None:
        for number, order in enumerate(orders):
            body = {"event": "paid", "correlate": order, "data": number, "id": f"bank-{order}"}
            while order not in taken:
                node = fleet.nodes[sorted(fleet.running)[number % len(fleet.running)]]
                try:
                    answer = httpx.post(f"{node.api}/events", json=body, timeout=30)
                except httpx.HTTPError:
                    continue
                if answer.status_code == 200:
                    taken[order] = answer.json()

    parents = [
        nodes[number % 3].submit(PARENT.format(order=number), **{"Idempotency-Key": f"parent-{number}"})
        for number in range(12)
    ]
    publisher = threading.Thread(target=publish)
    publisher.start()
    until(lambda: len(taken) > 5 and path.exists() and len(path.read_text().splitlines()) > 4)
    fleet.kill(leader)
    publisher.join(timeout=90)
    assert len(taken) == len(orders)
    alive = fleet.any()
    for order in orders:
        ended(alive, runs[order])
        for run in runs[order]:
            receipts = alive.client.get(f"/workflows/{run}/receipts").json()["receipts"]
            assert [one["kind"] for one in receipts].count("signal.received") == 1
    ended(alive, parents)
    lines = path.read_text().splitlines()
    assert {line for line in lines if line.startswith("end")} == {f"end {number}" for number in range(12)}
    met = [line.split()[1] for line in lines]
    turns = [order for at, order in enumerate(met) if at == 0 or met[at - 1] != order]
    assert len(turns) == len(set(turns)), f"two ran at the same time: {lines}"
    fleet.start(leader)
    fleet.settled()
    assert told(receiver) in ([], ["firing"]), "the alert of the test before, if it ran, is told once"


@pytest.mark.soak
@pytest.mark.timeout(200)
def test_a_schedule_fires_once_each_time_whoever_leads(fleet: Fleet) -> None:
    """Last of all: in the minutes that have passed, leaders died."""
    node = fleet.any()

    def fired() -> list[str]:
        rows = node.client.get("/workflows", params={"name": "every-minute", "limit": 1000}).json()["workflows"]
        shown = (node.status(row["workflow_id"], verbose=True) for row in rows)
        return sorted(one["outputs"]["a"] for one in shown if one["state"] == "completed")

    until(lambda: bool(fired()), 90)
    definition = node.client.get("/definitions/every-minute").json()
    assert definition["triggers"][0]["next"]
    until(lambda: fired()[-1][:16] >= datetime.now(UTC).isoformat()[:16])
    times = [datetime.fromisoformat(one) for one in fired()]
    print(f"fired at {times}")
    assert times == [times[0] + timedelta(minutes=number) for number in range(len(times))]
    put_at = datetime.fromisoformat(definition["versions"][0]["put_at"])
    assert timedelta() < times[0] - put_at <= timedelta(minutes=1)
