"""What is told of the heap, and that no value is."""

import gc
import json
import threading
import tracemalloc
from typing import Any

from knhk.diagnostics import memory


class Held:
    """A type that only this test makes."""

    def __init__(self, number: int) -> None:
        self.text = f"hunter2-{number}"


def test_objects_are_counted_by_type_and_the_largest_described() -> None:
    held: list[Any] = [Held(number) for number in range(3_000)]
    index = {f"hunter2-{number}": one for number, one in enumerate(held)}
    found = memory.heap({"block_cache_bytes": 7.0})
    (mine,) = [one for one in found["types"] if one["type"].endswith("test_memory.Held")]
    assert mine["count"] >= 3_000
    (text,) = [one for one in found["types"] if one["type"] == "str"]
    assert text["count"] >= 3_000  # not tracked by the collector, and found through what holds it
    whats = [one["what"] for one in found["largest"]]
    assert any(what.startswith("dict of 3,000: str to ") and what.endswith("Held") for what in whats)
    assert found["process"]["block_cache_bytes"] == 7
    assert found["process"]["resident_bytes"] > 1_000_000
    assert "hunter2" not in json.dumps(found)
    assert index


def test_lines_that_allocate_are_found() -> None:
    kept: list[bytearray] = []
    stop = threading.Event()

    def allocate() -> None:
        while not tracemalloc.is_tracing():
            pass
        kept.extend(bytearray(1_000) for _ in range(2_000))
        stop.wait(0.2)
        stop.set()

    thread = threading.Thread(target=allocate)
    thread.start()
    found = memory.allocations(30.0, stop)
    thread.join()
    assert any(one["file"] == __file__ and one["grown_bytes"] > 1_000_000 for one in found["lines"])
    assert not tracemalloc.is_tracing()
    assert kept


def test_garbage_is_collected() -> None:
    was_on = gc.isenabled()
    gc.disable()
    try:
        cycle: list[Any] = []
        cycle.append(cycle)
        del cycle
        found = memory.collect({})
    finally:
        if was_on:
            gc.enable()
    assert found["collected_objects"] >= 1
    assert found["took_ms"] > 0
    assert [one["generation"] for one in found["collector"]] == [0, 1, 2]
