"""The steps of a block: names, actions, params, and the graph of their dependencies."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from knhk.domain.block_scope import EVERYWHERE, BlockScope
from knhk.domain.compile_actions import check_literals, traits_of
from knhk.domain.compile_bodies import BodyCompiler, is_repeated, wait_params
from knhk.domain.compile_cache import compile_cache
from knhk.domain.compile_values import ONCE, ValueCompiler
from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor import HandlerPart, StepPart
from knhk.domain.descriptor_shape import BLANK
from knhk.domain.expressions import Condition, Template, compile_template
from knhk.domain.graph import build
from knhk.domain.json_schemas import error_places, matches, schema_fault
from knhk.domain.plan import NEVER, ActionTraits, Block, EndState, RetryPolicy, Step, block_of

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_DATA: Final = frozenset({"data"})
_COMPOSITE: Final = ActionTraits("", pure=True, guarantee="", reads_dependencies=False)
_NO_PARAMS: Final = compile_template(None)
_WAIT: Final = "wait"
VALIDATE: Final = "validate"
_NO_ACCEPTS: Final[Mapping[int, frozenset[EndState]]] = {}


class StepCompiler:
    """Compiles the blocks of one descriptor. `default` is the retry policy of actions that have none of their own."""

    def __init__(self, actions: Mapping[str, ActionTraits], complaints: Complaints, values: ValueCompiler) -> None:
        self._actions, self._complaints, self._values = actions, complaints, values
        self._bodies = BodyCompiler(complaints, values, self.block)
        self._blocks: list[tuple[BlockScope, Block]] = []
        self.default = ONCE

    def block(self, scope: BlockScope, output: Any = None, output_path: Path = ()) -> Block:
        """A block with all that is inside it. Which outputs are kept is not decided yet (see `finish`)."""
        if not scope.repeats:
            self._names(scope)
        accepts: dict[int, dict[int, frozenset[EndState]]] = {}
        parts = scope.parts
        scope.graph = build(
            [self._depends_on(scope, index, accepts) if part.depends_on else () for index, part in enumerate(parts)]
        )
        self._check_cycles(scope)
        handled = {other for accepted in accepts.values() for other, states in accepted.items() if "failed" in states}
        steps = [
            self._step(scope, index, accepts.get(index, _NO_ACCEPTS), index in handled) for index in range(len(parts))
        ]
        given = None if output is None else self._values.template(output, output_path, scope, EVERYWHERE)
        block = block_of(tuple(steps), given, repeats=scope.repeats)
        self._blocks.append((scope, block))
        return block

    def handler(self, scope: BlockScope, part: HandlerPart | None, key: str) -> Block | None:
        """What `on_failure` or `finally` says."""
        return self._bodies.handler(scope, part, key)

    def finish(self, inputs: frozenset[str] | None) -> None:
        """Check what all expressions read, and mark the outputs that must be kept for them."""
        for scope, _ in self._blocks:
            scope.check(inputs, self._complaints)
        for scope, block in self._blocks:
            if scope.outer is not None and block.output is None:
                scope.kept.update(block.last)
            for index in scope.kept:
                msgspec.structs.force_setattr(block.steps[index], "keep_output", True)  # nobody else has seen it yet

    def _names(self, scope: BlockScope) -> None:
        index_of = scope.index_of
        for index, part in enumerate(scope.parts):
            name = part.name
            if name in index_of:
                if name != BLANK:
                    first = index_of[name]
                    self._complaints.add(
                        f"the step name {name!r} is used twice; steps[{first}] has it already", scope.at(index, "name")
                    )
                continue
            index_of[name] = index
            if not NAME.fullmatch(name) and not (name == BLANK and self._complaints):
                self._complaints.add(
                    f"{name[:140]!r} is no step name: a letter or _, then at most 127 letters, digits, _ . or -",
                    scope.at(index, "name"),
                )

    def _depends_on(
        self, scope: BlockScope, index: int, accepts: dict[int, dict[int, frozenset[EndState]]]
    ) -> tuple[int, ...]:
        found: dict[int, None] = {}
        for at, entry in enumerate(scope.parts[index].depends_on or ()):
            path = scope.at(index, "depends_on", at)
            if isinstance(entry, str):
                name = entry
            else:
                name, path = entry.step, (*path, "step")
            other = scope.index_of.get(name, -1)
            if other < 0:
                if name != BLANK or not self._complaints:
                    self._complaints.add(f"there is no step {name[:140]!r}", path, name, scope.index_of)
            elif other == index:
                self._complaints.add(f"step {name!r} depends on itself", path)
            elif other in found:
                self._complaints.add(f"{name!r} is named twice", path)
            else:
                found[other] = None
                if not isinstance(entry, str) and entry.on is not None and entry.on != ["completed"]:
                    accepts.setdefault(index, {})[other] = frozenset(entry.on)
                    if not entry.on:
                        self._complaints.add("name at least one of completed, failed and skipped", (*path[:-1], "on"))
        return tuple(found)

    def _check_cycles(self, scope: BlockScope) -> None:
        for cycle in scope.graph.cycles:
            names = [scope.parts[index].name for index in cycle]
            shown = names if len(names) <= 20 else [*names[:10], "...", *names[-9:]]
            message = f"steps depend on each other in a cycle: {' -> '.join([*shown, names[0]])}"
            self._complaints.add(message, scope.at(cycle[0], "depends_on"))

    def _step(
        self, scope: BlockScope, index: int, accepts: Mapping[int, frozenset[EndState]], failure_is_handled: bool
    ) -> Step:
        part = scope.parts[index]
        if not scope.repeats:
            self._bodies.check_keys(scope, index, part)
        body = self._bodies.body(scope, index, part)
        if body is None:
            step = self._action(scope, index, part)
        else:
            key, node = body
            step = Step(index, part.name, key, _COMPOSITE, _NO_PARAMS, (), (), NEVER, ONCE, "at_least_once", False)
            if not is_repeated(part):
                step = self._with_policy(scope, index, part, step, ONCE)
            step = msgspec.structs.replace(step, body=node)
        if part.compensate is not None and (scope.repeats or not is_repeated(part)):
            step = msgspec.structs.replace(
                step, compensate=self._bodies.compensate(scope, index, part, part.compensate)
            )
        if scope.repeats:
            return step
        return msgspec.structs.replace(
            step,
            depends_on=scope.graph.depends_on[index],
            dependents=scope.graph.dependents[index],
            when=self._when(scope, index, part),
            accepts=accepts,
            continue_on_error=bool(part.continue_on_error),
            failure_is_handled=failure_is_handled or bool(part.continue_on_error),
            catch=None if part.catch is None else self._bodies.catch(scope, index, part.catch),
        )

    def _action(self, scope: BlockScope, index: int, part: StepPart) -> Step:
        """A step that is an action; what it has to do with other steps is left out."""
        name, params, place = part.action or BLANK, part.params or {}, scope.at(index, "params")
        if part.wait is not None:
            name, params, place = _WAIT, wait_params(part.wait), scope.at(index, "wait")
        elif part.wait_for is not None:
            name, params, place = "wait_for", part.wait_for, scope.at(index, "wait_for")
        elif part.approval is not None:
            name, params, place = "approval", part.approval, scope.at(index, "approval")
        traits = traits_of(name, part.queue, self._actions, self._complaints, scope.at(index, "action"))
        step = Step(
            index=index,
            name=part.name,
            action=name,
            traits=traits,
            params=self._params(scope, index, traits, params, place),
            depends_on=(),
            dependents=(),
            timeout_ns=NEVER,
            retry=ONCE,
            semantics=part.semantics or "at_least_once",
            keep_output=False,
            given=(
                scope.dependencies(index)
                if traits.reads_dependencies and not (name == VALIDATE and "data" in params)
                else ()
            ),
            cache=compile_cache(scope, index, part, traits, self._values, self._complaints),
        )
        return self._with_policy(scope, index, part, step, self.default)

    def _with_policy(self, scope: BlockScope, index: int, part: StepPart, step: Step, default: RetryPolicy) -> Step:
        timeout = part.timeout
        return msgspec.structs.replace(
            step,
            timeout_ns=NEVER if timeout is None else self._values.duration(timeout, scope.at(index, "timeout")),
            retry=self._own_policy(scope, index, part, default),
            output_schema=self._output_schema(scope, index, part),
        )

    def _when(self, scope: BlockScope, index: int, part: StepPart) -> Condition | None:
        return None if part.when is None else self._values.condition(part.when, scope.at(index, "when"), scope, index)

    def _params(
        self, scope: BlockScope, index: int, traits: ActionTraits, params: dict[str, Any], place: Path
    ) -> Template:
        if traits.name == VALIDATE and "rules" in params:
            params = self._with_rules(scope, index, params)
        template = self._values.template(params, place, scope, index)
        check_literals(traits, params, self._complaints, place)
        schema = traits.params_schema
        if schema is not None and not template.dynamic and not matches(schema, template.constant):
            for message, where in error_places(schema, template.constant):
                self._complaints.add(f"action {traits.name!r}: {message}", (*place, *where))
        return template

    def _with_rules(self, scope: BlockScope, index: int, params: dict[str, Any]) -> dict[str, Any]:
        """Rules of `validate` are conditions, not values: checked here, and left as CEL for the action."""
        rules = params["rules"]
        if not isinstance(rules, list):
            return params
        kept: list[Any] = []
        for at, entry in enumerate(rules):
            named = isinstance(entry, dict)
            source = entry.get("rule") if named else entry
            if not isinstance(source, str):
                return params  # the schema of the action's params says what is wrong
            path = scope.at(index, "params", "rules", at, *(("rule",) if named else ()))
            condition = self._values.condition(source, path, scope, index, _DATA)
            text = source if condition is None else condition.source
            kept.append({**entry, "rule": text} if named else text)
        return {**params, "rules": kept}

    def _output_schema(self, scope: BlockScope, index: int, part: StepPart) -> Any:
        if part.output_schema is not None and (fault := schema_fault(part.output_schema)):
            self._complaints.add(f"not a usable JSON Schema: {fault}", scope.at(index, "output_schema"))
        return part.output_schema

    def _own_policy(self, scope: BlockScope, index: int, part: StepPart, default: RetryPolicy) -> RetryPolicy:
        if part.retries is None and part.retry is None:
            return ONCE if part.semantics == "at_most_once" else default
        policy = self._values.policy(part.retries, part.retry, scope.at(index), scope, index) or ONCE
        if part.semantics == "at_most_once" and policy.max_attempts > 1:
            key = "retries" if part.retries is not None else "retry"
            self._complaints.add("a step that runs at most once cannot be retried", scope.at(index, key))
        return policy
