"""Durations and sizes: what is read, what is refused and how, and that writing and reading are inverse."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import units
from knhk.domain.units import format_duration, format_size, parse_duration_ns, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300s", 300 * units.SECOND),
        ("5m", 5 * units.MINUTE),
        ("1h30m", 90 * units.MINUTE),
        ("1d2h3m4s5ms6us7ns", 93_784_005_006_007),
        ("250ms", 250_000_000),
        ("12.5ms", 12_500_000),
        ("7d", 7 * units.DAY),
        ("500us", 500_000),
        ("500µs", 500_000),
        ("0s", 0),
        ("0.000000001s", 1),
        (" 10s ", 10 * units.SECOND),
    ],
)
def test_durations_are_read(text: str, expected: int) -> None:
    assert parse_duration_ns(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("300", "300 has no unit: write 300s"),
        ("-5", "has no unit"),
        ("1.5", "has no unit: write 1.5s"),
        ("", "is not a duration"),
        ("s", "is not a duration"),
        ("-5s", "is not a duration"),
        ("5 m", "is not a duration"),
        ("5min", "is not a duration"),
        ("5M", "is not a duration"),
        ("1e3s", "is not a duration"),
        ("٣s", "is not a duration"),
        ("30m1h", "large to small"),
        ("1m1m", "large to small"),
        ("0.5ns", "whole number of nanoseconds"),
        ("200000d", "too long"),
        ("9" * 5000 + "s", "is not a duration"),
    ],
)
def test_what_is_no_duration_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_duration_ns(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64MB", 64 * 1024 * 1024),
        ("64 MB", 64 * 1024 * 1024),
        ("1GB", 1024**3),
        ("512KB", 512 * 1024),
        ("4MiB", 4 * 1024 * 1024),
        ("1.5GB", 1536 * 1024 * 1024),
        ("100B", 100),
        ("2TB", 2 * 1024**4),
        ("0B", 0),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_size_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64", "64 has no unit: write 64MB"),
        ("64mb", "did you mean 64MB"),
        ("64M", "did you mean 64MB"),
        ("64Mi", "did you mean 64MiB"),
        ("64 XB", "is not a size"),
        ("-1MB", "is not a size"),
        ("", "is not a size"),
        ("0.3B", "whole number of bytes"),
        ("9000000000TB", "too large"),
    ],
)
def test_what_is_no_size_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (300 * units.SECOND, "5m"),
        (90 * units.MINUTE, "1h30m"),
        (12_500_000, "12.5ms"),
        (1_500_000_000, "1.5s"),
        (61_500_000_000, "1m1.5s"),
        (units.DAY + 1, "1d0.000000001s"),
        (1_500, "1.5us"),
        (7, "7ns"),
        (0, "0s"),
    ],
)
def test_durations_are_written_shortly(duration_ns: int, text: str) -> None:
    assert format_duration(duration_ns) == text


@pytest.mark.parametrize(
    ("size", "text"), [(64 * units.MB, "64MB"), (1536 * units.MB, "1536MB"), (1001, "1001B"), (0, "0B")]
)
def test_sizes_are_written_in_the_largest_whole_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, units.MAX_DURATION_NS))
def test_every_duration_survives_writing_and_reading(duration_ns: int) -> None:
    assert parse_duration_ns(format_duration(duration_ns)) == duration_ns


@given(st.integers(0, units.MAX_SIZE_BYTES))
def test_every_size_survives_writing_and_reading(size_bytes: int) -> None:
    assert parse_size_bytes(format_size(size_bytes)) == size_bytes


@given(st.integers(0, 10**5), st.sampled_from(["d", "h", "m", "s", "ms", "us", "ns"]))
def test_written_durations_are_canonical(count: int, unit: str) -> None:
    written = format_duration(parse_duration_ns(f"{count}{unit}"))
    assert format_duration(parse_duration_ns(written)) == written


@given(st.text())
def test_no_text_does_worse_than_a_value_error(text: str) -> None:
    for parse in (parse_duration_ns, parse_size_bytes):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


@pytest.mark.parametrize("write", [format_duration, format_size])
def test_negative_amounts_have_no_text(write: object) -> None:
    with pytest.raises(ValueError, match="negative"):
        write(-1)  # type: ignore[operator]
