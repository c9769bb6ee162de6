"""POST /workflows: bodies, inputs, waiting, idempotency keys, and what is refused."""

import asyncio
import json

import pytest
import yaml

from knhk.domain.errors import DiskFull, StorageUnavailable
from knhk.ports.append import Commit
from tests.unit.api.descriptors import FAILS, NAPS, SUM
from tests.unit.api.node import MOST_BODY_BYTES, Node, problem_of, running

YAML = {"content-type": "application/yaml"}


async def test_a_descriptor_in_yaml_is_accepted_and_runs(node: Node) -> None:
    answer = await node.http.post("/workflows", content=SUM, headers=YAML)
    assert answer.headers["content-type"] == "application/json"
    accepted = answer.json()
    # It may have ended while it was committed; then the answer says how.
    assert (answer.status_code, accepted["state"]) in ((202, "running"), (200, "completed"))
    assert answer.headers["location"] == f"/workflows/{accepted['workflow_id']}"
    assert accepted["replayed"] is False
    async with asyncio.timeout(5):
        while (shown := (await node.http.get(answer.headers["location"])).json())["state"] != "completed":
            await asyncio.sleep(0.005)
    assert shown["steps_completed"] == 2


async def test_a_descriptor_in_json_is_accepted_whatever_the_content_type(node: Node) -> None:
    body = json.dumps(yaml.safe_load(SUM))
    for headers in ({"content-type": "application/json"}, YAML, {}, {"content-type": "text/plain"}):
        answer = await node.http.post("/workflows", content=body, headers=headers, params={"wait": "5s"})
        assert (answer.status_code, answer.json()["outputs"]) == (200, {"sum": 3})


@pytest.mark.parametrize("descriptor", [SUM, yaml.safe_load(SUM)], ids=["text", "object"])
async def test_an_envelope_carries_inputs(node: Node, descriptor: object) -> None:
    body = {"descriptor": descriptor, "inputs": {"left": 40}}
    answer = await node.http.post("/workflows", json=body, params={"wait": "5s"})
    assert (answer.status_code, answer.json()["outputs"]) == (200, {"sum": 42})
    wrong = {"descriptor": descriptor, "inputs": {"left": "forty"}}
    assert "left" in json.dumps(problem_of(await node.http.post("/workflows", json=wrong), 422, "KNHK-1002"))
    problem_of(await node.http.post("/workflows", json={"descriptor": descriptor, "input": {}}), 400, "KNHK-1005")
    problem_of(await node.http.post("/workflows", json={"descriptor": 7}), 400, "KNHK-1005")


async def test_waiting_answers_at_the_end_or_when_the_time_is_over(node: Node) -> None:
    ended = await node.http.post("/workflows", content=FAILS, params={"wait": "5s"})
    assert (ended.status_code, ended.json()["state"]) == (200, "failed")
    assert ended.json()["failure"]["step"] == "bad"
    late = await node.http.post("/workflows", content=NAPS, params={"wait": "20ms"})
    assert (late.status_code, late.json()["state"]) == (202, "running")
    assert "outputs" not in late.json()
    for wait in ("soon", "5", "-1s", ""):
        problem_of(await node.http.post("/workflows", content=SUM, params={"wait": wait}), 400, "KNHK-1005")


async def test_the_same_key_is_answered_with_the_first_run(node: Node) -> None:
    key = {"idempotency-key": "order-17"}
    first = await node.http.post("/workflows", content=SUM, headers=key)
    again = await node.http.post("/workflows", content=SUM, headers=key, params={"wait": "5s"})
    assert (first.status_code in (200, 202), again.status_code) == (True, 200)
    assert again.json()["workflow_id"] == first.json()["workflow_id"]
    assert (first.json()["replayed"], again.json()["replayed"]) == (False, True)
    assert again.json()["outputs"] == {"sum": 3}
    problem_of(await node.http.post("/workflows", content=NAPS, headers=key), 409, "KNHK-4001")
    envelope = {"descriptor": SUM, "inputs": {"left": 2}}
    problem_of(await node.http.post("/workflows", json=envelope, headers=key), 409, "KNHK-4001")
    long = {"idempotency-key": "k" * 256}
    problem_of(await node.http.post("/workflows", content=SUM, headers=long), 400, "KNHK-1005")


