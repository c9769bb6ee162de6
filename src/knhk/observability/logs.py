"""Logs: one JSON object a line on stderr, or coloured text if stderr is a terminal.

Logging neither blocks nor raises. Lines go through a bounded queue to a thread that writes them: a terminal or a pipe
that nobody reads stops the thread and not the event loop. What does not fit is dropped, and how much is said later.
What the libraries log (uvicorn, asyncio) comes out in the same form.
"""

import atexit
import logging
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, Self, TextIO

import msgspec
import structlog

from knhk.actions.registry import INVOCATION
from knhk.domain import trace_context

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_DEFAULT_LEVEL: Final = "warning"
_QUEUED_LINES: Final = 10_000
_FLUSH_S: Final = 1.0
_ID_PREFIX: Final = "wf-"
_DEEPEST: Final = 6
_DROPPED: Final = "log lines were dropped"
_EXCEPTION: Final = "exc_info"  # rendered as text by a later processor, and masked after it
MASK: Final = "********"
_SECRET_NAME: Final = re.compile(
    r"passw|secret|token|authorization|cookie|credential|api[-_]?key|service[-_]?key|private[-_]?key|webhook[-_]?url",
    re.IGNORECASE,
)
_SECRET_TEXTS: Final = (
    (re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@"), rf"\1:{MASK}@"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\b(\w*(?:password|passwd|secret|token|api_?key)=)[^\s&;,'\"]+", re.IGNORECASE), rf"\1{MASK}"),
)


class Log:
    """A logger with a name and fields that all its lines carry."""

    __slots__ = ("_bound", "_name")

    def __init__(self, name: str, bound: Mapping[str, object] | None = None) -> None:
        self._name, self._bound = name, dict(bound or {})

    def bind(self, **fields: object) -> Self:
        """A logger whose lines also carry these fields."""
        return type(self)(self._name, self._bound | fields)

    def debug(self, event: str, /, **fields: object) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._write("error", event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._write("error", event, {_EXCEPTION: True} | fields)

    def critical(self, event: str, /, **fields: object) -> None:
        self._write("critical", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        _OUTPUT.write(level, event, {"logger": self._name} | self._bound | fields)


def get(name: str) -> Log:
    """The logger of a part, such as `knhk.serve`. May be called before `configure`."""
    return Log(name)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Log what is at least this severe (debug, info, warning, error, critical) to a stream, stderr by default.

    Raises ValueError for a level that does not exist.
    """
    _OUTPUT.configure(_number(level), stream)
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one, _LibraryHandler)]
    root.addHandler(_LibraryHandler())
    set_level(level)


def set_level(level: str) -> None:
    """Change how severe what is logged must be, at any time. Raises ValueError for a level that does not exist."""
    number = _number(level)
    _OUTPUT.least = number
    # Libraries tell every request and connection at `info`, which is only of use to somebody who looks for a fault.
    logging.getLogger().setLevel(logging.INFO if number == logging.DEBUG else max(number, logging.WARNING))


def level() -> str:
    """The present level."""
    return next(name for name, number in LEVELS.items() if number == _OUTPUT.least)


def keep(take: Callable[[str], None]) -> None:
    """Hand every line that is written, as JSON and without its secrets, to `take` too, in the thread that writes."""
    _OUTPUT.keepers.append(take)


def keep_no_more(take: Callable[[str], None]) -> None:
    """The opposite of `keep`. A no-op if it is not kept."""
    if take in _OUTPUT.keepers:
        _OUTPUT.keepers.remove(take)


def without_secrets(text: str) -> str:
    """The text without passwords in URLs, bearer tokens, and values that stand behind names such as `password=`."""
    return _without_secrets_in_text(None, "", text)


def flush(timeout_s: float = _FLUSH_S) -> None:
    """Wait, at most this long, until what was logged has been written."""
    _OUTPUT.flush(timeout_s)


class _Output:
    """Renders lines and hands them to the thread that writes."""

    def __init__(self) -> None:
        self._lines: queue.Queue[tuple[str, str] | threading.Event] = queue.Queue(_QUEUED_LINES)
        self.least = LEVELS[_DEFAULT_LEVEL]
        self._stream: TextIO | None = None
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._chain = self._json_chain = _chain(terminal=False)
        self.keepers: list[Callable[[str], None]] = []

    def configure(self, least: int, stream: TextIO | None) -> None:
        self.flush(_FLUSH_S)
        self.least, self._stream = least, stream
        self._chain = _chain(terminal=True) if _is_terminal(stream or sys.stderr) else self._json_chain

    def write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS[level] < self.least:
            return
        fields |= _trace_of(fields)
        line = self._safely_rendered(level, event, fields, self._chain)
        colourful = self.keepers and self._chain is not self._json_chain
        self._put(line, self._safely_rendered(level, event, fields, self._json_chain) if colourful else "")

    def flush(self, timeout_s: float) -> None:
        if self._thread is None:
            return
        written = threading.Event()
        try:
            self._lines.put(written, timeout=timeout_s)
        except queue.Full:
            return
        written.wait(timeout_s)

    def _safely_rendered(self, level: str, event: str, fields: dict[str, object], chain: Iterable[Any]) -> str:
        try:
            return self._rendered(level, event, fields, chain)
        except Exception as error:  # whatever a field's own __repr__ or __str__ does
            return self._rendered(level, str(event), {"unloggable": type(error).__name__}, chain)

    def _rendered(self, level: str, event: str, fields: dict[str, object], chain: Iterable[Any]) -> str:
        line: Any = {"event": event, **{("field_event" if key == "event" else key): fields[key] for key in fields}}
        for processor in chain:
            line = processor(None, level, line)
        return line if isinstance(line, str) else str(line, "utf-8", "replace")

    def _put(self, line: str, as_json: str) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="log-writer", daemon=True)
            self._thread.start()
            atexit.register(self.flush, _FLUSH_S)
        try:
            self._lines.put_nowait((line, as_json))
        except queue.Full:
            self._dropped += 1

    def _drain(self) -> None:
        while True:
            item = self._lines.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            line, as_json = item
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line = f"{line}\n{self._rendered('warning', _DROPPED, {'count': dropped}, self._chain)}"
            for take in self.keepers:
                with suppress(Exception):  # a full disk: the line is still written below
                    take(as_json or line)
            try:
                stream = self._stream or sys.stderr
                stream.write(f"{line}\n")
                stream.flush()
            except Exception:  # a closed stream: there is nowhere left to say so
                continue


class _LibraryHandler(logging.Handler):
    """What libraries log through the standard library, in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info:
            fields[_EXCEPTION] = record.exc_info
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        _OUTPUT.write(level if level in LEVELS else "info", message, fields)


def _number(level: str) -> int:
    number = LEVELS.get(level.lower())
    if number is None:
        raise ValueError(f"{level!r} is none of {', '.join(LEVELS)}")
    return number


def _trace_of(fields: Mapping[str, object]) -> dict[str, object]:
    """The ids that lead from a line to its trace: those of the attempt that logs, or of the run that it is about."""
    invocation = INVOCATION.get()
    found: dict[str, object] = {}
    if invocation is not None:
        found = {"workflow_id": invocation.workflow_id, "step": invocation.step, "attempt": invocation.attempt}
    named = fields.get("workflow_id", found.get("workflow_id"))
    if isinstance(named, str) and named.startswith(_ID_PREFIX) and named[len(_ID_PREFIX) :].isdecimal():
        number = int(named[len(_ID_PREFIX) :])
        found["trace_id"] = trace_context.trace_id(number).hex()
        if invocation is not None and named == invocation.workflow_id:
            span = trace_context.attempt_span_id(number, invocation.step, invocation.attempt)
            found["span_id"] = span.hex()
    return {key: value for key, value in found.items() if key not in fields}


def _chain(*, terminal: bool) -> tuple[Any, ...]:
    """The processors of structlog that turn fields into a line."""
    before = (
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_secrets,
    )
    if terminal:
        # The plain formatter: the default one prints local variables, and with them secrets.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return (*before, renderer, _without_secrets_in_text)
    return (*before, structlog.processors.format_exc_info, _without_secrets, _as_json)


def _without_secrets(_logger: object, _level: str, fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if key == _EXCEPTION else MASK if _SECRET_NAME.search(key) else _masked(value)
        for key, value in fields.items()
    }


def _without_secrets_in_text(_logger: object, _level: str, line: str) -> str:
    for pattern, replacement in _SECRET_TEXTS:
        line = pattern.sub(replacement, line)
    return line


def _masked(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return _without_secrets_in_text(None, "", value)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {
            str(key): MASK if _SECRET_NAME.search(str(key)) else _masked(one, depth + 1) for key, one in value.items()
        }
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_masked(one, depth + 1) for one in value]
    return value


def _as_json(_logger: object, _level: str, fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields, enc_hook=str)
    except Exception:  # a key, a number or a surrogate that JSON has no form for
        return msgspec.json.encode({_plain(key): _plain(value) for key, value in fields.items()})


def _plain(value: object) -> str:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else ascii(value)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except Exception:
        return False


_OUTPUT: Final = _Output()
