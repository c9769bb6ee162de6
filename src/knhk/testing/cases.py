"""Test cases in a file beside a descriptor: `orders.yaml` is tested by `orders.test.yaml` (docs/testing.md)."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from knhk.domain.errors import InvalidDescriptor, InvalidInput, KnhkError
from knhk.domain.expressions import Scope, compile_condition, compile_template
from knhk.domain.units import SECOND, parse_duration_ns
from knhk.testing import mocks as m
from knhk.testing.rehearsal import Result, Signal, run

SUFFIX: Final = ".test.yaml"
_NAMES: Final = frozenset({"params", "attempt"})
_RESULT: Final = frozenset({"result"})


class FailureMock(msgspec.Struct, forbid_unknown_fields=True):
    """A failure; `after` is the shortest pause before a retry."""

    message: str = "mocked"
    code: str | None = None
    after: str | None = None


class MockPart(msgspec.Struct, forbid_unknown_fields=True):
    """One answer: an output, which may hold `${{ }}` over `params` and `attempt`, or a failure."""

    output: Any = msgspec.UNSET
    fail: FailureMock | None = None
    retry: FailureMock | None = None


class Mocks(msgspec.Struct, forbid_unknown_fields=True):
    """Answers by step and by action; of a list, one for each call."""

    steps: dict[str, MockPart | list[MockPart]] = {}
    actions: dict[str, MockPart | list[MockPart]] = {}


class SignalPart(msgspec.Struct, forbid_unknown_fields=True):
    """An event that is told to the run after some time."""

    event: str
    data: Any = None
    after: str = "0s"
    correlate: str = ""


class StepExpectation(msgspec.Struct, forbid_unknown_fields=True):
    """What must hold of a step; what is left out is not looked at. `params` are those of its last attempt."""

    state: str | None = None
    attempts: int | None = None
    output: Any = msgspec.UNSET
    params: Any = msgspec.UNSET
    failure: str | None = None


class FailureExpectation(msgspec.Struct, forbid_unknown_fields=True):
    """How the run must have failed."""

    code: str | None = None
    step: str | None = None
    guard: str | None = None
    message: str | None = None


class Expectation(msgspec.Struct, forbid_unknown_fields=True):
    """What must hold at the end. `calls` is how often an action was called, `rules` are CEL over `result`."""

    state: str = "completed"
    outputs: Any = msgspec.UNSET
    failure: FailureExpectation | None = None
    steps: dict[str, StepExpectation] = {}
    calls: dict[str, int] = {}
    takes_at_least: str | None = None
    takes_at_most: str | None = None
    rules: list[str] = []


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """One test."""

    name: str
    inputs: dict[str, Any] = {}
    mocks: Mocks = msgspec.field(default_factory=Mocks)
    signals: list[SignalPart] = []
    expect: Expectation = msgspec.field(default_factory=Expectation)


class CaseFile(msgspec.Struct, forbid_unknown_fields=True):
    """A whole file. `workflow` is the descriptor beside it, `modules` hold actions of your own, `mocks` are for all."""

    tests: list[Case]
    workflow: str | None = None
    modules: list[str] = []
    mocks: Mocks = msgspec.field(default_factory=Mocks)


class Outcome(msgspec.Struct):
    """How a test ended: what does not hold, nothing if all does."""

    name: str
    problems: list[str]
    elapsed_s: float = 0.0


def load(file: Path) -> tuple[CaseFile, Path]:
    """The cases of a file, or of the one beside a descriptor, and the descriptor's path.

    Raises:
        FileNotFoundError: one of them is not there.
        InvalidInput: the file of the cases is not of its format.
    """
    own = file.name.endswith(SUFFIX)
    cases_file = file if own else file.with_name(file.stem + SUFFIX)
    try:
        cases = msgspec.convert(yaml.safe_load(cases_file.read_bytes()), CaseFile)
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(f"{cases_file}: {error}", hint="docs/testing.md has the format of test files.") from error
    named = cases.workflow or file.name.removesuffix(SUFFIX) + ".yaml"
    descriptor = cases_file.parent / named if own or cases.workflow else file
    if not descriptor.is_file():
        raise FileNotFoundError(descriptor)
    if not cases.tests:
        raise InvalidInput(f"{cases_file}: there is no test in it")
    return cases, descriptor


def perform(cases: CaseFile, descriptor: Path) -> Iterator[Outcome]:
    """Run the tests one after the other. Modules are found in the descriptor's directory too."""
    sys.path.append(os.fspath(descriptor.parent.absolute()))
    for case in cases.tests:
        yield _performed(case, cases, descriptor)


