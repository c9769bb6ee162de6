"""A node's vital signs from two scrapes of its /metrics: rates, latencies and what is under way."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from knhk.domain.histogram import quantile

_FAILED: Final = ("failed", "timed_out")


class Scrape(msgspec.Struct):
    """One reading of /metrics. `values` is by series, `at_s` on a monotonic clock."""

    at_s: float
    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    @classmethod
    def of(cls, text: str, at_s: float) -> "Scrape":
        """From Prometheus's text format."""
        from prometheus_client.parser import text_string_to_metric_families

        samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
        return cls(at_s, {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples})

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        wanted = labels.items()
        return sum(
            value for (own, given), value in self.values.items() if own == name and wanted <= dict(given).items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's series summed by a label."""
        found: dict[str, float] = {}
        for (own, given), value in self.values.items():
            if own == name and (of := dict(given).get(label)) is not None:
                found[of] = found.get(of, 0.0) + value
        return found


class Latency(msgspec.Struct, frozen=True):
    """Quantiles of what ended between two scrapes, in seconds; None if nothing did."""

    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


class ActionVitals(msgspec.Struct, frozen=True):
    """An action between two scrapes. `busy` is how many attempts of it were under way on average."""

    action: str
    per_s: float
    mean_s: float
    busy: float


class Vitals(msgspec.Struct):
    """What happened between two scrapes, and how things stood at the second."""

    seconds: float
    submitted_per_s: float
    completed_per_s: float
    failed_per_s: float
    refused_per_s: float
    latency: Latency
    active: int
    queued: int
    steps_running: int
    steps_waiting: int
    commits_per_s: float
    receipts_per_s: float
    commit_mean_s: float | None
    cpu_cores: float
    cpu_cores_limit: float
    resident_bytes: float
    memory_limit_bytes: float
    free_bytes: float
    blocked_s: float
    projection_lag_blocks: int
    ready: bool
    wrong: list[str]
    actions: list[ActionVitals]


def between(before: Scrape, after: Scrape) -> Vitals:
    """The vital signs of the time between two scrapes of the same process."""
    seconds = max(after.at_s - before.at_s, 1e-9)

    def rate(name: str, **labels: str) -> float:
        return max(0.0, after.sum(name, **labels) - before.sum(name, **labels)) / seconds

    return Vitals(
        seconds=seconds,
        submitted_per_s=rate("knhk_workflows_submitted_total"),
        completed_per_s=rate("knhk_workflows_total", status="completed"),
        failed_per_s=sum(rate("knhk_workflows_total", status=status) for status in _FAILED),
        refused_per_s=rate("knhk_admission_rejections_total"),
        latency=_latency(before, after, "knhk_workflow_duration_seconds_bucket"),
        active=int(after.sum("knhk_workflows_active")),
        queued=int(after.sum("knhk_queue_depth")),
        steps_running=int(after.sum("knhk_steps_running")),
        steps_waiting=int(after.sum("knhk_steps_waiting")),
        commits_per_s=rate("knhk_commits_total"),
        receipts_per_s=rate("knhk_receipts_total"),
        commit_mean_s=_mean(rate("knhk_commit_seconds_sum"), rate("knhk_commit_seconds_count")),
        cpu_cores=rate("process_cpu_seconds_total"),
        cpu_cores_limit=after.sum("knhk_cpu_cores"),
        resident_bytes=after.sum("process_resident_memory_bytes"),
        memory_limit_bytes=after.sum("knhk_memory_limit_bytes"),
        free_bytes=after.sum("knhk_free_bytes"),
        blocked_s=after.sum("knhk_event_loop_blocked_seconds"),
        projection_lag_blocks=int(after.sum("knhk_projection_lag_blocks")),
        ready=after.sum("knhk_ready") > 0,
        wrong=[check for check, well in after.by("knhk_check_ok", "check").items() if not well],
        actions=_actions(before, after, seconds),
    )


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _latency(before: Scrape, after: Scrape, name: str) -> Latency:
    grown = {bound: count - before.by(name, "le").get(bound, 0.0) for bound, count in after.by(name, "le").items()}
    bounds, counts = _apart(grown)
    return Latency(*[quantile(share, bounds, counts) for share in (0.5, 0.9, 0.99)])


def _apart(cumulated: Mapping[str, float]) -> tuple[Sequence[float], Sequence[int]]:
    """Bounds and the counts of each bucket alone, from counts up to each bound."""
    ordered = sorted((float(bound), count) for bound, count in cumulated.items())
    counts = [
        int(count - earlier) for (_, count), earlier in zip(ordered, [0.0, *(c for _, c in ordered)], strict=False)
    ]
    return [bound for bound, _ in ordered if bound != float("inf")], counts


def _actions(before: Scrape, after: Scrape, seconds: float) -> list[ActionVitals]:
    counts, sums = (after.by(f"knhk_step_duration_seconds_{kind}", "action") for kind in ("count", "sum"))
    counts_before, sums_before = (
        before.by(f"knhk_step_duration_seconds_{kind}", "action") for kind in ("count", "sum")
    )
    found = []
    for action, count in counts.items():
        grown = count - counts_before.get(action, 0.0)
        if grown > 0:
            spent = sums[action] - sums_before.get(action, 0.0)
            found.append(ActionVitals(action, grown / seconds, spent / grown, spent / seconds))
    return sorted(found, key=lambda one: -one.busy)


def plain(vitals: Vitals) -> dict[str, Any]:
    """As JSON-like data."""
    return dict(msgspec.to_builtins(vitals))
