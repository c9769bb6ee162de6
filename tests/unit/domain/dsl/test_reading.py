"""Serverless Workflow documents: what is wrong with one is said all at once, at its place."""

from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from knhk.domain.complaints import Complaints
from knhk.domain.dsl.problem import fits, standard_error
from knhk.domain.dsl.reading import is_dsl, parse
from knhk.domain.dsl.task import CallAction, CallHttp, Do, Document, Listen, Raise, RunProcess, RunWorkflow, Try, Wait

HEAD = "document: {dsl: 1.0.0, namespace: test, name: test, version: 1.0.0}\n"


def read(text: str, actions: tuple[str, ...] = ()) -> tuple[Document, list[str]]:
    complaints = Complaints(lambda _path: (1, 1))
    document = parse(yaml.safe_load(HEAD + dedent(text)), dict.fromkeys(actions), complaints)
    return document, [f"{one.path}: {one.message}" for one in complaints.problems()]


def faults(text: str) -> list[str]:
    return read(text)[1]


def only(text: str, actions: tuple[str, ...] = ()) -> Any:
    document, wrong = read(text, actions)
    assert not wrong
    return document.tasks[0].body


def test_a_document_of_this_language_is_told_by_its_first_key() -> None:
    assert is_dsl({"document": {}, "do": []})
    assert not is_dsl({"apiVersion": "knhk/v1", "document": {}})
    assert not is_dsl([])


def test_all_faults_are_said_at_once() -> None:
    wrong = faults(
        """
        dou: []
        do:
          - first: {sett: {}}
          - second: {set: {}, then: thrid}
          - third: {wait: 5 minutes}
          - third: {fork: {branches: []}}
        """
    )
    assert [one.partition(":")[0] for one in wrong] == [
        *("dou", "do[0].first", "do[2].third.wait", "do[3].third.fork.branches", "do[3].third", "do[1].second.then"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("do: [{a: {set: 5}}]", "must be a mapping or an expression"),
        ("do: [{a: {set: {}, do: 7, x: 1}}]", "unknown key"),
        ("do: [{a: {for: {each: 1x, in: .a}, do: [{b: {set: {}}}]}}]", "cannot be the name of a variable"),
        ("do: [{a: {call: grpc, with: {}}}]", "not supported"),
        ("do: [{a: {call: greet}}]", "there is no function or action 'greet'"),
        ("do: [{a: {call: http, with: {method: get}}}]", "'endpoint' is missing"),
        ("do: [{a: {raise: {error: none}}}]", "there is no error 'none'"),
        ("do: [{a: {run: {container: {image: x}}}}]", "containers are not run"),
        ("do: [{a: {listen: {to: {one: {with: {}}, any: []}}}}]", "one of `one`, `any` and `all`"),
        ("do: [{a: {listen: {to: {one: {with: {type: t, source: s}}}}}}]", "events are told apart by their `type`"),
        ("do: [{a: {try: [{b: {set: {}}}]}}]", "'catch' is missing"),
        ("do: [{a: {set: {}, timeout: slow}}]", "there is no timeout 'slow'"),
        ("use: {functions: {f: {call: f}}}\ndo: [{a: {call: f}}]", "calls itself"),
        ("do: []", "must be a list of tasks"),
        ("input: {from: .}", "'do' is missing"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    assert any(message in one for one in faults(text)), faults(text)


def test_reusable_components_are_put_in() -> None:
    document, wrong = read(
        """
        use:
          errors: {gone: {type: "https://example.com/gone", status: 410}}
          retries: {slow: {delay: {seconds: 3}, limit: {attempt: {count: 2}}}}
          timeouts: {short: {after: PT2S}}
          functions: {greet: {set: {text: "${ .name }"}}}
        do:
          - a: {try: [{b: {raise: {error: gone}}}], catch: {retry: slow}, timeout: short}
          - c: {call: greet, with: {name: Ada}}
        """
    )
    assert not wrong
    first, second = document.tasks
    assert first.timeout_ns == 2_000_000_000
    assert isinstance(first.body, Try)
    assert first.body.retry is not None
    assert (first.body.retry.delay_ns, first.body.retry.max_attempts) == (3_000_000_000, 2)
    assert isinstance(first.body.tasks[0].body, Raise)
    assert first.body.tasks[0].body.error["status"] == 410
    assert isinstance(second.body, Do)
    assert second.body.tasks[0].input.value == {"name": "Ada"}


def test_each_kind_of_task_is_read() -> None:
    wait = only("do: [{a: {wait: {hours: 1, milliseconds: 5}}}]")
    assert wait == Wait(3_600_005_000_000)
    call = only("do: [{a: {call: http, with: {method: get, endpoint: {uri: 'http://x/{y}'}, output: raw}}}]")
    assert isinstance(call, CallHttp)
    assert call.output == "raw"
    assert only("do: [{a: {call: shop.charge, with: {n: 1}}}]", ("shop.charge",)) == CallAction("shop.charge", {"n": 1})
    run = only("do: [{a: {run: {workflow: {namespace: n, name: w, version: 1.0.0, input: {x: 1}}}}}]")
    assert run == RunWorkflow("n", "w", "1.0.0", {"x": 1})
    assert isinstance(only("do: [{a: {run: {shell: {command: ls}, return: all}}}]"), RunProcess)
    listen = only("do: [{a: {listen: {to: {any: [{with: {type: t}}, {with: {type: u}}]}}}}]")
    assert isinstance(listen, Listen)
    assert len(listen.filters) == 2


def test_references_are_pointers_into_the_document() -> None:
    document, _ = read("do: [{a: {fork: {branches: [{b: {do: [{c: {set: {}}}]}}]}}}]")
    branch = document.tasks[0].body.branches[0]  # type: ignore[union-attr]  # a fork
    assert branch.body.tasks[0].reference == "/do/0/a/fork/branches/0/b/do/0/c"


def test_standard_errors_are_the_same_under_every_prefix() -> None:
    error = standard_error("communication", "no answer", status=404)
    assert fits(error, {"type": "https://serverlessworkflow.io/dsl/errors/types/communication", "status": 404})
    assert not fits(error, {"type": "https://serverlessworkflow.io/spec/1.0.0/errors/timeout"})
    assert not fits(error, {"type": "https://example.com/communication"})
    assert fits(error, {})


_KEYS = some.sampled_from(
    ["do", "set", "for", "in", "try", "catch", "call", "with", "run", "fork", "branches", "switch", "listen", "to", "a"]
)
_LEAVES = some.none() | some.booleans() | some.integers() | some.text(max_size=8)
_JSON: some.SearchStrategy[Any] = some.deferred(
    lambda: _LEAVES | some.lists(_JSON, max_size=3) | some.dictionaries(_KEYS, _JSON, max_size=4)
)


@given(_JSON)
def test_whatever_stands_in_a_document_is_read_or_refused(value: Any) -> None:
    complaints = Complaints(lambda _path: (1, 1))
    document = {"document": {"dsl": "1.0.0", "namespace": "a", "name": "a", "version": "1.0.0"}, "do": value}
    parse(document, {}, complaints)
