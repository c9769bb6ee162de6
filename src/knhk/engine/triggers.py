"""Starts runs of definitions by itself: at the times of their schedules, for signed requests, for events.

A firing is a submission whose idempotency key says which trigger fired and for what, so it is one run, whatever crashes
and however often it is tried. Nothing else is kept: after a restart the keys tell which times have fired already. The
triggers of the newest version count; a retired definition has none.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from knhk.domain.definition import Definition
from knhk.domain.errors import (
    DefinitionNotFound,
    IdempotencyConflict,
    InvalidInput,
    KnhkError,
    Refused,
    SignatureRefused,
    Unsupported,
)
from knhk.domain.expressions import Scope
from knhk.domain.times import rfc3339
from knhk.domain.triggers import Cron, OnEvent, Trigger, Webhook, next_times, times_between
from knhk.engine.definitions import Definitions
from knhk.engine.requests import Accepted, Submission
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal

ON_TIME_NS: Final = 60_000_000_000
"""A time that is looked at within this is not missed."""
_RETRY_S: Final = 1.0
_PAGE: Final = 500
_SHOWN: Final = 5

Submit = Callable[[Submission], Awaitable[Accepted]]


class _Scheduled:
    """A cron trigger that is armed; times up to `done_ns` are dealt with. `trouble` is why its last firing failed."""

    __slots__ = ("cron", "definition", "done_ns", "put_at_ns", "task", "trigger", "trouble", "version")

    def __init__(self, definition: str, version: int, put_at_ns: int, trigger: Trigger, cron: Cron) -> None:
        self.definition, self.version, self.put_at_ns = definition, version, put_at_ns
        self.trigger, self.cron = trigger, cron
        self.done_ns = 0
        self.task: asyncio.Task[None] | None = None
        self.trouble = ""


class _Armed(msgspec.Struct, frozen=True):
    """The triggers of one definition."""

    version: int
    triggers: tuple[Trigger, ...]
    scheduled: tuple[_Scheduled, ...]


class Triggers:
    """The armed triggers of all definitions."""

    def __init__(
        self,
        *,
        definitions: Definitions,
        journal: Journal,
        clock: Clock,
        submit: Submit,
        secrets: Mapping[str, str],
        idle_ns: int,
    ) -> None:
        self._definitions, self._journal, self._clock = definitions, journal, clock
        self._submit, self._secrets, self._idle_ns = submit, secrets, idle_ns
        self._armed: dict[str, _Armed] = {}
        self._ready = asyncio.Event()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Arm the triggers of all definitions, make up for what was missed, and go on with the clock."""
        self._task = asyncio.create_task(self._work(), name="triggers")

    async def stop(self) -> None:
        """Fire nothing any more."""
        tasks = [one.task for armed in self._armed.values() for one in armed.scheduled if one.task is not None]
        tasks += [self._task] if self._task is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def changed(self, definition: Definition) -> None:
        """A version was put, or the definition retired."""
        before = self._armed.pop(definition.name, None)
        done = {one.trigger.name: one for one in before.scheduled} if before is not None else {}
        if definition.retired:
            return
        version, plan = await self._definitions.resolve(definition.name)
        if not plan.triggers:
            return
        scheduled = []
        for trigger in plan.triggers:
            if isinstance(trigger.source, Cron):
                one = _Scheduled(definition.name, version.number, version.at_ns, trigger, trigger.source)
                known = done.get(trigger.name)
                # A new version goes on where the old one was; what is new begins with its own version.
                one.done_ns = known.done_ns if known is not None else 0
                one.task = known.task if known is not None else None
                scheduled.append(one)
        self._armed[definition.name] = _Armed(version.number, plan.triggers, tuple(scheduled))
        self._news.set()

    async def receive(self, definition: str, trigger: str, headers: Mapping[str, str], body: bytes) -> Accepted:
        """A request to a webhook: if its signature is good, it starts a run, one for each delivery.

        Raises:
            DefinitionNotFound: there is no such webhook.
            SignatureRefused: the signature is missing or wrong.
            Unsupported: this server has not been given the secret.
        """
        await self._ready.wait()
        armed = self._armed.get(definition)
        found = next((one for one in armed.triggers if one.name == trigger), None) if armed is not None else None
        if armed is None or found is None or not isinstance(found.source, Webhook):
            raise DefinitionNotFound(f"{definition[:140]!r} has no webhook {trigger[:140]!r}")
        hook = found.source
        secret = self._secrets.get(hook.secret_env, "")
        if not secret:
            raise Unsupported(
                f"the secret of this webhook is not set on the server: {hook.secret_env}",
                hint="Start the server with that environment variable.",
            )
        expected = hmac.new(secret.encode(), body, sha256).hexdigest()
        given = headers.get(hook.signature_header, "").removeprefix("sha256=")
        if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace")):
            raise SignatureRefused(f"the header {hook.signature_header} has no good signature of the body")
        delivery = headers.get(hook.id_header, "")[:128]
        now = rfc3339(self._clock.now_ns())
        facts = {"name": trigger, "time": now, "id": delivery, "data": _data_of(body)}
        key = f"trigger/{definition}/{trigger}/{sha256(delivery.encode()).hexdigest()}" if delivery else ""
        return await self._fire(definition, armed.version, found, facts, key)

    async def on_event(self, event: str, correlate: str, event_id: str, record_id: int, data: Any) -> list[Accepted]:
        """An event was published: start a run for every trigger that waits for it.

        Raises what may pass by itself, once all others have been tried; asked again, it starts those that are missing.
        """
        await self._ready.wait()
        started: list[Accepted] = []
        passing: KnhkError | None = None
        for definition, armed in tuple(self._armed.items()):
            for trigger in armed.triggers:
                if not isinstance(trigger.source, OnEvent) or trigger.source.event != event:
                    continue
                now = rfc3339(self._clock.now_ns())
                facts = {"name": trigger.name, "time": now, "id": event_id, "correlate": correlate, "data": data}
                key = f"trigger/{definition}/{trigger.name}/event {record_id}"
                try:
                    started.append(await self._fire(definition, armed.version, trigger, facts, key))
                except KnhkError as error:
                    passing = error if error.retryable else passing
        if passing is not None:
            raise passing
        return started

    def shown(self, definition: str) -> list[dict[str, Any]]:
        """The triggers of a definition as people see them, with the next times of schedules."""
        armed = self._armed.get(definition)
        if armed is None:
            return []
        trouble = {one.trigger.name: one.trouble for one in armed.scheduled}
        return [
            {**_shown(one, self._clock.now_ns()), "trouble": trouble.get(one.name) or None} for one in armed.triggers
        ]

    def schedules(self) -> list[tuple[str, Cron]]:
        """The schedules that are armed, each with the name of its definition."""
        return [(name, one.cron) for name, armed in self._armed.items() for one in armed.scheduled]

    async def _work(self) -> None:
        await self._load()
        self._ready.set()
        while True:
            now = self._clock.now_ns()
            soonest = now + self._idle_ns
            for armed in self._armed.values():
                for one in armed.scheduled:
                    if one.task is None or one.task.done():
                        soonest = min(soonest, await self._look(one, now))
            self._news.clear()
            handle = self._clock.call_later(max(0.001, (soonest - self._clock.now_ns()) / 1e9), self._news.set)
            try:
                await self._news.wait()
            finally:
                handle.cancel()

    async def _load(self) -> None:
        after: str | None = None
        while True:
            try:
                rows, after = await self._definitions.listing(after=after, limit=_PAGE)
                for row in rows:
                    if not row.retired:
                        await self.changed(await self._definitions.get(row.name))
                if after is None:
                    return
            except KnhkError:
                await self._clock.sleep(_RETRY_S)

    async def _look(self, one: _Scheduled, now_ns: int) -> int:
        """Fire what is due; when to look again (Unix time in ns)."""
        due = await self._due(one, now_ns)
        one.done_ns = now_ns
        if due:
            one.task = asyncio.create_task(self._fire_all(one, due), name=f"trigger {one.definition}")
            one.task.add_done_callback(lambda _: self._news.set())
        following = next_times(one.cron, now_ns, 1)
        return following[0] if following else now_ns + self._idle_ns

    async def _due(self, one: _Scheduled, now_ns: int) -> list[int]:
        """The times that have come and not fired, as far as the policy makes up for them."""
        cron = one.cron
        most = cron.most if cron.catch_up == "all" else 1
        times = times_between(cron, max(one.put_at_ns, one.done_ns), now_ns, most)
        if cron.catch_up == "none":
            times = [at_ns for at_ns in times if now_ns - at_ns <= ON_TIME_NS]
        due: list[int] = []
        for at_ns in reversed(times):
            if await self._has_fired(one, at_ns):
                break  # What lies before it was dealt with when it fired.
            due.append(at_ns)
        return due[::-1]

    async def _has_fired(self, one: _Scheduled, at_ns: int) -> bool:
        while True:
            try:
                return await self._journal.claim(sha256(_key(one, at_ns).encode()).digest()) is not None
            except KnhkError:
                await self._clock.sleep(_RETRY_S)

    async def _fire_all(self, one: _Scheduled, due: list[int]) -> None:
        for at_ns in due:
            facts = {"name": one.trigger.name, "time": rfc3339(at_ns)}
            while True:
                try:
                    await self._fire(one.definition, one.version, one.trigger, facts, _key(one, at_ns))
                    one.trouble = ""
                except IdempotencyConflict:
                    one.trouble = ""  # It fired for this time with another version.
                except KnhkError as error:
                    one.trouble = f"{rfc3339(at_ns)}: {error.message}"
                    if error.retryable:
                        await self._clock.sleep(_RETRY_S)
                        continue
                break

    async def _fire(self, definition: str, version: int, trigger: Trigger, facts: dict[str, Any], key: str) -> Accepted:
        try:
            inputs = trigger.inputs.evaluate(Scope({}, {}, {}, {"trigger": facts}))
        except InvalidInput as error:
            raise Refused(f"the inputs of trigger {trigger.name!r} cannot be made: {error.message}") from error
        submission = Submission(
            inputs=inputs,
            idempotency_key=key,
            actor=f"trigger {trigger.name}",
            definition=definition,
            version=str(version),
        )
        return await self._submit(submission)


def _key(one: _Scheduled, at_ns: int) -> str:
    return f"trigger/{one.definition}/{one.trigger.name}/{rfc3339(at_ns)}"


def _data_of(body: bytes) -> Any:
    """What a request brought: JSON as data, anything else as text."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode(errors="replace")


def _shown(trigger: Trigger, now_ns: int) -> dict[str, Any]:
    match trigger.source:
        case Cron(expression, timezone, catch_up):
            following = [rfc3339(at_ns) for at_ns in next_times(trigger.source, now_ns, _SHOWN)]
            what: dict[str, Any] = {"cron": expression, "timezone": timezone, "catch_up": catch_up, "next": following}
        case Webhook(secret_env):
            what = {"webhook": secret_env}
        case OnEvent(event):
            what = {"event": event}
    return {"name": trigger.name, **what}
