"""Actions with an effect that outlives the process: each run of a step appends one line to a file."""

import asyncio
import os
import signal
import time
from pathlib import Path

from pydantic import SecretStr

import knhk
from knhk.actions.registry import Invocation, Succeeded
from knhk.actions.sql import Databases
from knhk.config.actions_section import SqlConnection, SqlOptions
from knhk.domain.expressions import Scope


@knhk.action("test.append")
async def append(path: str, line: str, milliseconds: int = 0) -> dict[str, str]:
    """Append a line in one write, take a while, return."""
    handle = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)
    await asyncio.sleep(milliseconds / 1000)
    return {"line": line}


@knhk.action("test.record")
async def record(path: str, line: str, context: knhk.ActionContext) -> str:
    """Append the line and the attempt's number."""
    handle = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{line} {context.attempt} {context.idempotency_key}\n".encode())
    finally:
        os.close(handle)
    return line


@knhk.action("test.charge_then_die")
def charge_then_die(url: str, id: int, context: knhk.ActionContext) -> int:  # noqa: A002  # the column's name
    """What `sql` does, and then the whole server dies between that commit and the step's receipt, the first time."""
    options = SqlOptions(connections=(SqlConnection(name="shop", url=SecretStr(url)),))
    statement = "UPDATE accounts SET charges = charges + 1 WHERE id = :id RETURNING charges"
    params = {"connection": "shop", "statement": statement, "values": {"id": id}}
    scope = Scope({}, {}, {})
    done = Databases(options).run(
        Invocation(context.workflow_id, "", context.step, 1, context.idempotency_key, params, {}, scope, context.now_ns)
    )
    assert isinstance(done, Succeeded), done
    marker = Path(f"{url.removeprefix('sqlite:///')}.{id}")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return int(done.output["rows"][0]["charges"])


@knhk.action("test.effect")
async def effect(path: str, context: knhk.ActionContext, milliseconds: int = 0, fails: bool = False) -> dict[str, str]:
    """Append the idempotency key and the time in one write, take a while, return the step's path or ask for a retry."""
    handle = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{context.idempotency_key} {time.time_ns()}\n".encode())
    finally:
        os.close(handle)
    await asyncio.sleep(milliseconds / 1000)
    if fails:
        raise knhk.RetryAction("not this time")
    return {"step": context.step}
