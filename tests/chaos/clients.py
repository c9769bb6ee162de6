"""One request to a node of a fleet, and what is known after it."""

import time
from typing import Any, Final, NamedTuple

import httpx

from tests.chaos.linearizability import Operation
from tests.chaos.runs import Run
from tests.chaos.specification import Done, Ended, Missing, Seen, Submitted

_ENDED_ALREADY: Final = "KNHK-4002"
_NO_RUN: Final = "KNHK-3001"
_FENCED: Final = "KNHK-4003"


class Request(NamedTuple):
    """A request about a run, to whatever node."""

    verb: str
    argument: str
    method: str
    target: str
    headers: dict[str, str]
    body: str = ""


def about(run: Run, verb: str, query: str = "") -> Request:
    """The request that does something to a run; a signal has always the same id."""
    if verb == "submit":
        headers = {"Content-Type": "text/yaml", "Idempotency-Key": run.key}
        return Request(verb, "", "POST", f"/workflows{query}", headers, run.text)
    target = f"/workflows/{run.workflow_id}"
    if verb == "signal":
        signal = f"go-{run.key}"
        headers = {"Content-Type": "application/json", "Idempotency-Key": signal}
        return Request(verb, signal, "POST", f"{target}/signals", headers, '{"event": "go"}')
    if verb == "cancel":
        return Request(verb, "", "POST", f"{target}/cancel", {})
    return Request(verb, "", "GET", target, {})


class Reply(NamedTuple):
    """`operation` is None if the request did nothing, or cannot have: it tells nothing about the run.

    `trouble` says why it must be repeated: the code of the answer, or the error of the connection.
    """

    operation: Operation | None
    trouble: str = ""
    body: dict[str, Any] | None = None


class Strange(AssertionError):
    """An answer that no failure excuses."""


def ask(client: httpx.Client, url: str, request: Request) -> Reply:
    """Send a request to a node.

    A write without an answer, or with one that it may have happened after all, is an operation that never ends; a read
    without one is none. Raises Strange.
    """
    verb, argument, method, target, headers, body = request
    began = time.monotonic()
    silent = None if verb == "status" else Operation(verb, argument, began)
    try:
        answer = client.request(method, url + target, content=body, headers=headers)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        return Reply(None, type(error).__name__)
    except httpx.TransportError as error:
        return Reply(silent, type(error).__name__)
    ended, shown = time.monotonic(), answer.json()
    if answer.is_success:
        return Reply(Operation(verb, argument, began, ended, _meaning(verb, shown)), body=shown)
    code = str(shown["code"])
    if code == _ENDED_ALREADY and verb in ("signal", "cancel"):
        return Reply(Operation(verb, argument, began, ended, Ended()))
    if code == _NO_RUN and verb != "submit":
        return Reply(Operation(verb, argument, began, ended, Missing()))
    if answer.status_code not in (429, 503) and code != _FENCED:
        raise Strange(f"{method} {target}: {answer.status_code} {answer.text}")
    return Reply(None if answer.status_code == 429 else silent, code)


def _meaning(verb: str, body: dict[str, Any]) -> Any:
    if verb == "submit":
        return Submitted(body["workflow_id"], not body["replayed"])
    if verb == "signal":
        return Done(not body["replayed"])
    if verb == "cancel":
        return Done()
    waits = any(one["kind"] == "event" for one in body["waiting_on"])
    return Seen(body["state"], body["receipts"], waits)
