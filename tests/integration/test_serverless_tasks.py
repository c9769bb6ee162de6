"""What the tasks of the Serverless Workflow DSL do, document by document, with a small engine around them."""

from textwrap import dedent
from typing import Any

import msgspec
import pytest
import yaml

from knhk.actions.registry import Enter, Failed, Invocation, Result, Round, Succeeded, WaitUntil
from knhk.actions.serverless.action import JQ, run
from knhk.domain.complaints import Complaints
from knhk.domain.dsl.plan import Definition, inner_tasks, root_task
from knhk.domain.dsl.reading import parse
from knhk.domain.dsl.task import Document, Fork, Task
from knhk.domain.event import Failure
from knhk.domain.expressions import Scope

HEAD = "document: {dsl: 1.0.0, namespace: test, name: test, version: 1.0.0}\n"


def read(text: str) -> Document:
    complaints = Complaints(lambda _path: (1, 1))
    document = parse(yaml.safe_load(HEAD + dedent(text)), {}, complaints)
    complaints.raise_if_any()
    return document


class House:
    """Calls the action for a task and those inside, as often as it asks; `now_ns` jumps to where waits end."""

    def __init__(self, document: Document, inputs: Any) -> None:
        self.document, self.inputs = document, inputs
        self.now_ns = 1_700_000_000_000_000_000
        self.order: list[str] = []
        self.paths: list[str] = []

    async def perform(self, task: Task, path: str, given: Any) -> Any:
        found = None
        while True:
            outcome = await run(
                Invocation(
                    workflow_id="wf-1",
                    workflow_name=self.document.name,
                    step=path,
                    attempt=1,
                    idempotency_key=f"wf-1/{path}",
                    params=None,
                    dependencies={},
                    scope=Scope(self.inputs, {}, {"submitted_at": "2026-01-01T00:00:00.000Z"}),
                    now_ns=self.now_ns,
                    definition=Definition(self.document, task),
                    given=given,
                    round=found,
                )
            )
            if not isinstance(outcome, Enter):
                if isinstance(outcome, WaitUntil):
                    self.now_ns = outcome.fire_at_ns
                self.order.append(task.name)
                self.paths.append(path)
                return outcome
            self.now_ns = max(self.now_ns, outcome.not_before_ns)
            memo = msgspec.json.decode(msgspec.json.encode(outcome.memo))  # it is kept as a payload
            inner = inner_tasks(task)
            several = inner if isinstance(task.body, Fork) else inner[outcome.block : outcome.block + 1]
            results = []
            for one in several:
                results.append(result(await self.perform(one, f"{path}/{outcome.path}/{one.name}", outcome.given)))
                if isinstance(task.body, Fork) and task.body.compete and results[-1].completed:
                    break
            found = Round(memo, tuple(results))


def result(outcome: Any) -> Result:
    if isinstance(outcome, Succeeded | WaitUntil):
        return Result(outcome.output, completed=True)
    return Result(failure=Failure(outcome.code, outcome.message, problem=outcome.problem))


async def flow(text: str, inputs: Any = None) -> tuple[Any, House]:
    """What a document's tasks give for these inputs: the data, or the problem."""
    document = read(text)
    house = House(document, inputs or {})
    given = {"data": inputs or {}, "context": None, "variables": {}}
    try:
        outcome = await house.perform(root_task(document), "do", given)
    finally:
        await JQ.close()
    return (outcome.problem if isinstance(outcome, Failed) else outcome.output["data"]), house


async def test_tasks_hand_on_data_and_context() -> None:
    data, _ = await flow(
        """
        do:
          - count: {set: {n: "${ .n + 1 }"}, export: {as: "{seen: [.n]}"}}
          - again: {set: {n: "${ .n * 10 }", seen: "${ $context.seen }"}, output: {as: ". + {last: true}"}}
          - keep: {input: {from: .n}, set: {value: "${ . }", whole: "${ $task.input.last }"}}
        """,
        {"n": 1},
    )
    assert data == {"value": 20, "whole": True}


async def test_a_task_whose_condition_does_not_hold_is_left_out() -> None:
    data, _ = await flow("do: [{a: {if: .go, set: {x: 1}}}, {b: {set: {y: '${ .go }'}}}]", {"go": False})
    assert data == {"y": False}


async def test_the_flow_can_go_back_and_each_visit_has_a_path_of_its_own() -> None:
    data, house = await flow(
        """
        do:
          - add: {set: {n: "${ .n + 1 }"}}
          - check: {switch: [{small: {when: .n < 3, then: add}}, {big: {then: end}}]}
        """,
        {"n": 0},
    )
    assert data == {"n": 3}
    assert house.paths[:-1] == [
        *("do/0/add", "do/1/check", "do/0#2/add", "do/1#2/check", "do/0#3/add", "do/1#3/check"),
    ]


