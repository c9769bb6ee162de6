"""Registered definitions: put, looked up, listed, compared. Each name is a record, each version one of its receipts.

A version is known as soon as its receipt is durable, for submissions that come after that. The list is a projection.
"""

import asyncio
from collections.abc import Awaitable, Callable
from difflib import unified_diff
from typing import Any, Final

import msgspec

from knhk.domain import event as ev
from knhk.domain.definition import (
    Definition,
    DefinitionRow,
    Version,
    check_label,
    check_name,
    decode_row,
    steps_changed,
)
from knhk.domain.document import read
from knhk.domain.errors import DefinitionNotFound, InvalidParameter, JournalCorrupt
from knhk.domain.event import Event
from knhk.domain.plan import Plan
from knhk.domain.receipt import NO_HASH
from knhk.engine.admission import Admission
from knhk.engine.committer import Committer
from knhk.engine.live import LiveRun
from knhk.engine.plans import Plans
from knhk.engine.projector import DEFINITIONS, FOLD, Projector, definition_key
from knhk.engine.records import events_of, tail
from knhk.ports.environment import Clock, Ids
from knhk.ports.journal import Claim, Journal, record_key
from knhk.ports.storage import Projections

_KIND: Final = "definition"
LONGEST_NOTE: Final = 1000


class Put(msgspec.Struct, frozen=True):
    """What became of a put: the version, and whether it is new."""

    definition: Definition
    version: Version
    created: bool


