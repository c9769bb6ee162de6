"""The graph of steps: who depends on whom, cycles, and what comes before what. Linear but for `Ancestors`."""

from collections.abc import Sequence
from typing import Final

import msgspec

MAX_CYCLES: Final = 10


class Graph(msgspec.Struct, frozen=True):
    """Both directions of every dependency, by index of the step."""

    depends_on: Sequence[tuple[int, ...]]
    dependents: Sequence[tuple[int, ...]]
    cycles: Sequence[tuple[int, ...]]
    """Each cycle as its steps, each of which depends on the next and the last on the first; at most MAX_CYCLES."""


def build(depends_on: Sequence[tuple[int, ...]]) -> Graph:
    """The graph in which step i depends on the steps depends_on[i]."""
    dependents: list[list[int]] = [[] for _ in depends_on]
    forward = True
    for index, others in enumerate(depends_on):
        for other in others:
            dependents[other].append(index)
            if other >= index:
                forward = False
    # Steps that only depend on earlier ones, as people mostly write them, cannot form a cycle.
    cycles = () if forward else _cycles(depends_on, dependents)
    return Graph(depends_on, [tuple(others) for others in dependents], cycles)


def _cycles(depends_on: Sequence[tuple[int, ...]], dependents: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Cycles that share no step, found one after another by taking away all steps that are in none."""
    waiting = [len(others) for others in depends_on]
    gone = [False] * len(depends_on)
    ready = [index for index, count in enumerate(waiting) if not count]
    cycles: list[tuple[int, ...]] = []
    start = 0
    while True:
        while ready:
            index = ready.pop()
            if gone[index]:
                continue
            gone[index] = True
            for dependent in dependents[index]:
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    ready.append(dependent)
        while start < len(gone) and gone[start]:
            start += 1
        if start == len(gone) or len(cycles) == MAX_CYCLES:
            return cycles
        cycle = _walk(start, depends_on, gone)
        cycles.append(cycle)
        ready.extend(cycle)


def _walk(start: int, depends_on: Sequence[tuple[int, ...]], gone: list[bool]) -> tuple[int, ...]:
    """Follow dependencies that are left until a step comes again; that is a cycle."""
    seen: dict[int, int] = {}
    index = start
    while index not in seen:
        seen[index] = len(seen)
        index = next(other for other in depends_on[index] if not gone[other])
    cycle = list(seen)[seen[index] :]
    least = cycle.index(min(cycle))
    return tuple(cycle[least:] + cycle[:least])


class Ancestors:
    """Which steps come before a step, directly or not. Computed when first asked, as one bit set a step."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._bits: list[int] | None = None

    def has(self, index: int, other: int) -> bool:
        """Whether step `index` depends on step `other`, directly or through others. The graph has no cycle."""
        if other in self._graph.depends_on[index]:
            return True
        if self._bits is None:
            self._bits = self._compute()
        return bool(self._bits[index] >> other & 1)

    def _compute(self) -> list[int]:
        graph = self._graph
        bits = [0] * len(graph.depends_on)
        waiting = [len(others) for others in graph.depends_on]
        ready = [index for index, count in enumerate(waiting) if not count]
        for index in ready:
            own = 0
            for other in graph.depends_on[index]:
                own |= bits[other] | 1 << other
            bits[index] = own
            for dependent in graph.dependents[index]:
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    ready.append(dependent)
        return bits
