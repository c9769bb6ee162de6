"""The metrics of several processes as those of one server.

Counters and histograms are summed. What a process that has ended had counted is still in the sum, as far as it was
seen, so that no counter goes back. Gauges that count things are summed too; of those that every process measures for
the whole machine one is taken. All others, where a sum or a choice would be wrong, get a label `process`.
"""

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

SUMMED: Final = frozenset(
    {
        *("knhk_workflows_active", "knhk_queue_depth", "knhk_workflows_parked", "knhk_steps_running"),
        *("knhk_steps_waiting", "knhk_projection_lag_blocks", "knhk_commits_stuck", "knhk_alerts_firing"),
        *("knhk_store_wal_bytes", "knhk_store_sst_bytes", "knhk_store_memtable_bytes", "knhk_store_block_cache_bytes"),
        *("knhk_store_compaction_pending_bytes", "knhk_store_compactions_running", "knhk_telemetry_queued"),
        *("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"),
    }
)
"""Gauges that add up."""
MOST: Final = frozenset(
    {
        *("knhk_ready", "knhk_uptime_percentage", "knhk_cpu_cores", "knhk_memory_limit_bytes", "knhk_build_info"),
        *("knhk_event_loop_blocked_seconds", "knhk_slo_target_ratio", "process_max_fds"),
        *("knhk_network_received_bytes", "knhk_network_sent_bytes"),
    }
)
"""What one process says for all, or the worst of them: the greatest counts."""
LEAST: Final = frozenset({"knhk_halted", "knhk_check_ok", "knhk_free_bytes", "process_start_time_seconds"})
"""The same, and the least counts."""
_GROWING: Final = frozenset({"counter", "histogram"})
_ENDED: Final = (-1, 0)

Series = tuple[str, tuple[tuple[str, str], ...]]


class Merger:
    """Merges scrape after scrape; remembers what processes that have ended had counted."""

    def __init__(self) -> None:
        self._counted: dict[tuple[int, int], dict[Series, float]] = {}
        self._families: dict[str, Metric] = {}
        self._family_of: dict[str, str] = {}

    def merged(self, texts: Mapping[int, tuple[int, str]]) -> list[Metric]:
        """The families of one scrape: for each process its pid, and its metrics in Prometheus's text format."""
        found: dict[str, dict[Series, float]] = {}
        for process, (pid, text) in sorted(texts.items()):
            counted = self._counted[process, pid] = {}
            for family in text_string_to_metric_families(text):
                self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                take = _rule(family)
                rows = found.setdefault(family.name, {})
                for sample in family.samples:
                    self._family_of[sample.name] = family.name
                    labels = tuple(sample.labels.items())
                    if take is sum and family.type in _GROWING:
                        counted[sample.name, labels] = sample.value
                        continue
                    series = (sample.name, labels if take is not None else (*labels, ("process", str(process))))
                    rows[series] = take((rows[series], sample.value)) if take and series in rows else sample.value
        for counted in self._counted.values():
            for series, value in counted.items():
                rows = found.setdefault(self._family_of[series[0]], {})
                rows[series] = rows.get(series, 0.0) + value
        self._forget({(process, pid) for process, (pid, _) in texts.items()})
        return [self._family(name, rows) for name, rows in found.items()]

    def _forget(self, living: set[tuple[int, int]]) -> None:
        """Keep what all ended processes had counted in one place, so that restarts do not add up here."""
        ended = self._counted.setdefault(_ENDED, {})
        begun = {process for process, _ in living}
        for process, pid in list(self._counted):
            if process in begun and (process, pid) not in living:
                for series, value in self._counted.pop((process, pid)).items():
                    ended[series] = ended.get(series, 0.0) + value

    def _family(self, name: str, rows: Mapping[Series, float]) -> Metric:
        known = self._families[name]
        family = Metric(name, known.documentation, known.type)
        for (sample, labels), value in rows.items():
            family.add_sample(sample, dict(labels), value)
        return family


def _rule(family: Metric) -> Callable[[tuple[float, float]], float] | None:
    """How two values of a series become one; None if they stay two."""
    if family.name in MOST:
        return max
    if family.name in LEAST:
        return min
    return sum if family.type in _GROWING or family.name in SUMMED else None
