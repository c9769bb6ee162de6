"""The process in which the `python` action calls functions: `python -m knhk.actions.python_process MEMORY_BYTES`.

Calls come on stdin and reports go to what was stdout, each as msgpack behind its length in 4 bytes; in between go
requests for blobs and their replies (blob_pipe.py). What the functions print goes to stderr. The process ends when
stdin is closed, and is killed by the kernel when the server dies.
"""

import asyncio
import ctypes
import functools
import importlib
import inspect
import itertools
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any, BinaryIO, Final

import msgspec

from knhk.actions.blob_access import BlobAccess, provide
from knhk.actions.blob_pipe import PipeAccess, Reply, Request
from knhk.actions.blob_streams import PIECE_BYTES, Keep
from knhk.actions.decorator import OUTPUT_CODE, ActionFailed, as_action
from knhk.actions.registry import MARK, Failed, Outcome, Succeeded
from knhk.actions.schema import to_plain
from knhk.actions.transport import Assignment, Report, normalised, report_of, run_blocking
from knhk.domain import payload
from knhk.domain.blob import JSON, JSON_LINES, OCTETS, TEXT, BlobReference

CALLABLE_CODE: Final = "KNHK-PYTHON-CALLABLE"
LENGTH: Final = struct.Struct(">I")
_PR_SET_PDEATHSIG: Final = 1


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What is called, and how large what it gives may be before it becomes a blob, as text and as data."""

    assignment: Assignment
    keep: Keep
    inline_bytes: int
    data_bytes: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What the process sends: a request for a blob, or else the report of the call."""

    request: Request | None
    report: Report | None = None


_CALL: Final = msgspec.msgpack.Decoder(Call)
_REPLY: Final = msgspec.msgpack.Decoder(Reply)


def main() -> None:
    """Answer calls until there are no more."""
    memory_bytes = int(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path.append("")  # modules in the working directory, as for the server
    calls = sys.stdin.buffer

    def ask(request: Request) -> Reply:
        write_frame(answers, msgspec.msgpack.encode(Answer(request)))
        raw = read_frame(calls)
        return os._exit(1) if raw is None else _REPLY.decode(raw)  # the server is gone

    blobs = PipeAccess(ask)
    provide(blobs)
    while (raw := read_frame(calls)) is not None:
        outcome = perform(_CALL.decode(raw), blobs)
        try:
            answer = msgspec.msgpack.encode(Answer(None, report_of(outcome)))
        except Exception as error:
            failed = Failed(OUTPUT_CODE, f"{type(error).__name__}: {error}")
            answer = msgspec.msgpack.encode(Answer(None, report_of(failed)))
        write_frame(answers, answer)


def write_frame(stream: BinaryIO, raw: bytes) -> None:
    """Send a message."""
    stream.write(LENGTH.pack(len(raw)) + raw)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next message, None at the end."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    raw = stream.read(length)
    return raw if len(raw) == length else None


def perform(call: Call, blobs: BlobAccess) -> Outcome:
    """Call the function that the assignment names, `module:function`."""
    assignment = call.assignment
    try:
        function = function_at(assignment.action)
        action = as_action(assignment.action, function if call.keep == "never" else _keeping(function, call, blobs))
    except Exception as error:  # whatever a module does when it is imported
        return Failed(CALLABLE_CODE, f"{assignment.action}: {type(error).__name__}: {error}"[:500])
    try:
        if action.mode == "async":
            return asyncio.run(action.run(assignment.invocation()))  # type: ignore[arg-type]  # mode says so
        return run_blocking(action, assignment.invocation())
    except Exception as error:
        return normalised(error)


def _keeping(function: FunctionType, call: Call, blobs: BlobAccess) -> FunctionType:
    """The function, but what it gives is put into a blob if it is large; the pieces of an iterator always are."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def keeping(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(_kept, await function(*args, **kwargs), call, blobs)

    else:

        @functools.wraps(function)
        def keeping(*args: Any, **kwargs: Any) -> Any:
            return _kept(function(*args, **kwargs), call, blobs)

    keeping.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    vars(keeping).pop(MARK, None)
    return keeping  # type: ignore[return-value]  # what functools.wraps gives is the function


def _kept(value: Any, call: Call, blobs: BlobAccess) -> Any:
    always = call.keep == "always"
    match value:
        case BlobReference() | None:
            return value
        case Succeeded(output=output):
            return Succeeded(_kept(output, call, blobs))
        case Iterator():
            return _streamed(value, blobs)
        case bytes() | bytearray() | memoryview():
            return blobs.put(bytes(value), OCTETS) if always or len(value) > call.inline_bytes else value
        case str():
            raw = value.encode() if always or len(value) > call.inline_bytes // 4 else b""
            return blobs.put(raw, TEXT) if always or len(raw) > call.inline_bytes else value
        case _ if isinstance(value, Outcome):
            return value
    try:
        plain = to_plain(value)
    except (TypeError, ValueError, RecursionError):
        return value  # the action says what is wrong with it
    if always or len(payload.encode(plain)) > call.data_bytes:
        return blobs.put(msgspec.json.encode(plain), JSON)
    return value


def _streamed(values: Iterator[Any], blobs: BlobAccess) -> BlobReference:
    """A blob of bytes, of text, or else of values as lines of JSON, written as they come."""
    first = next(values, b"")
    media_type = OCTETS if isinstance(first, bytes) else TEXT if isinstance(first, str) else JSON_LINES

    def pieces() -> Iterator[bytes]:
        held = bytearray()
        for value in itertools.chain([first], values):
            if media_type == JSON_LINES:
                held += _line(value)
            else:
                held += value.encode() if media_type == TEXT else value
            if len(held) >= PIECE_BYTES:
                for at in range(0, len(held), PIECE_BYTES):
                    yield bytes(held[at : at + PIECE_BYTES])
                held.clear()
        yield bytes(held)

    return blobs.put(pieces(), media_type)


def _line(value: Any) -> bytes:
    try:
        return msgspec.json.encode(to_plain(value)) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ActionFailed(f"a value cannot be stored: {error}", OUTPUT_CODE) from error


def function_at(place: str) -> FunctionType:
    """The function `module:name`, which must be defined in that very module. Raises what importing it raises."""
    module_name, _, name = place.partition(":")
    found: Any = getattr(importlib.import_module(module_name), name)
    if not isinstance(found, FunctionType) or found.__module__ != module_name:
        raise TypeError(f"{place} is not a function of that module")
    return found


if __name__ == "__main__":
    main()
