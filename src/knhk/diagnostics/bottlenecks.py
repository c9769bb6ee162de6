"""Which step and action to blame, over many runs: the sums of their critical paths."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from knhk.diagnostics.timing import KINDS, Kind, Timing, critical_path, step_type

ADVICE: Final[dict[Kind, str]] = {
    "execution": "Make the action faster, let its work overlap with other steps, or cache its result.",
    "queue": "Raise platform.max_concurrent_workflows or platform.max_concurrent_steps, or add replicas.",
    "commit": "The disk is slow to sync, or busy: look at knhk_store_fsync_seconds, and use a faster volume.",
    "backoff": "The action fails at first: mend what it calls, or shorten the step's retry delay.",
    "waiting": "The runs wait for timers, signals or approvals; the platform has nothing to do meanwhile.",
    "paused": "Operators have runs paused.",
    "engine": "The server is short of CPU: look at `knhk diagnostics resources` and `knhk profile cpu`.",
}


class Blame(msgspec.Struct):
    """What one kind of time in one step of one workflow cost, over all runs that were looked at."""

    workflow: str
    step: str
    action: str
    kind: Kind
    total_ns: int = 0
    runs: int = 0
    longest_ns: int = 0
    share: float = 0.0


class Bottlenecks(msgspec.Struct):
    """Shares are of the sum of all runs' durations, from 0 to 1. `blames` greatest first."""

    runs: int
    total_ns: int
    shares: dict[Kind, float]
    blames: list[Blame]
    attempts: int
    failed_attempts: int

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        if not self.blames:
            return "There is nothing to blame: no run has taken any time."
        worst = self.blames[0]
        if not worst.step:
            where = (
                f"before workflow {worst.workflow!r} gets a slot" if worst.kind == "queue" else f"of {worst.workflow!r}"
            )
        else:
            where = f"in step {worst.step!r} of workflow {worst.workflow!r} (action {worst.action or 'unknown'})"
        return f"{worst.share:.0%} of the time is {worst.kind} {where}. {ADVICE[worst.kind]}"


def bottlenecks_of(timings: Iterable[Timing]) -> Bottlenecks:
    """What the time of these runs went to."""
    sums: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    blames: dict[tuple[str, str, Kind], Blame] = {}
    runs = total_ns = attempts = failed = 0
    for timing in timings:
        runs += 1
        total_ns += timing.took_ns
        for step in timing.steps.values():
            attempts += len(step.attempts)
            failed += sum(attempt.failure is not None for attempt in step.attempts)
        of_run: dict[tuple[str, str, Kind], int] = {}
        for segment in critical_path(timing):
            sums[segment.kind] += segment.took_ns
            step_path = step_type(segment.step)
            key = (timing.name, step_path, segment.kind)
            of_run[key] = of_run.get(key, 0) + segment.took_ns
            blames.setdefault(key, Blame(timing.name, step_path, segment.action, segment.kind))
        for key, took_ns in of_run.items():
            blame = blames[key]
            blame.total_ns += took_ns
            blame.runs += 1
            blame.longest_ns = max(blame.longest_ns, took_ns)
    whole = max(total_ns, 1)
    for blame in blames.values():
        blame.share = blame.total_ns / whole
    ranked = sorted(blames.values(), key=lambda one: -one.total_ns)
    return Bottlenecks(runs, total_ns, {kind: took / whole for kind, took in sums.items()}, ranked, attempts, failed)


def slowest(rows: Iterable[dict[str, Any]], limit: int, now_ns: int) -> list[tuple[float, dict[str, Any]]]:
    """Of runs as lists give them the `limit` that took or have taken longest, with their milliseconds."""
    import heapq

    timed = ((_took_ms(row, now_ns), number, row) for number, row in enumerate(rows))
    return [(took, row) for took, _, row in heapq.nlargest(limit, timed)]


def _took_ms(row: dict[str, Any], now_ns: int) -> float:
    from datetime import datetime

    if row["duration_ms"] is not None:
        return float(row["duration_ms"])
    submitted = row["submitted_at"]
    return 0.0 if submitted is None else now_ns / 1e6 - datetime.fromisoformat(submitted).timestamp() * 1e3
