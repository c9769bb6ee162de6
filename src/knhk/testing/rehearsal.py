"""Runs one workflow in memory and says what happened."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from knhk.actions.registry import Action, Failed, Invocation, Outcome, Registry
from knhk.actions.transport import run_blocking
from knhk.actions.workers import ANY, Task
from knhk.bootstrap.in_memory import in_memory
from knhk.domain.plan import ActionTraits
from knhk.engine.control import Submission
from knhk.engine.loader import decode_receipts
from knhk.engine.service import Engine
from knhk.platform.clock import SystemClock
from knhk.ports.environment import Clock
from knhk.sdk.builder import Workflow
from knhk.testing.mocks import Call, Mock, answer, find
from knhk.testing.virtual_time import VirtualClock, VirtualLoop

UNMOCKED_CODE: Final = "KNHK-TEST-UNMOCKED"
REACHING: Final = frozenset({"http", "sql", "shell", "python", "file", "s3", "notify"})
"""Built-in actions that reach outside: they run only if a test allows them."""
_DAY_S: Final = 86_400.0


class Signal(msgspec.Struct, frozen=True):
    """An event that is told to the run so many seconds after it was submitted."""

    event: str
    data: Any = None
    after_s: float = 0.0
    correlate: str = ""


class Result(msgspec.Struct, frozen=True):
    """What happened: `run` is what `knhk workflow inspect` shows, `elapsed_s` the time from first to last receipt."""

    run: dict[str, Any]
    receipts: list[dict[str, Any]]
    all_calls: list[Call]
    elapsed_s: float

    @property
    def state(self) -> str:
        """How the run ended."""
        return str(self.run["state"])

    @property
    def outputs(self) -> dict[str, Any]:
        """What the run gives."""
        return dict(self.run["outputs"])

    @property
    def failure(self) -> dict[str, Any] | None:
        """Why it did not complete: `code`, `message`, `guard` and `step`."""
        found: dict[str, Any] | None = self.run["failure"]
        return found

    def step(self, name: str) -> dict[str, Any]:
        """A step, also one inside by its path: its `state`, `attempts`, `output` and `failure`. Raises KeyError."""
        for one in [*self.run["steps"], *self.run.get("inside", ())]:
            if one["name"] == name:
                return dict(one)
        raise KeyError(name)

    def calls(self, action: str | None = None, *, step: str | None = None) -> list[Call]:
        """The attempts at steps with this action, or at this step, in the order in which they began."""
        return [
            call
            for call in self.all_calls
            if (action is None or call.action == action) and (step is None or call.step == step)
        ]

    def kinds(self, step: str | None = None) -> list[str]:
        """The kinds of the receipts, of one step or of all."""
        return [one["kind"] for one in self.receipts if step is None or one["step"] == step]

    def assert_state(self, state: str) -> None:
        """Raises AssertionError, with the failure, if the run ended in another state."""
        assert self.state == state, f"the run is {self.state}, not {state}: {self.failure}"


def run(
    workflow: Workflow | Mapping[str, Any] | Path | str | bytes,
    inputs: Mapping[str, Any] | None = None,
    *,
    steps: Mapping[str, Mock] | None = None,
    actions: Mapping[str, Mock] | None = None,
    modules: Sequence[str] = (),
    signals: Sequence[Signal] = (),
    allow: Collection[str] = (),
    virtual_time: bool = True,
    seed: int = 0,
) -> Result:
    """Run a workflow to its end.

    `workflow` is one that was built, a file's path, or a descriptor as text or data. `steps` and `actions` are mocks,
    by the name of a step (which wins) or of an action; one that the process does not have can be mocked too. `modules`
    are those with actions of your own, which run for real. Actions that reach outside fail the step unless they are
    mocked or named in `allow`; then take `virtual_time=False`, because a skipped second is no time for a real answer.

    Raises:
        InvalidDescriptor, InvalidInputs: as a submission does.
    """
    given = (workflow, inputs, steps or {}, actions or {}, modules, signals, allow, seed)

    def in_own_loop() -> Result:
        if not virtual_time:
            return asyncio.run(_rehearse(SystemClock(), *given))
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(_rehearse(VirtualClock(), *given))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return in_own_loop()
    with ThreadPoolExecutor(1) as thread:  # a test that is async itself has a loop of its own in this thread
        return thread.submit(in_own_loop).result()


async def run_async(
    workflow: Workflow | Mapping[str, Any] | Path | str | bytes, inputs: Mapping[str, Any] | None = None, **given: Any
) -> Result:
    """`run`, without blocking the caller's event loop."""
    return await asyncio.to_thread(lambda: run(workflow, inputs, **given))


