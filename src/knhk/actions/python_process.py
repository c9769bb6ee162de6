"""The process in which the `python` action calls functions: `python -m knhk.actions.python_process MEMORY_BYTES`.

Calls come on stdin and reports go to what was stdout, each as msgpack behind its length in 4 bytes. What the functions
print goes to stderr. The process ends when stdin is closed, and is killed by the kernel when the server dies.
"""

import asyncio
import ctypes
import importlib
import os
import resource
import signal
import struct
import sys
from types import FunctionType
from typing import Any, BinaryIO, Final

import msgspec

from knhk.actions.decorator import as_action
from knhk.actions.registry import Failed, Outcome
from knhk.actions.transport import Assignment, normalised, report_of, run_blocking

CALLABLE_CODE: Final = "KNHK-PYTHON-CALLABLE"
LENGTH: Final = struct.Struct(">I")
_PR_SET_PDEATHSIG: Final = 1
_DECODER: Final = msgspec.msgpack.Decoder(Assignment)


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
    while (raw := read_frame(calls)) is not None:
        outcome = call(_DECODER.decode(raw))
        try:
            answer = msgspec.msgpack.encode(report_of(outcome))
        except Exception as error:
            answer = msgspec.msgpack.encode(report_of(Failed("KNHK-ACTION-OUTPUT", f"{type(error).__name__}: {error}")))
        answers.write(LENGTH.pack(len(answer)) + answer)
        answers.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next message, None at the end."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    raw = stream.read(length)
    return raw if len(raw) == length else None


def call(assignment: Assignment) -> Outcome:
    """Call the function that the assignment names, `module:function`."""
    try:
        action = as_action(assignment.action, function_at(assignment.action))
    except Exception as error:  # whatever a module does when it is imported
        return Failed(CALLABLE_CODE, f"{assignment.action}: {type(error).__name__}: {error}"[:500])
    try:
        if action.mode == "async":
            return asyncio.run(action.run(assignment.invocation()))  # type: ignore[arg-type]  # mode says so
        return run_blocking(action, assignment.invocation())
    except Exception as error:
        return normalised(error)


def function_at(place: str) -> FunctionType:
    """The function `module:name`, which must be defined in that very module. Raises what importing it raises."""
    module_name, _, name = place.partition(":")
    found: Any = getattr(importlib.import_module(module_name), name)
    if not isinstance(found, FunctionType) or found.__module__ != module_name:
        raise TypeError(f"{place} is not a function of that module")
    return found


if __name__ == "__main__":
    main()
