"""The runs of all partitions as one list, newest first, whoever owns them.

A process that is asked for the runs of some partitions (`X-Knhk-Partitions`) answers for these alone, from its own.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from knhk.api.places import UNANSWERED
from knhk.api.submit import PATH, Headers
from knhk.domain import identifier
from knhk.domain.errors import InvalidParameter, NodeGone, PartitionMoving
from knhk.engine.control import Control, Filter

if TYPE_CHECKING:
    from knhk.api.router import Router

Page = tuple[list[dict[str, Any]], int | None]
"""Rows, newest first, and the id below which the next page begins; None after the last."""
PARTITIONS: Final = b"x-knhk-partitions"
ASKED: ContextVar[Sequence[int] | None] = ContextVar("asked", default=None)
"""The partitions that a request is about, None if it is about all."""


def asked(headers: Headers) -> Sequence[int] | None:
    """The partitions that a request names. Raises InvalidParameter."""
    given = next((value for name, value in headers if name == PARTITIONS), None)
    try:
        return None if given is None else [int(one) for one in given.split(b",")]
    except ValueError:
        raise InvalidParameter("X-Knhk-Partitions: numbers with commas between them") from None


async def of_all(router: "Router", wanted: Filter, before: int | None, limit: int) -> Page:
    """A page of the runs of all partitions, or of those that the request names. Raises PartitionMoving."""
    places, named = router.places, ASKED.get()
    pages: list[Awaitable[Page]] = []
    elsewhere: dict[str, list[int]] = {}

    async def control_of(number: int) -> Control | str | None:
        try:
            return places.listing(number) or await router.owner(number, forwarded=named is not None)
        except (PartitionMoving, NodeGone) as error:
            if named is not None:
                raise
            _left_out(error)
            return None

    numbers = list(range(places.partitions) if named is None else named)
    controls = await asyncio.gather(*map(control_of, numbers))
    for number, control in zip(numbers, controls, strict=True):
        if isinstance(control, str):
            elsewhere.setdefault(control, []).append(number)
        elif control is not None:
            pages.append(control.listing(wanted, before=before, limit=limit))
    query = {key: value for key, value in _of(wanted) if value} | {"limit": str(limit)}
    query |= {} if before is None else {"cursor": str(before)}
    for numbers in elsewhere.values():
        pages.append(_remote(router, numbers, f"{PATH}?{urlencode(query)}"))
    return merged(await asyncio.gather(*pages), limit)


def merged(pages: Iterable[Page], limit: int) -> Page:
    """One page of several, none of which has a run of another."""
    pages = list(pages)
    # Below the highest place at which a partition broke off, its runs are not known yet.
    floor = max((following for _, following in pages if following is not None), default=None)
    found = [(identifier.parse(row["workflow_id"]), row) for rows, _ in pages for row in rows]
    found = sorted((one for one in found if floor is None or one[0] >= floor), key=lambda one: -one[0])
    if len(found) > limit:
        return [row for _, row in found[:limit]], found[limit - 1][0]
    return [row for _, row in found], floor


async def _remote(router: "Router", numbers: Sequence[int], target: str) -> Page:
    named = ",".join(map(str, numbers)).encode()
    try:
        answer = await router.ask(numbers[0], target, [(PARTITIONS, named)])
        if answer.status_code != 200:
            raise PartitionMoving(f"a list of partition {numbers[0]} was answered with {answer.status_code}")
    except (PartitionMoving, NodeGone) as error:
        _left_out(error)
        return [], None
    page = answer.json()
    return page["workflows"], None if page["next_cursor"] is None else int(page["next_cursor"])


def _left_out(error: PartitionMoving | NodeGone) -> None:
    """Note that a part of the list is missing. Raises the error where lists must be whole."""
    unanswered = UNANSWERED.get()
    if unanswered is None:
        raise error
    unanswered.add(error.message)


def _of(wanted: Filter) -> Iterable[tuple[str, str]]:
    return ("state", str(wanted.state)), ("name", wanted.name), ("department", wanted.department)
