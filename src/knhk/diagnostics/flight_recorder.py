"""The flight recorder: what is left for an operator when the process is wedged or gone.

In the diagnostics directory: `recent.log` and `recent.log.1`, the last log lines (secrets masked, as everywhere), and
`server.json`, how to find the running process; it is there while the process runs. In memory: the newest lines.
"""

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

import msgspec

LOG_FILE: Final = "recent.log"
OLDER_LOG_FILE: Final = "recent.log.1"
SERVER_FILE: Final = "server.json"
_LINES: Final = 2_000
_LONGEST_LINE: Final = 16 << 10
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class FlightRecorder:
    """Keeps at most `most_bytes` of log lines in a directory, each as `scrub` returns it."""

    def __init__(self, directory: Path, most_bytes: int, scrub: Callable[[str], str] = str) -> None:
        self._directory, self._file_bytes, self._scrub = directory, most_bytes // 2, scrub
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._file: IO[str] | None = None
        self._written = 0

    def start(self, about: dict[str, Any]) -> None:
        """Begin; `about` says how the process is found. Raises OSError if the directory cannot be written."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / SERVER_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(about)))
        if self._file_bytes:
            self._open()

    def take(self, line: str) -> None:
        """One log line. Called in one thread at a time."""
        line = self._scrub(_COLOUR.sub("", line))[:_LONGEST_LINE]
        self._lines.append(line)
        if self._file is None:
            return
        if self._written > self._file_bytes:
            self._file.close()
            (self._directory / LOG_FILE).replace(self._directory / OLDER_LOG_FILE)
            self._open()
        self._file.write(f"{line}\n")
        self._file.flush()
        self._written += len(line) + 1

    def lines(self, limit: int) -> list[str]:
        """The newest lines, oldest first."""
        return list(self._lines)[-limit:]

    def stop(self) -> None:
        """The process is about to end."""
        (self._directory / SERVER_FILE).unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._file = (self._directory / LOG_FILE).open("a", encoding="utf-8")
        self._written = self._file.tell()
