"""`shell`: one program with its arguments, as a step. Off until the configuration names programs.

No shell reads the arguments: what an expression puts there stays one argument. The program runs under a supervisor
(shell_supervisor.py) that limits it, and kills whatever is left of it when it ends, when its time is up, when the run
is cancelled and when the server dies.
"""

import asyncio
import contextlib
import fnmatch
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from knhk.actions import shell_supervisor
from knhk.actions.blob_streams import Keep, Spill, pieces
from knhk.actions.bounds import within
from knhk.actions.parameters import NOT_ALLOWED_CODE, parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.actions.texts import text_of
from knhk.config import ShellOptions
from knhk.domain.blob import BlobReference
from knhk.domain.errors import KnhkError
from knhk.domain.plan import ActionTraits
from knhk.domain.units import MB, SECOND, format_duration, format_size
from knhk.ports.blobs import Blobs, NoBlobs

NAME: Final = "shell"
EXIT_CODE: Final = "KNHK-SHELL-EXIT"
TIMEOUT_CODE: Final = "KNHK-SHELL-TIMEOUT"
OUTPUT_CODE: Final = "KNHK-SHELL-OUTPUT"
START_CODE: Final = "KNHK-SHELL-START"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK: Final = 65_536
_LEAST_MEMORY: Final = 16 * MB
_ANY: Final = "*"
_GRACE_S: Final = 10.0
_NO_BLOBS: Final = NoBlobs("this process has no blob area")
Code = Annotated[int, msgspec.Meta(ge=0, le=255)]


class ShellParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The program and its arguments, and what it may cost. What is left out is as the configuration has it."""

    command: Annotated[list[str], msgspec.Meta(min_length=1)]
    directory: str | None = None
    env: dict[str, str] = {}
    stdin: str | BlobReference | None = None
    timeout: str | None = None
    cpu: str | None = None
    memory: str | None = None
    max_output: str | None = None
    on_overflow: Literal["fail", "cut"] = "fail"
    blob: Keep = "auto"
    format: Literal["text", "json"] = "text"
    expected_exit: Annotated[list[Code], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [0])
    final_exit: list[Code] = []


class _Job(msgspec.Struct, frozen=True):
    """A program that is ready to be started."""

    path: str
    argv: list[str]
    environment: dict[str, str]
    stdin: bytes | BlobReference
    keep: Keep
    timeout_ns: int
    cpu_ns: int
    memory_bytes: int
    output_bytes: int


class _Ended(msgspec.Struct):
    """How a program ended: its exit code, or the signal that killed it, or why it could not be started."""

    exit: int | None = None
    signal: int = 0
    error: str = ""
    stdout: bytes | BlobReference = b""
    stderr: bytes = b""
    overflow: bool = False


class _Overflow(Exception):
    """The program wrote more than it may."""


class Shell:
    """The programs of this process's steps, at most `processes` of them at a time."""

    def __init__(self, options: ShellOptions, blobs: Blobs = _NO_BLOBS) -> None:
        self._options, self._blobs = options, blobs
        self._places = asyncio.Semaphore(options.processes)

    async def run(self, invocation: Invocation) -> Outcome:
        """Starts the program and judges how it ends."""
        params = parse(invocation, NAME, ShellParams)
        if isinstance(params, Failed):
            return params
        try:
            job = self._job(params, invocation)
            directory = self._directory(params)
        except PermissionError as error:
            return Failed(NOT_ALLOWED_CODE, f"shell: {error}")
        except ValueError as error:
            return wrong(NAME, str(error))
        async with self._places:
            own = None if directory else await asyncio.to_thread(tempfile.mkdtemp, prefix="knhk-shell-")
            try:
                async with asyncio.timeout(job.timeout_ns / SECOND):
                    ended = await _execute(job, directory or str(own), self._blobs, cut=params.on_overflow == "cut")
            except TimeoutError:
                limit = format_duration(job.timeout_ns)
                return RetryLater(TIMEOUT_CODE, f"{job.argv[0]}: not finished after {limit}")
            except _Overflow:
                limit = format_size(job.output_bytes)
                return Failed(OUTPUT_CODE, f"{job.argv[0]}: wrote more than {limit} (`max_output`, `on_overflow`)")
            finally:
                if own is not None:
                    await asyncio.shield(asyncio.to_thread(shutil.rmtree, own, ignore_errors=True))
        return _judged(ended, job, params)

    def _job(self, params: ShellParams, invocation: Invocation) -> _Job:
        options = self._options
        if any("\0" in text for text in (*params.command, *params.env, *params.env.values())):
            raise ValueError("arguments and variables cannot hold a NUL character")
        timeout_ns = within("timeout", params.timeout, options.timeout_ns, options.max_timeout_ns)
        cpu_ns = within("cpu", params.cpu, options.max_cpu_ns, options.max_cpu_ns)
        memory = within("memory", params.memory, options.max_memory_bytes, options.max_memory_bytes, size=True)
        if memory < _LEAST_MEMORY:
            raise ValueError(f"`memory` must be at least {format_size(_LEAST_MEMORY)}")
        output = within("max_output", params.max_output, options.max_output_bytes, options.max_output_bytes, size=True)
        return _Job(
            path=self._path(params.command[0]),
            argv=params.command,
            environment=self._environment(params.env, invocation),
            stdin=params.stdin.encode() if isinstance(params.stdin, str) else params.stdin or b"",
            keep="never" if params.format == "json" or not self._blobs.max_bytes else params.blob,
            timeout_ns=timeout_ns,
            cpu_ns=cpu_ns,
            memory_bytes=memory,
            output_bytes=output,
        )

    def _path(self, program: str) -> str:
        """The file of a program that is allowed. Raises PermissionError if it is not, ValueError if there is none."""
        allowed = self._options.commands
        if not program:
            raise ValueError("`command` begins with the name of a program")
        if _ANY not in allowed and program not in allowed:
            known = ", ".join(allowed) or "none"
            raise PermissionError(f"{program[:200]!r} is not one of `actions.shell.commands`: {known}")
        found = shutil.which(program, path=_PATH) if "/" not in program or program.startswith("/") else None
        if found is None:
            raise ValueError(f"there is no program {program[:200]!r} in {_PATH}; other places need an absolute path")
        return found

    def _environment(self, given: dict[str, str], invocation: Invocation) -> dict[str, str]:
        """What the program finds: what is allowed of the server's variables, of the step's, and who it works for."""
        allowed = self._options.environment
        refused = sorted(name for name in given if not _is_allowed(name, allowed))
        if refused:
            raise PermissionError(f"the variable {refused[0][:100]!r} is not one of `actions.shell.environment`")
        inherited = {name: value for name, value in os.environ.items() if _is_allowed(name, allowed)}
        about = {
            "KNHK_WORKFLOW_ID": invocation.workflow_id,
            "KNHK_STEP": invocation.step,
            "KNHK_ATTEMPT": str(invocation.attempt),
            "KNHK_IDEMPOTENCY_KEY": invocation.idempotency_key,
        }
        trace = {"TRACEPARENT": invocation.traceparent} if invocation.traceparent else {}
        return {"PATH": _PATH, "LANG": "C.UTF-8", **inherited, **given, **about, **trace}

    def _directory(self, params: ShellParams) -> str | None:
        """The real path of the directory that the step asks for; None if it takes one of its own."""
        if params.directory is None:
            return None
        wanted = Path(os.path.realpath(params.directory))
        roots = [Path(os.path.realpath(root)) for root in self._options.directories]
        if not Path(params.directory).is_absolute() or not any(wanted.is_relative_to(root) for root in roots):
            raise PermissionError(f"the directory {params.directory[:200]!r} is not in `actions.shell.directories`")
        if not wanted.is_dir():
            raise ValueError(f"there is no directory {params.directory[:200]!r}")
        return str(wanted)


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return "=" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)


