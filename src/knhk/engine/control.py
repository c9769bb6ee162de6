"""The facade: everything that may be asked of the engine. Faces call this and nothing else.

Every method that changes something returns only when the change is committed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from typing import Any, Final

from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain import summary as rows
from knhk.domain.compile import check_inputs
from knhk.domain.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InvalidParameter,
    StorageUnavailable,
    Unavailable,
    WorkflowNotFound,
)
from knhk.domain.event import Event
from knhk.domain.identifier import to_text
from knhk.domain.limits import NO_LIMITS
from knhk.domain.plan import Plan, keys_of
from knhk.domain.receipt import Sealed
from knhk.domain.run import Run, RunState
from knhk.domain.summary import Summary
from knhk.domain.unwinding import instead_of
from knhk.engine import inside, views, waiting
from knhk.engine.admission import Admission
from knhk.engine.arrivals import Arrivals
from knhk.engine.committer import Batch, Committer
from knhk.engine.definitions import Definitions
from knhk.engine.executor import Attempt
from knhk.engine.holders import MOST_NAMED
from knhk.engine.inbound import Inbound
from knhk.engine.live import LiveRun
from knhk.engine.loader import Loader
from knhk.engine.plans import Plans
from knhk.engine.projector import FOLD, STATE_CODES, row_key
from knhk.engine.proposals import Proposals
from knhk.engine.requests import Accepted, Filter, Reused, Submission, checked_key
from knhk.engine.scheduler import Scheduler
from knhk.engine.signals import Signals
from knhk.engine.time_machine import TimeMachine
from knhk.engine.triggers import Triggers
from knhk.engine.watchers import Watchers
from knhk.ports.environment import Clock, Ids
from knhk.ports.journal import Claim, Journal, record_key
from knhk.ports.storage import Projections

_SCAN: Final = 5_000
_NO_INPUTS: Final = payload.digest(payload.encode({}))
_NO_KEYS: Final = ("", "")


class Control:
    """What the faces see of one partition's engine."""

    def __init__(
        self,
        partition: int,
        *,
        admission: Admission,
        committer: Committer,
        scheduler: Scheduler,
        loader: Loader,
        arrivals: Arrivals,
        plans: Plans,
        definitions: Definitions,
        signals: Signals,
        inbound: Inbound,
        proposals: Proposals,
        journal: Journal,
        projections: Projections,
        watchers: Watchers,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._partition = partition
        self._admission, self._committer, self._scheduler = admission, committer, scheduler
        self._loader, self._arrivals, self._plans = loader, arrivals, plans
        self._journal, self._projections = journal, projections
        self._watchers, self._clock, self._ids = watchers, clock, ids
        self.definitions, self.signals, self._inbound = definitions, signals, inbound
        self.propose = proposals.propose
        self.triggers: Triggers
        self.time_machine: TimeMachine
        self._claims: dict[bytes, Batch] = {}

    def validate(self, descriptor: bytes) -> Plan:
        """The plan of a descriptor, without running it. Raises InvalidDescriptor."""
        return self._plans.compile(descriptor)

    async def submit(self, submission: Submission, *, wait_s: float = 0.0) -> Accepted:
        """Take a workflow in; return once that is committed, or with `wait_s` once it has ended or the time is over.

        Raises:
            InvalidDescriptor, InvalidInputs, InvalidParameter, DefinitionNotFound: nothing was written.
            Overloaded, ShuttingDown, DiskFull: nothing was written.
            StorageUnavailable: it is not known whether it was written; repeat with the same idempotency key.
            IdempotencyConflict: the key was used with another request.
        """
        self._admission.check()
        if not submission.idempotency_key:
            return await self._accept(submission, None, wait_s)
        claim = self._claim_of(submission)
        known = await self._known(claim)
        if known is not None:
            return await self._replay(known, wait_s)
        return await self._accept(submission, claim, wait_s)

    async def status(self, workflow_id: int) -> dict[str, Any]:
        """The state of a run, by the fold of its committed receipts. Raises WorkflowNotFound."""
        return self._shown(await self._folded(workflow_id))

    async def inspect(self, workflow_id: int) -> dict[str, Any]:
        """The state of a run with its inputs and every output that is kept."""
        run = await self._folded(workflow_id)
        shown = self._shown(run)
        shown["inputs"] = await self._loader.inputs(run)
        for index, step in enumerate(shown["steps"]):
            if step["state"] == "completed":
                step["output"] = await self._loader.output(run, index)
        shown["inside"] = await inside.of_receipts(run, self._journal, self._loader)
        shown["outputs"] = await self._loader.results(run)
        return shown

    async def results(self, workflow_id: int) -> tuple[Run, dict[str, Any]]:
        """The run and what it gives: its declared outputs, or those of the steps that nothing depends on."""
        run = await self._folded(workflow_id)
        return run, await self._loader.results(run)

    async def listing(
        self, wanted: Filter, *, before: int | None, limit: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Runs, newest first, and the id to continue before (None at the end).

        A page reads a bounded number of rows, so it may hold fewer than `limit` although there are more.
        """
        if wanted.state and wanted.state not in STATE_CODES:
            raise InvalidParameter(f"state: {wanted.state!r} is none of {', '.join(STATE_CODES)}")
        indexed = bool(wanted.state) and wanted.state != RunState.COMPLETED
        prefix = (b"s" + STATE_CODES[wanted.state] if indexed else b"r") + self._partition.to_bytes(2)
        found: list[dict[str, Any]] = []
        cursor = before
        page = min(_SCAN, max(limit, 1) if indexed or wanted == Filter() else _SCAN)
        bound = prefix + cursor.to_bytes(8) if cursor is not None else None
        raw_rows = await self._projections.rows(FOLD, prefix, before=bound, limit=page)
        ranks = self._scheduler.pending.ranks()
        for key, value in raw_rows:
            cursor = int.from_bytes(key[-8:])
            raw = await self._projections.row(FOLD, row_key(cursor)) if indexed else value
            if raw is None:
                continue
            row = rows.decode(raw)
            if wanted.admits(row):
                found.append({**views.of_summary(row), "waiting_on": self._waiting_of(row, ranks)})
                if len(found) == limit:
                    return found, cursor
        return found, cursor if len(raw_rows) == page else None

    async def receipts(self, workflow_id: int, from_seq: int = 0) -> list[Sealed]:
        """The committed receipts of a run from `from_seq` on. Raises WorkflowNotFound if it has none at all."""
        found = await self._journal.receipts(workflow_id, from_seq)
        if not found and (not from_seq or not await self._journal.receipts(workflow_id)):
            raise WorkflowNotFound(f"there is no workflow {to_text(workflow_id)}")
        return found

    async def follow(self, workflow_id: int, from_seq: int) -> AsyncIterator[Sealed | None]:
        """The run's receipts as they are committed, until its end; None now and then while nothing happens."""
        with self._watchers.watch(workflow_id) as changed:
            seq = from_seq
            while True:
                changed.clear()
                ended = False
                for sealed in await self.receipts(workflow_id, seq):
                    yield sealed
                    receipt = sealed.receipt()
                    seq = receipt.seq + 1
                    ended = receipt.kind in ev.AFTER_THE_END
                if ended or (seq == from_seq and (await self._folded(workflow_id)).ended):
                    return
                if not await self._watchers.wait(changed):
                    yield None

    async def cancel(self, workflow_id: int, *, actor: str, reason: str = "", key: str = "") -> None:
        """End a run. Attempts under way are stopped; what they return is not looked at.

        If something was done that can be undone, or there is a `finally`, that comes first and the run ends after it;
        to cancel the run once more ends it at once, unless that is done with a key.
        """
        async with self._arrivals.decide(workflow_id) as live:
            run = live.run
            if live.run.has_decided("cancel", key):
                return
            if key and run.ending is not None and not run.ended:
                raise IllegalTransition(
                    f"{to_text(workflow_id)} is about to end as {run.ending.state}",
                    hint="It still puts right what it did. To end it at once, cancel it alone and without a key.",
                )
            self._require(live, RunState.PENDING, RunState.RUNNING, RunState.PAUSED, verb="cancelled")
            self._scheduler.cancel_attempts(live)
            await self._inbound.record(live, instead_of(live.run, ev.Cancelled(reason, key)), actor)

    async def pause(self, workflow_id: int, *, actor: str, reason: str = "", key: str = "") -> None:
        """Begin no further steps of a run; those under way finish. The run's deadline goes on."""
        async with self._arrivals.decide(workflow_id) as live:
            if live.run.has_decided("pause", key):
                return
            self._require(live, RunState.PENDING, RunState.RUNNING, verb="paused")
            await self._inbound.record(live, ev.Paused(reason, key), actor)

    async def resume(self, workflow_id: int, *, actor: str, reason: str = "", key: str = "") -> None:
        """Let a paused run go on."""
        async with self._arrivals.decide(workflow_id) as live:
            if live.run.has_decided("resume", key):
                return
            self._require(live, RunState.PAUSED, verb="resumed")
            await self._inbound.record(live, ev.Resumed(reason, key), actor)

    async def retry(self, workflow_id: int, *, actor: str, key: str = "") -> tuple[str, ...]:
        """Let an ended run that did not complete go on from the steps that failed; see TimeMachine.retry."""
        return await self.time_machine.retry(workflow_id, actor=actor, key=key)

    async def erase(self, workflow_id: int, *, actor: str, reason: str = "") -> None:
        """Delete the inputs and outputs of an ended run for good. Its receipts stay and still verify."""
        async with self._arrivals.decide(workflow_id) as live:
            if not live.run.ended:
                raise IllegalTransition(
                    f"{to_text(workflow_id)} is {live.run.state}",
                    hint="Cancel it first; only ended workflows are deleted.",
                )
            if live.run.erased:
                return
            self._committer.erase(workflow_id)
            await self._inbound.record(live, ev.PayloadErased(reason), actor)

    async def _accept(self, submission: Submission, claim: Claim | None, wait_s: float) -> Accepted:
        number = 0
        if submission.definition:
            version, plan = await self.definitions.resolve(submission.definition, submission.version)
            number = version.number
            known = None if claim is None else await self._known(claim)
            if known is not None:  # The same request came in while the definition was looked up.
                return await self._replay(known, wait_s)
        else:
            plan = self._plans.compile(submission.descriptor)
        return await self.accepted(self._take_in(plan, submission, claim, number), wait_s)

    def begin(self, submission: Submission) -> LiveRun:
        """Take in a workflow that has no key and comes with its descriptor: `submit` up to where it waits.

        Nobody may be told before its batch is durable (see `accepted`). Raises as `submit` does.
        """
        self._admission.check()
        return self._take_in(self._plans.compile(submission.descriptor), submission, None, 0)

    async def accepted(self, live: LiveRun, wait_s: float) -> Accepted:
        """Wait until a submission is committed, and with `wait_s` until it has ended or the time is over."""
        batch, run = live.batch, live.run
        assert batch is not None
        if wait_s > 0 and not live.is_over:
            with self._waiter(live) as waiter:  # From now on: a run for which somebody waits stays in memory.
                await batch.committed()
                if not run.ended or live.uncommitted:
                    await self._wait(waiter, wait_s)
        else:
            await batch.committed()
        return Accepted.of(live)

    def _take_in(self, plan: Plan, submission: Submission, claim: Claim | None, version: int) -> LiveRun:
        inputs = check_inputs(plan, submission.inputs)
        self._admission.check_place(plan)
        return self._create(plan, inputs, submission, claim, version)

    def _create(
        self,
        plan: Plan,
        inputs: Mapping[str, Any],
        submission: Submission,
        claim: Claim | None,
        version: int,
        reused: Sequence[Reused] = (),
    ) -> LiveRun:
        keys = keys_of(plan, inputs) if plan.limits is not NO_LIMITS else _NO_KEYS
        run = Run(self._ids.next_id(self._partition) if claim is None else claim.workflow_id, plan)
        live = LiveRun(run, inputs)
        raw = None
        if inputs:
            raw = payload.encode(inputs)
            self._admission.require_blobs(raw)
        detail = ev.Submitted(
            plan.name,
            plan.department,
            plan.cost_center,
            plan.covenant,
            len(plan.steps),
            submission.idempotency_key,
            submission.traceparent,
            plan.labels,
            submission.definition,
            version,
            plan.limits.priority,
            *keys,
            _origin(submission.parent, submission.parent_step, submission.depth),
            _origin(submission.forked_from, submission.fork_step),
        )
        event = Event(
            self._clock.now_ns(),
            detail,
            actor=submission.actor,
            input_digest=_NO_INPUTS if raw is None else payload.digest(raw),
        )
        if submission.descriptor:
            self._committer.keep_descriptor(plan.digest, submission.descriptor)
        self._committer.add(live, event, given=raw)
        if claim is not None and live.batch is not None:
            self._committer.claim(claim)
            # Until it is durable, whatever becomes of this request: another one with the key must not get past it.
            self._claims[claim.key_digest] = live.batch
            live.batch.after.append(partial(self._claims.__delitem__, claim.key_digest))
        for one in reused:
            self._inbound.reuse(live, one)
        self._scheduler.admit(live)
        return live

    async def accept_fork(
        self, submission: Submission, plan: Plan, inputs: dict[str, Any], reused: list[Reused]
    ) -> Accepted:
        """Commit a fork: a submission in which some steps are done already. Raises as `submit` does."""
        claim = self._claim_of(submission) if submission.idempotency_key else None
        known = None if claim is None else await self._known(claim)
        if known is not None:
            return await self._replay(known, 0.0)
        self._admission.check_place(plan)
        live = self._create(plan, inputs, submission, claim, int(submission.version or 0), reused)
        assert live.batch is not None
        await live.batch.committed()
        return Accepted(live.run.workflow_id, live.run.state)

    def create_child(self, plan: Plan, inputs: dict[str, Any], version: int, depth: int, attempt: Attempt) -> int:
        """Make the child of a step's attempt, in the very commit that the attempt's outcome will be in; its id.

        Raises Overloaded.
        """
        self._admission.check_place(plan)
        parent, key = attempt.live.run, f"{to_text(attempt.live.run.workflow_id)}/{attempt.path}/{attempt.number}"
        claim = Claim(record_key("child", key), self._ids.next_id(self._partition), plan.digest)
        submission = Submission(
            idempotency_key=key,
            actor="engine",
            traceparent=parent.submitted.traceparent if parent.submitted is not None else "",
            definition=plan.name,
            parent=parent.workflow_id,
            parent_step=attempt.path,
            depth=depth,
        )
        return self._create(plan, inputs, submission, claim, version).run.workflow_id

    def _claim_of(self, submission: Submission) -> Claim:
        key = checked_key(submission.idempotency_key)
        inputs = payload.encode(submission.inputs)
        what = submission.descriptor
        if submission.forked_from:
            what = f"\0fork\0{submission.forked_from}\0{submission.fork_step}".encode()
        elif submission.definition:
            what = f"\0{submission.definition}\0{submission.version}".encode()
        request = sha256(what + b"\x00" + inputs).digest()
        return Claim(sha256(key.encode()).digest(), self._ids.next_id(self._partition), request)

    async def claim(self, key_digest: bytes) -> Claim | None:
        """The claim that holds an idempotency key, once it is durable. None: it is free, until something is awaited."""
        while True:
            if (batch := self._claims.get(key_digest)) is not None:
                await batch.committed()
            known = await self._journal.claim(key_digest)
            if known is not None or key_digest not in self._claims:
                return known

    async def _known(self, claim: Claim) -> Claim | None:
        known = await self.claim(claim.key_digest)
        if known is not None and known.request_digest != claim.request_digest:
            raise IdempotencyConflict(f"the key stands for {to_text(known.workflow_id)}, which another request made")
        return known

    async def _replay(self, known: Claim, wait_s: float) -> Accepted:
        if wait_s > 0:
            await self._until_ended(known.workflow_id, wait_s)
        run, results = await self.results(known.workflow_id)
        return Accepted(run.workflow_id, run.state, True, results if run.ended else None, run.failure)

    @contextmanager
    def _waiter(self, live: LiveRun) -> Iterator["asyncio.Future[None]"]:
        """A future that is done when the run has ended."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        live.waiters.append(waiter)
        try:
            yield waiter
        finally:
            live.waiters.remove(waiter)
            self._scheduler.let_go(live)

    async def _wait(self, waiter: "asyncio.Future[None]", seconds: float) -> None:
        timer = self._clock.call_later(seconds, partial(_settle, waiter))
        try:
            await waiter
        finally:
            timer.cancel()

    async def _until_ended(self, workflow_id: int, seconds: float) -> None:
        """Wait for the end of a run that may be in memory or parked."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._watchers.watch(workflow_id) as changed:
            over.add_done_callback(lambda _: changed.set())
            timer = self._clock.call_later(seconds, partial(_settle, over))
            try:
                while not over.done() and not self._watchers.closed:
                    changed.clear()
                    if (await self._folded(workflow_id)).ended:
                        return
                    await changed.wait()
            finally:
                timer.cancel()

    async def run_of(self, workflow_id: int) -> Run:
        """The run as its committed receipts tell it. Raises WorkflowNotFound."""
        return await self._folded(workflow_id)

    async def _folded(self, workflow_id: int) -> Run:
        live = self._scheduler.find(workflow_id)
        if live is not None and not live.uncommitted:
            return live.run
        if live is not None and live.batch is not None:
            with suppress(Unavailable):  # what is on disk already can be told while nothing more can be written
                await live.batch.committed()
            if not live.uncommitted:
                return live.run
        run, _ = await self._loader.fold(workflow_id)
        return run

    def _shown(self, run: Run) -> dict[str, Any]:
        live = self._scheduler.find(run.workflow_id)
        return {**views.of_run(run), "waiting_on": waiting.of_run(run, live, self._scheduler, self._clock.now_ns())}

    def _waiting_of(self, row: Summary, ranks: Mapping[int, int]) -> list[dict[str, Any]]:
        pending = self._scheduler.pending.get(row.workflow_id)
        if pending is None:
            return waiting.of_row(row)
        rank = ranks.get(row.workflow_id, 0)
        return [waiting.of_pending(pending, self._scheduler, self._clock.now_ns(), rank)]

    def require_key(self, live: LiveRun) -> None:
        """An ended run that goes on holds its concurrency key again: there must be room for it."""
        obstacle = self._scheduler.holders.obstacle(live, self._clock.now_ns())
        if obstacle is not None and obstacle.kind == "loading":
            raise StorageUnavailable("which runs hold which concurrency key is still being read", retry_after_s=1.0)
        if obstacle is not None and obstacle.kind == "concurrency":
            holders = ", ".join(map(to_text, sorted(self._scheduler.holders.of(obstacle.key))[:MOST_NAMED]))
            raise IllegalTransition(
                f"{to_text(live.run.workflow_id)} needs the concurrency key {obstacle.key!r}, held by {holders}",
                hint="Retry it when one of those has ended.",
            )

    @staticmethod
    def _require(live: LiveRun, *states: RunState, verb: str) -> None:
        if live.run.state not in states:
            raise IllegalTransition(f"{to_text(live.run.workflow_id)} is {live.run.state} and cannot be {verb}")


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


__all__ = ["Accepted", "Control", "Filter", "Submission"]


def _origin(workflow_id: int, step: str, depth: int = 0) -> ev.Origin:
    return ev.Origin(workflow_id, step, depth) if workflow_id else ev.NO_ORIGIN
