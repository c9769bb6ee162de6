"""Three nodes with a RocksDB each: any answers for all; one that is gone takes nothing of the others with it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from knhk.domain import identifier
from tests.acceptance.acknowledged import until
from tests.acceptance.own_fleet import Load, OwnFleet
from tests.acceptance.server import Server
from tests.services import etcd
from tests.services.s3 import S3

QUICK = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: quick, department: sales}
spec:
  steps:
    - {name: one, action: process, params: {output: 1}}
"""
APPROVED = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: approved}
spec:
  steps:
    - {name: ask, approval: {timeout: 10m}}
"""


@contextmanager
def three(directory: Path, **settings: Any) -> Iterator[OwnFleet]:
    if why := etcd.missing():
        pytest.skip(why)
    made = OwnFleet(directory, **settings)
    try:
        made.add_all("a", "b", "c")
        made.settled()
        yield made
    finally:
        made.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[OwnFleet]:
    with three(tmp_path) as made:
        yield made


@pytest.fixture
def shipping(tmp_path: Path) -> Iterator[OwnFleet]:
    with three(tmp_path, takeover=True, shipped=str(tmp_path / "shipped")) as made:
        yield made


@pytest.mark.timeout(400)
def test_any_node_answers_and_a_lost_one_is_named(fleet: OwnFleet, tmp_path: Path) -> None:
    assert sorted(fleet.owners()) == [0, 1, 2]
    assert len(set(fleet.owners().values())) == 3, "one partition a node"
    load = Load(fleet, tmp_path / "effects.txt", 1)
    load.start()
    runs = {name: fleet.nodes[name].submit(QUICK) for name in "abc"}
    waiting = {name: fleet.nodes[name].submit(APPROVED) for name in "abc"}
    for asked in "abc":
        for run in runs.values():
            fleet.nodes[asked].wait_for(run)
            assert fleet.get(asked, f"/workflows/{run}/receipts").status_code == 200
        page = fleet.get(asked, "/workflows?department=sales").json()
        assert not page["unanswered"]
        assert {row["workflow_id"] for row in page["workflows"]} == set(runs.values())
    key = {"Idempotency-Key": "once"}
    (keyed,) = {fleet.nodes[name].submit(QUICK, **key) for name in "abc"}

    gone = "c"
    number = fleet.partition_of(gone)
    fleet.kill(gone)
    there = fleet.elsewhere(gone)

    def refused() -> bool:
        answer = there.client.get(f"/workflows/{runs[gone]}")
        assert answer.status_code == 503
        return bool(answer.json()["code"] == "KNHK-5022")

    until(refused)
    problem = there.client.get(f"/workflows/{runs[gone]}").json()
    assert f"partition {number} is on node 'c', which is not in the cluster" in problem["detail"]
    assert problem["retryable"]
    page = there.client.get("/workflows?department=sales").json()
    left = {run for run in (*runs.values(), keyed) if identifier.partition_of(identifier.parse(run)) != number}
    assert {row["workflow_id"] for row in page["workflows"]} == left
    assert {runs["a"], runs["b"]} <= left
    assert page["unanswered"] == [f"partition {number} is on node 'c', which is not in the cluster"]
    there.wait_for(there.submit(QUICK))
    shown = fleet.status()
    assert (shown["unowned"], shown["partitions"][number]["owner"]) == (1, None)

    fleet.start(gone)
    fleet.settled()
    fleet.nodes["a"].wait_for(runs[gone])
    for run in waiting.values():
        approve(fleet.nodes["b"], run)
        fleet.nodes["a"].wait_for(run)
    load.finish(at_least=50)
    print(f"{len(load.acknowledged)} workflows, refused on the way: {dict(load.refused)}")
    for name in sorted(fleet.running):
        fleet.stop(name)
    assert fleet.verify(fleet.directories()) >= len(load.acknowledged)


@pytest.mark.timeout(400)
def test_a_partition_of_a_zombie_is_taken_over_and_given_back_and_a_drain_loses_nothing(shipping: OwnFleet) -> None:
    fleet, gone = shipping, "c"
    number = fleet.partition_of(gone)
    done = fleet.nodes[gone].submit(QUICK)
    fleet.nodes[gone].wait_for(done)
    waiting = [fleet.nodes[gone].submit(APPROVED) for _ in range(3)]
    fleet.ships_all(gone)

    fleet.signal(gone, signal.SIGSTOP)
    fleet.running.discard(gone)
    there, took = fleet.elsewhere(gone), fleet.restored(number)
    print(f"SIGSTOP: the partition was restored from what was shipped and taken over after {took:.1f} s")
    row = fleet.status()["partitions"][number]
    assert row["owner"] != gone
    assert row["restored"]["of"] == gone
    assert row["restored"]["receipts"] >= 5, "it says up to where it was recovered"
    assert there.status(done)["state"] == "completed"
    approve(there, waiting[0])
    there.wait_for(waiting[0])

    fleet.signal(gone, signal.SIGCONT)
    fleet.running.add(gone)
    until(lambda: "everything stops" in fleet.log(gone), 90)
    until(lambda: fleet.owners()[number] == gone, 90)
    fleet.restored(number)
    (aside,) = (fleet.nodes[gone].data / "partitions").glob(f"{number}.before-*")
    assert fleet.nodes[gone].status(waiting[0])["state"] == "completed", "it has what the other one did"
    approve(there, waiting[1])
    fleet.nodes[gone].wait_for(waiting[1])

    assert fleet.nodes["a"].client.post(f"/cluster/nodes/{gone}/drain").status_code == 202
    until(lambda: fleet.owners()[number] not in (None, gone), 90)
    fleet.restored(number)
    approve(fleet.nodes[gone], waiting[2])
    fleet.nodes[gone].wait_for(waiting[2])
    for name in sorted(fleet.running):
        fleet.kill(name)
    assert fleet.verify([*fleet.directories(), aside]) >= 4


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_kills_with_what_is_acknowledged_in_s3(tmp_path: Path, s3: S3) -> None:
    """With ship_before_acknowledging nothing is lost, whoever dies, and no at_most_once step runs twice."""
    s3.store("own-journals").put("made", b"")  # the first object makes the bucket
    place = {"takeover": True, "shipped": "s3://own-journals/knhk", "variables": s3.variables}
    with three(tmp_path, **place, recovery={"ship_before_acknowledging": True}) as fleet:
        load = Load(fleet, tmp_path / "effects.txt", 5)
        load.start()
        for gone in ("c", "a", "b"):
            before = len(load.acknowledged)
            until(lambda before=before: len(load.acknowledged) >= before + 20, 120)
            number = fleet.partition_of(gone)
            fleet.kill(gone)
            there, took = fleet.elsewhere(gone), fleet.restored(number, 120)
            print(f"SIGKILL of {gone}: its partition was at {there.api} after {took:.1f} s")
            fleet.start(gone)
            until(lambda gone=gone, number=number: fleet.owners()[number] == gone, 120)
            fleet.restored(number, 120)
        load.finish(at_least=80)
        print(f"{len(load.acknowledged)} workflows, refused on the way: {dict(load.refused)}")
        for name in sorted(fleet.running):
            fleet.kill(name)
        assert fleet.verify(fleet.directories()) >= len(load.acknowledged)


def approve(server: Server, run: str) -> None:
    answer = server.client.post(f"/workflows/{run}/approve", json={"approver": "anna"})
    assert answer.status_code == 200, answer.text
