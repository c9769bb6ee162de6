"""A shop whose card company is slow and refuses the first time."""

import asyncio
import time

import knhk


@knhk.action("shop.charge")
async def charge(context: knhk.ActionContext) -> dict[str, int]:
    await asyncio.sleep(0.25)
    if context.attempt == 1:
        raise ConnectionError("card company: reset")
    return {"attempt": context.attempt}


@knhk.action("shop.stock")
async def stock() -> dict[str, str]:
    await asyncio.sleep(0.02)
    return {"sku": "A-17"}


def factor(seconds: float) -> int:
    """Burns CPU time."""
    until, sums = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        sums += sum(one * one for one in range(10_000))
    return sums


@knhk.action("shop.crunch")
def crunch(seconds: float) -> dict[str, int]:
    return {"sum": factor(seconds)}
