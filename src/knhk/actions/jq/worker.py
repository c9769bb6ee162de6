"""The process in which jq programs run: reads requests from standard input, writes answers to standard output.

Run as a script, apart from the package: it imports nothing of KNHK and starts in a few milliseconds. A frame is 4 bytes
of length, big endian, and that many bytes of msgpack. A request is [template, input, variables, bare]; an answer
[true, value] or [false, message].

jq's C library cannot be interrupted, so whoever asks must be ready to kill this process. What a program could reach is
taken away before the first one runs: the environment is empty, no file can be opened or written, memory and CPU time
are bounded, and `import` and `include` cannot be parsed where the program stands.
"""

import os
import resource
import sys
from functools import lru_cache
from typing import Any, BinaryIO

import jq
import msgspec

_LONGEST_FRAME = 256 << 20
_OPEN = "${"


class Refused(Exception):
    """A program that does not compile or ended with an error."""


@lru_cache(maxsize=1024)
def compiled(source: str, names: tuple[str, ...]) -> Any:
    """A program over [input, variables]; compiling takes milliseconds, so the programs in use are kept."""
    bindings = "".join(f".[1][{index}] as ${name} | " for index, name in enumerate(names))
    try:
        # As the body of a function it can neither import modules nor close a bracket that it has not opened.
        return jq.compile(f"{bindings}def program: {source}\n; .[0] | program")
    except ValueError as error:
        raise Refused(reason(error)) from error


def run(source: str, given: Any, variables: dict[str, Any]) -> Any:
    """The value of a program: null for no output, its output for one, a list for several."""
    try:
        found = compiled(source, tuple(variables)).input_value([given, list(variables.values())]).all()
    except ValueError as error:
        raise Refused(reason(error)) from error
    if len(found) == 1:
        return found[0]
    return found or None


def fill(template: Any, given: Any, variables: dict[str, Any]) -> Any:
    """A template with each text `${ program }` replaced by the program's value; other texts stay as they are."""
    if isinstance(template, str):
        text = template.strip()
        return (
            run(text[len(_OPEN) : -1], given, variables) if text.startswith(_OPEN) and text.endswith("}") else template
        )
    if isinstance(template, dict):
        return {key: fill(part, given, variables) for key, part in template.items()}
    if isinstance(template, list):
        return [fill(part, given, variables) for part in template]
    return template


def reason(error: Exception) -> str:
    """What jq says of a program, without the caret and the count of errors."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.endswith("compile error") and set(line) - set("^~ ")]
    return (kept[0] if kept else "the program failed").removeprefix("jq: error: ")


def answer(frame: bytes) -> tuple[bool, Any]:
    """The answer to one request."""
    template, given, variables, bare = msgspec.msgpack.decode(frame)
    try:
        if bare and isinstance(template, str) and not template.strip().startswith(_OPEN):
            return True, run(template, given, variables)
        return True, fill(template, given, variables)
    except (Refused, RecursionError) as error:
        return False, str(error) or "nested too deep"
    except MemoryError:
        return False, "the program needs too much memory"


def confine(memory_bytes: int) -> None:
    """Take away what no program needs."""
    os.environ.clear()
    os.chdir("/")
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # `debug` and `stderr` write there
    os.close(sink)
    for limit, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def allow_cpu(seconds: int) -> None:
    """Let this process use so much more CPU time; beyond, the kernel ends it even if nobody is there to kill it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def serve(source: BinaryIO, sink: BinaryIO, cpu_s: int) -> None:
    """Answer until the other side closes."""
    while len(head := source.read(4)) == 4:
        size = int.from_bytes(head)
        if size > _LONGEST_FRAME:
            return
        allow_cpu(cpu_s)
        raw = msgspec.msgpack.encode(answer(source.read(size)))
        sink.write(len(raw).to_bytes(4) + raw)
        sink.flush()


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[2]))
