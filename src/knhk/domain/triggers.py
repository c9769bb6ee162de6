"""What starts runs of a definition by itself: cron schedules, webhooks, events; and when a schedule fires.

Schedules are wall-clock time of their zone. As in Debian's cron, a time that daylight saving skips fires right after
the gap, and one that it repeats fires once; a schedule of every hour or minute just goes on.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from knhk.domain.expressions import Template

CatchUp = Literal["none", "last", "all"]
DEFAULT_MOST: Final = 100
_SECOND_NS: Final = 1_000_000_000


class Cron(msgspec.Struct, frozen=True):
    """A schedule. `catch_up` says which of the times that were missed are made up for, `most` how many of them."""

    expression: str
    timezone: str = "UTC"
    catch_up: CatchUp = "last"
    most: int = DEFAULT_MOST


class Webhook(msgspec.Struct, frozen=True):
    """A signed HTTP request. The secret is in the environment variable `secret_env`, the signature, HMAC-SHA256 of the
    body in hexadecimal, in `signature_header`, and what tells a repeated delivery in `id_header`."""

    secret_env: str
    signature_header: str = "x-hub-signature-256"
    id_header: str = "x-github-delivery"


class OnEvent(msgspec.Struct, frozen=True):
    """A published event of this name, whatever its correlation."""

    event: str


class Trigger(msgspec.Struct, frozen=True):
    """One of a definition's triggers. `inputs` may read `trigger`: name, time, and what came (data, id, correlate)."""

    name: str
    source: Cron | Webhook | OnEvent
    inputs: Template


def schedule_fault(expression: str, timezone: str) -> str:
    """What is wrong with a schedule, empty if nothing is."""
    try:
        zone = zone_of(timezone)
    except (ValueError, OSError, KeyError):
        return f"there is no time zone {timezone[:60]!r}; they look like Europe/Berlin"
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=zone)))
    except (CronSimError, StopIteration):
        return f"{expression[:80]!r} is no cron schedule: minute, hour, day of month, month, day of week"
    return ""


def next_times(cron: Cron, after_ns: int, count: int) -> list[int]:
    """The next times at which a schedule fires after a time; all are Unix time in ns."""
    return list(islice(_forward(cron, after_ns), count))


def times_between(cron: Cron, after_ns: int, until_ns: int, most: int) -> list[int]:
    """The latest `most` times at which a schedule fires after one time and until another, the earliest first."""
    start_ns = after_ns
    backward = CronSim(cron.expression, _at(until_ns, cron) + timedelta(seconds=1), reverse=True)
    for number, candidate in enumerate(backward):
        if _ns(candidate) <= after_ns:
            break
        if number > most:
            start_ns = _ns(candidate)  # Going forward alone is exact where clocks are put forward or back.
            break
    found: list[int] = []
    for at_ns in _forward(cron, start_ns):
        if at_ns > until_ns:
            break
        found.append(at_ns)
    return found[-most:]


def _forward(cron: Cron, after_ns: int) -> Iterator[int]:
    for one in CronSim(cron.expression, _at(after_ns, cron)):
        at_ns = _ns(one)
        if at_ns > after_ns:
            yield at_ns


@lru_cache(maxsize=64)
def zone_of(timezone: str) -> ZoneInfo:
    """The zone of a name. Raises ValueError, OSError or KeyError."""
    return ZoneInfo(timezone)


def _at(at_ns: int, cron: Cron) -> datetime:
    return datetime.fromtimestamp(at_ns // _SECOND_NS, UTC).astimezone(zone_of(cron.timezone))


def _ns(at: datetime) -> int:
    return int(at.timestamp()) * _SECOND_NS
