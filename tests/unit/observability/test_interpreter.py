"""The interpreter's own troubles: a blocked event loop and collections show."""

import asyncio
import gc
import time

from knhk.observability.interpreter import Interpreter
from knhk.platform.clock import SystemClock


async def test_a_blocked_loop_and_collections_show() -> None:
    measured = Interpreter(SystemClock())
    await measured.start()
    time.sleep(0.6)  # an action that blocks
    gc.collect()
    while not measured.lag.count:
        await asyncio.sleep(0.01)
    await measured.stop()
    assert measured.lag.total > 0.3
    assert measured.pauses[2].count >= 1
    assert measured.pauses[2].total > 0
    names = {family.name for family in measured.families()}
    assert names == {"knhk_event_loop_lag_seconds", "knhk_gc_pause_seconds"}
    before = measured.pauses[2].count
    gc.collect()
    assert measured.pauses[2].count == before


async def test_stopping_without_a_start_is_fine() -> None:
    await Interpreter(SystemClock()).stop()
