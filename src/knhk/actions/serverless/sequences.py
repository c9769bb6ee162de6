"""Tasks that run other tasks: `do`, `for`, `fork` and `try`.

Each answers `Enter` with the next of its tasks, keeps where it is in the memo, and is called again with what became of
them. The memo holds: `input` (the filtered input), `data` and `context` as the tasks so far have left them, `at` (the
task that is under way), `visits` (how often each was entered, so that a task which the flow comes back to has a path
and an idempotency key of its own), and what the kind of task needs besides.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from knhk.actions.registry import Enter, Outcome
from knhk.actions.serverless import retries
from knhk.actions.serverless.flow import Flow, Turn
from knhk.domain.dsl.problem import fits
from knhk.domain.dsl.task import CONTINUE, END, EXIT, Do, For, Fork, Task, Try

Memo = dict[str, Any]
TRY: Final = "try/"
CATCH: Final = "catch/do/"


class _List(NamedTuple):
    """A list of tasks, what their paths begin with, and the index of the first one's block among those of the step."""

    tasks: tuple[Task, ...]
    under: str
    first_block: int = 0


class _Over(NamedTuple):
    """A list came to its end; `then` is how: by itself (continue), or because a task ended the whole flow."""

    memo: Memo
    then: str


async def run_do(turn: Turn, body: Do) -> Outcome:
    """One task after another, as their `then` says."""
    tasks = _List(body.tasks, "do/" if turn.task.reference else "")  # the outermost task is itself at `do`
    step = await _begin(turn, tasks, {}) if turn.invocation.round is None else _next(turn, tasks, *_last(turn))
    return step if isinstance(step, Enter) else await _leave(turn, step)


async def run_for(turn: Turn, body: For) -> Outcome:
    """The tasks once for each item; each round's input is the output of the one before."""
    tasks = _List(body.tasks, "do/")
    if turn.invocation.round is None:
        items = await turn.evaluate(body.items, turn.input)
        if not isinstance(items, list):
            raise turn.fault("validation", f"`for.in` gives no list but {type(items).__name__}")
        memo: Memo = {**_fresh(turn, turn.input, turn.flow.context), "items": items, "index": -1}
        step: Enter | _Over = _Over(memo, CONTINUE)
    else:
        step = _next(turn, tasks, *_last(turn), variables=_loop(body, turn.invocation.round.memo))
    while isinstance(step, _Over):
        memo = {**step.memo, "index": step.memo["index"] + 1, "at": 0}
        if step.then == END or memo["index"] >= len(memo["items"]) or not body.tasks:
            return await _leave(turn, step)
        variables = _loop(body, memo)
        if body.condition and not await turn.evaluate(body.condition, memo["data"], **variables):
            return await _leave(turn, step)
        step = _enter(turn, tasks, memo, variables)
    return step


async def run_fork(turn: Turn, body: Fork) -> Outcome:
    """All branches side by side; with `compete` the first that completes decides."""
    given = Flow(turn.input, turn.flow.context, turn.flow.variables).to_data()
    if turn.invocation.round is None:
        return Enter(0, "fork/branches", given, _fresh(turn, turn.input, turn.flow.context))
    memo, results = turn.invocation.round.memo, turn.invocation.round.results
    turn.input = memo["input"]
    done = [result for result in results if result.completed]
    if len(done) < len(results) and not (body.compete and done):
        failure = next((result.failure for result in results if result.failure is not None), None)
        raise retries.raised(turn, failure)
    if body.compete:
        return await turn.leave(done[0].output["data"], context=done[0].output["context"])
    context = next(
        (result.output["context"] for result in results if result.output["context"] != memo["context"]),
        memo["context"],
    )
    return await turn.leave([result.output["data"] for result in results], context=context)


