"""What steps have in place of an action, from the descriptor to the plan: one small function for each construct."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from knhk.domain.block_scope import EVERYWHERE, BlockScope
from knhk.domain.cel_program import ROOTS
from knhk.domain.compile_values import ValueCompiler
from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor import (
    CasePart,
    CatchPart,
    CompensatePart,
    ForeachPart,
    HandlerPart,
    LoopPart,
    ParallelPart,
    StepPart,
)
from knhk.domain.descriptor_parts import KINDS
from knhk.domain.expressions import compile_condition
from knhk.domain.plan import Block, Body, Case, Catch, Foreach, Group, Loop, Parallel, Step, Switch

_BELONGS: Final = {"params": "action", "semantics": "action", "queue": "action", "output": "steps", "cache": "action"}
"""Keys that only one kind of step has."""
DEFAULT_CONCURRENCY: Final = 10
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED: Final = ROOTS | {
    *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import"),
    *("let", "loop", "package", "namespace", "return", "var", "void", "while", "int", "uint", "double", "bool"),
    *("string", "bytes", "list", "map", "type", "dyn", "timestamp", "duration", "null_type", "optional"),
}
"""What CEL or a descriptor uses for something else."""
_TIMESTAMP: Final = re.compile(r"\s*\d{4}-\d{2}-\d{2}[Tt ]")
_AT_THE_END: Final = frozenset({"error", "outcome"})
_OF_STEP: Final = frozenset({"input", "output"})
_TRUE: Final = compile_condition("true")


class Node(NamedTuple):
    """A body, and the key that it comes from."""

    key: str
    body: Body


def is_repeated(part: StepPart) -> bool:
    """Whether a step is done more than once."""
    return part.foreach is not None or part.while_ is not None or part.until is not None


def wait_params(wait: str | dict[str, Any]) -> dict[str, Any]:
    """The params of the action `wait` that the key `wait` stands for."""
    if isinstance(wait, dict):
        return wait
    return {"until": wait} if _TIMESTAMP.match(wait) else {"duration": wait}


def count_steps(parts: Sequence[StepPart]) -> int:
    """How many steps there are, those inside of others included."""
    return sum([1 + count_steps(inside) if (inside := _inside(part)) else 1 for part in parts])


def _inside(part: StepPart) -> list[StepPart]:
    found = list(part.steps or ())
    found += [step for case in part.switch or () for step in case.steps]
    if part.parallel is not None:
        found += part.parallel.branches
    if part.catch is not None:
        found += part.catch.steps
    if part.compensate is not None:
        found += part.compensate.steps or ()
    return found


class BodyCompiler:
    """Compiles the bodies of one descriptor's steps; `block` compiles the steps inside of them."""

    def __init__(self, complaints: Complaints, values: ValueCompiler, block: Callable[..., Block]) -> None:
        self._complaints, self._values, self._block = complaints, values, block

    def check_keys(self, scope: BlockScope, index: int, part: StepPart) -> None:
        """Complain of keys of a step that do not go together."""
        kinds = [key for key in KINDS if getattr(part, key) is not None]
        if len(kinds) != 1:
            message = (
                f"one of {', '.join(KINDS)} is missing" if not kinds else f"give one of {', '.join(kinds)}, not all"
            )
            self._complaints.add(message, scope.at(index))
            return
        if (part.foreach is not None) + (part.while_ is not None) + (part.until is not None) > 1:
            self._complaints.add("give one of foreach, while and until", scope.at(index))
        for key, wanted in _BELONGS.items():
            if kinds[0] != wanted and getattr(part, key) is not None:
                self._complaints.add(f"{key!r} goes with {wanted!r}, and this is {kinds[0]!r}", scope.at(index, key))

    def body(self, scope: BlockScope, index: int, part: StepPart) -> Node | None:
        """What a step has in place of an action, None if it has one."""
        if not scope.repeats:
            if part.foreach is not None:
                return Node("foreach", self._foreach(scope, index, part, part.foreach))
            if part.while_ is not None:
                return Node("while", self._loop(scope, index, part, part.while_, "while"))
            if part.until is not None:
                return Node("until", self._loop(scope, index, part, part.until, "until"))
        if part.steps is not None:
            place = scope.at(index, "steps")
            return Node("steps", Group(self._steps(scope, index, part.steps, place, part.output, "output")))
        if part.switch is not None:
            return Node("switch", self._switch(scope, index, part.switch))
        if part.parallel is not None:
            return Node("parallel", self._parallel(scope, index, part.parallel))
        return None

    def catch(self, scope: BlockScope, index: int, part: CatchPart) -> Catch:
        """What is done about a step's failure."""
        place = scope.at(index, "catch")
        name = self._variable(part.error, "error", (*place, "as"))
        names = frozenset({name})
        when = None
        if part.when is not None:
            when = self._values.condition(part.when, (*place, "when"), scope, index, names)
        block = self._steps(scope, index, part.steps, (*place, "steps"), part.output, "output", names)
        return Catch(block, when, name)

    def handler(self, scope: BlockScope, part: HandlerPart | None, key: str) -> Block | None:
        """What is done at the end of a run."""
        if part is None:
            return None
        return self._steps(scope, EVERYWHERE, part.steps, ("spec", key, "steps"), None, "", _AT_THE_END)

    def compensate(self, scope: BlockScope, index: int, part: StepPart, compensate: CompensatePart) -> Step:
        """What undoes a step. It sees nothing of the steps around it, which may be gone by then."""
        place = scope.at(index, "compensate")
        if (compensate.action is None) is (compensate.steps is None) and not self._complaints:
            self._complaints.add("one of action and steps is needed", place)
        undo = StepPart(
            part.name,
            action=compensate.action,
            steps=compensate.steps,
            params=compensate.params,
            timeout=compensate.timeout,
            retry=compensate.retry,
            retries=compensate.retries,
            queue=compensate.queue,
        )
        return self._block(BlockScope([undo], place, _OF_STEP, repeats=True)).steps[0]

    def _steps(
        self,
        scope: BlockScope,
        index: int,
        parts: Sequence[StepPart],
        place: Path,
        output: Any,
        output_key: str,
        names: frozenset[str] = frozenset(),
    ) -> Block:
        if not parts and not self._complaints:
            self._complaints.add("at least one step is needed", place)
        inner = BlockScope(parts, place, scope.names | names, scope, index)
        return self._block(inner, output, (*place[:-1], output_key))

    def _switch(self, scope: BlockScope, index: int, parts: Sequence[CasePart]) -> Switch:
        cases = []
        if not parts and not self._complaints:
            self._complaints.add("at least one case is needed", scope.at(index, "switch"))
        for at, part in enumerate(parts):
            place = scope.at(index, "switch", at)
            condition = None
            if part.when is not None:
                condition = self._values.condition(part.when, (*place, "when"), scope, index)
            elif at < len(parts) - 1:
                self._complaints.add("a case without `when` is always taken, so it must be the last", place)
            block = self._steps(scope, index, part.steps, (*place, "steps"), part.output, "output")
            cases.append(Case(condition, block))
        return Switch(tuple(cases))

    def _parallel(self, scope: BlockScope, index: int, part: ParallelPart) -> Parallel:
        place = scope.at(index, "parallel", "branches")
        for at, branch in enumerate(part.branches):
            if branch.depends_on:
                self._complaints.add("branches do not depend on each other", (*place, at, "depends_on"))
        return Parallel(self._steps(scope, index, part.branches, place, None, ""), bool(part.compete))

    def _foreach(self, scope: BlockScope, index: int, part: StepPart, foreach: ForeachPart) -> Foreach:
        place = scope.at(index, "foreach")
        item = self._variable(foreach.item, "item", (*place, "as"))
        number = self._variable(foreach.index, "index", (*place, "index"))
        if item == number:
            self._complaints.add(f"the item and its index are both called {item!r}", place)
        return Foreach(
            block=self._repeated(scope, index, part, frozenset({item, number})),
            items=self._values.template(foreach.items, (*place, "in"), scope, index),
            item_name=item,
            index_name=number,
            concurrency=foreach.concurrency or DEFAULT_CONCURRENCY,
            max_failures=foreach.max_failures or 0,
        )

    def _loop(self, scope: BlockScope, index: int, part: StepPart, loop: LoopPart, key: str) -> Loop:
        place = scope.at(index, key)
        last = self._variable(loop.last, "last", (*place, "as"))
        number = self._variable(loop.index, "index", (*place, "index"))
        names = frozenset({last, number})
        condition = self._values.condition(loop.condition, (*place, "condition"), scope, index, names)
        return Loop(
            block=self._repeated(scope, index, part, names),
            condition=condition or _TRUE,
            until=key == "until",
            bound=loop.max,
            last_name=last,
            index_name=number,
        )

    def _repeated(self, scope: BlockScope, index: int, part: StepPart, names: frozenset[str]) -> Block:
        """The block of a step that is done more than once. What it has to do with other steps stays outside."""
        once = msgspec.structs.replace(
            part,
            depends_on=None,
            when=None,
            foreach=None,
            while_=None,
            until=None,
            catch=None,
            continue_on_error=None,
        )
        return self._block(BlockScope([once], scope.at(index), scope.names | names, scope, index, repeats=True))

    def _variable(self, name: str | None, default: str, place: Path) -> str:
        if name is None:
            return default
        if not _NAME.fullmatch(name) or name in _RESERVED:
            self._complaints.add(f"{name[:80]!r} cannot be the name of a variable", place)
            return default
        return name
