"""kill -9 in the middle of every construct: what completed is not done again, what is undone is undone in reverse."""

import json
import random
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.server import Server

SEED = 20261124
ENDED = ("completed", "failed", "cancelled", "timed_out")
_HEAD: dict[str, Any] = {"apiVersion": "knhk/v1", "kind": "Workflow"}


def act(path: Path, name: str, *after: Any, fails: bool = False, ms: int = 15, **rest: Any) -> dict[str, Any]:
    """A step that leaves a line in the file of effects."""
    params = {"path": str(path), "milliseconds": ms, "fails": fails}
    return {"name": name, "action": "test.effect", "params": params, "depends_on": list(after), "retries": 2, **rest}


def undoable(path: Path, name: str, *after: Any, **rest: Any) -> dict[str, Any]:
    undo = {"action": "test.effect", "params": {"path": str(path), "milliseconds": 10}, "retries": 2}
    return act(path, name, *after, compensate=undo, **rest)


def everything(path: Path) -> dict[str, Any]:
    """One of each construct, one after the other; all of it completes."""
    quick = {"max_attempts": 2, "delay": "10ms"}
    one, bad = act(path, "one"), act(path, "bad", fails=True, retry=quick, retries=None)
    steps = [
        act(path, "never", when="inputs.on"),
        act(path, "reacts", {"step": "never", "on": ["skipped"]}),
        {"name": "group", "depends_on": ["reacts"], "steps": [one, act(path, "two", "one")]},
        {**act(path, "each", "group", ms=40), "foreach": {"in": list(range(8)), "concurrency": 3, "max_failures": 2}},
        {"name": "way", "depends_on": ["each"], "switch": [{"when": "!inputs.on", "steps": [act(path, "taken")]}]},
        {**act(path, "loop", "way"), "until": {"condition": "index >= 2", "max": 5}},
        {**act(path, "again", "loop"), "while": {"condition": "index < 2", "max": 5}},
        {
            "name": "race",
            "depends_on": ["again"],
            "parallel": {"compete": True, "branches": [act(path, "fast"), act(path, "slow", ms=60_000)]},
        },
        {**bad, "name": "caught", "depends_on": ["race"], "catch": {"steps": [act(path, "note")]}},
        {**bad, "name": "shrugged", "depends_on": ["caught"], "continue_on_error": True},
        {"name": "pause", "depends_on": ["shrugged"], "wait": "120ms"},
        {"name": "event", "depends_on": ["pause"], "wait_for": {"event": "go"}},
        {"name": "release", "depends_on": ["event"], "approval": {"approvers": ["anna"]}},
        {"name": "child", "action": "workflow", "params": {"name": "part"}, "depends_on": ["release"]},
        {
            **act(path, "cached", "child"),
            "foreach": {"in": [1, 2, 1, 2], "concurrency": 1},
            "cache": {"key": "${{ run.id }} ${{ item }}", "ttl": "1h"},
        },
    ]
    for step in (*steps, one, bad):
        step.update({key: None for key in ("retries",) if "retry" in step})
    steps[3]["params"] = {**steps[3]["params"], "fails": "${{ item == 5 }}"}
    return workflow_of("everything", steps, **{"finally": {"steps": [act(path, "last")]}})


def saga(path: Path, end: dict[str, Any]) -> dict[str, Any]:
    """Things that can be undone, some of them inside others, and then something that ends it."""
    each = {**undoable(path, "each", "a"), "foreach": {"in": [1, 2, 3], "concurrency": 1}}
    group = {"name": "group", "depends_on": ["each"], "steps": [undoable(path, "b"), undoable(path, "c", "b")]}
    steps = [undoable(path, "a"), each, group, {**end, "depends_on": ["group"]}]
    handlers = {"on_failure": {"steps": [act(path, "alert")]}, "finally": {"steps": [act(path, "last")]}}
    return workflow_of(f"saga-{end['name']}", steps, **handlers)


def workflow_of(name: str, steps: list[Any], **spec: Any) -> dict[str, Any]:
    given = {"timeout": "10m", "inputs": {"on": {"type": "boolean", "default": False}}, "steps": steps, **spec}
    return {**_HEAD, "metadata": {"name": name, "department": "test"}, "spec": given}


