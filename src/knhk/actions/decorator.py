"""`@knhk.action`: make an action of a Python function.

The function's annotations give the schemas that descriptors are checked against, and turn the step's params into its
arguments. What the function returns is the step's output. The function itself stays as it was, so tests can call it.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec

from knhk.actions.blob_access import BlobAccess, provided
from knhk.actions.parameters import PARAMS_CODE
from knhk.actions.registry import (
    MARK,
    Action,
    Cancelled,
    Failed,
    Invocation,
    Mode,
    Outcome,
    RetryLater,
    Succeeded,
    WaitUntil,
)
from knhk.actions.schema import schema_of, to_plain, to_type, without
from knhk.domain.plan import ActionTraits

Function = TypeVar("Function", bound=Callable[..., Any])
Arguments = Callable[[Invocation], dict[str, Any]]

OUTPUT_CODE: Final = "KNHK-ACTION-OUTPUT"
FAILED_CODE: Final = "KNHK-ACTION-FAILED"
RETRY_CODE: Final = "KNHK-ACTION-RETRY"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,127}")
_GUARANTEES: Final = ("exactly-once", "at-least-once", "at-most-once")
_OUTCOMES: Final = get_args(Outcome)


class ActionFailed(Exception):
    """Raise it to fail the step for good: it is not retried. `guard` names the rule that was broken, if one was."""

    def __init__(self, message: str, code: str = FAILED_CODE, guard: str = "") -> None:
        super().__init__(message)
        self.message, self.code, self.guard = message, code, guard


class RetryAction(Exception):
    """Raise it to fail this attempt; the step's retry policy decides whether there is another.

    `after` is the shortest pause before it, in seconds; None leaves the pause to the policy.
    """

    def __init__(self, message: str, after: float | None = None, code: str = RETRY_CODE) -> None:
        if after is not None and not (0 <= after < math.inf):
            raise ValueError(f"the pause before a retry must be a number of seconds, 0 or more, not {after!r}")
        super().__init__(message)
        self.message, self.code, self.after = message, code, after


class ActionContext(msgspec.Struct, frozen=True):
    """What a function may know of its step, besides its params.

    `idempotency_key` is the same on every attempt and after any crash: hand it to the systems that you call.
    `attempt` counts from 1. `dependencies` holds the outputs of the steps that this one depends on, by name. `now_ns`
    is Unix time at the start of the attempt. `traceparent` is the W3C trace context, empty if the run is not traced.
    """

    workflow_id: str
    step: str
    attempt: int
    idempotency_key: str
    workflow_name: str = ""
    dependencies: Mapping[str, Any] = {}
    now_ns: int = 0
    traceparent: str = ""

    @property
    def blobs(self) -> BlobAccess:
        """Large payloads: those that params refer to, and those that the action makes. It blocks, like a file."""
        return provided()


def action(
    name: str,
    *,
    pure: bool = False,
    guarantee: str | None = None,
    inline: bool = False,
    queue: str = "",
    version: str = "",
) -> Callable[[Function], Function]:
    """Make an action of a function, sync or async.

    `def f(params: T)` gets all params as one value; any other function gets them by the names of its parameters. A
    parameter annotated `ActionContext` (or named `context` and not annotated) gets the context. Async functions run in
    the event loop, sync ones in a thread, or with `inline` directly in the loop: only for short code that never blocks.
    `pure` promises that running it twice has no effect outside and gives the same answer. `guarantee` is what the API
    shows: exactly-once, at-least-once or at-most-once. With a `queue`, remote workers perform the attempts
    (`knhk worker`), and the server needs the function only to check params. What a step with a `cache` gave is never
    given for another `version`.

    Raises:
        TypeError: the function cannot be an action, or one of its types has no JSON form.
        ValueError: the name or the guarantee is not valid.
    """
    if not isinstance(name, str):
        raise TypeError('give the action a name: @knhk.action("name")')
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no action name: use letters, digits and _ . / -, beginning with a letter or _")
    promised = guarantee or ("exactly-once" if pure else "at-least-once")
    if promised not in _GUARANTEES:
        raise ValueError(f"guarantee must be one of {', '.join(_GUARANTEES)}, not {guarantee!r}")

    def decorate(function: Function) -> Function:
        if not isinstance(function, FunctionType):
            raise TypeError(f"action {name!r}: only functions can be actions, not {type(function).__qualname__}")
        setattr(function, MARK, _build(name, function, pure, promised, inline, queue, version))
        return function

    return decorate


def as_action(name: str, function: FunctionType) -> Action:
    """The action of a function: as `@knhk.action` made it, or else with what its annotations say.

    Raises:
        TypeError: the function cannot be an action.
    """
    marked = vars(function).get(MARK)
    return marked if isinstance(marked, Action) else _build(name, function, False, "at-least-once")


def _build(
    name: str,
    function: FunctionType,
    pure: bool,
    guarantee: str,
    inline: bool = False,
    queue: str = "",
    version: str = "",
) -> Action:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"action {name!r}: a generator cannot be an action; return a list")
    is_async = inspect.iscoroutinefunction(function)
    if is_async and inline:
        raise TypeError(f"action {name!r}: an async function is never inline")
    try:
        hints = get_type_hints(function, include_extras=True)
        params_schema, arguments = _bind(name, function, hints)
        output_schema = schema_of(without(hints.get("return", Any), _OUTCOMES))
    except (NameError, TypeError) as error:
        raise TypeError(f"action {name!r}: {error}") from error
    traits = ActionTraits(
        name, pure and not queue, guarantee, params_schema, output_schema, queue=queue, version=version
    )
    source = f"{function.__module__}.{function.__qualname__} (line {function.__code__.co_firstlineno})"
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    if is_async:
        return Action(traits, "async", _async_run(name, function, arguments), source, about=about)
    mode: Mode = "inline" if inline else "thread"
    return Action(traits, mode, _sync_run(name, function, arguments), source, about=about)


def _async_run(name: str, function: Callable[..., Any], arguments: Arguments) -> Callable[[Invocation], Any]:
    async def run(invocation: Invocation) -> Outcome:
        try:
            given = arguments(invocation)
        except msgspec.ValidationError as error:
            return Failed(PARAMS_CODE, f"{name}: {error}")
        try:
            return _outcome(name, await function(**given))
        except (ActionFailed, RetryAction) as control:
            return controlled(control)

    return run


def _sync_run(name: str, function: Callable[..., Any], arguments: Arguments) -> Callable[[Invocation], Outcome]:
    def run(invocation: Invocation) -> Outcome:
        try:
            given = arguments(invocation)
        except msgspec.ValidationError as error:
            return Failed(PARAMS_CODE, f"{name}: {error}")
        try:
            return _outcome(name, function(**given))
        except (ActionFailed, RetryAction) as control:
            return controlled(control)

    return run


def _bind(name: str, function: FunctionType, hints: Mapping[str, Any]) -> tuple[dict[str, Any] | None, Arguments]:
    """The schema of the params, and how an invocation becomes the function's arguments."""
    ordinary, context = _parameters(function, hints)
    if [parameter.name for parameter in ordinary] == ["params"]:
        kind = hints.get("params", Any)
        return schema_of(kind), _whole(kind, context)
    fields = [_field(parameter, hints.get(parameter.name, Any)) for parameter in ordinary]
    struct = msgspec.defstruct(
        function.__name__, fields, module=function.__module__, forbid_unknown_fields=True, kw_only=True
    )
    return schema_of(struct), _by_name(struct, context)


