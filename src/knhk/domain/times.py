"""Points in time as text: RFC 3339 in UTC."""

from datetime import UTC, datetime
from functools import lru_cache


def rfc3339(at_ns: int) -> str:
    """Unix time in nanoseconds as RFC 3339 with milliseconds, such as 2026-01-31T12:00:00.250Z."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """Most times that are written are of this very second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
