"""The same decision about many runs: those that a filter finds, a bounded number at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec

from knhk.domain.errors import InvalidParameter, KnhkError
from knhk.domain.identifier import parse
from knhk.domain.run import RunState
from knhk.engine.requests import Filter

Verb = Literal["cancel", "pause", "resume", "retry", "delete"]
MOST_AT_ONCE: Final = 500
_SIDE_BY_SIDE: Final = 50
_APPLIES_TO: Final[dict[str, frozenset[str]]] = {
    "cancel": frozenset({RunState.PENDING, RunState.RUNNING, RunState.PAUSED}),
    "pause": frozenset({RunState.PENDING, RunState.RUNNING}),
    "resume": frozenset({RunState.PAUSED}),
    "retry": frozenset({RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}),
    "delete": frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}),
}

Listing = Callable[..., Awaitable[tuple[list[dict[str, Any]], int | None]]]
Act = Callable[[int], Awaitable[object]]


class Failure(msgspec.Struct):
    """A run to which the decision could not be applied, and why."""

    workflow_id: str
    code: str
    message: str


class Outcome(msgspec.Struct):
    """What a bulk did, or with a dry run would do: the runs, and where the next one goes on (null at the end)."""

    matched: list[str]
    done: int
    failed: list[Failure]
    next_cursor: int | None


async def apply_to_all(
    verb: Verb, wanted: Filter, listing: Listing, act: Act, *, before: int | None, limit: int, dry_run: bool
) -> Outcome:
    """Decide about up to `limit` runs that a filter finds and to which the verb applies, newest first.

    The list, which may lag a moment behind, tells which runs there are; each says itself whether it is possible.
    Raises InvalidParameter for a state to which the verb never applies, or a filter that is empty.
    """
    states = _APPLIES_TO[verb]
    if wanted.state and wanted.state not in states:
        raise InvalidParameter(f"{verb} is for runs that are {', '.join(sorted(states))}, not {wanted.state}")
    if wanted == Filter():
        raise InvalidParameter(
            "a bulk needs a filter", hint="Name at least one of state, name and department; try it with a dry run."
        )
    rows, following = await listing(wanted, before=before, limit=min(limit, MOST_AT_ONCE))
    ids = [row["workflow_id"] for row in rows if row["state"] in states and not (verb == "delete" and row["erased"])]
    outcome = Outcome(ids, 0, [], following)
    if dry_run:
        return outcome
    places = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def one(workflow_id: str) -> None:
        async with places:
            try:
                await act(parse(workflow_id))
                outcome.done += 1
            except KnhkError as error:
                outcome.failed.append(Failure(workflow_id, error.code, error.message))

    await asyncio.gather(*map(one, ids))
    return outcome
