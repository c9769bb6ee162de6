"""Durations and sizes as people write them (`300s`, `1h30m`, `64MB`) and as the code holds them (whole numbers).

Both directions are exact: formatting a number and parsing the text gives the number back. Sizes are powers of 1024
under either spelling, because that is what `64MB` means to RocksDB: `64MB` and `64MiB` are the same.
"""

import re
from typing import Final

MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

KB: Final = 1024
MB: Final = 1024 * KB
GB: Final = 1024 * MB
TB: Final = 1024 * GB

MAX_DURATION_NS: Final = 2**63 - 1
"""The longest duration, about 292 years: what fits in a signed 64-bit number of nanoseconds."""
MAX_SIZE_BYTES: Final = 2**63 - 1

_DURATION_UNITS: Final = {
    "d": DAY,
    "h": HOUR,
    "m": MINUTE,
    "s": SECOND,
    "ms": MILLISECOND,
    "us": MICROSECOND,
    "µs": MICROSECOND,
    "ns": 1,
}
_SIZE_UNITS: Final = {"TB": TB, "GB": GB, "MB": MB, "KB": KB, "TiB": TB, "GiB": GB, "MiB": MB, "KiB": KB, "B": 1}

_NUMBER: Final = r"(\d{1,19})(?:\.(\d{1,9}))?"
_PART: Final = re.compile(_NUMBER + r"(ms|us|µs|ns|d|h|m|s)", re.ASCII)
_SIZE: Final = re.compile(_NUMBER + r" ?([A-Za-z]{1,3})", re.ASCII)
_BARE: Final = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def parse_duration_ns(text: str) -> int:
    """Read a duration such as `300s`, `1h30m`, `12.5ms` or `7d`, in nanoseconds.

    Units are d, h, m, s, ms, us (or µs) and ns; parts go from the largest unit to the smallest, each unit once.
    Raises ValueError for a bare number, for anything else that is not a duration, and for one that is no whole number
    of nanoseconds or longer than MAX_DURATION_NS.
    """
    text = text.strip()
    if _BARE.fullmatch(text):
        raise ValueError(f"{text} has no unit: write {text.lstrip('+-')}s for seconds, or use ms, m, h or d")
    total, position, previous = 0, 0, DAY + 1
    while match := _PART.match(text, position):
        size = _DURATION_UNITS[match[3]]
        if size >= previous:
            raise ValueError(f"{text!r} is not a duration: units go from large to small, each once, like 1h30m")
        total += _scaled(match[1], match[2], size, text, "nanoseconds")
        position, previous = match.end(), size
    if not text or position != len(text):
        raise ValueError(
            f"{text!r} is not a duration: write a number and a unit (d, h, m, s, ms, us, ns), like 300s or 1h30m"
        )
    if total > MAX_DURATION_NS:
        raise ValueError(f"{text!r} is too long: the longest duration is {MAX_DURATION_NS // DAY}d")
    return total


def parse_size_bytes(text: str) -> int:
    """Read a size such as `64MB`, `1.5GB`, `4MiB` or `100B`, in bytes; 1 KB is 1024 bytes.

    Raises ValueError for a bare number, for anything else that is not a size, and for one that is no whole number of
    bytes or larger than MAX_SIZE_BYTES.
    """
    text = text.strip()
    if _BARE.fullmatch(text):
        raise ValueError(f"{text} has no unit: write {text.lstrip('+-')}MB, or use B, KB, GB or TB")
    match = _SIZE.fullmatch(text)
    if match is None or match[3] not in _SIZE_UNITS:
        meant = _meant_unit(match[3]) if match else ""
        hint = f"; did you mean {text[: -len(match[3])]}{meant}?" if match and meant else ""
        raise ValueError(f"{text!r} is not a size: write a number and a unit (B, KB, MB, GB, TB), like 64MB{hint}")
    size = _scaled(match[1], match[2], _SIZE_UNITS[match[3]], text, "bytes")
    if size > MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is too large: the largest size is {MAX_SIZE_BYTES // TB}TB")
    return size


def format_duration(duration_ns: int) -> str:
    """Write a duration exactly and as shortly as its units allow: `5m`, `1h30m`, `12.5ms`, `1m1.5s`, `0s`.

    Raises ValueError if it is negative, which no text stands for.
    """
    if duration_ns < 0:
        raise ValueError(f"a duration cannot be negative: {duration_ns} ns")
    whole, rest = "", duration_ns
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _DURATION_UNITS[unit])
        whole += f"{count}{unit}" if count else ""
    if not rest:
        return whole or "0s"
    if whole or rest >= SECOND:
        return whole + _decimal(rest, SECOND) + "s"
    unit = "ms" if rest >= MILLISECOND else "us" if rest >= MICROSECOND else "ns"
    return _decimal(rest, _DURATION_UNITS[unit]) + unit


def format_size(size_bytes: int) -> str:
    """Write a size exactly, in the largest unit of which it is a whole number: `64MB`, `1536MB`, `1001B`.

    Raises ValueError if it is negative.
    """
    if size_bytes < 0:
        raise ValueError(f"a size cannot be negative: {size_bytes} bytes")
    for unit in ("TB", "GB", "MB", "KB"):
        if size_bytes and size_bytes % _SIZE_UNITS[unit] == 0:
            return f"{size_bytes // _SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def _scaled(whole: str, fraction: str | None, unit: int, text: str, base: str) -> int:
    """A decimal number of units as a whole number of the base unit, exactly; ValueError where there is none."""
    if fraction is None:
        return int(whole) * unit
    part, lost = divmod(int(fraction.ljust(9, "0")) * unit, 1_000_000_000)
    if lost:
        raise ValueError(f"{text!r} is not a whole number of {base}")
    return int(whole) * unit + part


def _decimal(amount: int, unit: int) -> str:
    """`amount / unit` without trailing zeros; `unit` is a power of ten."""
    whole, rest = divmod(amount, unit)
    if not rest:
        return str(whole)
    digits = str(rest).zfill(len(str(unit)) - 1).rstrip("0")
    return f"{whole}.{digits}"


def _meant_unit(unit: str) -> str:
    """The unit that was probably meant by `mb`, `M` or `Mi`, or nothing."""
    wanted = unit.lower()
    return next((name for name in _SIZE_UNITS if wanted in (name.lower(), name[0].lower(), name[:-1].lower())), "")
