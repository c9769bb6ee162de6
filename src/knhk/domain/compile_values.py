"""The expressions, durations and retry policies of a descriptor, compiled; what they read is noted in their block."""

from functools import lru_cache
from typing import Any, Final

from knhk.domain.block_scope import BlockScope, Reading
from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor import RetryPart
from knhk.domain.errors import InvalidExpression
from knhk.domain.expressions import Condition, Template, compile_condition, compile_template
from knhk.domain.plan import NEVER, RetryPolicy
from knhk.domain.units import parse_duration_ns

MAX_EXPRESSIONS: Final = 10_000
"""How many expressions a descriptor can hold; each takes about 0.1 ms to compile."""
DEFAULT_ATTEMPTS: Final = 3
"""How often a step is tried whose `retry` does not say."""
ONCE: Final = RetryPolicy()
_ERROR: Final = frozenset({"error"})
_UNKNOWN_VALUE: Final = compile_template(None)

# Most descriptors share a few durations.
_duration_ns: Final = lru_cache(maxsize=256)(parse_duration_ns)


class ValueCompiler:
    """Compiles values of one descriptor."""

    def __init__(self, complaints: Complaints) -> None:
        self._complaints = complaints
        self._expressions = 0

    def policy(
        self, retries: int | None, retry: RetryPart | None, path: Path, scope: BlockScope, reader: int
    ) -> RetryPolicy | None:
        """The retry policy that these two keys at a path give; None if neither is there."""
        if retry is None:
            return None if retries is None else RetryPolicy(max_attempts=retries + 1)
        if retries is not None:
            self._complaints.add("give `retries` or `retry`, not both", (*path, "retries"))
        path = (*path, "retry")

        def condition(source: str | None, key: str) -> Condition | None:
            return None if source is None else self.condition(source, (*path, key), scope, reader, _ERROR)

        return RetryPolicy(
            max_attempts=DEFAULT_ATTEMPTS if retry.max_attempts is None else retry.max_attempts,
            delay_ns=ONCE.delay_ns if retry.delay is None else self.duration(retry.delay, (*path, "delay")),
            factor=ONCE.factor if retry.factor is None else retry.factor,
            max_delay_ns=(
                ONCE.max_delay_ns if retry.max_delay is None else self.duration(retry.max_delay, (*path, "max_delay"))
            ),
            jitter=ONCE.jitter if retry.jitter is None else retry.jitter,
            when=condition(retry.when, "when"),
            except_when=condition(retry.except_when, "except_when"),
        )

    def duration(self, text: str, path: Path) -> int:
        """A duration in nanoseconds; 0 and a complaint if it is none."""
        try:
            return _duration_ns(text)
        except ValueError as error:
            self._complaints.add(str(error), path)
            return NEVER

    def condition(
        self, source: str, path: Path, scope: BlockScope, reader: int, names: frozenset[str] = frozenset()
    ) -> Condition | None:
        """A condition that may also read `names`; None and a complaint if it is none."""
        try:
            condition = compile_condition(source, scope.names | names)
        except InvalidExpression as error:
            self._complaints.add(error.message, path)
            return None
        self._spend(1, path)
        _note(condition, path, scope, reader)
        return condition

    def template(
        self, value: Any, path: Path, scope: BlockScope, reader: int, names: frozenset[str] = frozenset()
    ) -> Template:
        """A value with expressions that may also read `names`; an empty one and complaints if it is none."""
        names = scope.names | names
        try:
            template = compile_template(value, names)
        except InvalidExpression as error:
            if not self._name_faults(value, path, names):  # each expression is right, but not all of them together
                self._complaints.add(error.message, path)
            return _UNKNOWN_VALUE
        if template.dynamic:
            self._spend(template.expressions, path)
            _note(template, path, scope, reader)
        return template

    def _name_faults(self, value: Any, path: Path, names: frozenset[str]) -> bool:
        """Say where in a value each expression stands that cannot be compiled. False if there is none."""
        if isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            faults = [self._name_faults(part, (*path, key), names) for key, part in parts]  # all, not just the first
            return True in faults
        try:
            self._spend(compile_template(value, names).expressions, path)
        except InvalidExpression as error:
            self._spend(1, path)
            self._complaints.add(error.message, path)
            return True
        return False

    def _spend(self, expressions: int, path: Path) -> None:
        """Count the expressions of the descriptor, which take most of the time. Raises InvalidDescriptor at the end."""
        self._expressions += expressions
        if self._expressions > MAX_EXPRESSIONS:
            self._complaints.add(f"more than {MAX_EXPRESSIONS} expressions in one descriptor", path)
            self._complaints.raise_if_any()


def _note(source: Template | Condition, path: Path, scope: BlockScope, reader: int) -> None:
    if source.steps or source.inputs:
        scope.note(Reading(source.steps, source.inputs, path, reader))