async def _execute(job: _Job, directory: str, blobs: Blobs, *, cut: bool) -> _Ended:
    """Run the program under its supervisor. However this is left, nothing of it goes on running."""
    lifeline, held = os.pipe()
    status, reported = os.pipe()
    limits = {"cpu_s": -(-job.cpu_ns // SECOND), "memory_bytes": job.memory_bytes}
    process: asyncio.subprocess.Process | None = None
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", shell_supervisor.__file__),
                *(str(lifeline), str(reported), msgspec.json.encode(limits).decode(), job.path, *job.argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=directory,
                env=job.environment,
                pass_fds=(lifeline, reported),
            )
        except OSError as error:
            return _Ended(error=str(error))
        finally:
            os.close(lifeline)
            os.close(reported)
        ended = await _conversation(process, job, blobs, cut)
        await process.wait()
        found = msgspec.json.decode(os.read(status, 4096) or b"{}")
        ended.exit, ended.signal, ended.error = found.get("exit"), found.get("signal", 0), found.get("error", "")
        return ended
    finally:
        os.close(held)
        os.close(status)
        if process is not None:
            await asyncio.shield(_collect(process))


async def _collect(process: asyncio.subprocess.Process) -> None:
    """Wait for the supervisor, which kills everything now that its lifeline is closed; else end it by force."""
    try:
        async with asyncio.timeout(_GRACE_S):
            await asyncio.gather(process.wait(), _discard(process.stdout), _discard(process.stderr))
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _discard(stream: asyncio.StreamReader | None) -> None:
    """Read to the end, which closes the pipe."""
    while stream is not None and await stream.read(_CHUNK):
        pass


async def _conversation(process: asyncio.subprocess.Process, job: _Job, blobs: Blobs, cut: bool) -> _Ended:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ended = _Ended()

    async def read(stream: asyncio.StreamReader, keep: Keep) -> bytes | BlobReference:
        spill = Spill(blobs, keep, job.output_bytes)
        try:
            while chunk := await stream.read(_CHUNK):
                room = job.output_bytes - spill.size
                if len(chunk) > room:
                    if not cut:
                        raise _Overflow
                    ended.overflow = True
                await spill.write(chunk[:room])
            return await spill.finish()
        finally:
            await spill.abort()

    async def write(stream: asyncio.StreamWriter) -> None:
        try:
            async for piece in _pieces(job.stdin, blobs):
                stream.write(piece)
                await stream.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # a program need not read what it is given
        finally:
            stream.close()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(write(process.stdin))
            out = group.create_task(read(process.stdout, job.keep))
            err = group.create_task(read(process.stderr, "never"))
    except* _Overflow:
        raise _Overflow from None
    except* KnhkError as group_of_errors:  # of the blob area
        raise group_of_errors.exceptions[0] from None
    complaints = err.result()
    assert isinstance(complaints, bytes)
    ended.stdout, ended.stderr = out.result(), complaints
    return ended


async def _pieces(given: bytes | BlobReference, blobs: Blobs) -> AsyncIterator[bytes]:
    if isinstance(given, bytes):
        yield given
        return
    async for piece in pieces(blobs.pieces(given.digest)):
        yield piece


def _judged(ended: _Ended, job: _Job, params: ShellParams) -> Outcome:
    name = job.argv[0]
    if ended.error:
        return Failed(START_CODE, f"{name}: {ended.error}"[:300])
    if ended.exit is None:
        how = f"killed by signal {ended.signal}" if ended.signal else "its supervisor was killed"
        return RetryLater(EXIT_CODE, f"{name}: {how}{_excerpt(ended)}")
    if ended.exit not in params.expected_exit:
        message = f"{name}: exit code {ended.exit}{_excerpt(ended)}"
        return Failed(EXIT_CODE, message) if ended.exit in params.final_exit else RetryLater(EXIT_CODE, message)
    output: dict[str, Any] = {"exit_code": ended.exit}
    if isinstance(ended.stdout, BlobReference):
        output |= {"stdout": ended.stdout.to_dict(), "stdout_encoding": "blob"}
    else:
        output |= text_of(ended.stdout, "stdout")
    if params.format == "json":
        try:
            output["stdout"] = msgspec.json.decode(ended.stdout)  # type: ignore[arg-type]  # JSON is never in a blob
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Failed(OUTPUT_CODE, f"{name}: stdout is not JSON: {error}")
    return Succeeded({**output, **text_of(ended.stderr, "stderr"), "cut": ended.overflow})


def _excerpt(ended: _Ended) -> str:
    """The last line that the program wrote to stderr, for a message."""
    lines = ended.stderr[-2000:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    shown = "".join(character if character.isprintable() else "?" for character in last[:300])
    return f": {shown}" if shown else ""


def action(options: ShellOptions, blobs: Blobs = _NO_BLOBS) -> Action:
    """The action within these limits."""
    disabled = "" if options.commands else "`actions.shell.commands` names no program"
    traits = ActionTraits(
        NAME, pure=False, params_schema=schema_of(ShellParams), reads_dependencies=False, disabled=disabled
    )
    return Action(traits, "async", Shell(options, blobs).run, __name__, about="runs a program with its arguments")
