"""Signals, approvals and events: what people and other systems tell runs that wait for it.

A signal is for one run, an event for every run that waits for its name with its correlation, now or while it is kept.
An event is a record of its own, durable before anybody is told. It is then looked for who waits, in the rows of the
projection up to the very commit of the event; and a step that begins to wait looks for events up to its own commit. One
of the two sees the other, whatever the order. After a crash every event that is still kept is handed out again; a run
takes each only once, by its id.

Where partitions share their rows, the leader's has the events, and gives them to runs of other partitions through their
owners. Both sides look at the same rows, so that what was said above holds for them too. Where each partition has rows
of its own, the leader's gives the event to each of them, where it is a record too, with the same id.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain.errors import (
    IllegalTransition,
    InvalidInputs,
    InvalidParameter,
    KnhkError,
    NotFound,
    Overloaded,
    Unavailable,
    WorkflowNotFound,
)
from knhk.domain.event import Event
from knhk.domain.identifier import partition_of, to_text
from knhk.domain.plan import Block, Plan
from knhk.domain.run import Run
from knhk.domain.waits import MOST_KEPT, Verdict, Waiting
from knhk.engine.admission import Admission
from knhk.engine.arrivals import Arrivals
from knhk.engine.committer import OUTPUT, Batch, Committer
from knhk.engine.inbound import Inbound
from knhk.engine.projector import FOLD, Projector
from knhk.engine.records import tail
from knhk.engine.requests import Accepted
from knhk.engine.topic_rows import KeptEvent, all_waiting, kept_events, topic_of, waiting_runs
from knhk.engine.triggers import Triggers
from knhk.ports.environment import Clock, Ids
from knhk.ports.journal import Claim, Journal, record_key
from knhk.ports.storage import Projections

LONGEST: Final = 255
SHORTEST_KEPT_NS: Final = 60_000_000_000
"""An event that a crash keeps from being handed out is still there after the restart."""
LONGEST_KEPT_NS: Final = 30 * 86_400 * 1_000_000_000
_Rows = TypeVar("_Rows")
_KIND: Final = "event"
_AT_ONCE: Final = 100
_RETRY_S: Final = 0.5
_TEXT: Final = b'{"event": "a record, not a workflow"}'
_PLAN: Final = Plan(sha256(_TEXT).digest(), "", "", "", {}, "Sigma", 0, Block((), {}, (), (), (), True), None, (), ())


Elsewhere = Callable[[int, int], Awaitable[bool]]
"""Has the owner of a run give it a kept event, by the ids of both: see Signals.give_kept."""


class Delivered(msgspec.Struct, frozen=True):
    """What became of a signal: a step took it, or it is kept for one. `replayed`: it was known by its id."""

    signal_id: str
    step: str
    replayed: bool = False


class Published(msgspec.Struct, frozen=True):
    """What became of an event: the runs that have it by now, those that it started, and those that get it a little
    later, because their owner does not answer just now.

    It is kept for further ones until a time (Unix, ns).
    """

    event_id: str
    record_id: int
    delivered_to: list[int]
    kept_until_ns: int
    replayed: bool = False
    pending: list[int] = []
    started: list[int] = []


class Apart(NamedTuple):
    """Other partitions, whose rows are not seen here: which there are, and what has one take in a kept event.

    `publish` is given the partition, the event, its data and who it is from. It raises Unavailable while it cannot.
    """

    partitions: Callable[[], Sequence[int]]
    publish: Callable[[int, KeptEvent, Any, str], Awaitable[Published]]


class Signals:
    """Brings signals, approvals and events into runs of one partition."""

    def __init__(
        self,
        partition: int,
        *,
        admission: Admission,
        arrivals: Arrivals,
        inbound: Inbound,
        committer: Committer,
        journal: Journal,
        projections: Projections,
        projector: Projector,
        clock: Clock,
        ids: Ids,
        max_payload_bytes: int,
    ) -> None:
        self._partition, self._max_payload_bytes = partition, max_payload_bytes
        self._admission, self._arrivals, self._inbound, self._committer = admission, arrivals, inbound, committer
        self._journal, self._projections, self._projector = journal, projections, projector
        self._clock, self._ids = clock, ids
        self.triggers: Triggers
        self.elsewhere: Elsewhere | None = None
        """Gives events to the runs of other partitions; None if there are none."""
        self.apart: Apart | None = None
        self._leading = True
        self._claims: dict[bytes, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def signal(
        self, workflow_id: int, event: str, data: Any, *, signal_id: str = "", correlate: str = "", actor: str
    ) -> Delivered:
        """Tell one run that an event happened; return once that is durable. A step takes it now, or when it waits.

        The same `signal_id` again does nothing.

        Raises:
            WorkflowNotFound, InvalidParameter, InvalidInputs: nothing was written.
            IllegalTransition: the run has ended.
            Overloaded: the run keeps too many signals that nobody has waited for.
        """
        self._admission.check_open()
        raw = self._checked(event, correlate, signal_id, data)
        signal_id = signal_id or f"s-{self._ids.next_id(self._partition)}"
        async with self._arrivals.decide(workflow_id) as live:
            run = live.run
            if run.waits is not None and signal_id in run.waits.ids:
                return Delivered(signal_id, "", replayed=True)
            if run.ended:
                raise IllegalTransition(f"{to_text(workflow_id)} is {run.state}; nobody waits there any more")
            taker = _taker(run, event, correlate)
            if not taker and run.waits is not None and run.waits.kept_count >= MOST_KEPT:
                raise Overloaded(f"{to_text(workflow_id)} keeps {MOST_KEPT} signals that no step has taken")
            live.signals[run.seq] = raw
            await self._inbound.record(live, ev.SignalReceived(event, signal_id, correlate), actor, data=raw)
            return Delivered(signal_id, taker)

    async def judge(
        self, workflow_id: int, step: str, approved: bool, *, approver: str, comment: str = "", actor: str
    ) -> Waiting:
        """Approve or reject what a step waits for; return once that is durable. `step` may be empty if one waits alone.

        The same answer of the same person again does nothing.

        Raises:
            WorkflowNotFound, InvalidParameter: nothing was written.
            IllegalTransition: no such step waits for approval, this person may not, or has answered otherwise.
        """
        self._admission.check_open()
        if not 0 < len(approver) <= LONGEST or len(comment) > 1000:
            raise InvalidParameter("approver: 1 to 255 characters, comment: at most 1000")
        async with self._arrivals.decide(workflow_id) as live:
            path, waiting, verdicts = _approval(live.run, step)
            if waiting.approvers and approver not in waiting.approvers:
                raise IllegalTransition(
                    f"{approver!r} may not approve step {path!r}",
                    hint=f"Those who may: {', '.join(waiting.approvers)}.",
                )
            for known in verdicts:
                if known.approver == approver and known.approved == approved:
                    return waiting
                if known.approver == approver:
                    raise IllegalTransition(f"{approver!r} has already {_past(known.approved)} step {path!r}")
            await self._inbound.record(live, ev.ApprovalGiven(approver, approved, comment), actor, step=path)
            return waiting

    async def publish(
        self, event: str, correlate: str, data: Any, *, event_id: str = "", keep_ns: int, actor: str
    ) -> Published:
        """Tell all runs that wait for an event with this correlation; return once it is durable and they have it.

        It is kept for `keep_ns` for steps that wait only later. The same `event_id` again is the same event.

        Raises InvalidParameter, InvalidInputs, ShuttingDown, DiskFull, StorageUnavailable.
        """
        self._admission.check_open()
        if not correlate:
            raise InvalidParameter("correlate: an event needs one; it says whom it is for")
        if not 0 <= keep_ns <= LONGEST_KEPT_NS:
            raise InvalidParameter("keep: from 0s to 30d")
        raw = self._checked(event, correlate, event_id, data)
        now = self._clock.now_ns()
        record_id = self._ids.next_id(self._partition)
        event_id = event_id or f"e-{record_id}"
        key = record_key(_KIND, event_id)
        known = await self._known(key)
        if known is not None:
            return await self._again(known, event_id)
        live = tail(record_id, _PLAN)
        kept_until_ns = now + max(keep_ns, SHORTEST_KEPT_NS)
        detail = ev.EventReceived(event, correlate, event_id, kept_until_ns)
        self._committer.keep_descriptor(_PLAN.digest, _TEXT)
        self._committer.claim(Claim(key, record_id, payload.digest(raw)))
        self._committer.add(live, Event(now, detail, actor=actor, output_digest=payload.digest(raw)), output=raw)
        batch = live.batch
        assert batch is not None
        self._claims[key] = batch
        batch.after.append(partial(self._claims.__delitem__, key))
        await batch.committed()
        kept = KeptEvent(record_id, event, correlate, event_id, kept_until_ns)
        await self._projector.reached(batch.height)
        (delivered, pending), others = await asyncio.gather(
            self._hand_out(kept, raw, actor), self._spread(kept, data, actor)
        )
        delivered = sorted([*delivered, *(run for other in others for run in other.delivered_to)])
        pending = sorted([*pending, *(run for other in others for run in other.pending)])
        try:
            started = await self._start_runs(kept, data)
        except KnhkError:
            started = []  # The event is on disk, and what it starts follows.
            self._spawn(self._start_again(kept))
        runs = [one.workflow_id for one in started]
        return Published(event_id, record_id, delivered, kept_until_ns, pending=pending, started=runs)

    async def give_kept(self, workflow_id: int, record_id: int) -> bool:
        """Give an event that is kept to a run of this partition; whether it has it. Raises WorkflowNotFound."""
        receipts = await self._journal.receipts(record_id)
        detail = receipts[0].receipt().typed_detail() if receipts else None
        if not isinstance(detail, ev.EventReceived):
            raise WorkflowNotFound(f"there is no event {to_text(record_id)}")
        raw = await self._journal.payload(record_id, 0, OUTPUT)
        if raw is None:
            return False
        kept = KeptEvent(record_id, detail.name, detail.correlate, detail.id, detail.kept_until_ns)
        return await self._give(workflow_id, kept, raw, receipts[0].receipt().actor)

    def began_to_wait(self, workflow_id: int, event: str, correlate: str, height: int) -> None:
        """A step's wait is durable: look for an event that is kept for it."""
        self._spawn(self._look_for_kept(workflow_id, event, correlate, height))

    def start(self, *, leading: bool = True) -> None:
        """Hand out again what was kept before this process began; only the leader starts what events start."""
        self._leading = leading
        self._spawn(self._hand_out_all(leading))

    async def stop(self) -> None:
        """Hand out nothing any more; what is left follows after the next start."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work, name="signals")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _known(self, key: bytes) -> Claim | None:
        """The event with this id, once it is durable; None if there is none, until something is awaited."""
        while True:
            open_batch = self._claims.get(key)
            if open_batch is not None:
                await open_batch.committed()
            known = await self._journal.claim(key)
            if known is not None or key not in self._claims:
                return known

    async def _again(self, known: Claim, event_id: str) -> Published:
        receipts = await self._journal.receipts(known.workflow_id)
        detail = receipts[0].receipt().typed_detail()
        assert isinstance(detail, ev.EventReceived)
        return Published(event_id, known.workflow_id, [], detail.kept_until_ns, replayed=True)

    async def _hand_out(self, kept: KeptEvent, raw: bytes, actor: str) -> tuple[list[int], list[int]]:
        """Give an event to all runs that wait for it now; who has it, and who gets it when its owner answers."""
        topic, after = topic_of(kept.event, kept.correlate), None
        delivered, pending = list[int](), list[int]()

        async def give(workflow_id: int) -> None:
            try:
                if await self._give(workflow_id, kept, raw, actor):
                    delivered.append(workflow_id)
            except Unavailable:
                pending.append(workflow_id)
                self._spawn(self._patiently_give(workflow_id, kept))

        while True:
            ids, after = await waiting_runs(self._projections, FOLD, topic, after, _AT_ONCE)
            await asyncio.gather(*map(give, ids))
            if after is None:
                return sorted(delivered), sorted(pending)

    async def _spread(self, kept: KeptEvent, data: Any, actor: str) -> list[Published]:
        """Have the partitions that are apart take an event in; those that cannot just now do so a little later."""
        apart = self.apart
        if apart is None:
            return []

        async def one(partition: int) -> Published | None:
            try:
                return await apart.publish(partition, kept, data, actor)
            except Unavailable:
                self._spawn(self._patiently_spread(partition, [kept]))
                return None

        return [found for found in await asyncio.gather(*map(one, apart.partitions())) if found is not None]

    async def _patiently_spread(self, partition: int, events: Sequence[KeptEvent]) -> None:
        for kept in events:
            while self.apart is not None and self._clock.now_ns() < kept.kept_until_ns:
                try:
                    raw = await self._journal.payload(kept.record_id, 0, OUTPUT)
                    if raw is not None:
                        await self.apart.publish(partition, kept, payload.decode(raw), "engine")
                    break
                except KnhkError as error:
                    if not error.retryable:
                        break
                await self._clock.sleep(_RETRY_S)

    async def _give(self, workflow_id: int, kept: KeptEvent, raw: bytes, actor: str) -> bool:
        """Give an event to a run, if a step of it waits for it and it has not had it."""
        if self.elsewhere is not None and partition_of(workflow_id) != self._partition:
            try:
                return await self.elsewhere(workflow_id, kept.record_id)
            except NotFound:
                return False
        try:
            async with self._arrivals.decide(workflow_id) as live:
                run = live.run
                if run.waits is not None and kept.signal_id in run.waits.ids:
                    return True  # It looked for what is kept when it began to wait, which was just now.
                if run.ended:
                    return False
                if not _taker(run, kept.event, kept.correlate, exactly=True):
                    return False
                live.signals[run.seq] = raw
                detail = ev.SignalReceived(kept.event, kept.signal_id, kept.correlate, kept.record_id)
                await self._inbound.record(live, detail, actor, data=raw)
                return True
        except WorkflowNotFound:
            return False

    async def _look_for_kept(self, workflow_id: int, event: str, correlate: str, height: int) -> None:
        await self._projector.reached(height)
        topic = topic_of(event, correlate)
        for kept in await self._patiently_kept(topic):
            if (kept.event, kept.correlate) == (event, correlate):
                await self._patiently_give(workflow_id, kept)

    async def _hand_out_all(self, leading: bool) -> None:
        head = await self._journal.head(self._partition)
        if head is not None:
            await self._projector.reached(head.block().height)
        events = await self._patiently_kept(b"")
        topics = {topic_of(kept.event, kept.correlate) for kept in events}
        waiting = await self._patiently(lambda: all_waiting(self._projections, FOLD, topics))
        for partition in self.apart.partitions() if leading and self.apart is not None else ():
            self._spawn(self._patiently_spread(partition, events))
        for kept in events:
            if leading:
                await self._start_again(kept)
            for one in waiting.get(topic_of(kept.event, kept.correlate), ()):
                if partition_of(one) == self._partition:
                    await self._patiently_give(one, kept)
                elif leading and self.elsewhere is not None:  # in vain perhaps for a while, which holds up nobody else
                    self._spawn(self._patiently_give(one, kept))

    async def _start_runs(self, kept: KeptEvent, data: Any) -> list[Accepted]:
        """The runs that triggers start for an event, at the leader."""
        if not self._leading:
            return []
        return await self.triggers.on_event(kept.event, kept.correlate, kept.id, kept.record_id, data)

    async def _start_again(self, kept: KeptEvent) -> None:
        """Start the runs that an event has to start, those of them that it has not."""
        while True:
            try:
                raw = await self._journal.payload(kept.record_id, 0, OUTPUT)
                data = None if raw is None else payload.decode(raw)
                await self._start_runs(kept, data)
                return
            except KnhkError as error:
                if not error.retryable:
                    return
            await self._clock.sleep(_RETRY_S)

    async def _patiently_kept(self, topic: bytes) -> list[KeptEvent]:
        return await self._patiently(lambda: kept_events(self._projections, FOLD, topic, self._clock.now_ns()))

    async def _patiently(self, read: Callable[[], Awaitable[_Rows]]) -> _Rows:
        while True:
            try:
                return await read()
            except KnhkError:
                await self._clock.sleep(_RETRY_S)

    async def _patiently_give(self, workflow_id: int, kept: KeptEvent) -> None:
        while self._clock.now_ns() < kept.kept_until_ns:
            try:
                raw = await self._journal.payload(kept.record_id, 0, OUTPUT)
                if raw is not None:
                    await self._give(workflow_id, kept, raw, "engine")
                return
            except KnhkError as error:
                if not error.retryable:
                    return
            await self._clock.sleep(_RETRY_S)

    def _checked(self, event: str, correlate: str, given_id: str, data: Any) -> bytes:
        """The data as bytes. Raises InvalidParameter or InvalidInputs."""
        for name, text, least in (("event", event, 1), ("correlate", correlate, 0), ("id", given_id, 0)):
            if not least <= len(text) <= LONGEST or "\0" in text:
                raise InvalidParameter(f"{name}: {least} to {LONGEST} characters, and none of them NUL")
        raw = payload.encode(data)
        if len(raw) > self._max_payload_bytes:
            raise InvalidInputs(f"data: {len(raw)} bytes; at most {self._max_payload_bytes} can be kept")
        self._admission.require_blobs(raw)
        return raw


def _taker(run: Run, event: str, correlate: str, *, exactly: bool = False) -> str:
    """The path of the step that would take a signal, empty if none waits for it."""
    if run.waits is None or (exactly and not correlate):
        return ""
    position = run.waits.taker(event, correlate)
    return "" if position is None else run.path_of(position)


def _approval(run: Run, step: str) -> tuple[str, Waiting, list[Verdict]]:
    """The step that waits for approval, by its path, or the only one."""
    found = run.waits
    open_now = (
        {}
        if found is None
        else {
            run.path_of(position): position
            for position, waiting in found.positions.items()
            if waiting.kind == "approval" and position not in found.deliveries
        }
    )
    if not step and len(open_now) == 1:
        step = next(iter(open_now))
    if found is None or step not in open_now:
        name = to_text(run.workflow_id)
        known = ", ".join(sorted(open_now)) or "none"
        what = f"step {step!r} of {name} does not wait for approval" if step else f"name the step of {name}"
        raise IllegalTransition(what, hint=f"Steps of {name} that wait for approval now: {known}.")
    position = open_now[step]
    return step, found.positions[position], found.verdicts.get(position, [])


def _past(approved: bool) -> str:
    return "approved" if approved else "rejected"
