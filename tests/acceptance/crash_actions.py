"""Actions with an effect that outlives the process: each run of a step appends one line to a file."""

import asyncio
import os
from pathlib import Path

import knhk


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
