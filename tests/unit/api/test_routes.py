"""Every route but the submission: lists, views, receipts, events, and what an operator decides."""

import asyncio
import json
from typing import Any

import pytest

from knhk.domain.run import RunState
from tests.unit.api.descriptors import FAILS, NAPS, SUM
from tests.unit.api.node import Node, problem_of

UNKNOWN = "wf-1234567890"


def events_of(text: str) -> list[dict[str, str]]:
    """The fields of each server-sent event; comments are left out."""
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if block.strip()]
    fields = [[line.partition(": ")[::2] for line in block.split("\n") if not line.startswith(":")] for block in blocks]
    return [dict(one) for one in fields if one]


async def test_a_list_is_filtered(node: Node) -> None:
    sums = [await node.id_of(SUM, "5s") for _ in range(2)]
    naps, failed = await node.id_of(NAPS), await node.id_of(FAILS, "5s")
    newest_first = [failed, naps, *reversed(sums)]
    expected: list[tuple[dict[str, str | int], list[str]]] = [
        ({}, newest_first),
        ({"limit": 2}, newest_first[:2]),
        ({"state": "completed"}, newest_first[2:]),
        ({"state": "failed"}, [failed]),
        ({"state": "running"}, [naps]),
        ({"state": "timed_out"}, []),
        ({"name": "sum"}, newest_first[2:]),
        ({"department": "sleep"}, [naps]),
        ({"department": "sleep", "state": "failed"}, []),
        ({"name": ""}, newest_first),
    ]
    for query, ids in expected:
        assert [row["workflow_id"] for row in await node.listed(**query)] == ids, query
    (row,) = await node.listed(state="failed")
    assert (row["name"], row["steps_completed"], row["steps_total"]) == ("fails", 1, 2)
    assert row["failure"]["step"] == "bad"


async def test_a_list_has_pages(node: Node) -> None:
    ids = [await node.id_of(SUM if number % 3 else FAILS, "5s") for number in range(25)]
    await node.projected()
    for query, wanted in (({}, ids), ({"name": "fails"}, ids[::3]), ({"state": "failed"}, ids[::3])):
        found: list[str] = []
        cursor: str | None = None
        for _ in range(40):
            page_query = {**query, "limit": "4", **({} if cursor is None else {"cursor": cursor})}
            page = (await node.http.get("/workflows", params=page_query)).json()
            assert len(page["workflows"]) <= 4
            found += [row["workflow_id"] for row in page["workflows"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == wanted[::-1]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "many"},
        {"state": "done"},
        {"cursor": "-1"},
        {"cursor": "x"},
        {"cursor": "9" * 30},
        {"stat": "failed"},
    ],
    ids=str,
)
async def test_a_list_with_a_wrong_query(node: Node, query: dict[str, str]) -> None:
    answer = await node.http.get("/workflows", params=query)
    ours = query.keys() <= {"cursor", "stat"}
    problem = problem_of(answer, 400, "KNHK-1005" if ours else "")
    assert next(iter(query)) in json.dumps(problem)


async def test_a_view_with_and_without_payloads(node: Node) -> None:
    name = (await node.submit(SUM, "5s"))["workflow_id"]
    brief = (await node.http.get(f"/workflows/{name}")).json()
    assert (brief["state"], [step["state"] for step in brief["steps"]]) == ("completed", ["completed", "completed"])
    assert brief.keys().isdisjoint({"inputs", "outputs"})
    verbose = (await node.http.get(f"/workflows/{name}", params={"verbose": "true"})).json()
    assert verbose["inputs"] == {"left": 1, "right": 2}
    assert verbose["outputs"] == {"sum": 3}
    assert [step["output"] for step in verbose["steps"]] == [3, 3]
    waiting = (await node.http.get(f"/workflows/{await node.id_of(NAPS)}")).json()
    assert [(one["kind"], one["step"]) for one in waiting["waiting_on"]] == [("timer", "nap")]
    problem_of(await node.http.get(f"/workflows/{name}", params={"verbose": "perhaps"}), 400)


async def test_receipts_from_the_beginning_and_from_later_on(node: Node) -> None:
    name = await node.id_of(FAILS, "5s")
    receipts = (await node.http.get(f"/workflows/{name}/receipts")).json()["receipts"]
    assert [one["seq"] for one in receipts] == list(range(len(receipts)))
    assert [receipts[0]["kind"], receipts[-1]["kind"]] == ["workflow.submitted", "workflow.failed"]
    assert [one["previous_hash"] for one in receipts[1:]] == [one["hash"] for one in receipts[:-1]]
    later = (await node.http.get(f"/workflows/{name}/receipts", params={"from_seq": 3})).json()["receipts"]
    assert later == receipts[3:]
    beyond = await node.http.get(f"/workflows/{name}/receipts", params={"from_seq": 2**40})
    assert beyond.json() == {"receipts": []}
    problem_of(await node.http.get(f"/workflows/{name}/receipts", params={"from_seq": -1}), 400)


