"""Three nodes with a RocksDB each: any answers for all; one that is gone takes nothing of the others with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk.domain import identifier
from tests.acceptance.acknowledged import until
from tests.acceptance.own_fleet import OwnFleet
from tests.chaos.load import Load
from tests.services import etcd

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


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[OwnFleet]:
    if why := etcd.missing():
        pytest.skip(why)
    made = OwnFleet(tmp_path)
    try:
        made.add_all("a", "b", "c")
        made.settled()
        yield made
    finally:
        made.close()


@pytest.mark.timeout(400)
def test_any_node_answers_and_a_lost_one_is_named(fleet: OwnFleet, tmp_path: Path) -> None:
    assert sorted(fleet.owners()) == [0, 1, 2]
    assert len(set(fleet.owners().values())) == 3, "one partition a node"
    load = Load(fleet, tmp_path / "effects.txt", 1).start()
    load.release()
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
        answer = fleet.nodes["b"].client.post(f"/workflows/{run}/approve", json={"approver": "anna"})
        assert answer.status_code == 200, answer.text
        fleet.nodes["a"].wait_for(run)
    load.finish().check()
    print(f"{len(load.acknowledged)} workflows, refused on the way: {dict(load.refused)}")
    for name in sorted(fleet.running):
        fleet.stop(name)
    assert fleet.verify(fleet.directories()) >= len(load.acknowledged)
