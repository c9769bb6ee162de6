"""Bars for terminals: how long, which share, and when."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from knhk.diagnostics.timing import KINDS, Attempt, Segment

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.text import Text

LOOKS: Final[dict[str, tuple[str, str]]] = {
    "execution": ("█", "green"),
    "queue": ("▒", "blue"),
    "commit": ("░", "cyan"),
    "backoff": ("╌", "yellow"),
    "waiting": ("─", "magenta"),
    "paused": ("·", "dim"),
    "engine": ("▁", "dim"),
}
"""What each kind of segment looks like."""
_OUTCOMES: Final = {"failed": "red", "retrying": "yellow", "cancelled": "magenta", "running": "cyan"}
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_LEAST_WIDTH: Final = 10


class TimeBar:
    """When things happened between two moments: one line, as wide as there is room."""

    def __init__(self, segments: Iterable[tuple[Segment, str]], from_ns: int, to_ns: int) -> None:
        self._segments, self._from_ns, self._took_ns = list(segments), from_ns, max(1, to_ns - from_ns)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        width = options.max_width
        cells: list[tuple[str, str]] = [(" ", "")] * width
        for segment, style in self._segments:
            begin = (segment.from_ns - self._from_ns) * width / self._took_ns
            end = (segment.to_ns - self._from_ns) * width / self._took_ns
            first, last = min(width - 1, int(begin)), min(width, max(int(begin) + 1, round(end)))
            glyph, colour = LOOKS[segment.kind]
            if segment.kind == "execution" and end - begin < 0.5:
                glyph = "▏"
            for at in range(max(0, first), last):
                cells[at] = (glyph, style or colour)
        line = Text(no_wrap=True, end="")
        for glyph, style in cells:
            line.append(glyph, style)
        yield line

    def __rich_measure__(self, _console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement

        return Measurement(_LEAST_WIDTH, options.max_width)


def attempt_bar(attempts: Sequence[Attempt], from_ns: int, to_ns: int) -> TimeBar:
    """The attempts of a step; execution has the colour of its outcome."""
    segments = [
        (segment, _OUTCOMES.get(attempt.outcome, "") if segment.kind == "execution" else "")
        for attempt in attempts
        for segment in attempt.segments
    ]
    return TimeBar(segments, from_ns, to_ns)


def share_bar(share: float, width: int = 24, style: str = "green") -> "Text":
    """A share from 0 to 1 as a bar, exact to an eighth of a cell."""
    from rich.text import Text

    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return Text.assemble((bar, style), ("·" * (width - len(bar)), "bright_black"))


def legend(kinds: Iterable[str]) -> "Text":
    """What the bars mean, for those kinds that are in them."""
    from rich.text import Text

    present, line = set(kinds), Text()
    for kind in KINDS:
        if kind in present:
            glyph, style = LOOKS[kind]
            line.append(f"{glyph * 2} ", style).append(f"{kind}   ", "dim")
    return line


def took(nanoseconds: float) -> str:
    """A duration for people, three digits."""
    seconds = nanoseconds / 1e9
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02}m"
    if seconds >= 60:
        return f"{int(seconds // 60)}m{int(seconds % 60):02}s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            value = seconds / size
            return (
                f"{value:.0f} {unit}"
                if value >= 100
                else f"{value:.1f} {unit}"
                if value >= 10
                else f"{value:.2f} {unit}"
            )
    raise AssertionError("unreachable")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plain(value: Any) -> Any:
    """Structs as JSON-like data."""
    import msgspec

    return msgspec.to_builtins(value)