def _performed(case: Case, cases: CaseFile, descriptor: Path) -> Outcome:
    try:
        result = run(
            descriptor,
            case.inputs,
            steps={**_mocks(cases.mocks.steps), **_mocks(case.mocks.steps)},
            actions={**_mocks(cases.mocks.actions), **_mocks(case.mocks.actions)},
            modules=cases.modules,
            signals=[Signal(one.event, one.data, _seconds(one.after), one.correlate) for one in case.signals],
        )
        return Outcome(case.name, list(_problems(case.expect, result)), result.elapsed_s)
    except InvalidDescriptor as error:
        return Outcome(case.name, [str(problem) for problem in error.problems] or [error.message])
    except (KnhkError, ValueError) as error:
        return Outcome(case.name, [str(error)])


def _mocks(parts: Mapping[str, MockPart | list[MockPart]]) -> dict[str, m.Mock]:
    found: dict[str, m.Mock] = {}
    for name, part in parts.items():
        each = [_mock(one) for one in (part if isinstance(part, list) else [part])]
        found[name] = m.sequence(*each)
    return found


def _mock(part: MockPart) -> m.Mock:
    if sum((part.output is not msgspec.UNSET, part.fail is not None, part.retry is not None)) != 1:
        raise ValueError("a mock is exactly one of `output`, `fail` and `retry`")
    if part.fail is not None:
        return m.fails(part.fail.message, **({"code": part.fail.code} if part.fail.code else {}))
    if part.retry is not None:
        after_s = None if part.retry.after is None else _seconds(part.retry.after)
        return m.retries(part.retry.message, **({"code": part.retry.code} if part.retry.code else {}), after_s=after_s)
    template = compile_template(part.output, _NAMES)
    return lambda call: m.returns(
        template.evaluate(Scope({}, call.dependencies, {}, {"params": call.params, "attempt": call.attempt}))
    )


def _problems(expect: Expectation, result: Result) -> Iterator[str]:
    yield from _differs("state", expect.state, result.state, f" ({result.failure})" if result.failure else "")
    if expect.outputs is not msgspec.UNSET:
        yield from _differs("outputs", expect.outputs, result.outputs)
    if expect.failure is not None:
        failure = result.failure or {}
        for name in ("code", "step", "guard"):
            if (wanted := getattr(expect.failure, name)) is not None:
                yield from _differs(f"failure.{name}", wanted, failure.get(name))
        if expect.failure.message is not None and expect.failure.message not in failure.get("message", ""):
            yield f"failure.message: {failure.get('message')!r} does not contain {expect.failure.message!r}"
    for name, step in expect.steps.items():
        yield from _step_problems(name, step, result)
    for name, wanted in expect.calls.items():
        yield from _differs(f"calls.{name}", wanted, len(result.calls(name)))
    if expect.takes_at_least is not None and result.elapsed_s < _seconds(expect.takes_at_least):
        yield f"took {result.elapsed_s:g} s, less than {expect.takes_at_least}"
    if expect.takes_at_most is not None and result.elapsed_s > _seconds(expect.takes_at_most):
        yield f"took {result.elapsed_s:g} s, more than {expect.takes_at_most}"
    for rule in expect.rules:
        scope = Scope({}, {}, {}, {"result": {**result.run, "elapsed_s": result.elapsed_s}})
        if not compile_condition(rule, _RESULT).evaluate(scope):
            yield f"does not hold: {rule}"


def _step_problems(name: str, expect: StepExpectation, result: Result) -> Iterator[str]:
    try:
        step = result.step(name)
    except KeyError:
        yield f"steps.{name}: there is no such step"
        return
    for key in ("state", "attempts"):
        if (wanted := getattr(expect, key)) is not None:
            yield from _differs(f"steps.{name}.{key}", wanted, step[key])
    if expect.output is not msgspec.UNSET:
        yield from _differs(f"steps.{name}.output", expect.output, step.get("output"))
    if expect.failure is not None:
        yield from _differs(f"steps.{name}.failure", expect.failure, (step.get("failure") or {}).get("code"))
    if expect.params is not msgspec.UNSET:
        calls = result.calls(step=name)
        yield from _differs(f"steps.{name}.params", expect.params, calls[-1].params if calls else "never called")


def _differs(what: str, wanted: Any, found: Any, more: str = "") -> Iterator[str]:
    if wanted != found:
        yield f"{what}: expected {_shown(wanted)}, got {_shown(found)}{more}"


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 300 else text[:299] + "…"


def _seconds(text: str) -> float:
    return parse_duration_ns(text) / SECOND