async def test_many_requests_at_once_with_one_key_make_one_run(node: Node) -> None:
    key = {"idempotency-key": "once"}
    answers = await asyncio.gather(*(node.http.post("/workflows", content=SUM, headers=key) for _ in range(20)))
    assert len({answer.json()["workflow_id"] for answer in answers}) == 1
    assert sorted(answer.json()["replayed"] for answer in answers) == [False] + [True] * 19
    assert len(await node.listed()) == 1


async def test_everything_wrong_in_a_descriptor_is_named_with_its_place(node: Node) -> None:
    text = FAILS.replace("action: fail", "action: fali").replace("depends_on: [good]", "depends_on: [god]")
    problem = problem_of(await node.http.post("/workflows", content=text), 422, "KNHK-1001")
    lines = text.splitlines()
    found = {place["suggestion"]: place for place in problem["problems"]}
    assert found.keys() == {"fail", "good"}
    for suggestion, sent in (("fail", "fali"), ("good", "god")):
        place = found[suggestion]
        assert sent in lines[place["line"] - 1][place["column"] - 1 :]
    assert problem["hint"]
    broken = problem_of(await node.http.post("/workflows", content="a: [1,\nb: }"), 422, "KNHK-1001")
    assert broken["problems"][0]["line"] >= 1
    assert await node.listed() == []


async def test_yaml_that_lost_its_line_breaks_gets_a_hint(node: Node) -> None:
    answer = await node.http.post("/workflows", content=SUM.replace("\n", ""), headers=YAML)
    assert "--data-binary" in problem_of(answer, 422, "KNHK-1001")["hint"]


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{", b'{"descriptor": {}}'])
async def test_what_is_no_descriptor(node: Node, body: bytes) -> None:
    problem_of(await node.http.post("/workflows", content=body), 422, "KNHK-1001")


async def test_a_body_that_is_too_long(node: Node) -> None:
    padding = "#" * MOST_BODY_BYTES
    answer = await node.http.post("/workflows", content=SUM + padding)
    assert str(MOST_BODY_BYTES) in problem_of(answer, 413, "KNHK-1006")["detail"]


async def test_a_query_parameter_that_is_not_known(node: Node) -> None:
    answer = await node.http.post("/workflows", content=SUM, params={"wiat": "5s"})
    assert "wiat" in problem_of(answer, 400, "KNHK-1005")["detail"]
    assert await node.listed() == []


async def test_when_every_place_is_taken_the_answer_is_429() -> None:
    async with running(max_active=1, max_queued=1) as node:
        slow = NAPS.replace(
            "action: wait, params: {duration: 60s}", "action: fail, retries: 9, params: {retryable: true}"
        )
        slow = slow.replace("retries: 9", "retry: {max_attempts: 900, delay: 200ms, jitter: false}")
        answers = [await node.http.post("/workflows", content=slow) for _ in range(4)]
        assert [answer.status_code for answer in answers[:2]] == [202, 202]
        problem = problem_of(answers[-1], 429, "KNHK-2001")
        assert problem["retryable"] is True
        assert int(answers[-1].headers["retry-after"]) >= 1


@pytest.mark.parametrize("error", [DiskFull, StorageUnavailable])
async def test_when_the_store_fails_the_answer_is_503_and_it_recovers(error: type[DiskFull]) -> None:
    broken = False

    def faults(_stage: str, _commit: Commit | None) -> None:
        if broken:
            raise error("no room")

    async with running(faults) as node:
        broken = True
        key = {"idempotency-key": "k"}
        for _ in range(2):
            answer = await node.http.post("/workflows", content=SUM, headers=key)
            assert problem_of(answer, 503, error.code)["hint"]
        broken = False
        async with asyncio.timeout(10):
            while (answer := await node.http.post("/workflows", content=SUM, headers=key)).status_code == 503:
                await asyncio.sleep(0.02)
        assert answer.status_code in (200, 202)
        assert len(await node.listed()) == 1


async def test_while_it_shuts_down_the_answer_is_503(node: Node) -> None:
    assert await node.engine.drain(1.0)
    problem_of(await node.http.post("/workflows", content=SUM), 503, "KNHK-5003")
