"""Retries, by themselves and on request: what was completed stays, and each attempt carries the same key."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flaky_peer import Peer, Reply, flaky
from tests.acceptance.server import Server

HEAD = "apiVersion: knhk/v1\nkind: Workflow\n"
PAYMENT = (
    HEAD
    + """
metadata: {{name: payment}}
spec:
  timeout: 60s
  steps:
    - {{name: first, action: test.append, params: {{path: "{path}", line: first}}}}
    - name: pay
      action: http
      depends_on: [first]
      retries: {retries}
      params:
        method: POST
        url: {url}/payments
        json: {{amount: 42}}
    - {{name: last, action: process, depends_on: [pay], params: {{output: "${{{{ steps.pay.output.body.id }}}}"}}}}
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("retry"), actions={"modules": ["tests.acceptance.crash_actions"]})
    try:
        yield running.start()
        assert running.stop() == 0
        assert running.verify()["valid"]
    finally:
        running.close()


def receipts(server: Server, name: str) -> list[dict[str, Any]]:
    return list(server.client.get(f"/workflows/{name}/receipts").json()["receipts"])


def keys(peer: Peer) -> set[str]:
    return {headers["idempotency-key"] for _, _, headers, _ in peer.requests}


def test_a_peer_that_asks_to_come_back_later_is_asked_again_with_the_same_key(server: Server, tmp_path: Path) -> None:
    times: list[float] = []

    def reply(number: int) -> Reply | None:
        times.append(time.monotonic())
        if number == 2:
            return None
        return (503, {"retry-after": "1"}, {"busy": True}) if number < 4 else (200, {}, {"id": "p-1"})

    with flaky(reply) as peer:
        name = server.submit(PAYMENT.format(path=tmp_path / "effects", url=peer.url, retries=5))
        server.wait_for(name)
    shown = server.status(name, verbose=True)
    pay = next(step for step in shown["steps"] if step["name"] == "pay")
    assert (pay["attempts"], pay["output"]["status"], shown["outputs"]) == (4, 200, {"last": "p-1"})
    assert keys(peer) == {f"{name}/pay"}
    assert {(method, path, body) for method, path, _, body in peer.requests} == {
        ("POST", "/payments", b'{"amount":42}')
    }
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[0] >= 1.0, "Retry-After was not kept"
    assert pauses[2] >= 1.0, "Retry-After was not kept"
    kinds = [(one["kind"], one["step"]) for one in receipts(server, name)]
    assert kinds.count(("step.retrying", "pay")) == 3
    assert kinds.count(("step.completed", "pay")) == 1


def test_a_peer_that_says_no_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    with flaky(lambda _: (402, {}, {"reason": "no money"})) as peer:
        name = server.submit(PAYMENT.format(path=tmp_path / "effects", url=peer.url, retries=5))
        failure = server.wait_for(name, "failed")["failure"]
    assert len(peer.requests) == 1
    assert (failure["code"], failure["step"]) == ("KNHK-HTTP-STATUS", "pay")
    assert "402" in failure["message"]
    assert "no money" in failure["message"]


def test_a_failed_run_goes_on_from_the_step_that_failed(server: Server, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    with flaky(lambda number: (500, {}, {}) if number < 3 else (200, {}, {"id": "p-2"})) as peer:
        name = server.submit(PAYMENT.format(path=effects, url=peer.url, retries=0))
        server.wait_for(name, "failed")
        before = receipts(server, name)
        answer = server.client.post(f"/workflows/{name}/retry")
        assert (answer.status_code, answer.json()["workflow_id"]) == (200, name)
        server.wait_for(name, "failed")
        assert server.cli("workflow", "retry", name, "-o", "json")["workflow_id"] == name
        shown = server.wait_for(name)
        again = server.client.post(f"/workflows/{name}/retry")
        assert (again.status_code, again.json()["code"]) == (409, "KNHK-4002")
    assert (shown["state"], shown["failure"], shown["steps_completed"]) == ("completed", None, 3)
    assert effects.read_text().split() == ["first"], "a completed step ran again"
    assert len(peer.requests) == 3
    assert keys(peer) == {f"{name}/pay"}
    after = receipts(server, name)
    assert after[: len(before)] == before
    kinds = Counter(one["kind"] for one in after)
    assert (kinds["workflow.retried"], kinds["workflow.failed"], kinds["workflow.completed"]) == (2, 2, 1)
    assert Counter(one["step"] for one in after if one["kind"] == "step.completed") == dict.fromkeys(
        ("first", "pay", "last"), 1
    )


def test_a_retry_survives_a_crash(tmp_path: Path) -> None:
    own = Server(tmp_path, actions={"modules": ["tests.acceptance.crash_actions"]})
    effects = tmp_path / "effects"
    try:
        own.start()
        with flaky(lambda number: (500, {}, {}) if number < 3 else (200, {}, {"id": "p-3"})) as peer:
            name = own.submit(PAYMENT.format(path=effects, url=peer.url, retries=0))
            own.wait_for(name, "failed")
            own.kill()
            own.start()
            assert own.status(name)["state"] == "failed"
            own.client.post(f"/workflows/{name}/retry")
            own.kill()
            own.start()
            shown = own.status(name)
            deadline = time.monotonic() + 20
            while shown["state"] not in ("failed", "completed") and time.monotonic() < deadline:
                time.sleep(0.02)
                shown = own.status(name)
            if shown["state"] == "failed":
                own.client.post(f"/workflows/{name}/retry")
            own.wait_for(name)
        assert effects.read_text().split() == ["first"]
        assert keys(peer) == {f"{name}/pay"}
        assert own.stop() == 0
        assert own.verify()["valid"]
    finally:
        own.close()


def test_attempts_of_an_action_are_counted_and_share_a_key(server: Server, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    descriptor = f"""{HEAD}
metadata: {{name: counted}}
spec:
  steps:
    - {{name: note, action: test.record, params: {{path: "{effects}", line: x}}}}
    - name: flaky
      action: fail
      depends_on: [note]
      params: {{until_attempt: 3}}
      retry: {{max_attempts: 3, delay: 50ms, jitter: false}}
"""
    name = server.submit(descriptor)
    shown = server.wait_for(name)
    assert [step["attempts"] for step in shown["steps"]] == [1, 3]
    assert effects.read_text().split() == ["x", "1", f"{name}/note"]
