"""Actions of a remote worker in Python: knhk worker --module render --queue gpu"""

import asyncio

import knhk


@knhk.action("render", queue="gpu")
async def render(scene: str, frames: int, context: knhk.ActionContext) -> dict[str, str | int]:
    """Pretends to render. A real one would write its file under the idempotency key, so that a repeat overwrites it."""
    for _ in range(frames):
        await asyncio.sleep(0.001)
    return {"file": f"{scene}-{context.idempotency_key.replace('/', '-')}.mp4", "frames": frames}
