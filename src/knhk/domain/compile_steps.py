"""The steps of a descriptor: names, actions, params, retries, and the graph of their dependencies."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor import RetryPart, SpecPart, StepPart
from knhk.domain.descriptor_shape import BLANK
from knhk.domain.errors import InvalidExpression
from knhk.domain.expressions import Condition, Template, compile_condition, compile_template
from knhk.domain.graph import Graph
from knhk.domain.json_schemas import error_places, matches, schema_fault
from knhk.domain.plan import NEVER, ActionTraits, RetryPolicy, Step
from knhk.domain.units import parse_duration_ns

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
MAX_EXPRESSIONS: Final = 10_000
"""How many expressions a descriptor can hold; each takes about 0.1 ms to compile."""
DEFAULT_ATTEMPTS: Final = 3
"""How often a step is tried whose `retry` does not say."""
_NO_NAMES: Final[frozenset[str]] = frozenset()
_ERROR: Final = frozenset({"error"})
_DATA: Final = frozenset({"data"})
_ONCE: Final = RetryPolicy()
_UNKNOWN: Final = ActionTraits("", pure=True)
_UNKNOWN_VALUE: Final = compile_template(None)
_VALIDATE: Final = "validate"


# Most descriptors share a few durations.
_duration_ns: Final = lru_cache(maxsize=256)(parse_duration_ns)


class Reading(msgspec.Struct, frozen=True):
    """What an expression reads, and where it stands; for the checks that need the whole graph."""

    steps: frozenset[str]
    inputs: frozenset[str]
    path: Path
    reader: int


class StepCompiler:
    """Compiles the steps of one descriptor."""

    def __init__(self, actions: Mapping[str, ActionTraits], complaints: Complaints) -> None:
        self._actions = actions
        self._complaints = complaints
        self._expressions = 0
        self.readings: list[Reading] = []
        self.kept: set[int] = set()

    def policies(self, spec: SpecPart) -> RetryPolicy:
        """The retry policy of steps that have none of their own."""
        return self._policy(spec.retries, spec.retry, ("spec",), -1) or _ONCE

    def names(self, parts: Sequence[StepPart]) -> dict[str, int]:
        """Each step's index by its name."""
        index_of: dict[str, int] = {}
        for index, part in enumerate(parts):
            name = part.name
            if name in index_of:
                if name != BLANK:
                    first = index_of[name]
                    self._complaints.add(
                        f"the step name {name!r} is used twice; steps[{first}] has it already", _at(index, "name")
                    )
                continue
            index_of[name] = index
            if not NAME.fullmatch(name) and not (name == BLANK and self._complaints):
                self._complaints.add(
                    f"{name[:140]!r} is no step name: a letter or _, then at most 127 letters, digits, _ . or -",
                    _at(index, "name"),
                )
        return index_of

    def dependencies(self, parts: Sequence[StepPart], index_of: dict[str, int]) -> list[tuple[int, ...]]:
        """The indexes of the steps that each step depends on."""
        return [self._depends_on(index, part, index_of) if part.depends_on else () for index, part in enumerate(parts)]

    def _depends_on(self, index: int, part: StepPart, index_of: dict[str, int]) -> tuple[int, ...]:
        found: list[int] = []
        names = part.depends_on or ()
        for at, name in enumerate(names):
            other = index_of.get(name, -1)
            if other < 0:
                if name != BLANK or not self._complaints:
                    path = _at(index, "depends_on", at)
                    self._complaints.add(f"there is no step {name[:140]!r}", path, name, index_of)
            elif other == index:
                self._complaints.add(f"step {name!r} depends on itself", _at(index, "depends_on", at))
            else:
                found.append(other)
        if len(set(found)) < len(found):
            seen: set[str] = set()
            for at, name in enumerate(names):
                if name in seen and name in index_of:
                    self._complaints.add(f"{name!r} is named twice", _at(index, "depends_on", at))
                seen.add(name)
            found = list(dict.fromkeys(found))
        return tuple(found)

    def step(self, index: int, part: StepPart, graph: Graph, default: RetryPolicy) -> Step:
        """One step. Whether its output is kept is decided when all steps are known; here it is not."""
        traits = self._traits(index, part)
        semantics = part.semantics or "at_least_once"
        timeout_ns = NEVER if part.timeout is None else self.duration(part.timeout, _at(index, "timeout"))
        return Step(
            index=index,
            name=part.name,
            action=part.action,
            traits=traits,
            params=self._params(index, part, traits, graph.depends_on[index]),
            depends_on=graph.depends_on[index],
            dependents=graph.dependents[index],
            timeout_ns=timeout_ns,
            retry=self._own_policy(index, part, default),
            semantics=semantics,
            keep_output=False,
            output_schema=self._output_schema(index, part),
        )

    def _traits(self, index: int, part: StepPart) -> ActionTraits:
        traits = self._actions.get(part.action)
        if traits is not None:
            if traits.disabled:
                message = f"the action {part.action!r} is not allowed here: {traits.disabled}"
                self._complaints.add(message, _at(index, "action"))
            return traits
        if part.action != BLANK or not self._complaints:
            message = f"there is no action {part.action[:140]!r}"
            self._complaints.add(message, _at(index, "action"), part.action, self._actions)
        return _UNKNOWN

    def _params(self, index: int, part: StepPart, traits: ActionTraits, depends_on: tuple[int, ...]) -> Template:
        params: dict[str, Any] = part.params or {}
        if part.action == _VALIDATE and "rules" in params:
            params = self._with_rules(index, params)
        template = self.template(params, _at(index, "params"), index)
        for place in traits.literal:
            self._check_literal(place.split("."), params, _at(index, "params"))
        schema = traits.params_schema
        if schema is not None and not template.dynamic and not matches(schema, template.constant):
            self._check_params(index, template.constant, traits)
        if depends_on and traits.reads_dependencies and not (part.action == _VALIDATE and "data" in params):
            self.kept.update(depends_on)
        return template

    def _check_params(self, index: int, params: Any, traits: ActionTraits) -> None:
        for message, where in error_places(traits.params_schema or {}, params):
            self._complaints.add(f"action {traits.name!r}: {message}", _at(index, "params", *where))

    def _check_literal(self, names: Sequence[str], value: Any, path: Path) -> None:
        """Complain of an expression at a place that none may fill."""
        if not names:
            if "${{" in str(value):
                self._complaints.add("must be written out: an expression here could turn data into code", path)
        elif names[0] == "*" and isinstance(value, list):
            for at, part in enumerate(value):
                self._check_literal(names[1:], part, (*path, at))
        elif isinstance(value, dict) and names[0] in value:
            self._check_literal(names[1:], value[names[0]], (*path, names[0]))

    def _name_faults(self, value: Any, path: Path) -> bool:
        """Say where in a value each expression stands that cannot be compiled. False if there is none."""
        if isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            faults = [self._name_faults(part, (*path, key)) for key, part in parts]  # all of them, not just the first
            return True in faults
        try:
            self._spend(compile_template(value, _NO_NAMES).expressions, path)
        except InvalidExpression as error:
            self._spend(1, path)
            self._complaints.add(error.message, path)
            return True
        return False

    def _with_rules(self, index: int, params: dict[str, Any]) -> dict[str, Any]:
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
            path = _at(index, "params", "rules", at, *(("rule",) if named else ()))
            condition = self.condition(source, path, _DATA, index)
            text = source if condition is None else condition.source
            kept.append({**entry, "rule": text} if named else text)
        return {**params, "rules": kept}

    def _output_schema(self, index: int, part: StepPart) -> Any:
        if part.output_schema is not None and (fault := schema_fault(part.output_schema)):
            self._complaints.add(f"not a usable JSON Schema: {fault}", _at(index, "output_schema"))
        return part.output_schema

    def _own_policy(self, index: int, part: StepPart, default: RetryPolicy) -> RetryPolicy:
        if part.retries is None and part.retry is None:
            return _ONCE if part.semantics == "at_most_once" else default
        policy = self._policy(part.retries, part.retry, ("spec", "steps", index), index) or _ONCE
        if part.semantics == "at_most_once" and policy.max_attempts > 1:
            key = "retries" if part.retries is not None else "retry"
            self._complaints.add("a step that runs at most once cannot be retried", _at(index, key))
        return policy

    def _policy(self, retries: int | None, retry: RetryPart | None, path: Path, reader: int) -> RetryPolicy | None:
        if retry is None:
            return None if retries is None else RetryPolicy(max_attempts=retries + 1)
        if retries is not None:
            self._complaints.add("give `retries` or `retry`, not both", (*path, "retries"))
        path = (*path, "retry")
        return RetryPolicy(
            max_attempts=DEFAULT_ATTEMPTS if retry.max_attempts is None else retry.max_attempts,
            delay_ns=_ONCE.delay_ns if retry.delay is None else self.duration(retry.delay, (*path, "delay")),
            factor=_ONCE.factor if retry.factor is None else retry.factor,
            max_delay_ns=(
                _ONCE.max_delay_ns if retry.max_delay is None else self.duration(retry.max_delay, (*path, "max_delay"))
            ),
            jitter=_ONCE.jitter if retry.jitter is None else retry.jitter,
            when=None if retry.when is None else self.condition(retry.when, (*path, "when"), _ERROR, reader),
            except_when=(
                None
                if retry.except_when is None
                else self.condition(retry.except_when, (*path, "except_when"), _ERROR, reader)
            ),
        )

    def duration(self, text: str, path: Path) -> int:
        """A duration in nanoseconds; 0 and a complaint if it is none."""
        try:
            return _duration_ns(text)
        except ValueError as error:
            self._complaints.add(str(error), path)
            return NEVER

    def condition(self, source: str, path: Path, names: frozenset[str], reader: int) -> Condition | None:
        """A condition that may also read `names`; None and a complaint if it is none."""
        try:
            condition = compile_condition(source, names)
        except InvalidExpression as error:
            self._complaints.add(error.message, path)
            return None
        self._spend(1, path)
        self._read(condition, path, reader)
        return condition

    def template(self, value: Any, path: Path, reader: int) -> Template:
        """A value with expressions; an empty one and complaints if it is none."""
        try:
            template = compile_template(value, _NO_NAMES)
        except InvalidExpression as error:
            if not self._name_faults(value, path):  # each expression is right, but not all of them together
                self._complaints.add(error.message, path)
            return _UNKNOWN_VALUE
        if template.dynamic:
            self._spend(template.expressions, path)
            self._read(template, path, reader)
        return template

    def _spend(self, expressions: int, path: Path) -> None:
        """Count the expressions of the descriptor, which take most of the time. Raises InvalidDescriptor at the end."""
        self._expressions += expressions
        if self._expressions > MAX_EXPRESSIONS:
            self._complaints.add(f"more than {MAX_EXPRESSIONS} expressions in one descriptor", path)
            self._complaints.raise_if_any()

    def _read(self, source: Template | Condition, path: Path, reader: int) -> None:
        """Note what an expression reads; `reader` is the index of its step, -1 if it is of the whole workflow."""
        if source.steps or source.inputs:
            self.readings.append(Reading(source.steps, source.inputs, path, reader))


def _at(index: int, *rest: str | int) -> Path:
    return ("spec", "steps", index, *rest)
