"""What an action is, what it is given, what it answers, and where it is looked up.

An action's result is a value, one of `Outcome`; an exception that leaves `Action.run` is a failed attempt, which the
executor normalises. The registry is filled once, when the process starts, and only read afterwards: it needs no lock.
"""

import difflib
import importlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import entry_points
from types import FunctionType, ModuleType
from typing import Any, Final, Literal, Self

import msgspec

from knhk.domain.errors import InvalidConfiguration, NotFound, Problem
from knhk.domain.event import Failure
from knhk.domain.expressions import Scope
from knhk.domain.plan import ActionTraits
from knhk.domain.waits import WaitKind

GROUP: Final = "knhk.actions"
BUILTIN: Final = "knhk.actions.builtin"
MARK: Final = "__knhk_action__"
Mode = Literal["inline", "async", "thread"]


class Succeeded(msgspec.Struct, frozen=True):
    """The step is done. `output` is JSON-like data (see knhk.domain.payload)."""

    output: Any = None


class Failed(msgspec.Struct, frozen=True):
    """The step failed for good and is not retried. `guard` names the rule that was violated, if one was.

    `problem` is what failed as RFC 9457 problem details, for workflows that handle it.
    """

    code: str
    message: str
    guard: str = ""
    problem: Mapping[str, Any] = {}


class RetryLater(msgspec.Struct, frozen=True):
    """An attempt failed; the step's retry policy decides whether there is another.

    `after_ns` is the shortest pause before it, in nanoseconds from now; None leaves the pause to the policy.
    """

    code: str
    message: str
    after_ns: int | None = None


class WaitUntil(msgspec.Struct, frozen=True):
    """The step completes with `output` at `fire_at_ns` (Unix time); the engine keeps a durable timer until then."""

    fire_at_ns: int
    output: Any = None


class WaitFor(msgspec.Struct, frozen=True):
    """The step waits for what somebody else must do; the fields are those of waits.Waiting. 0 ns is for ever."""

    what: WaitKind
    until_ns: int = 0
    event: str = ""
    correlate: str = ""
    approvers: tuple[str, ...] = ()
    required: int = 1
    on_reject: str = "fail"
    message: str = ""
    child: int = 0


class StartWorkflow(msgspec.Struct, frozen=True):
    """The step starts a child workflow from a definition and waits for its end."""

    name: str
    version: str
    inputs: Mapping[str, Any]


class Cancelled(msgspec.Struct, frozen=True):
    """The action stopped because the run was cancelled."""


class Enter(msgspec.Struct, frozen=True):
    """The step goes on inside: one of its blocks runs, and then the action is called again.

    The block runs under `path`, below the step's own; its expressions and actions find `given`. `memo` is what the next
    call gets back; both are JSON-like data. Nothing in the block begins before `not_before_ns` (Unix time).
    """

    block: int
    path: str
    given: Any
    memo: Any
    not_before_ns: int = 0


Outcome = Succeeded | Failed | RetryLater | WaitUntil | WaitFor | StartWorkflow | Cancelled | Enter


class Result(msgspec.Struct, frozen=True):
    """What became of a step in a block: its output, or why it failed; neither if it did not end."""

    output: Any = None
    failure: Failure | None = None
    completed: bool = False


class Round(msgspec.Struct, frozen=True):
    """What an action that answered `Enter` is called again with: its memo, and a result for each step of the block."""

    memo: Any
    results: tuple[Result, ...]


class Invocation(msgspec.Struct, frozen=True):
    """One attempt of one step, as the action sees it.

    `idempotency_key` is `<workflow id>/<step>`, the same on every attempt and after any crash. `params` are evaluated.
    `dependencies` holds the outputs of the steps that this one depends on, by name. `attempt` counts from 1. `now_ns`
    is Unix time at the start of the attempt. `traceparent` is the W3C trace context, empty if the run is not traced.

    Only for steps that run blocks of their own: `definition` is what the plan says of the step, `given` what the block
    around it was given, `round` what became of the blocks that the action has entered before.
    """

    workflow_id: str
    workflow_name: str
    step: str
    attempt: int
    idempotency_key: str
    params: Any
    dependencies: Mapping[str, Any]
    scope: Scope
    now_ns: int
    traceparent: str = ""
    definition: Any = None
    given: Any = None
    round: Round | None = None


INVOCATION: ContextVar[Invocation | None] = ContextVar("knhk_invocation", default=None)
"""The attempt that the running task or thread performs, so that what it logs can be told from all else."""

Run = Callable[[Invocation], Outcome | Awaitable[Outcome]]


