"""`wait`: let time pass. The engine keeps a durable timer, so that waiting costs nothing and survives any crash."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from knhk.actions.parameters import parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, WaitUntil
from knhk.actions.schema import schema_of
from knhk.domain.plan import ActionTraits
from knhk.domain.units import parse_duration_ns

NAME: Final = "wait"
# Times are 64-bit nanoseconds in the journal, which end in the year 2262.
LATEST_NS: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


class WaitParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long (`5s`, `2h`) or until when (RFC 3339 with an offset), and what the step gives then."""

    duration: str | None = None
    until: str | None = None
    output: Any = None


def run(invocation: Invocation) -> Outcome:
    """Waits; a time that has passed is over at once."""
    params = parse(invocation, NAME, WaitParams)
    if isinstance(params, Failed):
        return params
    try:
        fire_at_ns = _fire_at_ns(params, invocation.now_ns)
    except ValueError as error:
        return wrong(NAME, str(error))
    if fire_at_ns > LATEST_NS:
        return wrong(NAME, "that is later than the year 2262")
    return WaitUntil(fire_at_ns, params.output)


def _fire_at_ns(params: WaitParams, now_ns: int) -> int:
    match params.duration, params.until:
        case str(duration), None:
            return now_ns + parse_duration_ns(duration)
        case None, str(until):
            return unix_ns(until)
        case _:
            raise ValueError("give exactly one of `duration` and `until`")


def unix_ns(text: str) -> int:
    """Unix time in nanoseconds (microseconds exact, 0 before 1970) of an RFC 3339 timestamp. Raises ValueError."""
    if not _RFC_3339.fullmatch(text):
        raise ValueError(f"`until` must be RFC 3339 with an offset, such as 2026-01-31T12:00:00Z, not {text!r}")
    since = datetime.fromisoformat(text.upper()) - _EPOCH
    return max(0, since // timedelta(microseconds=1) * 1000)


TRAITS: Final = ActionTraits(
    NAME, pure=True, guarantee="exactly-once", params_schema=schema_of(WaitParams), reads_dependencies=False
)
ACTION: Final = Action(TRAITS, "inline", run, __name__, about="lets time pass, with a durable timer")
