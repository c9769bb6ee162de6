"""From receipts to a run: load, check, apply. Starting and resuming meet here; there is no second path."""

from typing import Any

import msgspec

from knhk.domain import payload
from knhk.domain.errors import ReceiptCorrupt, WorkflowNotFound
from knhk.domain.event import Kind, error_variable
from knhk.domain.frame import InnerFrame, Role
from knhk.domain.identifier import to_text
from knhk.domain.plan import GIVEN, Directed, Foreach, Loop
from knhk.domain.receipt import ChainState, Sealed
from knhk.domain.run import Run, RunState, StepState, apply
from knhk.domain.unwinding import done_inside
from knhk.engine.committer import INPUT, OUTPUT
from knhk.engine.live import LiveRun
from knhk.engine.plans import Plans
from knhk.ports.journal import Journal


class Loader:
    """Folds runs from the journal."""

    def __init__(self, journal: Journal, plans: Plans) -> None:
        self._journal, self._plans = journal, plans

    async def fold(self, workflow_id: int) -> tuple[Run, bytes]:
        """The run as its receipts tell it, and the hash of the last one.

        Raises:
            WorkflowNotFound: there are no receipts.
            ReceiptCorrupt: the chain does not verify.
        """
        sealed = await self._journal.receipts(workflow_id)
        if not sealed:
            raise WorkflowNotFound(f"there is no workflow {to_text(workflow_id)}")
        state = ChainState(workflow_id)
        run: Run | None = None
        for one in sealed:
            faults = state.check(one)
            serious = [fault for fault in faults if fault.what != "time_reversal"]
            if serious:
                raise ReceiptCorrupt(f"{to_text(workflow_id)}: {serious[0].message}")
            receipt = one.receipt()
            if run is None:
                if receipt.kind != Kind.WORKFLOW_SUBMITTED:
                    raise WorkflowNotFound(f"{to_text(workflow_id)} is no workflow: it begins with {receipt.kind}")
                run = Run(workflow_id, await self._plans.load(self._journal, receipt.descriptor_digest))
            apply(run, receipt.event())
        assert run is not None
        return run, sealed[-1].hash

    async def load(self, workflow_id: int) -> LiveRun:
        """The run ready to go on, with the values that its remaining steps will read. Raises as `fold` does."""
        run, last_hash = await self.fold(workflow_id)
        live = LiveRun(run, await self.inputs(run))
        live.previous_hash = last_hash
        live.timer_row_ns = run.wake_at_ns()  # What a parked run left in the store, to be taken back when it moves on.
        if run.erased:
            return live
        for step in run.plan.steps:
            state = run.steps[step.index]
            if state is StepState.COMPLETED and step.keep_output:
                live.outputs[step.name] = await self.output(run, step.index)
            elif state is StepState.WAITING and (run.waits is None or step.index not in run.waits.positions):
                live.held_outputs[step.index] = await self._payload(run, run.output_seqs[step.index], OUTPUT)
        if run.waits is not None:
            for seq in run.waits.untaken():
                live.signals[seq] = await self._payload(run, seq, OUTPUT)
        if run.inner is not None or run.done:
            await self._load_done(live)
        if run.inner is not None:
            for frame in run.inner.frames.values():  # A frame comes after the one around it.
                await self.load_frame(live, frame)
        return live

    async def _load_done(self, live: LiveRun) -> None:
        """What the compensations of the run can see, of those that are to come and of those that are under way."""
        run = live.run
        frames = run.inner.frames.values() if run.inner is not None else ()
        undone = [one for frame in frames for one in frame.undoes or ()]
        for done in [*done_inside(run), *undone]:
            given = await self._journal.payload(run.workflow_id, done.seq, INPUT)
            live.done[done.seq] = (given or b"", await self._payload(run, done.seq, OUTPUT))

    async def load_frame(self, live: LiveRun, frame: InnerFrame) -> None:
        """The values of a frame, open or about to be, that its remaining steps will read."""
        if frame.index < 0 or frame.role is Role.UNWIND:
            await self._load_steps(live, frame, range(len(frame.steps)))
            return
        run, around = live.run, frame.parent.step(frame.index)
        items: list[Any] | None = None
        variables: dict[str, Any] = {}
        if frame.role is Role.CATCH:
            position = frame.parent.first_position + frame.index
            assert around.catch is not None
            path, attempt = frame.parent.path(frame.index), frame.parent.attempts[frame.index] + 1
            variables[around.catch.error_name] = error_variable(run.failures[position], path, attempt)
        elif isinstance(around.body, Foreach):
            items = _decode(await self._payload(run, frame.opened_seq, OUTPUT), run, frame.opened_seq)
        memo = None
        if isinstance(around.body, Directed) and frame.role is Role.BODY:
            raw = await self._payload(run, frame.opened_seq, OUTPUT)
            memo, variables[GIVEN] = _decode(raw, run, frame.opened_seq)
        values = live.enter(frame, items=items, variables=variables)
        values.memo = memo
        needed = range(len(frame.steps))
        if isinstance(around.body, Loop) and frame.role is Role.BODY:
            needed = needed[-2:]
        await self._load_steps(live, frame, needed)

    async def _load_steps(self, live: LiveRun, frame: InnerFrame, needed: range) -> None:
        run, values = live.run, live.values_of(frame)
        for index in needed:
            state, seq = frame.steps[index], frame.output_seqs[index]
            if state is StepState.COMPLETED and (frame.block.repeats or frame.step(index).keep_output):
                values.put(index, _decode(await self._payload(run, seq, OUTPUT), run, seq))
            elif state is StepState.WAITING and seq >= 0:
                live.held_outputs[frame.first_position + index] = await self._payload(run, seq, OUTPUT)

    async def inputs(self, run: Run) -> dict[str, Any]:
        """What the run was given; empty if that was erased."""
        raw = await self._journal.payload(run.workflow_id, 0, INPUT)
        return {} if raw is None else _decode(raw, run, 0)

    async def output(self, run: Run, index: int) -> Any:
        """A completed step's output, None if it was erased."""
        if run.erased or not run.output_digests[index]:
            return None
        seq = run.output_seqs[index]
        return _decode(await self._payload(run, seq, OUTPUT), run, seq)

    async def output_at(self, run: Run, seq: int) -> Any:
        """What a step gave, by the receipt of its completion."""
        return _decode(await self._payload(run, seq, OUTPUT), run, seq)

    async def results(self, run: Run) -> dict[str, Any]:
        """What the run gives: its declared outputs, or those of the steps that nothing depends on."""
        if run.erased:
            return {}
        if run.plan.outputs:
            return await self._declared(run) if run.state is RunState.COMPLETED else {}
        sinks = [step for step in run.plan.steps if not step.dependents]
        return {step.name: await self.output(run, step.index) for step in sinks if run.output_digests[step.index]}

    async def _declared(self, run: Run) -> dict[str, Any]:
        for sealed in reversed(await self._journal.receipts(run.workflow_id)):
            receipt = sealed.receipt()
            if receipt.kind == Kind.WORKFLOW_COMPLETED:
                raw = await self._journal.payload(run.workflow_id, receipt.seq, OUTPUT)
                if raw is not None:
                    return dict(payload.decode(raw))
        raise ReceiptCorrupt(f"{to_text(run.workflow_id)}: the payload of its outputs is missing")

    async def _payload(self, run: Run, seq: int, slot: int) -> bytes:
        raw = await self._journal.payload(run.workflow_id, seq, slot)
        if raw is None:
            raise ReceiptCorrupt(f"{to_text(run.workflow_id)}: the payload of receipt {seq} is missing")
        return raw