async def test_exit_leaves_one_list_and_end_the_whole_flow() -> None:
    inner = "{inner: {do: [{a: {set: {n: 1}, then: %s}}, {b: {set: {n: 2}}}]}}"
    data, _ = await flow(f"do: [{inner % 'exit'}, {{after: {{set: {{n: '${{ .n + 10 }}'}}}}}}]")
    assert data == {"n": 11}
    data, _ = await flow(f"do: [{inner % 'end'}, {{after: {{set: {{n: '${{ .n + 10 }}'}}}}}}]")
    assert data == {"n": 1}


async def test_a_loop_hands_its_output_from_round_to_round() -> None:
    data, house = await flow(
        """
        do:
          - sum:
              for: {each: price, at: place, in: .prices}
              while: (.total // 0) < 10
              do: [{add: {set: {total: "${ (.total // 0) + $price }", place: "${ $place }"}}}]
        """,
        {"prices": [4, 5, 6, 7]},
    )
    assert data == {"total": 15, "place": 2}
    assert house.order.count("add") == 3


async def test_branches_give_a_list_and_a_race_one() -> None:
    branches = "branches: [{a: {set: {x: 1}}}, {b: {set: {x: 2}}}]"
    assert (await flow(f"do: [{{f: {{fork: {{{branches}}}}}}}]"))[0] == [{"x": 1}, {"x": 2}]
    assert (await flow(f"do: [{{f: {{fork: {{compete: true, {branches}}}}}}}]"))[0] == {"x": 1}


TRY = """
do:
  - guarded:
      try: [{work: {raise: {error: {type: "https://example.com/busy", status: 503, detail: "${ .what }"}}}}]
      catch: %s
"""


async def test_an_error_that_fits_is_handled_and_another_is_not() -> None:
    handler = "{errors: {with: {status: 503}}, as: e, do: [{note: {set: {said: '${ $e.detail }'}}}]}"
    assert (await flow(TRY % handler, {"what": "no room"}))[0] == {"said": "no room"}
    problem, _ = await flow(TRY % handler.replace("503", "404"), {"what": "no room"})
    assert (problem["status"], problem["instance"]) == (503, "/do/0/guarded/try/0/work")
    caught = TRY % "{exceptWhen: $error.status == 503, do: [{note: {set: {x: 1}}}]}"
    assert (await flow(caught, {"what": "x"}))[0]["status"] == 503


async def test_a_block_is_tried_again_with_growing_pauses() -> None:
    retry = "{retry: {delay: PT1S, backoff: {exponential: {}}, limit: {attempt: {count: 3}}}, do: [{n: {set: {x: 1}}}]}"
    data, house = await flow(TRY % retry, {"what": "x"})
    assert data == {"x": 1}
    assert house.order.count("work") == 4
    assert house.now_ns - 1_700_000_000_000_000_000 == (1 + 2 + 4) * 1_000_000_000
    assert "do/0/guarded/try/0#4/work" in house.paths


async def test_time_limits_of_retries_end_them() -> None:
    data, house = await flow(TRY % "{retry: {delay: {seconds: 2}, limit: {duration: {seconds: 5}}}}", {"what": "x"})
    assert data == {"what": "x"}
    assert house.order.count("work") == 3


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ("do: [{a: {set: {x: '${ .a | explode_now }'}}}]", "expression"),
        ("do: [{a: {input: {schema: {format: json, document: {required: [z]}}}, set: {x: 1}}}]", "validation"),
        ("do: [{a: {set: {x: 1}, output: {schema: {document: {properties: {x: {const: 2}}}}}}}]", "validation"),
        ("do: [{a: {for: {in: .x}, do: [{b: {set: {y: 1}}}]}}]", "validation"),
        ("do: [{a: {call: http, with: {method: get, endpoint: 'http://127.0.0.1:1/{none}'}}}]", "expression"),
        ("do: [{a: {call: http, with: {method: get, endpoint: 'http://127.0.0.1:1/x'}}}]", "communication"),
        ("do: [{a: {call: http, with: {method: get, endpoint: 'ftp://x/y'}}}]", "configuration"),
    ],
)
async def test_what_goes_wrong_has_the_type_of_the_standard(document: str, kind: str) -> None:
    problem, _ = await flow(document)
    assert problem["type"] == f"https://serverlessworkflow.io/spec/1.0.0/errors/{kind}"
    assert problem["instance"] == "/do/0/a"


async def test_an_event_has_the_same_id_when_it_is_emitted_again() -> None:
    text = "do: [{a: {emit: {event: {with: {source: 'https://a.example', type: t.v1, data: {x: '${ .n }'}}}}}}]"
    first, again = (await flow(text, {"n": 1}))[0], (await flow(text, {"n": 1}))[0]
    assert first["id"] == again["id"]
    assert (first["specversion"], first["data"]) == ("1.0", {"x": 1})


async def test_a_wait_hands_on_what_it_was_given() -> None:
    data, house = await flow("do: [{w: {wait: PT1H30M}}]", {"a": 1})
    assert data == {"a": 1}
    assert house.now_ns - 1_700_000_000_000_000_000 == 5400 * 1_000_000_000
