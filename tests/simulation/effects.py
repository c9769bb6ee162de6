"""Actions that do nothing but leave a record of it, and fail, hang or take their time as their params say."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from knhk.actions.fail import ACTION as FAIL
from knhk.actions.process import ACTION as PROCESS
from knhk.actions.registry import Action, Failed, Invocation, Outcome, Registry, RetryLater, Succeeded
from knhk.actions.validate import ACTION as VALIDATE
from knhk.actions.wait import ACTION as WAIT
from knhk.actions.wait_for import APPROVAL_ACTION, WAIT_FOR_ACTION
from knhk.actions.workflow import ACTION as WORKFLOW
from knhk.domain.plan import ActionTraits


class Effect(msgspec.Struct, frozen=True):
    """One time that an action was performed."""

    workflow_id: str
    step: str
    attempt: int
    at_ns: int
    key: str


class Does(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an attempt does. `fails_first` attempts ask for another one, `fails` is for good, `hangs` is for ever."""

    takes_s: float = 0.0
    fails_first: int = 0
    fails: bool = False
    hangs: bool = False
    gives: Any = None


class Effects:
    """The record of what actions have done. It outlives every engine, like the world outside.

    `effect` does something outside, `think` is pure; both are coroutines. `sums` is pure and inline: it adds up.
    `on_effect` sees each effect at the moment when it happens.
    """

    def __init__(self) -> None:
        self.log: list[Effect] = []
        self.thoughts: Counter[str] = Counter()
        self.on_effect: Callable[[Invocation], None] = lambda _invocation: None

    def registry(self) -> Registry:
        """A registry with these actions and the built-in ones, http aside."""
        registry = Registry()
        for action in (FAIL, PROCESS, VALIDATE, WAIT, WAIT_FOR_ACTION, APPROVAL_ACTION, WORKFLOW):
            registry.register(action)
        registry.register(Action(ActionTraits("effect", pure=False), "async", self._effect, __name__))
        registry.register(Action(ActionTraits("think", pure=True), "async", self._think, __name__))
        registry.register(Action(ActionTraits("sums", pure=True), "inline", _sums, __name__))
        return registry

    def of(self, step: str) -> list[Effect]:
        """What was done for a step."""
        return [effect for effect in self.log if effect.step == step]

    def order(self) -> list[str]:
        """The steps in the order in which they had their effects."""
        return [effect.step for effect in self.log]

    async def _effect(self, invocation: Invocation) -> Outcome:
        self.on_effect(invocation)
        self.log.append(
            Effect(
                invocation.workflow_id,
                invocation.step,
                invocation.attempt,
                invocation.now_ns,
                invocation.idempotency_key,
            )
        )
        return await _do(invocation)

    async def _think(self, invocation: Invocation) -> Outcome:
        self.thoughts[invocation.idempotency_key] += 1
        return await _do(invocation)


async def _do(invocation: Invocation) -> Outcome:
    does = msgspec.convert(invocation.params or {}, Does)
    if does.hangs:
        await asyncio.Event().wait()
    if does.takes_s:
        await asyncio.sleep(does.takes_s)
    if does.fails:
        return Failed("TEST-FAILED", "it failed for good")
    if invocation.attempt <= does.fails_first:
        return RetryLater("TEST-AGAIN", f"attempt {invocation.attempt} failed")
    return Succeeded(does.gives)


def _sums(invocation: Invocation) -> Outcome:
    params = invocation.params or {}
    return Succeeded(sum(params.get("numbers", [])) + sum(one or 0 for one in invocation.dependencies.values()))
