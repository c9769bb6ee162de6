"""What reaches the runs of all partitions, asked of any of three nodes: events, bulk decisions, erasure."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from knhk.domain.identifier import parse, partition_of
from tests.acceptance.fleet import PARTITIONS, Fleet, until, verified
from tests.acceptance.server import Server
from tests.services import etcd, postgres

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


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if why := etcd.missing() or postgres.missing():
        pytest.skip(why)
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        for name in ("a", "b", "c"):
            made.add(name)
        made.settled()
        yield made
        made.settled()
        for name in sorted(made.running):
            made.stop(name)
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


@pytest.mark.timeout(200)
def test_the_leader_dies_while_it_hands_out_events(fleet: Fleet) -> None:
    orders = [f"order-{number}" for number in range(30)]
    first = fleet.any()
    runs = {order: spread(first, WAITS.format(department="sales", order=order), 3) for order in orders}
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

    publisher = threading.Thread(target=publish)
    publisher.start()
    until(lambda: len(taken) > 5)
    fleet.kill(leader)
    publisher.join(timeout=90)
    assert len(taken) == len(orders)
    alive = fleet.any()
    for order in orders:
        ended(alive, runs[order])
        for run in runs[order]:
            receipts = alive.client.get(f"/workflows/{run}/receipts").json()["receipts"]
            assert [one["kind"] for one in receipts].count("signal.received") == 1
    fleet.start(leader)
    fleet.settled()
