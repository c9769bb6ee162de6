"""Points in time as text: RFC 3339 in UTC."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(at_ns: int) -> str:
    """Unix time in nanoseconds as RFC 3339 with milliseconds, such as 2026-01-31T12:00:00.250Z."""
    moment = _EPOCH + timedelta(microseconds=at_ns // 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
