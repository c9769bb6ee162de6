"""Limits that a step may set for itself, within those of the configuration."""

from knhk.domain.units import format_duration, format_size, parse_duration_ns, parse_size_bytes


def within(name: str, given: str | None, default: int, most: int, *, size: bool = False) -> int:
    """A duration in nanoseconds, or a size in bytes, from its text; the default if there is none.

    Raises:
        ValueError: the text is no such thing, or it is nothing or more than allowed.
    """
    if given is None:
        return min(default, most)
    try:
        value = parse_size_bytes(given) if size else parse_duration_ns(given)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from error
    if not 0 < value <= most:
        shown = format_size(most) if size else format_duration(most)
        raise ValueError(f"`{name}` must be more than nothing and at most {shown}, as the configuration says")
    return value