class Definitions:
    """The definitions in the journal. Only this process writes them: puts take turns."""

    def __init__(
        self,
        partition: int,
        *,
        admission: Admission,
        committer: Committer,
        plans: Plans,
        journal: Journal,
        projections: Projections,
        projector: Projector,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._partition = partition
        self._admission, self._committer, self._plans = admission, committer, plans
        self._journal, self._projections, self._projector = journal, projections, projector
        self._clock, self._ids = clock, ids
        self.changed: Callable[[Definition], Awaitable[None]]
        self._turn = asyncio.Lock()
        self._newest: LiveRun | None = None

    async def put(self, text: bytes, *, name: str = "", label: str = "", note: str = "", actor: str) -> Put:
        """Register a descriptor as the next version of its name; return when that is committed.

        The very text of a version that there is gives that version again. `name` is what the caller expects.

        Raises:
            InvalidDescriptor, InvalidParameter, DefinitionConflict: nothing was written.
            ShuttingDown, DiskFull: nothing was written.
            StorageUnavailable: it is not known whether it was written; put the same text again.
        """
        self._admission.check_open()
        plan = self._plans.compile(text)
        if name and name != plan.name:
            raise InvalidParameter(f"the descriptor is called {plan.name!r}, not {name[:140]!r} as it should")
        check_name(plan.name)
        check_label(label)
        if len(note) > LONGEST_NOTE:
            raise InvalidParameter(f"note: at most {LONGEST_NOTE} characters")
        async with self._turn:
            await self._settled()
            definition, last_hash = await self._find(plan.name)
            known = None if definition is None else definition.known(plan.digest, label)
            if definition is not None and known is not None and not definition.retired:
                return Put(definition, known, False)
            if definition is None:
                definition = Definition(plan.name, self._ids.next_id(self._partition))
            number = len(definition.versions) + 1
            detail = ev.DefinitionPut(plan.name, number, plan.digest, label, plan.department, note)
            if not definition.versions:
                self._committer.claim(Claim(record_key(_KIND, plan.name), definition.record_id, plan.digest))
            self._committer.keep_descriptor(plan.digest, text)
            await self._record(definition, plan, last_hash, detail, actor)
            return Put(definition, definition.versions[-1], True)

    async def retire(self, name: str, *, actor: str, reason: str = "") -> Definition:
        """Let no further runs start from a definition. Those that run go on; another put brings it back."""
        self._admission.check_open()
        async with self._turn:
            await self._settled()
            definition, last_hash = await self._find(name)
            if definition is None:
                raise _no_definition(name)
            if not definition.retired:
                plan = await self._plans.load(self._journal, definition.versions[-1].digest)
                await self._record(definition, plan, last_hash, ev.DefinitionRetired(name, reason), actor)
            return definition

    async def get(self, name: str) -> Definition:
        """A definition with all of its versions. Raises DefinitionNotFound."""
        definition, _ = await self._find(name)
        if definition is None:
            raise _no_definition(name)
        return definition

    async def resolve(self, name: str, wanted: str = "") -> tuple[Version, Plan]:
        """The version that a new run of a name takes, and its plan.

        Raises DefinitionNotFound if there is none, or the definition is retired.
        """
        definition = await self.get(name)
        if definition.retired:
            raise DefinitionNotFound(
                f"the definition {name!r} is retired", hint=f"Put it again: `knhk definition put FILE` revives {name}."
            )
        version = definition.version(wanted)
        return version, await self._plans.load(self._journal, version.digest)

    async def text(self, version: Version) -> bytes:
        """The descriptor of a version, as it was put."""
        text = await self._journal.descriptor(version.digest)
        if text is None:
            raise JournalCorrupt(f"the descriptor with digest {version.digest.hex()} is missing")
        return text

    async def listing(self, *, after: str | None, limit: int) -> tuple[list[DefinitionRow], str | None]:
        """Definitions by name, and the name to continue after (None at the end)."""
        bound = None if after is None else definition_key(after)
        rows = await self._projections.rows(FOLD, DEFINITIONS, before=bound, limit=limit)
        found = [decode_row(raw) for _, raw in rows]
        return found, found[-1].name if len(found) == limit else None

    async def compare(self, name: str, before: str, after: str) -> dict[str, Any]:
        """What changed between two versions: a unified diff of their texts, and the steps by name."""
        definition = await self.get(name)
        old, new = definition.version(before), definition.version(after)
        return difference(
            f"{name} version {old.number}", await self.text(old), f"{name} version {new.number}", await self.text(new)
        )

    async def _record(
        self, definition: Definition, plan: Plan, last_hash: bytes, detail: ev.RecordDetail, actor: str
    ) -> None:
        live = tail(definition.record_id, plan, definition.seq, last_hash)
        event = Event(self._clock.now_ns(), detail, actor=actor)
        self._committer.add(live, event)
        self._newest = live
        batch = live.batch
        assert batch is not None
        await batch.committed()
        definition.apply(event)
        await self._projector.reached(batch.height)
        await self.changed(definition)

    async def _settled(self) -> None:
        """Wait until what was put last is durable: until then the journal does not have the end of its chain."""
        newest = self._newest
        if newest is not None and newest.batch is not None:
            await newest.batch.committed()
        self._newest = None

    async def _find(self, name: str) -> tuple[Definition | None, bytes]:
        claim = await self._journal.claim(record_key(_KIND, name))
        if claim is None:
            return None, NO_HASH
        definition = Definition(name, claim.workflow_id)
        events, last_hash = await events_of(self._journal, claim.workflow_id)
        for event in events:
            definition.apply(event)
        return definition, last_hash


def difference(old_name: str, old: bytes, new_name: str, new: bytes) -> dict[str, Any]:
    """A unified diff of two descriptors, and their steps by name. Raises InvalidDescriptor for what is none."""
    lines = unified_diff(
        old.decode(errors="replace").splitlines(),
        new.decode(errors="replace").splitlines(),
        old_name,
        new_name,
        lineterm="",
    )
    return {
        "identical": old == new,
        "diff": "\n".join(lines),
        "steps": steps_changed(_steps(old), _steps(new)),
    }


def _steps(text: bytes) -> list[tuple[str, object]]:
    value = read(text, max_bytes=len(text)).value
    spec = value.get("spec") if isinstance(value, dict) else None
    steps = spec.get("steps") if isinstance(spec, dict) else None
    return [(str(one.get("name")), one) for one in steps or () if isinstance(one, dict)]


def _no_definition(name: str) -> DefinitionNotFound:
    return DefinitionNotFound(f"there is no definition {name[:140]!r}")