async def _rehearse(
    clock: Clock,
    workflow: Workflow | Mapping[str, Any] | Path | str | bytes,
    inputs: Mapping[str, Any] | None,
    steps: Mapping[str, Mock],
    actions: Mapping[str, Mock],
    modules: Sequence[str],
    signals: Sequence[Signal],
    allow: Collection[str],
    seed: int,
) -> Result:
    cast = _Cast(clock, steps, actions, allow)
    engine = in_memory(cast.registry(Registry.load(modules)), clock, seed)
    await engine.start()
    helpers: list[asyncio.Task[None]] = []
    try:
        control = engine.control
        accepted = await control.submit(Submission(_text(workflow), dict(inputs or {}), actor="test"))
        number = accepted.workflow_id
        helpers.append(asyncio.create_task(cast.perform_remote(engine)))
        helpers += [asyncio.create_task(_tell(engine, clock, number, one)) for one in signals]
        async for _ in control.follow(number, 0):
            pass
        shown = await control.inspect(number)
        receipts = decode_receipts(await control.receipts(number), number)
        elapsed_s = (receipts[-1]["at_ns"] - receipts[0]["at_ns"]) / 1e9
        return Result(shown, receipts, cast.calls, elapsed_s)
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await engine.stop()


async def _tell(engine: Engine, clock: Clock, workflow_id: int, signal: Signal) -> None:
    await clock.sleep(signal.after_s)
    await engine.control.signals.signal(
        workflow_id, signal.event, signal.data, correlate=signal.correlate, actor="test"
    )


class _Cast:
    """Who plays the actions, and what they were asked."""

    def __init__(
        self, clock: Clock, steps: Mapping[str, Mock], actions: Mapping[str, Mock], allow: Collection[str]
    ) -> None:
        self._clock, self._steps, self._actions, self._allow = clock, steps, actions, allow
        self._begun_ns = clock.now_ns()
        self.calls: list[Call] = []
        self._real: Registry

    def registry(self, real: Registry) -> Registry:
        """The real actions, each behind its mock, and those that there are only as mocks."""
        from knhk.actions.catalogue import catalogue
        from knhk.config import Actions

        for action in catalogue(Actions()):
            if action.name not in real:
                real.register(action)
        self._real, cast = real, Registry()
        for action in real:
            traits = msgspec.structs.replace(action.traits, disabled="")
            inline = action.mode == "inline"
            play = partial(self._play_inline if inline else self._play, action.name)
            cast.register(Action(traits, "inline" if inline else "async", play, action.source))
        for name in self._actions:
            if name not in cast:
                cast.register(Action(ActionTraits(name, pure=False), "async", partial(self._play, name), "a mock"))
        return cast

    async def perform_remote(self, engine: Engine) -> None:
        """Be the workers of all queues."""
        while True:
            tasks = await engine.workers.poll("test", [ANY], (), limit=1_000, wait_s=_DAY_S, lease_ns=1 << 62)
            await asyncio.gather(*(self._remote(engine, task) for task in tasks))

    async def _remote(self, engine: Engine, task: Task) -> None:
        given, token = task.assignment, task.token
        outcome = await self._play(given.action, given.invocation())
        await engine.workers.report(given.workflow_id, given.step, token, outcome)

    def _play_inline(self, name: str, invocation: Invocation) -> Outcome:
        playing = self._play(name, invocation)
        try:
            playing.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # what `_play` returns
        playing.close()
        return Failed(UNMOCKED_CODE, f"step {invocation.step!r}: the mock of {name!r} may not wait")

    async def _play(self, name: str, invocation: Invocation) -> Outcome:
        call = Call(
            name,
            invocation.step,
            invocation.attempt,
            invocation.params,
            (self._clock.now_ns() - self._begun_ns) / 1e9,
            invocation.idempotency_key,
            invocation.dependencies,
        )
        self.calls.append(call)
        by_step, mock = find(self._steps, invocation.step)
        if by_step:
            return await answer(mock, call, len([one for one in self.calls if one.step == call.step]) - 1)
        if name in self._actions:
            return await answer(self._actions[name], call, len([one for one in self.calls if one.action == name]) - 1)
        if (name in REACHING and name not in self._allow) or name not in self._real:
            return Failed(UNMOCKED_CODE, f"step {call.step!r} would call {name!r}; mock the step or the action")
        action = self._real.get(name)
        if action.mode == "async":
            return await action.run(invocation)  # type: ignore[misc, no-any-return]  # mode says that it is awaitable
        return run_blocking(action, invocation)


def _text(workflow: Workflow | Mapping[str, Any] | Path | str | bytes) -> bytes:
    match workflow:
        case Workflow():
            return msgspec.json.encode(workflow.to_dict())
        case Path():
            return workflow.read_bytes()
        case bytes():
            return workflow
        case str():
            return workflow.encode() if "\n" in workflow or "{" in workflow else Path(workflow).read_bytes()
        case _:
            return msgspec.json.encode(workflow)
