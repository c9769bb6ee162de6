"""`python`: call a function in a process of its own, for work that needs a processor. Off until functions are named.

A bounded number of processes is kept; one is started when there is more to do, and killed with all that it started when
a call takes too long, is cancelled or its process dies. Then the next call gets a new process.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
from typing import Any, Final

import msgspec

from knhk.actions.blob_pipe import Desk
from knhk.actions.blob_streams import PIECE_BYTES, Keep
from knhk.actions.bounds import within
from knhk.actions.parameters import NOT_ALLOWED_CODE, parse, wrong
from knhk.actions.python_process import LENGTH, Answer, Call
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater
from knhk.actions.schema import schema_of
from knhk.actions.transport import Report, assignment_of, outcome_of
from knhk.config import PythonOptions
from knhk.domain.plan import ActionTraits
from knhk.domain.units import SECOND, format_duration
from knhk.ports.blobs import Blobs, NoBlobs

NAME: Final = "python"
TIMEOUT_CODE: Final = "KNHK-PYTHON-TIMEOUT"
DIED_CODE: Final = "KNHK-PYTHON-DIED"
_PLACE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z]\w*", re.ASCII)
_ANSWER: Final = msgspec.msgpack.Decoder(Answer)
_NO_BLOBS: Final = NoBlobs("this process has no blob area")


class PythonParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function, `module:name`, its arguments by name, how long it may take, and whether it gives a blob."""

    callable: str
    args: dict[str, Any] = {}
    timeout: str | None = None
    blob: Keep = "auto"


class PythonPool:
    """The processes of one server, at most `processes`; further calls wait for one, in the order they came."""

    def __init__(self, options: PythonOptions, blobs: Blobs = _NO_BLOBS) -> None:
        self._options, self._blobs = options, blobs
        self._places = asyncio.Semaphore(options.processes)
        self._idle: list[asyncio.subprocess.Process] = []

    async def run(self, invocation: Invocation) -> Outcome:
        """Calls the function and gives what it gives; a function can do all that an action can."""
        params = parse(invocation, NAME, PythonParams)
        if isinstance(params, Failed):
            return params
        options, place = self._options, params.callable
        if not _PLACE.fullmatch(place):
            return wrong(NAME, "`callable` must be `module:function`")
        if place not in options.callables and f"{place.partition(':')[0]}:*" not in options.callables:
            return Failed(NOT_ALLOWED_CODE, f"python: {place!r} is not one of `actions.python.callables`")
        try:
            timeout_ns = within("timeout", params.timeout, options.timeout_ns, options.max_timeout_ns)
        except ValueError as error:
            return wrong(NAME, str(error))
        inner = msgspec.structs.replace(invocation, params=params.args)
        blobs = self._blobs
        keep: Keep = params.blob if blobs.max_bytes else "never"
        call = msgspec.msgpack.encode(Call(assignment_of(place, inner), keep, blobs.inline_bytes, blobs.data_bytes))
        async with self._places:
            return await self._call(place, call, timeout_ns)

    async def aclose(self) -> None:
        """End the processes that wait for work."""
        while self._idle:
            await _kill(self._idle.pop())

    async def _call(self, place: str, call: bytes, timeout_ns: int) -> Outcome:
        process: asyncio.subprocess.Process | None = None
        healthy = False
        desk = Desk(self._blobs)
        try:
            async with asyncio.timeout(timeout_ns / SECOND):
                process = await self._process()
                report = await _exchange(process, call, desk)
            healthy = True
            return outcome_of(report)
        except TimeoutError:
            return RetryLater(TIMEOUT_CODE, f"{place}: not finished after {format_duration(timeout_ns)}")
        except (asyncio.IncompleteReadError, ConnectionError):
            code = None if process is None else await process.wait()
            return RetryLater(DIED_CODE, f"{place}: its process ended with {_how(code)}")
        finally:
            if desk.has_begun:
                await asyncio.shield(asyncio.to_thread(desk.close))
            if healthy and process is not None:
                self._idle.append(process)
            elif process is not None:
                await asyncio.shield(_kill(process))

    async def _process(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "knhk.actions.python_process", str(self._options.max_memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=PIECE_BYTES,
            start_new_session=True,
        )


async def _exchange(process: asyncio.subprocess.Process, call: bytes, desk: Desk) -> Report:
    assert process.stdin is not None
    assert process.stdout is not None
    message = call
    while True:
        process.stdin.write(LENGTH.pack(len(message)))
        process.stdin.write(message)
        await process.stdin.drain()
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        answer = _ANSWER.decode(await process.stdout.readexactly(length))
        if answer.request is None:
            assert answer.report is not None
            return answer.report
        message = msgspec.msgpack.encode(await asyncio.to_thread(desk.answer, answer.request))


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _how(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def action(options: PythonOptions, blobs: Blobs = _NO_BLOBS) -> Action:
    """The action within these limits."""
    pool = PythonPool(options, blobs)
    disabled = "" if options.callables else "`actions.python.callables` names no function"
    traits = ActionTraits(
        NAME, pure=False, params_schema=schema_of(PythonParams), reads_dependencies=False, disabled=disabled
    )
    return Action(traits, "async", pool.run, __name__, pool.aclose, "calls a function in a process of its own")
