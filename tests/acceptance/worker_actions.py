"""What the remote workers of the tests do; each call leaves a line in a file."""

import asyncio
import os
import time

import knhk


def _note(path: str, line: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)


@knhk.action("remote.slow")
async def slow(path: str, seconds: float, context: knhk.ActionContext) -> dict[str, int]:
    """Notes its process, and takes a while."""
    _note(path, f"{os.getpid()} {context.attempt} {context.idempotency_key}")
    await asyncio.sleep(seconds)
    return {"pid": os.getpid()}


@knhk.action("remote.blocking")
def blocking(path: str, seconds: float) -> dict[str, int]:
    """The same in a thread, which cannot be stopped."""
    _note(path, f"{os.getpid()} begun")
    time.sleep(seconds)
    _note(path, f"{os.getpid()} ended")
    return {"pid": os.getpid()}


@knhk.action("remote.refuses")
def refuses() -> None:
    """Fails for good."""
    raise knhk.ActionFailed("never", code="SHOP-NEVER")


@knhk.action("remote.reversed")
def reversed_blob(source: knhk.Blob, context: knhk.ActionContext) -> knhk.Blob:
    """A blob with the bytes of each piece in the opposite order."""
    return context.blobs.put((piece[::-1] for piece in context.blobs.read(source)), "text/plain")