@pytest.mark.timeout(500)
@pytest.mark.parametrize(("kills", "seed"), [(4, SEED), pytest.param(40, SEED + 1, marks=pytest.mark.soak)])
def test_every_construct_survives_kills(crashing: Server, tmp_path: Path, kills: int, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "effects"
    crashing.start()
    part = workflow_of("part", [act(path, "x"), act(path, "y", "x")])
    assert crashing.client.put("/definitions/part", content=json.dumps(part)).status_code == 201
    fails = {"name": "breaks", "action": "fail"}
    waits = {"name": "waits", "wait": "1h"}
    runs = {}
    for number in range(kills):
        for text in (everything(path), saga(path, fails), saga(path, waits)):
            key = f"{text['metadata']['name']}-{number}"
            runs[crashing.submit(json.dumps(text), **{"Idempotency-Key": key})] = text["metadata"]["name"]
        time.sleep(rng.uniform(0.1, 0.9))
        _answer(crashing, runs, rng)
        crashing.kill()
        crashing.start()
    _until_all_ended(crashing, runs, rng)
    effects: dict[str, list[int]] = defaultdict(list)
    for line in path.read_text().splitlines():
        key, at_ns = line.split()
        effects[key].append(int(at_ns))
    for workflow_id, name in runs.items():
        _check(crashing, workflow_id, name, effects)
    assert crashing.stop() == 0
    verdict = crashing.verify()
    assert verdict["valid"], verdict


def _answer(server: Server, runs: dict[str, str], rng: random.Random) -> None:
    """Some of the signals, approvals and cancellations that runs wait for; the same ones as often as need be."""
    for workflow_id, name in runs.items():
        shown = server.status(workflow_id)
        waiting = {one["kind"]: one for one in shown["waiting_on"]}
        if rng.random() < 0.4 or shown["state"] in ENDED:
            continue
        if name == "everything" and "event" in waiting:
            server.client.post(f"/workflows/{workflow_id}/signals", json={"event": "go", "id": "once"})
        elif name == "everything" and "approval" in waiting:
            server.client.post(f"/workflows/{workflow_id}/approve", json={"approver": "anna"})
        elif name == "saga-waits" and any(one.get("step") == "waits" for one in shown["waiting_on"]):
            server.client.post(f"/workflows/{workflow_id}/cancel")


def _until_all_ended(server: Server, runs: dict[str, str], rng: random.Random) -> None:
    deadline = time.monotonic() + 120
    while left := {one: name for one, name in runs.items() if server.status(one)["state"] not in ENDED}:
        assert time.monotonic() < deadline, [server.status(one) for one in left]
        _answer(server, left, rng)
        time.sleep(0.05)


def _check(server: Server, workflow_id: str, name: str, effects: dict[str, list[int]]) -> None:
    expected = {"everything": "completed", "saga-breaks": "failed", "saga-waits": "cancelled"}
    shown = server.status(workflow_id, verbose=True)
    assert shown["state"] == expected[name], shown["failure"]
    receipts = server.client.get(f"/workflows/{workflow_id}/receipts").json()["receipts"]
    over: dict[str, dict[str, Any]] = {}
    for receipt in receipts:
        step, kind = receipt["step"], receipt["kind"]
        assert step not in over or kind == "step.compensated", f"{workflow_id}: {kind} of {step} after its end"
        if kind in ("step.completed", "step.reused", "step.skipped", "step.failed"):
            over[step] = receipt
    done = {step: one for step, one in over.items() if one["kind"] == "step.completed"}
    for step, receipt in done.items():
        began = receipt["detail"].get("started_at_ns")
        if began and step != "caught" and (times := effects.get(f"{workflow_id}/{step}")):
            assert max(times) <= receipt["at_ns"], f"{workflow_id}/{step} was done again after it had completed"
            assert max(times) >= began, f"{workflow_id}/{step} completed without having been done"
    if name == "everything":
        _check_everything(shown, over, effects, workflow_id)
        return
    undone = [one["step"] for one in receipts if one["kind"] == "step.compensated"]
    can_be = [
        step
        for step in done
        if step in ("a", "group/b", "group/c") or (step.startswith("each[") and step.endswith("]"))
    ]
    assert undone == can_be[::-1], f"{workflow_id}: {undone}"
    first = [min(effects[f"{workflow_id}/{step}:compensate"]) for step in undone]
    assert all(before <= after for before, after in pairwise(first)), "each began after the one before it"
    assert len(undone) == 6, "all of it had been done"
    assert (":on_failure/alert" in done) is (name == "saga-breaks")
    assert ":finally/last" in done


def _check_everything(
    shown: dict[str, Any], over: dict[str, Any], effects: dict[str, list[int]], workflow_id: str
) -> None:
    kinds = {step: one["kind"].removeprefix("step.") for step, one in over.items()}
    states = {one["name"]: one["state"] for one in shown["steps"]}
    assert {step for step, state in states.items() if state != "completed"} == {"never", "shrugged"}, states
    assert (kinds["never"], kinds["shrugged"], kinds["each[5]"]) == ("skipped", "failed", "failed")
    assert [kinds[f"cached[{n}]"] for n in range(4)] == ["completed", "completed", "reused", "reused"]
    assert not any(effects.get(f"{workflow_id}/cached[{n}]") for n in (2, 3))
    output = next(one for one in shown["steps"] if one["name"] == "each")["output"]
    assert [one and one["step"] for one in output] == [*[f"each[{n}]" for n in range(5)], None, "each[6]", "each[7]"]
    assert {"group/one", "group/two", "way/taken", "loop[2]", "again[1]", "caught:catch/note"} <= set(kinds)
    assert "race/slow" not in kinds
