"""A run as people and programs see it: JSON-like data made from the fold."""

from typing import Any

from knhk.domain import trace_context
from knhk.domain.event import Origin
from knhk.domain.identifier import to_text
from knhk.domain.plan import Foreach, Loop, Step, blocks_in
from knhk.domain.run import Run, StepState
from knhk.domain.summary import Summary
from knhk.domain.times import rfc3339
from knhk.engine import inside


def of_summary(row: Summary) -> dict[str, Any]:
    """A row of a list."""
    return {
        "workflow_id": to_text(row.workflow_id),
        "name": row.name,
        "state": row.state,
        "department": row.department,
        "cost_center": row.cost_center,
        "covenant": row.covenant,
        "labels": row.labels,
        "definition": _definition(row.definition, row.version),
        "parent": _origin(Origin(row.parent)),
        **_times(row.submitted_at_ns, row.started_at_ns, row.ended_at_ns),
        "steps_total": row.steps,
        "steps_completed": row.completed,
        "waiting_on": [],
        "failure": _failure(row.failure),
        "erased": row.erased,
    }


def of_run(run: Run) -> dict[str, Any]:
    """The state of one run, with its steps and what it waits for."""
    plan, submitted = run.plan, run.submitted
    return {
        "workflow_id": to_text(run.workflow_id),
        "name": plan.name,
        "state": str(run.state),
        "department": plan.department,
        "cost_center": plan.cost_center,
        "covenant": plan.covenant,
        "labels": dict(plan.labels),
        "definition": _definition(submitted.definition, submitted.version) if submitted else None,
        "parent": _origin(submitted.child_of) if submitted else None,
        "forked_from": _origin(submitted.fork_of) if submitted else None,
        "children": [to_text(one) for one in run.waits.children] if run.waits is not None else [],
        **_times(run.submitted_at_ns, run.started_at_ns, run.ended_at_ns),
        "deadline": rfc3339(run.deadline_ns) if run.deadline_ns else None,
        "steps_total": len(run.steps),
        "steps_completed": run.completed,
        "waiting_on": [],
        "failure": _failure(run.failure),
        "erased": run.erased,
        "results_root": run.results_root.hex(),
        "descriptor_digest": plan.digest.hex(),
        "receipts": run.seq,
        "trace_id": trace_context.trace_id(run.workflow_id).hex(),
        "steps": [_step(run, index) for index in range(len(run.steps))],
        "inside": inside.of_run(run),
        "ending": run.ending.state if run.ending is not None and not run.ended else None,
    }


def _step(run: Run, index: int) -> dict[str, Any]:
    step, state = run.plan.steps[index], run.steps[index]
    shown: dict[str, Any] = {
        "name": step.name,
        "action": step.action,
        "state": str(state),
        "attempts": run.attempts[index],
        "depends_on": [run.plan.steps[one].name for one in step.depends_on],
        "guarantee": "at-most-once" if step.semantics == "at_most_once" else step.traits.guarantee,
    }
    if within := _inside(step):
        shown["steps"] = within
    if run.reused is not None and (reused := run.reused.get(index)) is not None:
        shown["reused"] = inside.of_reuse(reused)
    lease = run.leases.get(step.name)
    if lease is not None:
        shown["worker"] = lease.worker
    failure = run.failures.get(index)
    if failure is not None and state is not StepState.COMPLETED:
        shown["failure"] = _failure(failure)
    return shown


def _inside(step: Step) -> list[dict[str, Any]]:
    """The steps that a step has inside, as the descriptor has them; what became of each instance is in the receipts."""
    if isinstance(step.body, Foreach | Loop):
        step = step.body.block.steps[0]
    return [
        {
            "name": one.name,
            "action": one.action,
            "depends_on": [block.steps[index].name for index in one.depends_on],
            **({"steps": within} if (within := _inside(one)) else {}),
        }
        for block in blocks_in(step)
        for one in block.steps
    ]


def _definition(name: str, version: int) -> dict[str, Any] | None:
    """The registered version that a run was submitted from; None if the descriptor came with the submission."""
    return {"name": name, "version": version} if name else None


def _origin(origin: Origin) -> dict[str, Any] | None:
    """The run, and the step in it, that a run comes from."""
    if not origin.workflow_id:
        return None
    return {"workflow_id": to_text(origin.workflow_id), **({"step": origin.step} if origin.step else {})}


def _failure(failure: Any) -> dict[str, str] | None:
    if failure is None:
        return None
    return {"code": failure.code, "message": failure.message, "guard": failure.guard, "step": failure.step}


def _times(submitted_ns: int, started_ns: int, ended_ns: int) -> dict[str, Any]:
    return {
        "submitted_at": rfc3339(submitted_ns) if submitted_ns else None,
        "started_at": rfc3339(started_ns) if started_ns else None,
        "ended_at": rfc3339(ended_ns) if ended_ns else None,
        "duration_ms": (ended_ns - submitted_ns) / 1e6 if ended_ns else None,
    }