async def run_try(turn: Turn, body: Try) -> Outcome:
    """The tasks; an error that fits is caught, perhaps tried again, and then handled."""
    tried = _List(body.tasks, TRY)
    handler = _List(body.handler, CATCH, first_block=len(body.tasks))
    if turn.invocation.round is None:
        step = await _begin(turn, tried, {"attempts": 1, "since_ns": turn.invocation.now_ns, "caught": None})
        return step if isinstance(step, Enter) else await _leave(turn, step)
    memo, output, failure = _last(turn)
    if memo["caught"] is not None:
        variables = {body.variable: memo["caught"]}
        if failure is not None:
            raise retries.raised(turn, failure)
        step = _next(turn, handler, memo, output, None, variables=variables)
        return step if isinstance(step, Enter) else await _leave(turn, step)
    if failure is None:
        step = _next(turn, tried, memo, output, None)
        return step if isinstance(step, Enter) else await _leave(turn, step)
    return await _caught(turn, body, tried, handler, memo, retries.raised(turn, failure).problem)


async def _caught(turn: Turn, body: Try, tried: _List, handler: _List, memo: Memo, error: Mapping[str, Any]) -> Outcome:
    """What becomes of an error in the tasks of a `try`."""
    named = {body.variable: dict(error)}
    caught = fits(error, await turn.fill(dict(body.errors)))
    if caught and body.when:
        caught = bool(await turn.evaluate(body.when, memo["input"], **named))
    if caught and body.except_when:
        caught = not await turn.evaluate(body.except_when, memo["input"], **named)
    if not caught:
        raise retries.Fault(error)
    again = {**memo, "data": memo["input"], "context": turn.flow.context, "at": 0}
    not_before_ns = await retries.next_attempt_ns(turn, body.retry, memo, named)
    if not_before_ns is not None:
        return _enter(turn, tried, {**again, "attempts": memo["attempts"] + 1}, {}, not_before_ns)
    if not body.handler:
        return await _leave(turn, _Over(again, CONTINUE))
    return _enter(turn, handler, {**again, "caught": dict(error)}, named)


async def _begin(turn: Turn, tasks: _List, more: Memo) -> Enter | _Over:
    memo = {**_fresh(turn, turn.input, turn.flow.context), **more}
    return _enter(turn, tasks, memo, {}) if tasks.tasks else _Over(memo, CONTINUE)


def _fresh(turn: Turn, data: Any, context: Any) -> Memo:
    return {"input": turn.input, "data": data, "context": context, "at": 0, "visits": {}}


def _last(turn: Turn) -> tuple[Memo, Any, Any]:
    """The memo, and the output or the failure of the one task that was under way."""
    found = turn.invocation.round
    assert found is not None
    turn.input = found.memo["input"]
    result = found.results[0]
    return dict(found.memo), result.output, None if result.completed else result.failure


def _next(
    turn: Turn, tasks: _List, memo: Memo, output: Any, failure: Any, *, variables: Mapping[str, Any] | None = None
) -> Enter | _Over:
    """Where the flow goes after a task of a list."""
    if failure is not None or output is None:
        raise retries.raised(turn, failure)
    memo |= {"data": output["data"], "context": output["context"]}
    then = output["then"]
    if then in (END, EXIT):
        return _Over(memo, END if then == END else CONTINUE)
    memo["at"] = memo["at"] + 1 if then == CONTINUE else _index(tasks.tasks, then)
    if memo["at"] >= len(tasks.tasks):
        return _Over(memo, CONTINUE)
    return _enter(turn, tasks, memo, variables or {})


def _enter(turn: Turn, tasks: _List, memo: Memo, variables: Mapping[str, Any], not_before_ns: int = 0) -> Enter:
    at = memo["at"]
    path = f"{tasks.under}{at}"
    visit = memo["visits"].get(path, 0) + 1
    memo = {**memo, "visits": {**memo["visits"], path: visit}}
    given = Flow(memo["data"], memo["context"], {**turn.flow.variables, **variables}).to_data()
    under = path if visit == 1 else f"{path}#{visit}"
    return Enter(tasks.first_block + at, under, given, memo, not_before_ns)


async def _leave(turn: Turn, over: _Over) -> Outcome:
    then = END if over.then == END else ""
    return await turn.leave(over.memo["data"], then, over.memo["context"])


def _loop(body: For, memo: Mapping[str, Any]) -> dict[str, Any]:
    return {body.each: memo["items"][memo["index"]], body.at: memo["index"]}


def _index(tasks: tuple[Task, ...], name: str) -> int:
    return next(index for index, task in enumerate(tasks) if task.name == name)
