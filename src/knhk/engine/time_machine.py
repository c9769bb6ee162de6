"""The operator's time machine: an ended run goes on from an earlier step, or another run begins at one of its steps.

`retry_from` resets a step and all that depends on it; what they did stays in the receipts, and they run again. `fork`
makes a new run of the same descriptor in which all steps that do not come after the given one have what they gave
in the first run: `step.reused` says from which receipt of which run that is.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain.errors import IllegalTransition, InvalidParameter
from knhk.domain.identifier import to_text
from knhk.domain.inputs import check_inputs
from knhk.domain.plan import Plan
from knhk.domain.run import (
    RETRYABLE,
    Run,
    StepState,
    begun_at_most_once,
    runs_at_most_once,
    steps_to_resume,
    steps_to_retry,
)
from knhk.engine.admission import Admission
from knhk.engine.arrivals import Arrivals
from knhk.engine.inbound import Inbound
from knhk.engine.live import LiveRun
from knhk.engine.loader import Loader
from knhk.engine.requests import Accepted, Reused, Submission
from knhk.engine.scheduler import Scheduler
from knhk.ports.environment import Clock

Accept = Callable[[Submission, Plan, dict[str, Any], list[Reused]], Awaitable[Accepted]]
"""Commits a submission of a plan with inputs, in which some steps are done already."""


class TimeMachine:
    """Brings runs back to an earlier step."""

    def __init__(
        self,
        *,
        admission: Admission,
        arrivals: Arrivals,
        inbound: Inbound,
        loader: Loader,
        scheduler: Scheduler,
        clock: Clock,
        accept: Accept,
        require_key: Callable[[LiveRun], None],
    ) -> None:
        self._admission, self._arrivals, self._inbound, self._loader = admission, arrivals, inbound, loader
        self._scheduler, self._clock, self._accept, self._require_key = scheduler, clock, accept, require_key

    async def retry(self, workflow_id: int, *, actor: str, key: str = "") -> tuple[str, ...]:
        """Let an ended run that did not complete go on from the steps that failed; returns their names.

        Raises:
            IllegalTransition: the run did not end so, it was erased, or an at_most_once step would run again.
            Overloaded, ShuttingDown, DiskFull: see Admission.check.
        """
        async with self._arrivals.decide(workflow_id) as live:
            run = live.run
            if live.run.has_decided("retry", key):
                return ()
            if run.state not in RETRYABLE:
                raise IllegalTransition(
                    f"{to_text(workflow_id)} is {run.state}; only a run that ended without completing is retried"
                )
            _require_payloads(run)
            begun = begun_at_most_once(run)
            if begun:
                raise IllegalTransition(
                    f"step {begun[0].name!r} is at_most_once and has begun: it must not run again",
                    hint="Find out whether it took effect, and submit a new workflow for what is left.",
                )
            self._admission.check()
            self._require_key(live)
            steps = steps_to_retry(run)
            deadline = self._scheduler.deadline_of(run, self._clock.now_ns())
            resumed = steps_to_resume(run, steps)
            for name in resumed:
                assert run.kept is not None
                await self._loader.load_frame(live, run.kept[run.plan.index_of[name]])
            detail = ev.Retried(steps, deadline, idempotency_key=key, resumed=resumed)
            await self._inbound.record(live, detail, actor)
            return steps

    async def retry_from(self, workflow_id: int, step: str, *, actor: str, key: str = "") -> tuple[str, ...]:
        """Let an ended run go on from a step: it, all after it and all that failed run again. Returns their names.

        Raises:
            InvalidParameter: there is no such step.
            IllegalTransition: the run has not ended, its payloads were erased, or an at_most_once step would run again.
            Overloaded, ShuttingDown, DiskFull: see Admission.check.
        """
        async with self._arrivals.decide(workflow_id) as live:
            run = live.run
            if live.run.has_decided("retry", key):
                return ()
            if not run.ended:
                raise IllegalTransition(
                    f"{to_text(workflow_id)} is {run.state}; only an ended run goes back to a step",
                    hint="Cancel it first, or fork it: a fork leaves it as it is.",
                )
            _require_payloads(run)
            after = _with_all_after(run.plan, step)
            begun = {one for one in after if run.steps[run.plan.index_of[one]] is not StepState.PENDING}
            reset = begun | set(steps_to_retry(run))
            for name in sorted(reset):
                if runs_at_most_once(run.plan.steps[run.plan.index_of[name]]):
                    raise IllegalTransition(
                        f"step {name!r} is at_most_once and has begun: it must not run again",
                        hint="Fork the run from a step after it.",
                    )
            self._admission.check()
            self._require_key(live)
            steps = tuple(one.name for one in run.plan.steps if one.name in reset)
            lost = sum(run.steps[run.plan.index_of[one]] is StepState.COMPLETED for one in steps)
            kept = run.steps.count(StepState.COMPLETED) - lost
            for name in steps:
                live.outputs.pop(name, None)
                live.results.pop(name, None)
            deadline = self._scheduler.deadline_of(run, self._clock.now_ns())
            await self._inbound.record(live, ev.Retried(steps, deadline, step, kept, key), actor)
            return steps

    async def fork(
        self, workflow_id: int, step: str, *, inputs: dict[str, Any], actor: str, idempotency_key: str = ""
    ) -> Accepted:
        """Begin a new run at a step of another, which stays as it is; `inputs` take the place of those of that name.

        Raises:
            InvalidParameter, InvalidInputs: nothing was written.
            IllegalTransition: the payloads of the run were erased.
            Overloaded, ShuttingDown, DiskFull, StorageUnavailable: as a submission.
        """
        self._admission.check()
        run, _ = await self._loader.fold(workflow_id)
        _require_payloads(run)
        again = _with_all_after(run.plan, step)
        given = check_inputs(run.plan, {**await self._loader.inputs(run), **inputs})
        reused = []
        for index, one in enumerate(run.plan.steps):
            if one.name not in again and run.steps[index] is StepState.COMPLETED:
                raw = payload.encode(await self._loader.output(run, index))
                reused.append(Reused(one.name, raw, run.output_seqs[index], run.attempts[index]))
        before = run.submitted
        submission = Submission(
            inputs=given,
            idempotency_key=idempotency_key,
            actor=actor,
            definition=before.definition if before is not None else "",
            version=str(before.version) if before is not None else "",
            forked_from=workflow_id,
            fork_step=step,
        )
        return await self._accept(submission, run.plan, given, reused)


def _require_payloads(run: Run) -> None:
    if run.erased:
        raise IllegalTransition(f"the payloads of {to_text(run.workflow_id)} were erased; nothing can go on from them")


def _with_all_after(plan: Plan, step: str) -> set[str]:
    """A step and all that depend on it, directly or not. Raises InvalidParameter."""
    index = plan.index_of.get(step)
    if index is None:
        known = ", ".join(list(plan.index_of)[:20])
        raise InvalidParameter(f"there is no step {step[:140]!r}", hint=f"Steps of {plan.name}: {known}.")
    found, ahead = {index}, [index]
    while ahead:
        for dependent in plan.steps[ahead.pop()].dependents:
            if dependent not in found:
                found.add(dependent)
                ahead.append(dependent)
    return {plan.steps[one].name for one in found}