def decode_receipts(sealed: list[Sealed], workflow_id: int) -> list[dict[str, Any]]:
    """Receipts as JSON-like data for people: digests and hashes in hexadecimal, the detail as its fields."""
    return [
        {
            "workflow_id": to_text(workflow_id),
            "seq": receipt.seq,
            "kind": receipt.kind,
            "step": receipt.step,
            "attempt": receipt.attempt,
            "at_ns": receipt.at_ns,
            "actor": receipt.actor,
            "descriptor_digest": receipt.descriptor_digest.hex(),
            "input_digest": receipt.input_digest.hex(),
            "output_digest": receipt.output_digest.hex(),
            "detail": hexed(payload.decode(receipt.detail)),
            "previous_hash": receipt.previous_hash.hex(),
            "hash": one.hash.hex(),
        }
        for one in sealed
        for receipt in [one.receipt()]
    ]


def hexed(value: Any) -> Any:
    """The same data with bytes as hexadecimal text."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: hexed(one) for key, one in value.items()}
        case list():
            return [hexed(one) for one in value]
        case _:
            return value


def _decode(raw: bytes, run: Run, seq: int) -> Any:
    try:
        return payload.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReceiptCorrupt(f"{to_text(run.workflow_id)}: the payload of receipt {seq} is damaged") from error