class Action(msgspec.Struct, frozen=True):
    """An action as the engine runs it.

    `mode` says how: `inline` is called directly in the event loop and must never block; `async` is awaited there;
    `thread` is called in a worker thread. `run` returns an Outcome, in mode `async` an awaitable of one. `source` is
    where it is defined, for messages. `close` frees what the action holds (connections); it is awaited once when the
    process stops, in the loop that ran the action. `about` says in a few words what it does.
    """

    traits: ActionTraits
    mode: Mode
    run: Run
    source: str = ""
    close: Callable[[], Awaitable[None]] | None = None
    about: str = ""

    @property
    def name(self) -> str:
        return self.traits.name


class Registry:
    """The actions of this process, by name."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._traits: dict[str, ActionTraits] = {}

    @classmethod
    def load(cls, modules: Sequence[str] = ()) -> Self:
        """A registry with the built-in actions, those of installed packages and those of the named modules.

        Installed packages offer theirs by entry points of the group `knhk.actions`. `modules` are dotted names,
        importable as Python finds them (sys.path).

        Raises:
            InvalidConfiguration: a module cannot be imported or has no action, or two actions have the same name.
        """
        registry = cls()
        # The built-ins come by the same hook; named here too, for a source tree that is run without being installed.
        wanted = {BUILTIN: f"entry point of {GROUP}"}
        for point in sorted(entry_points(group=GROUP), key=lambda point: point.value):
            wanted.setdefault(point.value, f"entry point {point.name!r} of {GROUP}")
        for module in modules:
            wanted.setdefault(module, "actions.modules")
        for target, origin in wanted.items():
            registry._collect(target, origin)
        return registry

    @classmethod
    def of(cls, modules: Sequence[str]) -> Self:
        """A registry with the actions of these modules alone. Raises as `load` does."""
        registry = cls()
        for module in dict.fromkeys(modules):
            registry._collect(module, "named here")
        return registry

    def register(self, action: Action) -> None:
        """Add an action. Adding the very same one again does nothing.

        Raises:
            InvalidConfiguration: another action has this name.
        """
        known = self._actions.get(action.name)
        if known is action:
            return
        if known is not None:
            raise InvalidConfiguration(
                f"two actions are named {action.name!r}: one in {known.source or 'an unknown place'}, "
                f"the other in {action.source or 'an unknown place'}"
            )
        self._actions[action.name] = action
        self._traits[action.name] = action.traits

    def get(self, name: str) -> Action:
        """The action of this name. Raises NotFound, with the nearest known name as the suggestion."""
        try:
            return self._actions[name]
        except KeyError:
            raise self._unknown(name) from None

    def traits(self) -> Mapping[str, ActionTraits]:
        """What the compiler must know of each action, by name; not a copy, so not to be changed."""
        return self._traits

    async def aclose(self) -> None:
        """Free what the actions hold; every action is closed even if another fails, and the failures are raised."""
        failures: list[Exception] = []
        for action in self._actions.values():
            if action.close is None:
                continue
            try:
                await action.close()
            except Exception as error:  # the others must still be closed
                failures.append(error)
        if failures:
            raise ExceptionGroup("some actions could not be closed", failures)

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def __len__(self) -> int:
        return len(self._actions)

    def __contains__(self, name: object) -> bool:
        return name in self._actions

    def _unknown(self, name: str) -> NotFound:
        near = difflib.get_close_matches(name, self._actions, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return NotFound(
            f"no action is named {name!r}{meant}",
            problems=[Problem(f"no action is named {name!r}", suggestion=near[0] if near else "")],
            hint=f"Known actions: {', '.join(sorted(self._actions))}. Name your own modules in `actions.modules`.",
        )

    def _collect(self, target: str, origin: str) -> None:
        """Import `module` or `module:attribute` and register the actions found there."""
        module, _, attribute = target.partition(":")
        try:
            place: Any = importlib.import_module(module)
            for part in filter(None, attribute.split(".")):
                place = getattr(place, part)
        except (Exception, SystemExit) as error:  # whatever a module does when it is imported, its name must be told
            raise InvalidConfiguration(
                f"the actions of {target!r} ({origin}) cannot be imported: {type(error).__name__}: {error}"
            ) from error
        found = list(actions_of(place))
        if not found:
            raise InvalidConfiguration(f"{target!r} ({origin}) has no action; decorate functions with @knhk.action")
        for action in found:
            self.register(action)


def actions_of(place: Any) -> Iterator[Action]:
    """The actions in a module, in the order in which they are written, or the one that `place` itself is."""
    candidates = list(vars(place).values()) if isinstance(place, ModuleType) else [place]
    for candidate in candidates:
        action = candidate if isinstance(candidate, Action) else _marked(candidate)
        if action is not None:
            yield action


def _marked(candidate: Any) -> Action | None:
    # Only functions are asked: a module may hold objects that answer to any attribute name, mocks or proxies.
    return vars(candidate).get(MARK) if isinstance(candidate, FunctionType) else None
