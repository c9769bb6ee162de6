"""What somebody outside decides about a run: recorded, acted on, and durable when the call returns."""

from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain.event import Event
from knhk.domain.run import RunState
from knhk.engine.committer import Batch, Committer
from knhk.engine.live import LiveRun
from knhk.engine.requests import Reused
from knhk.engine.scheduler import Scheduler
from knhk.ports.environment import Clock


class Inbound:
    """The way by which decisions and signals enter runs. The caller holds the run (see Arrivals.hold)."""

    def __init__(self, committer: Committer, scheduler: Scheduler, clock: Clock) -> None:
        self._committer, self._scheduler, self._clock = committer, scheduler, clock

    async def record(
        self, live: LiveRun, detail: ev.AnyDetail, actor: str, *, step: str = "", data: bytes | None = None
    ) -> None:
        """Add what was decided to the run, with data as its output, let the run go on, and wait until it is durable."""
        await self.add(live, detail, actor, step=step, data=data).committed()

    def add(
        self, live: LiveRun, detail: ev.AnyDetail, actor: str, *, step: str = "", data: bytes | None = None
    ) -> Batch:
        """The same without the wait: the commit on which it is left to the caller to wait, when it has let go."""
        digest = b"" if data is None else payload.digest(data)
        event = Event(self._clock.now_ns(), detail, step=step, actor=actor, output_digest=digest)
        self._committer.add(live, event, output=data)
        batch = live.batch
        assert batch is not None
        pending = live.run.state is RunState.PENDING
        # Also one that ended: until that is durable, nobody may load the run as the journal still has it.
        self._scheduler.take_in(live)
        if pending:
            self._scheduler.fill_slots()
        return batch

    def reuse(self, live: LiveRun, reused: Reused) -> None:
        """A step of a fork has what it gave in the first run."""
        run, value = live.run, payload.decode(reused.raw)
        step = run.plan.steps[run.plan.index_of[reused.step]]
        assert run.submitted is not None
        detail = ev.StepReused(run.submitted.fork_of.workflow_id, reused.seq, "fork")
        event = Event(
            self._clock.now_ns(),
            detail,
            step=step.name,
            attempt=reused.attempts,
            output_digest=payload.digest(reused.raw),
        )
        if step.keep_output:
            live.outputs[step.name] = value
        if not step.dependents and not run.plan.outputs:
            live.results[step.name] = value
        self._committer.add(live, event, output=reused.raw)
