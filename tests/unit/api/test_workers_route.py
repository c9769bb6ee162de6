"""The protocol of remote workers over HTTP, as a worker in any language speaks it."""

import asyncio
from typing import Any

import pytest

from tests.unit.api.node import Node

DESCRIPTOR = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: remote}
spec:
  steps: [{name: a, action: render, queue: gpu, params: {n: 3}}]
  outputs: {got: "${{ steps.a.output.n }}"}
"""


async def post(node: Node, verb: str, status: int = 200, /, **body: Any) -> dict[str, Any]:
    answer = await node.http.post(f"/workers/{verb}", json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def take(node: Node, **more: Any) -> dict[str, Any]:
    tasks = (await post(node, "poll", worker="w1", queues=["gpu"], wait="5s", **more))["tasks"]
    assert len(tasks) == 1
    return dict(tasks[0])


async def test_the_whole_way(node: Node) -> None:
    workflow_id = await node.id_of(DESCRIPTOR)
    task = await take(node, lease="90s")
    assert task["workflow_id"] == workflow_id
    assert (task["action"], task["params"], task["attempt"], task["lease_seconds"]) == ("render", {"n": 3}, 1, 90)
    assert task["idempotency_key"] == f"{workflow_id}/a"
    assert isinstance(task["token"], str)  # it does not fit into a number of JavaScript
    beat = await post(node, "heartbeat", worker="w1", tokens=[task["token"], "17"])
    assert beat == {"held": [task["token"]], "lost": ["17"]}
    overview = (await node.http.get("/workers")).json()
    assert overview["queues"] == [{"queue": "gpu", "waiting": 0, "held": 1}]
    assert [(one["worker"], one["held"]) for one in overview["workers"]] == [("w1", 1)]
    done = {"token": task["token"], "workflow_id": workflow_id, "step": "a", "output": {"n": 4}}
    assert await post(node, "complete", **done) == {"accepted": True, "repeated": False}
    assert await post(node, "complete", **done) == {"accepted": True, "repeated": True}
    shown = (await node.http.get(f"/workflows/{workflow_id}", params={"verbose": True})).json()
    assert (shown["state"], shown["outputs"]) == ("completed", {"got": 4})


async def test_a_result_of_a_lease_that_is_over_gets_409(node: Node) -> None:
    workflow_id = await node.id_of(DESCRIPTOR)
    task = await take(node)
    assert (await post(node, "release", worker="w1", tokens=[task["token"]]))["lost"] == [task["token"]]
    again = await take(node)
    assert int(again["token"]) > int(task["token"])
    stale = {"token": task["token"], "workflow_id": workflow_id, "step": "a"}
    problem = await post(node, "complete", 409, **stale)
    assert (problem["code"], problem["retryable"]) == ("KNHK-4010", False)
    assert "drop the result" in problem["hint"].lower()
    await post(node, "fail", 409, message="no", **stale)
    await post(node, "fail", **{**stale, "token": again["token"]}, message="no", retryable=False, code="SHOP-NO")
    shown = (await node.http.get(f"/workflows/{workflow_id}")).json()
    assert (shown["state"], shown["failure"]["code"]) == ("failed", "SHOP-NO")


async def test_a_poll_without_work_is_empty(node: Node) -> None:
    assert await post(node, "poll", worker="w1", queues=["none"], wait="10ms") == {"tasks": []}


async def test_a_poll_gives_many(node: Node) -> None:
    for _ in range(3):
        await node.id_of(DESCRIPTOR)
    tasks = (await post(node, "poll", worker="w1", queues=["gpu"], max=50, wait="0s"))["tasks"]
    assert len({task["token"] for task in tasks}) == 3


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("poll", {"worker": "w", "queues": []}, 400),
        ("poll", {"worker": "", "queues": ["q"]}, 400),
        ("poll", {"worker": "w", "queues": ["q"], "max": 0}, 400),
        ("poll", {"worker": "w", "queues": ["q"], "wait": "soon"}, 400),
        ("poll", {"worker": "w", "queues": ["q"], "lease": "-5s"}, 400),
        ("poll", {"worker": "w", "queues": ["q"], "hurry": True}, 400),
        ("heartbeat", {"worker": "w", "tokens": ["1; DROP"]}, 400),
        ("heartbeat", {"worker": "w", "tokens": [1]}, 400),
        ("complete", {"token": "1", "workflow_id": "../etc", "step": "a"}, 404),
        ("complete", {"token": "9" * 30, "workflow_id": "wf-1", "step": "a"}, 400),
        ("complete", {"token": "1", "workflow_id": "wf-1", "step": "a"}, 404),
        ("complete", {"token": "1", "step": "a"}, 400),
        ("fail", {"token": "1", "workflow_id": "wf-1", "step": "a"}, 400),
        ("fail", {"token": "1", "workflow_id": "wf-1", "step": "a", "message": "x", "after": "1"}, 400),
    ],
)
async def test_what_makes_no_sense_is_refused(node: Node, verb: str, body: dict[str, Any], code: int) -> None:
    problem = await post(node, verb, code, **body)
    assert problem["status"] == code


async def test_an_output_that_breaks_the_steps_schema_fails_the_step(node: Node) -> None:
    strict = DESCRIPTOR.replace("params: {n: 3}", "output_schema: {required: [n]}")
    workflow_id = await node.id_of(strict)
    task = await take(node)
    await post(node, "complete", token=task["token"], workflow_id=workflow_id, step="a", output={})
    shown = (await node.http.get(f"/workflows/{workflow_id}")).json()
    assert shown["failure"]["code"] == "KNHK-STEP-OUTPUT"


async def test_work_reaches_a_poll_that_waits(node: Node) -> None:
    waiting = asyncio.create_task(take(node))
    await asyncio.sleep(0.05)
    workflow_id = await node.id_of(DESCRIPTOR)
    assert (await waiting)["workflow_id"] == workflow_id
