"""Serverless Workflow documents on a real server: through crashes, with time limits, and with other actions inside."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flaky_peer import flaky
from tests.acceptance.server import Server

HEAD = "document: {dsl: 1.0.0, namespace: test, name: test, version: 1.0.0}\n"
LOOP = """
do:
  - collect:
      for: {each: item, in: .items}
      do:
        - ask:
            call: http
            with:
              method: post
              endpoint: PEER/items
              body: {item: "${ $item }"}
            output: {as: "{items: $input.items, seen: (($input.seen // []) + [.n])}"}
        - pause: {wait: {milliseconds: 20}}
  - both:
      fork:
        branches:
          - count: {set: {count: "${ .seen | length }"}}
          - last: {set: {last: "${ .seen[-1] }"}}
  - sum: {set: {result: "${ add }"}}
"""


def ended(server: Server, text: str, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {"descriptor": HEAD + text, "inputs": inputs or {}}
    answer = server.client.post("/workflows", params={"wait": "60s"}, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_loop_that_is_killed_again_and_again_asks_each_thing_once_more_at_most(tmp_path: Path) -> None:
    count = 40
    with flaky(lambda number: (200, {}, {"n": number})) as peer:
        server = Server(tmp_path)
        try:
            server.start()
            body = {"descriptor": HEAD + LOOP.replace("PEER", peer.url), "inputs": {"items": list(range(count))}}
            answer = server.client.post("/workflows", json=body)
            workflow_id = answer.json()["workflow_id"]
            kills = 0
            for enough in (8, 16, 24):
                deadline = time.monotonic() + 60
                while len(peer.requests) < enough and time.monotonic() < deadline:
                    time.sleep(0.005)
                server.kill()
                kills += 1
                server.start()
            shown = server.wait_for(workflow_id, timeout_s=90)
            keys = [headers["idempotency-key"] for _, _, headers, _ in peer.requests]
            assert len(set(keys)) == count
            assert len(keys) <= count + kills  # only what was under way when the process died is asked again
            output = server.status(workflow_id, verbose=True)["outputs"]
            assert output["result"]["count"] == count
            assert shown["state"] == "completed"
            assert server.stop() == 0
            assert server.verify()["valid"]
        finally:
            server.close()


@pytest.mark.parametrize("inner", ["nap: {wait: PT60S}", "nap: {do: [{deep: {wait: PT60S}}]}"])
def test_a_time_limit_is_an_error_that_can_be_caught(server: Server, inner: str) -> None:
    text = f"""
do:
  - bounded:
      try: [{{block: {{do: [{{{inner}}}], timeout: {{after: {{milliseconds: 300}}}}}}}}]
      catch:
        errors: {{with: {{type: https://serverlessworkflow.io/spec/1.0.0/errors/timeout}}}}
        do: [{{late: {{set: {{late: true}}}}}}]
"""
    assert ended(server, text)["outputs"] == {"late": True}


def test_a_race_has_one_winner_and_the_others_are_ended(server: Server) -> None:
    text = """
do:
  - race:
      fork:
        compete: true
        branches:
          - slow: {do: [{nap: {wait: PT60S}}, {say: {set: {by: slow}}}]}
          - quick: {set: {by: quick}}
"""
    assert ended(server, text)["outputs"] == {"by": "quick"}


def test_actions_and_programs_run_inside_a_document(tmp_path: Path) -> None:
    server = Server(tmp_path, actions={"shell": {"commands": ["sh", "python3"], "environment": ["WHO"]}})
    try:
        server.start()
        text = """
do:
  - own: {call: process, with: {output: {n: "${ .n + 1 }"}}}
  - script:
      run:
        script: {language: python, code: "import sys; print(int(sys.argv[1]) * 2)", arguments: ["${ .n }"]}
      output: {as: '{n: (rtrimstr("\\n") | tonumber)}'}
  - command:
      run: {shell: {command: "echo $WHO; exit 3", environment: {WHO: world}}, return: all}
"""
        shown = ended(server, text, {"n": 20})
        assert shown["state"] == "completed", shown["failure"]
        output = shown["outputs"]
        assert (output["code"], output["stdout"].strip()) == (3, "world")
        inside = server.status(shown["workflow_id"], verbose=True)["inside"]
        actions = {one["name"]: one["action"] for one in inside if one["state"] == "completed"}
        assert actions["do/0/own"] == actions["do/1/script"] == "serverless"
        assert (actions["do/0/own/call/process"], actions["do/2/command/call/shell"]) == ("process", "shell")
        failed = ended(server, "do: [{bad: {run: {shell: {command: exit 7}}}}]")
        assert failed["state"] == "failed"
        assert failed["failure"]["problem"]["type"].endswith("/errors/runtime")
        assert "exit code 7" in failed["failure"]["message"]
    finally:
        server.close()


@pytest.mark.parametrize(("strategy", "seen"), [("any", [{"amount": 7}]), ("all", [{"amount": 7}, {"by": "truck"}])])
def test_a_document_listens_to_events_over_a_crash(tmp_path: Path, strategy: str, seen: list[Any]) -> None:
    text = f"""
do:
  - await:
      listen:
        to:
          {strategy}:
            - with: {{type: paid}}
              correlate: {{order: {{from: .data.order, expect: .order}}}}
            - with: {{type: sent}}
      timeout: {{after: PT1M}}
  - told: {{set: {{events: "${{ . }}"}}}}
"""
    server = Server(tmp_path)
    try:
        server.start()
        answer = server.client.post("/workflows", json={"descriptor": HEAD + text, "inputs": {"order": "A-17"}})
        workflow_id = answer.json()["workflow_id"]
        deadline = time.monotonic() + 30
        while not server.status(workflow_id)["waiting_on"] and time.monotonic() < deadline:
            time.sleep(0.02)
        server.kill()
        server.start()
        for order, amount in (("B-1", 1), ("A-17", 7)):
            event = {"event": "paid", "correlate": order, "data": {"amount": amount}}
            assert server.client.post("/events", json=event).status_code in (200, 202)
        if strategy == "all":
            assert server.status(workflow_id)["state"] == "running"
            sent = {"event": "sent", "data": {"by": "truck"}}
            assert server.client.post(f"/workflows/{workflow_id}/signals", json=sent).status_code == 200
        server.wait_for(workflow_id)
        assert server.status(workflow_id, verbose=True)["outputs"] == {"events": seen}
    finally:
        server.close()


def test_what_is_wrong_with_a_document_is_said_with_its_places(server: Server) -> None:
    answer = server.client.post("/workflows", content=HEAD + "do:\n  - a: {sett: {}}\n  - b: {set: {}, then: c}\n")
    assert answer.status_code == 422
    problems = {(one["line"], one["path"]) for one in answer.json()["problems"]}
    assert problems == {(3, "do[0].a"), (4, "do[1].b.then")}