def _parameters(function: FunctionType, hints: Mapping[str, Any]) -> tuple[list[inspect.Parameter], str]:
    """The ordinary parameters, and the name of the one that takes the context, empty if there is none."""
    ordinary: list[inspect.Parameter] = []
    context = ""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise TypeError(f"parameter {parameter} cannot be filled by name; take all with `params: dict` instead")
        hint = hints.get(parameter.name)
        if hint is ActionContext or (hint is None and parameter.name == "context"):
            if context:
                raise TypeError("only one parameter can be the context")
            context = parameter.name
        else:
            ordinary.append(parameter)
    return ordinary, context


def _field(parameter: inspect.Parameter, kind: Any) -> Any:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return (parameter.name, kind)
    if default is None or isinstance(default, (bool, int, float, str)):
        return (parameter.name, kind, default)
    # Shared between calls, as Python does it; msgspec refuses mutable defaults that are given directly.
    return (parameter.name, kind, msgspec.field(default_factory=lambda: default))


def _whole(kind: Any, context: str) -> Arguments:
    def arguments(invocation: Invocation) -> dict[str, Any]:
        params = invocation.params
        given = {"params": params if kind is Any else to_type(params, kind)}
        if context:
            given[context] = _context(invocation)
        return given

    return arguments


def _by_name(struct: type[msgspec.Struct], context: str) -> Arguments:
    names = struct.__struct_fields__

    def arguments(invocation: Invocation) -> dict[str, Any]:
        params = to_type({} if invocation.params is None else invocation.params, struct)
        given = {name: getattr(params, name) for name in names}
        if context:
            given[context] = _context(invocation)
        return given

    return arguments


def _context(invocation: Invocation) -> ActionContext:
    return ActionContext(
        workflow_id=invocation.workflow_id,
        step=invocation.step,
        attempt=invocation.attempt,
        idempotency_key=invocation.idempotency_key,
        workflow_name=invocation.workflow_name,
        dependencies=invocation.dependencies,
        now_ns=invocation.now_ns,
        traceparent=invocation.traceparent,
    )


def controlled(control: ActionFailed | RetryAction) -> Outcome:
    """The outcome that an action asked for by raising."""
    if isinstance(control, ActionFailed):
        return Failed(control.code, control.message, control.guard)
    return RetryLater(control.code, control.message, None if control.after is None else round(control.after * 1e9))


def _outcome(name: str, returned: Any) -> Outcome:
    """What a function returned, as an outcome. An output without a JSON form is final: trying again changes nothing."""
    try:
        match returned:
            case Succeeded(output=output):
                return Succeeded(to_plain(output))
            case WaitUntil(fire_at_ns=fire_at_ns, output=output):
                return WaitUntil(fire_at_ns, to_plain(output))
            case Failed() | RetryLater() | Cancelled():
                return returned
            case _:
                return Succeeded(to_plain(returned))
    except (TypeError, ValueError, RecursionError) as error:
        return Failed(OUTPUT_CODE, f"{name}: the returned value cannot be stored: {error}")
