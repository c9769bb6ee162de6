"""Why is this waiting? What every run that does not move waits for, as the faces show it.

An entry has `kind`, `step` (null for the run itself), `since`, `until` (null if nobody knows) and what else helps:

timer, retry          a time; a retry has failed before
event                 `event`, `correlate`
approval              `approvers`, `required`, `given_by`, `message`
child                 `workflow_id` of the child
worker                a remote worker of `queue`
slot                  for a run `position` among those of its `department` that wait; for a step, a place to run
concurrency           `key`, `limit`, `held_by`
rate_limit            `key`, `limit`
paused                somebody must resume it
"""

from typing import Any, Final

from knhk.domain.identifier import to_text
from knhk.domain.lease import is_leased
from knhk.domain.run import Run, RunState, StepState
from knhk.domain.summary import Summary
from knhk.domain.times import rfc3339
from knhk.domain.waits import Verdict, Waiting
from knhk.engine.holders import MOST_NAMED
from knhk.engine.live import LiveRun
from knhk.engine.scheduler import Scheduler

MOST_SHOWN: Final = 100


def of_run(run: Run, live: LiveRun | None, scheduler: Scheduler, now_ns: int) -> list[dict[str, Any]]:
    """What a run waits for: at most a hundred entries. `live` is the run in memory, if it is there."""
    if run.ended:
        return []
    if run.state is RunState.PENDING:
        waiting = live or scheduler.pending.get(run.workflow_id)
        return [of_pending(waiting, scheduler, now_ns)] if waiting is not None else []
    if run.state is RunState.PAUSED:
        return [entry("paused", "", run.paused_at_ns, 0)]
    found = _of_others(run) + _of_workers(run) + _of_timers(run)
    if live is not None:
        found += [
            entry("slot", attempt.path, attempt.started_at_ns, 0)
            for attempt in live.attempts.values()
            if scheduler.executor.is_waiting(attempt)
        ]
    return found[:MOST_SHOWN]


def of_pending(live: LiveRun, scheduler: Scheduler, now_ns: int, rank: int = 0) -> dict[str, Any]:
    """What a run that has not started waits for; `rank` is its place, if the caller knows it."""
    run, holders = live.run, scheduler.holders
    since, limits = run.submitted_at_ns, run.plan.limits
    obstacle = holders.obstacle(live, now_ns)
    match obstacle.kind if obstacle is not None else "":
        case "concurrency" if obstacle is not None and limits.concurrency is not None:
            held_by = [to_text(one) for one in sorted(holders.of(obstacle.key))[:MOST_NAMED]]
            return entry("concurrency", "", since, 0, key=obstacle.key, limit=limits.concurrency.limit, held_by=held_by)
        case "rate_limit" if obstacle is not None and limits.rate_limit is not None:
            return entry("rate_limit", "", since, obstacle.until_ns, key=obstacle.key, limit=limits.rate_limit.limit)
        case _:
            position = rank or scheduler.pending.rank(live)
            return entry("slot", "", since, 0, position=position, department=run.plan.department)


def of_row(row: Summary) -> list[dict[str, Any]]:
    """What a run that has started waits for, as far as its row in the list tells."""
    if row.state == RunState.PAUSED:
        return [entry("paused", "", row.paused_at_ns, 0)]
    return [
        entry(one.kind, step, one.since_ns, one.until_ns, **_named(one.event, one.correlate, one.child))
        for step, one in list(row.waiting.items())[:MOST_SHOWN]
    ]


def entry(kind: str, step: str, since_ns: int, until_ns: int, **rest: Any) -> dict[str, Any]:
    """One thing that is waited for; times are Unix time in ns, 0 if there is none."""
    return {
        "kind": kind,
        "step": step or None,
        "since": rfc3339(since_ns) if since_ns else None,
        "until": rfc3339(until_ns) if until_ns else None,
        **rest,
    }


def _of_others(run: Run) -> list[dict[str, Any]]:
    if run.waits is None:
        return []
    return [
        entry(
            waiting.kind,
            run.path_of(position),
            waiting.since_ns,
            waiting.until_ns,
            **_named(waiting.event, waiting.correlate, waiting.child),
            **(_asked(waiting, run.waits.verdicts.get(position, [])) if waiting.kind == "approval" else {}),
        )
        for position, waiting in list(run.waits.positions.items())[:MOST_SHOWN]
    ]


def _of_workers(run: Run) -> list[dict[str, Any]]:
    """Steps for which no remote worker has a lease."""
    return [
        entry("worker", frame.path(index), 0, 0, queue=step.traits.queue)
        for frame in (run, *(run.inner.frames.values() if run.inner is not None else ()))
        for index, state in enumerate(frame.steps)
        if state is StepState.RUNNING
        for step in [frame.step(index)]
        if step.traits.queue
        if not is_leased(run.leases, frame.path(index), frame.attempts[index] + 1)
    ]


def _of_timers(run: Run) -> list[dict[str, Any]]:
    others = run.waits.positions if run.waits is not None else {}
    found = []
    for position, at_ns in sorted(run.timer_at_ns.items(), key=lambda one: one[1])[:MOST_SHOWN]:
        if position not in others:
            frame, index = run.at(position)
            if frame.steps[index] is StepState.RUNNING:
                continue  # It is the deadline of a step with steps inside: they say what is waited for.
            kind = "retry" if frame.steps[index] is StepState.RETRYING else "timer"
            found.append(entry(kind, frame.path(index), run.since_ns.get(position, 0), at_ns))
    return found


def _named(event: str, correlate: str, child: int) -> dict[str, Any]:
    named = {"event": event, "correlate": correlate, "workflow_id": to_text(child) if child else ""}
    return {name: value for name, value in named.items() if value}


def _asked(waiting: Waiting, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "approvers": list(waiting.approvers),
        "required": waiting.required,
        "given_by": [one.approver for one in verdicts],
        "message": waiting.message,
    }
