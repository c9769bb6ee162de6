"""The `shell` action with real programs: what they are given, what they cost, and that nothing of them is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from knhk.actions.registry import Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.shell import Shell, action
from knhk.config import ShellOptions
from knhk.domain.errors import BlobNotFound
from knhk.domain.expressions import Scope
from knhk.persistence.blob_area import BlobArea

ANY = ShellOptions(commands=("*",))


def invocation(**params: Any) -> Invocation:
    scope = Scope({}, {}, {})
    return Invocation("wf-1", "orders", "pack", 2, "wf-1/pack", params, {}, scope, 1_700_000_000_000_000_000)


async def shell(options: ShellOptions = ANY, **params: Any) -> Outcome:
    return await Shell(options).run(invocation(**params))


async def output(options: ShellOptions = ANY, **params: Any) -> dict[str, Any]:
    outcome = await shell(options, **params)
    assert isinstance(outcome, Succeeded), outcome
    return dict(outcome.output)


def alive(pid: int) -> bool:
    try:
        return b"Z (zombie)" not in Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def pid_in(path: Path, within_s: float = 30.0) -> int:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"nothing was written to {path}")


async def test_arguments_reach_the_program_as_they_are() -> None:
    hostile = ["; rm -rf /", "$(id)", "`id`", "a b", "* ?", "\n", "--", "'\"", "| cat", "ünïcode"]
    assert (await output(command=["printf", "%s\\0", *hostile]))["stdout"].split("\0")[:-1] == hostile


async def test_what_a_program_writes_and_how_it_ends() -> None:
    done = await output(command=["sh", "-c", "cat; echo oops >&2; exit 3"], stdin="in", expected_exit=[0, 3])
    assert done == {"exit_code": 3, "stdout": "in", "stderr": "oops\n", "cut": False}
    assert (await output(command=["echo", '{"a": 1}'], format="json"))["stdout"] == {"a": 1}
    assert (await output(command=["printf", "\\377"]))["stdout_encoding"] == "base64"


@pytest.mark.parametrize(
    ("params", "kind", "code", "text"),
    [
        ({"command": ["sh", "-c", "echo no >&2; exit 2"]}, RetryLater, "KNHK-SHELL-EXIT", "exit code 2: no"),
        ({"command": ["sh", "-c", "exit 2"], "final_exit": [2]}, Failed, "KNHK-SHELL-EXIT", "exit code 2"),
        ({"command": ["sh", "-c", "kill -9 $$"]}, RetryLater, "KNHK-SHELL-EXIT", "signal 9"),
        ({"command": ["yes"]}, Failed, "KNHK-SHELL-OUTPUT", "wrote more than"),
        ({"command": ["sleep", "60"], "timeout": "200ms"}, RetryLater, "KNHK-SHELL-TIMEOUT", "200ms"),
        ({"command": ["echo", "{"], "format": "json"}, Failed, "KNHK-SHELL-OUTPUT", "not JSON"),
        ({"command": ["no-such-program"]}, Failed, "KNHK-ACTION-PARAMS", "no program"),
        ({"command": ["./sh"]}, Failed, "KNHK-ACTION-PARAMS", "absolute path"),
        ({"command": []}, Failed, "KNHK-ACTION-PARAMS", "command"),
        ({"command": [""]}, Failed, "KNHK-ACTION-PARAMS", "name of a program"),
        ({"command": ["echo", "a\0b"]}, Failed, "KNHK-ACTION-PARAMS", "NUL"),
        ({"command": "echo"}, Failed, "KNHK-ACTION-PARAMS", "command"),
        ({"command": ["true"], "timeout": "2h"}, Failed, "KNHK-ACTION-PARAMS", "timeout"),
        ({"command": ["true"], "memory": "1KB"}, Failed, "KNHK-ACTION-PARAMS", "memory"),
        ({"command": ["true"], "directory": "/etc"}, Failed, "KNHK-ACTION-NOT-ALLOWED", "directories"),
        ({"command": ["true"], "env": {"LD_PRELOAD": "x"}}, Failed, "KNHK-ACTION-NOT-ALLOWED", "LD_PRELOAD"),
        ({"command": ["true"], "env": {"TZ=x\nLD_PRELOAD": "x"}}, Failed, "KNHK-ACTION-NOT-ALLOWED", "variable"),
    ],
)
async def test_what_goes_wrong(params: dict[str, Any], kind: type, code: str, text: str) -> None:
    outcome = await shell(**params)
    assert isinstance(outcome, kind), outcome
    assert (outcome.code, text in outcome.message) == (code, True), outcome


async def test_only_what_is_listed_may_run(tmp_path: Path) -> None:
    listed = ShellOptions(commands=("echo", sys.executable))
    assert (await output(listed, command=["echo", "hi"]))["stdout"] == "hi\n"
    assert (await output(listed, command=[sys.executable, "-c", "print(1)"]))["stdout"] == "1\n"
    (tmp_path / "echo").write_text("#!/bin/sh\necho bad")
    for program in ("cat", str(tmp_path / "echo"), "/bin/../bin/echo", "../echo", " echo"):
        outcome = await shell(listed, command=[program])
        assert isinstance(outcome, Failed), program
        assert outcome.code == "KNHK-ACTION-NOT-ALLOWED", program


def test_it_is_off_until_programs_are_listed() -> None:
    assert "names no program" in action(ShellOptions()).traits.disabled
    assert not action(ANY).traits.disabled


async def test_the_environment_is_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("APP_MODE", "fast")
    options = ShellOptions(commands=("env",), environment=("APP_*",))
    lines = (await output(options, command=["env"], env={"APP_NAME": "a=b"}))["stdout"].splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert found.pop("PATH")
    assert found == {
        "LANG": "C.UTF-8",
        "APP_MODE": "fast",
        "APP_NAME": "a=b",
        "KNHK_WORKFLOW_ID": "wf-1",
        "KNHK_STEP": "pack",
        "KNHK_ATTEMPT": "2",
        "KNHK_IDEMPOTENCY_KEY": "wf-1/pack",
    }


async def test_directories(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    options = ShellOptions(commands=("pwd",), directories=(inside,))
    assert (await output(options, command=["pwd"], directory=str(inside)))["stdout"].strip() == str(inside)
    for place in (inside / ".." / "out", inside / "link", Path("in"), outside):
        outcome = await shell(options, command=["pwd"], directory=str(place))
        assert isinstance(outcome, Failed), place
        assert outcome.code == "KNHK-ACTION-NOT-ALLOWED", place
    own = (await output(options, command=["pwd"]))["stdout"].strip()
    assert "knhk-shell-" in own
    assert not Path(own).exists()


async def test_memory_and_processor_time_are_limited() -> None:
    hungry = [sys.executable, "-c", "x = bytearray(10**9); print(len(x))"]
    outcome = await shell(command=hungry, memory="256MB")
    assert isinstance(outcome, RetryLater)
    assert "MemoryError" in outcome.message
    outcome = await shell(command=[sys.executable, "-c", "while True: pass"], cpu="1s", timeout="60s")
    assert isinstance(outcome, RetryLater)
    assert f"signal {signal.SIGXCPU.value}" in outcome.message or "signal 9" in outcome.message


async def test_a_long_output_can_be_cut() -> None:
    options = ShellOptions(commands=("*",), max_output_bytes=1000)
    done = await output(options, command=["sh", "-c", "yes | head -c 100000"], on_overflow="cut")
    assert (len(done["stdout"]), done["cut"]) == (1000, True)


# A daemon: a session of its own, its parent gone, its streams elsewhere.
DAEMON = "import os,time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
DAEMON += "n=os.open('/dev/null',2)\n[os.dup2(n,i) for i in range(3)]\n"
DAEMON += "open({pid!r},'w').write(str(os.getpid()))\ntime.sleep(300)\n"


@pytest.mark.parametrize("how", ["ended", "timeout", "cancelled"])
async def test_no_process_outlives_its_step(tmp_path: Path, how: str) -> None:
    pid = tmp_path / "pid"
    daemon = [sys.executable, "-c", DAEMON.format(pid=str(pid))]
    wait = {"ended": f"while ! [ -s {pid} ]; do sleep 0.05; done", "timeout": "sleep 60", "cancelled": "sleep 60"}[how]
    command = ["sh", "-c", f'"$@"; {wait}', "sh", *daemon]
    task = asyncio.create_task(shell(command=command, timeout="3s" if how == "timeout" else "60s"))
    number = await asyncio.to_thread(pid_in, pid)
    if how == "cancelled":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task
    assert await asyncio.to_thread(gone, number)


async def test_no_process_outlives_the_server(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (
        "import asyncio\nfrom tests.integration.test_shell_action import shell\n"
        f"asyncio.run(shell(command=['sh', '-c', 'sleep 300 & echo $! > {pid}; wait']))\n"
    )
    server = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    number = await asyncio.to_thread(pid_in, pid)
    assert alive(number)
    server.kill()
    server.wait(timeout=20)
    assert await asyncio.to_thread(gone, number)


async def test_no_more_programs_than_allowed(tmp_path: Path) -> None:
    both = Shell(ShellOptions(commands=("*",), processes=1))
    script = f"[ -e {tmp_path}/busy ] && exit 9; touch {tmp_path}/busy; sleep 0.2; rm {tmp_path}/busy"
    outcomes = await asyncio.gather(*(both.run(invocation(command=["sh", "-c", script])) for _ in range(3)))
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes), outcomes


async def test_large_output_becomes_a_blob_and_blobs_are_read(tmp_path: Path) -> None:
    blobs = BlobArea(tmp_path / "blobs", inline_bytes=1000, max_bytes=1 << 30, min_free_bytes=0)
    blobs.open()
    options = ShellOptions(commands=("*",), max_output_bytes=8 << 20)

    async def run(**params: Any) -> Any:
        return await Shell(options, blobs).run(invocation(**params))

    made = await run(command=["head", "-c", "3000000", "/dev/zero"])
    assert isinstance(made, Succeeded), made
    assert (made.output["stdout_encoding"], made.output["stdout"]["size"]) == ("blob", 3_000_000)
    counted = await run(command=["wc", "-c"], stdin=made.output["stdout"])
    assert isinstance(counted, Succeeded), counted
    assert counted.output["stdout"].strip() == "3000000"
    unread = await run(command=["true"], stdin=made.output["stdout"])
    assert isinstance(unread, Succeeded), unread
    small = await run(command=["echo", "hi"], blob="always")
    assert isinstance(small, Succeeded)
    assert small.output["stdout"]["size"] == 3
    too_much = await run(command=["head", "-c", "9000000", "/dev/zero"])
    assert isinstance(too_much, Failed)
    cut = await run(command=["head", "-c", "9000000", "/dev/zero"], on_overflow="cut")
    assert isinstance(cut, Succeeded)
    assert (cut.output["stdout"]["size"], cut.output["cut"]) == (8 << 20, True)
    assert len(list(blobs.names())) == 3
    with pytest.raises(BlobNotFound):
        await run(command=["cat"], stdin={"$blob": f"sha256:{'0' * 64}"})
