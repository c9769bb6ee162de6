"""What the process's memory is made of: objects by type, lines that allocate, and the part that is not Python's.

No value of any object is told, only types, numbers and sizes. All of it blocks: call it in a thread.
"""

import gc
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import psutil

LONGEST_S: Final = 60.0
_TYPES: Final = 60
_LARGEST: Final = 30
_LINES: Final = 40
_LARGE_BYTES: Final = 4_096
_SAMPLE: Final = 100_000
_BATCH: Final = 5_000
_OPAQUE: Final = (str, bytes, bytearray, int, float, memoryview)


def heap(store: Mapping[str, float]) -> dict[str, Any]:
    """Objects by type, the largest ones, and what else there is. `store` are the store's figures.

    Objects that the collector does not track (text, numbers, records without cycles) are found through those that hold
    them, in a sample of at most 100,000 containers, and extrapolated.
    """
    objects = gc.get_objects()
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    large: list[tuple[int, str]] = []
    for at, one in enumerate(objects):
        size = _size(one)
        kind = _name(type(one))
        counts[kind] += 1
        sizes[kind] += size
        if size >= _LARGE_BYTES:
            large.append((size, _described(one)))
        if at % _BATCH == 0:
            time.sleep(0)  # let the event loop have Python's lock
    step = max(1, len(objects) // _SAMPLE)
    _add_untracked(objects[::step], step, counts, sizes)
    total = len(objects)
    del objects
    kinds = sorted(counts, key=lambda kind: -sizes[kind])[:_TYPES]
    return {
        "types": [{"type": kind, "count": counts[kind], "bytes": sizes[kind]} for kind in kinds],
        "largest": [{"bytes": size, "what": what} for size, what in sorted(large, reverse=True)[:_LARGEST]],
        "tracked_objects": total,
        "frozen_objects": gc.get_freeze_count(),
        "sampled_one_in": step,
        "python_blocks": sys.getallocatedblocks(),
        "collector": collector(),
        "process": process(store),
    }


def allocations(seconds: float, stop: threading.Event) -> dict[str, Any]:
    """The lines of code whose allocations, made in the next seconds, are still there at the end; greatest first.

    While it watches, every allocation costs more: a busy server is noticeably slower.
    """
    was_tracing = tracemalloc.is_tracing()
    before = process({})
    if not was_tracing:
        tracemalloc.start(1)
    try:
        first = tracemalloc.take_snapshot()
        stop.wait(min(seconds, LONGEST_S))
        second = tracemalloc.take_snapshot()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        if not was_tracing:
            tracemalloc.stop()
    own = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
    lines = second.filter_traces(own).compare_to(first.filter_traces(own), "lineno")
    found = [
        {
            "file": one.traceback[0].filename,
            "line": one.traceback[0].lineno,
            "bytes": one.size,
            "grown_bytes": one.size_diff,
            "count": one.count,
            "grown_count": one.count_diff,
        }
        for one in sorted(lines, key=lambda one: -one.size_diff)[:_LINES]
    ]
    return {"seconds": seconds, "traced_peak_bytes": peak, "lines": found, "before": before, "after": process({})}


def collect(store: Mapping[str, float]) -> dict[str, Any]:
    """Collect all garbage and give what is free back to the machine. The process stands still meanwhile."""
    before, began_s = process(store), time.perf_counter()
    found = gc.collect()
    took_s = time.perf_counter() - began_s
    return {
        "collected_objects": found,
        "took_ms": round(took_s * 1e3, 3),
        "returned_to_machine": _trim(),
        "before": before,
        "after": process(store),
        "collector": collector(),
    }


def process(store: Mapping[str, float]) -> dict[str, Any]:
    """The process's memory as the machine sees it, and the part that the store takes, in bytes."""
    full = psutil.Process().memory_full_info()
    return {
        "resident_bytes": full.rss,
        "unshared_bytes": full.uss,
        "swapped_bytes": getattr(full, "swap", 0),
        "block_cache_bytes": int(store.get("block_cache_bytes", 0)),
        "memtable_bytes": int(store.get("memtable_bytes", 0)),
    }


def collector() -> list[dict[str, int]]:
    """How often each generation was collected, what that found, and what it now holds."""
    return [
        {"generation": number, "threshold": threshold, "pending": count, **stats}
        for number, (threshold, count, stats) in enumerate(
            zip(gc.get_threshold(), gc.get_count(), gc.get_stats(), strict=True)
        )
    ]


def _add_untracked(containers: list[Any], step: int, counts: Counter[str], sizes: Counter[str]) -> None:
    seen: set[int] = set()
    for at, container in enumerate(containers):
        for one in gc.get_referents(container):
            if not gc.is_tracked(one) and id(one) not in seen and not isinstance(one, type):
                seen.add(id(one))
                kind = _name(type(one))
                counts[kind] += step
                sizes[kind] += _size(one) * step
        if at % _BATCH == 0:
            time.sleep(0)


def _described(one: Any) -> str:
    """What a large object is: its type, how many it holds and of which types, judged by a first one."""
    kind = _name(type(one))
    try:
        if isinstance(one, _OPAQUE):
            return f"{kind} of {len(one):,}" if hasattr(one, "__len__") else kind
        if type(one) is dict:
            key, value = next(iter(one.items()), (None, None))
            return f"{kind} of {len(one):,}: {_name(type(key))} to {_name(type(value))}"
        if type(one) in (list, tuple, set, frozenset):
            return f"{kind} of {len(one):,}: {_name(type(next(iter(one), None)))}"
    except RuntimeError:  # it changed while it was looked at
        pass
    return kind


def _name(kind: type) -> str:
    module = getattr(kind, "__module__", "")
    name = getattr(kind, "__qualname__", "?")
    return str(name) if module == "builtins" else f"{module}.{name}"


def _size(one: Any) -> int:
    try:
        return sys.getsizeof(one)
    except Exception:  # an object's own __sizeof__ may do anything
        return 0


def _trim() -> bool:
    """Have the C library give free memory back; False where it cannot (musl)."""
    import ctypes

    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False
