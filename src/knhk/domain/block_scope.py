"""A block of steps while it is compiled: where it stands, who is in it, and what its expressions may read.

Expressions see the steps of their own block and of all the blocks around it, the nearest first. A step may read
another only if that one has surely ended before: if it depends on it, or if the step around it does.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor import StepPart
from knhk.domain.graph import Ancestors, Graph

EVERYWHERE: Final = -1
"""The reader that comes after all steps of its block."""


class Reading(msgspec.Struct, frozen=True):
    """What an expression reads, where it stands, and the index of the step that it is part of, or EVERYWHERE."""

    steps: frozenset[str]
    inputs: frozenset[str]
    path: Path
    reader: int


class BlockScope:
    """One block. `outer` is the block around it and `outer_index` the step of that which this block is part of.

    A block that repeats has one step, which is that step of the block around it once more, and stands in its place.
    `names` are the variables that its expressions may read besides inputs, steps and run; `kept` are the steps whose
    outputs somebody reads.
    """

    def __init__(
        self,
        parts: Sequence[StepPart],
        path: Path,
        names: frozenset[str] = frozenset(),
        outer: "BlockScope | None" = None,
        outer_index: int = EVERYWHERE,
        *,
        repeats: bool = False,
    ) -> None:
        self.parts, self.path, self.names = parts, path, names
        self.outer, self.outer_index, self.repeats = outer, outer_index, repeats
        self.index_of: dict[str, int] = {}
        self.graph: Graph
        self.kept: set[int] = set()
        self._readings: list[Reading] = []
        self._ancestors: Ancestors | None = None

    def at(self, index: int, *rest: str | int) -> Path:
        """The path of something in a step, in the descriptor."""
        return (*self.path, *rest) if self.repeats else (*self.path, index, *rest)

    def dependencies(self, index: int) -> tuple[str, ...]:
        """The names of the steps on which a step depends. Their outputs are read."""
        if self.repeats and self.outer is not None:
            return self.outer.dependencies(self.outer_index)
        found = self.graph.depends_on[index]
        self.kept.update(found)
        return tuple([self.parts[one].name for one in found])

    def note(self, reading: Reading) -> None:
        """An expression of this block reads something."""
        self._readings.append(reading)

    def check(self, inputs: frozenset[str] | None, complaints: Complaints) -> None:
        """Check everything that was noted, once the blocks around this one have their graphs."""
        for reading in self._readings:
            if inputs is not None and not reading.inputs <= inputs:
                for name in sorted(reading.inputs - inputs):
                    complaints.add(f"there is no input {name[:140]!r}", reading.path, name, inputs)
            for name in sorted(reading.steps):
                self._check_step(name, reading, complaints)

    def _check_step(self, name: str, reading: Reading, complaints: Complaints) -> None:
        reader = reading.reader
        for scope in self._outwards():
            other = scope.index_of.get(name)
            if other is not None:
                scope.kept.add(other)
                scope._check_order(other, reader, reading, complaints)
                return
            reader = scope.outer_index
        known = [one for scope in self._outwards() for one in scope.index_of]
        complaints.add(f"there is no step {name[:140]!r}", reading.path, name, known)

    def _check_order(self, other: int, reader: int, reading: Reading, complaints: Complaints) -> None:
        if self.graph.cycles or reader == EVERYWHERE:
            return
        if self._ancestors is None:
            self._ancestors = Ancestors(self.graph)
        if not self._ancestors.has(reader, other):
            name = self.parts[other].name
            complaints.add(
                f"reads the output of step {name!r} without depending on it; add {name!r} to depends_on"
                if other != reader
                else "a step cannot read its own output",
                reading.path,
            )

    def _outwards(self) -> "Iterator[BlockScope]":
        scope: BlockScope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer
