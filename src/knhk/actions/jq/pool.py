"""A few processes that evaluate jq, started when first needed; one that does not answer in time is killed.

Whoever asks waits until a process is free. A process that died (killed for its time, or out of memory) costs only the
expression that it was evaluating; the next one gets a new process.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from knhk.domain.errors import InvalidExpression

MAX_SOURCE_CHARS: Final = 16_000
_WORKER: Final = Path(__file__).with_name("worker.py")
_DEFAULT_TIMEOUT_S: Final = 2.0
_DEFAULT_MEMORY_BYTES: Final = 1 << 30
_NOTHING: Final[Mapping[str, Any]] = {}


class JqPool:
    """Evaluates jq programs, at most `processes` at a time, each for at most `timeout_s` seconds."""

    def __init__(
        self,
        *,
        processes: int = 2,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        memory_bytes: int = _DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._processes, self._timeout_s, self._memory_bytes = processes, timeout_s, memory_bytes
        self._free = asyncio.Semaphore(processes)
        self._idle: deque[asyncio.subprocess.Process] = deque()

    async def fill(self, template: Any, given: Any, variables: Mapping[str, Any] = _NOTHING) -> Any:
        """A JSON-like template with each text `${ program }` in it replaced by the program's value.

        `given` is the programs' input, `variables` their `$name`s. A program without an output gives null, one with
        several a list. Raises InvalidExpression.
        """
        return await self._ask(template, given, variables, bare=False)

    async def evaluate(self, source: str, given: Any, variables: Mapping[str, Any] = _NOTHING) -> Any:
        """The value of one program, with or without `${ }` around it. Raises InvalidExpression."""
        return await self._ask(source, given, variables, bare=True)

    async def close(self) -> None:
        """End the processes. The pool can be used again, in another event loop too."""
        idle, self._idle = self._idle, deque()
        self._free = asyncio.Semaphore(self._processes)
        for process in idle:
            await _end(process)

    async def _ask(self, template: Any, given: Any, variables: Mapping[str, Any], *, bare: bool) -> Any:
        frame = msgspec.msgpack.encode((template, given, variables, bare))
        idle = self._idle
        async with self._free:
            process = idle.popleft() if idle else await self._start()
            done = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    raw = await _exchange(process, frame)
                done = True
            except TimeoutError:
                raise InvalidExpression(
                    f"{_shown(template)}: no value after {self._timeout_s:g} s", hint="Give it less to do."
                ) from None
            except (asyncio.IncompleteReadError, ConnectionError):
                most = f"{self._memory_bytes >> 20} MiB"
                raise InvalidExpression(
                    f"{_shown(template)}: its process ended; it may have needed more than {most}"
                ) from None
            finally:
                if done and idle is self._idle:  # else the pool was closed meanwhile
                    idle.append(process)
                else:
                    await _end(process)
        good, value = msgspec.msgpack.decode(raw)
        if not good:
            raise InvalidExpression(f"{_shown(template)}: {value}")
        return value

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(_WORKER),
            str(self._memory_bytes),
            str(max(1, round(self._timeout_s))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={},
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which then ends its processes
        )


async def _exchange(process: asyncio.subprocess.Process, frame: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(len(frame).to_bytes(4) + frame)
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(4))
    return await process.stdout.readexactly(size)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _shown(template: Any) -> str:
    text = template if isinstance(template, str) else msgspec.json.encode(template).decode()
    return repr(text if len(text) <= 80 else text[:80] + "…")
