"""The action of the `two-effect` workload: it does nothing, but declares an effect.

`bench.nap` has an effect, too, and takes ten milliseconds: so long it holds a place for steps.

The engine may run pure actions ahead of the commit of what they depend on; an action with an effect has to wait until
the step before it is durable. So the difference between `two` and `two-effect` is the price of that wait.
"""

import asyncio
from typing import Any

import knhk


@knhk.action("bench.effect")
async def effect(params: dict[str, Any]) -> dict[str, Any]:
    """Answer at once with the serial number that was given."""
    return {"serial": params["serial"]}


@knhk.action("bench.nap")
async def nap(params: dict[str, Any]) -> dict[str, Any]:
    """Answer after ten milliseconds."""
    await asyncio.sleep(0.01)
    return {"serial": params["serial"]}
