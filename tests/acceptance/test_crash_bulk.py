"""kill -9 in the middle of decisions about many runs: repeated with its key, a bulk is done once for every run."""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.server import Server
from tests.acceptance.test_crash_blocks import act, undoable, workflow_of

SEED = 20261124
_DEADLINE_S = 90


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("runs", "kills"), [(40, 1), pytest.param(400, 5, marks=pytest.mark.soak)])
def test_a_bulk_survives_kills(crashing: Server, tmp_path: Path, runs: int, kills: int) -> None:
    rng, path = random.Random(SEED), tmp_path / "effects"
    nap = {"name": "nap", "wait": "1h", "depends_on": ["a"]}
    text = json.dumps(workflow_of("many", [undoable(path, "a", ms=1), nap, act(path, "never", "nap")]))
    crashing.start()
    ids = [crashing.submit(text, **{"Idempotency-Key": f"many-{number}"}) for number in range(runs)]
    _until_they_wait(crashing)
    partly = 0
    for key, verb, before, after, killed in (
        ("1", "pause", "running", "paused", 1),
        ("2", "resume", "paused", "running", 0),
        ("3", "cancel", "running", "cancelled", 1),
        ("4", "retry", "cancelled", "running", 1),
        ("5", "cancel", "running", "cancelled", 0),
        ("4", "retry", "cancelled", "cancelled", 0),
        ("6", "delete", "cancelled", "cancelled", 0),
    ):
        body = {"action": verb, "name": "many", "state": before, "limit": 500, "reason": "why"}
        for _ in range(kills if kills > 1 else killed):
            asked = threading.Thread(target=_ask, args=(crashing.api, body, key))
            asked.start()
            time.sleep(rng.uniform(0.002, 0.06))
            crashing.kill()
            asked.join()
            crashing.start()
            partly += 0 < sum(crashing.status(one)["state"] == before for one in ids) < runs
        _until_all(crashing, runs, body, key, after)
        if verb == "retry" and after == "running":
            _until_they_wait(crashing)
    effects: dict[str, int] = Counter(line.split()[0] for line in path.read_text().splitlines())
    for one in ids:
        _check(crashing, one, effects)
    assert kills == 1 or partly, "no kill came in the middle"
    assert crashing.stop() == 0
    verdict = crashing.verify()
    assert verdict["valid"], verdict


def _ask(api: str, body: dict[str, Any], key: str) -> dict[str, Any] | None:
    try:
        # Without the certificates, which are not needed and take long to load.
        with httpx.Client(base_url=api, timeout=60, verify=False) as client:
            answer = client.post("/workflows/bulk", json=body, headers={"Idempotency-Key": key})
    except httpx.TransportError:
        return None  # The server was killed.
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _until_all(server: Server, runs: int, body: dict[str, Any], key: str, after: str) -> None:
    """Repeat a bulk until all runs are as they should be, as the list, which lags a moment behind, tells it."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        answer = _ask(server.api, body, key)
        assert answer is not None
        refused = [one for one in answer["failed"] if one["code"] != "KNHK-4002"]  # the list was behind
        assert not refused, refused
        rows = _rows(server)
        over = all(one["state"] == after for one in rows)
        if body["action"] == "delete":
            over = all(one["erased"] for one in rows)
        elif body["state"] == after:
            over = over and answer["done"] == runs  # all had been done before, as the key says
        if over:
            return
        assert time.monotonic() < deadline, (answer, Counter(one["state"] for one in rows))
        time.sleep(0.1)


def _until_they_wait(server: Server) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not all(any(one.get("step") == "nap" for one in row["waiting_on"]) for row in _rows(server)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _rows(server: Server) -> list[dict[str, Any]]:
    answer = server.client.get("/workflows", params={"name": "many", "limit": 500})
    return list(answer.json()["workflows"])


def _check(server: Server, workflow_id: str, effects: dict[str, int]) -> None:
    receipts = server.client.get(f"/workflows/{workflow_id}/receipts").json()["receipts"]
    kinds = Counter(one["kind"] for one in receipts)
    once = ("workflow.paused", "workflow.resumed", "workflow.retried", "payload.erased")
    twice = ("workflow.ending", "workflow.cancelled", "step.compensated")
    assert {kind: kinds[kind] for kind in (*once, *twice)} == dict.fromkeys(once, 1) | dict.fromkeys(twice, 2), kinds
    keys: dict[str, list[str]] = defaultdict(list)
    for one in receipts:
        if key := one["detail"].get("idempotency_key"):
            keys[one["kind"]].append(key)
    assert keys["workflow.ending"] == ["3", "5"]
    for name in ("a", "a:compensate", "a~2", "a:compensate~2"):
        assert effects[f"{workflow_id}/{name}"] >= 1, (name, effects)
    assert f"{workflow_id}/never" not in effects