async def test_events_are_the_receipts_and_go_on_after_the_last_one_seen(node: Node) -> None:
    name = await node.id_of(SUM, "5s")
    receipts = (await node.http.get(f"/workflows/{name}/receipts")).json()["receipts"]
    answer = await node.http.get(f"/workflows/{name}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [json.loads(event["data"]) for event in events] == receipts
    assert [event["event"] for event in events] == [one["kind"] for one in receipts]
    for last in range(len(receipts)):
        rest = await node.http.get(f"/workflows/{name}/events", headers={"last-event-id": str(last)})
        assert [int(event["id"]) for event in events_of(rest.text)] == list(range(last + 1, len(receipts)))
    problem_of(await node.http.get(f"/workflows/{name}/events", headers={"last-event-id": "first"}), 400)
    problem_of(await node.http.get(f"/workflows/{UNKNOWN}/events"), 404, "KNHK-3001")


async def test_events_of_a_run_under_way_end_with_it(node: Node) -> None:
    name = await node.id_of(NAPS)
    following = asyncio.create_task(node.http.get(f"/workflows/{name}/events"))
    await asyncio.sleep(0.05)
    assert not following.done()
    await node.http.post(f"/workflows/{name}/cancel")
    async with asyncio.timeout(5):
        events = events_of((await following).text)
    assert [events[0]["event"], events[-1]["event"]] == ["workflow.submitted", "workflow.cancelled"]


async def test_pausing_resuming_and_cancelling(node: Node) -> None:
    name = await node.id_of(NAPS)

    async def change(verb: str, **body: Any) -> Any:
        return await node.http.post(f"/workflows/{name}/{verb}", **body)

    assert (await change("pause", json={"reason": "lunch"})).json()["state"] == "paused"
    problem_of(await change("pause"), 409, "KNHK-4002")
    assert (await change("resume")).json()["state"] == "running"
    problem_of(await change("resume"), 409, "KNHK-4002")
    problem_of(await change("retry"), 409, "KNHK-4002")
    problem_of(await node.http.delete(f"/workflows/{name}"), 409, "KNHK-4002")
    assert (await change("cancel", json={"reason": "late"})).json()["state"] == "cancelled"
    for verb in ("cancel", "pause", "resume"):
        problem_of(await change(verb), 409, "KNHK-4002")
    receipts = (await node.http.get(f"/workflows/{name}/receipts")).json()["receipts"]
    decided = {one["kind"]: one for one in receipts if one["actor"] == "api"}
    assert decided["workflow.paused"]["detail"]["reason"] == "lunch"
    assert decided["workflow.cancelled"]["detail"]["reason"] == "late"


async def test_retrying_keeps_the_id_and_what_was_completed(node: Node) -> None:
    name = await node.id_of(FAILS, "5s")
    answer = await node.http.post(f"/workflows/{name}/retry")
    assert (answer.status_code, answer.json()["workflow_id"]) == (200, name)
    async with asyncio.timeout(5):
        while (await node.http.get(f"/workflows/{name}")).json()["state"] != "failed":
            await asyncio.sleep(0.005)
    receipts = (await node.http.get(f"/workflows/{name}/receipts")).json()["receipts"]
    kinds = [(one["kind"], one["step"]) for one in receipts]
    assert kinds.count(("step.completed", "good")) == 1
    assert kinds.count(("step.failed", "bad")) == 2


async def test_deleting_erases_payloads_and_leaves_receipts(node: Node) -> None:
    name = await node.id_of(SUM, "5s")
    before = (await node.http.get(f"/workflows/{name}/receipts")).json()["receipts"]
    for _ in range(2):
        answer = await node.http.delete(f"/workflows/{name}")
        assert (answer.status_code, answer.json()) == (200, {"workflow_id": name, "erased": True})
    shown = (await node.http.get(f"/workflows/{name}", params={"verbose": True})).json()
    assert (shown["state"], shown["erased"], shown["outputs"]) == ("completed", True, {})
    after = (await node.http.get(f"/workflows/{name}/receipts")).json()["receipts"]
    assert after[: len(before)] == before
    assert [one["kind"] for one in after[len(before) :]] == ["payload.erased"]
    failed = await node.id_of(FAILS, "5s")
    await node.http.delete(f"/workflows/{failed}")
    problem_of(await node.http.post(f"/workflows/{failed}/retry"), 409, "KNHK-4002")


@pytest.mark.parametrize("name", [UNKNOWN, "wf-0", "wf-", "wf-18446744073709551615", "42", "wf--1", "%00", "wf-٣"])
async def test_a_workflow_that_is_not_there(node: Node, name: str) -> None:
    for path in ("", "/receipts", "/events"):
        problem_of(await node.http.get(f"/workflows/{name}{path}"), 404, "KNHK-3001")
    for verb in ("cancel", "pause", "resume", "retry"):
        problem_of(await node.http.post(f"/workflows/{name}/{verb}"), 404, "KNHK-3001")
    problem_of(await node.http.delete(f"/workflows/{name}"), 404, "KNHK-3001")


async def test_a_reason_that_is_not_one(node: Node) -> None:
    name = await node.id_of(NAPS)
    for body in (b"{", b"[]", b'{"reason": 7}', b'{"why": "x"}', b'"x"', b"\xff"):
        problem_of(await node.http.post(f"/workflows/{name}/cancel", content=body), 400)
    assert (await node.http.get(f"/workflows/{name}")).json()["state"] == RunState.RUNNING


async def test_no_such_route_and_no_such_method(node: Node) -> None:
    for path in ("/", "/nothing", "/workflow", "/workflows/a/b/c", "/openapi.yaml"):
        problem_of(await node.http.get(path), 404)
    for method, path in (("PUT", "/workflows"), ("DELETE", "/workflows"), ("POST", "/workflows/wf-1")):
        answer = await node.http.request(method, path)
        problem_of(answer, 405)
        assert "GET" in answer.headers["allow"]
    problem_of(await node.http.get("/workflows/wf-1/cancel"), 405)
