"""Questions to the server that are not load: readiness, metrics, the listing of runs, the request to stop."""

import http.client
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from bench.server_config import HOST, Ports
from bench.settings import BenchFailure

# A counter of syncs, or the count of a histogram of their durations; not the sum of the durations.
_FSYNC_COUNT = re.compile(r"knhk_\w*fsyncs?(_total|_count|_seconds_count)")
_PAGE_SIZES = (1000, 100)
_FINAL = ("completed", "failed", "cancelled", "timed_out")


class Operations:
    """One server's operations port and API, asked over short connections."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def is_ready(self) -> bool:
        """Whether /ready answers 200; False also while nobody listens."""
        try:
            return self._ask("GET", self._ports.operations, "/ready", timeout_s=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def shut_down(self) -> None:
        """Ask for a graceful stop."""
        status, body = self._ask("POST", self._ports.operations, "/shutdown")
        if not 200 <= status < 300:
            raise BenchFailure(f"POST /shutdown answered {status}: {body[:200]!r}")

    def metrics(self) -> "Metrics":
        """Read /metrics."""
        status, body = self._ask("GET", self._ports.operations, "/metrics")
        if status != 200:
            raise BenchFailure(f"GET /metrics answered {status}")
        return read_metrics(body.decode())

    def longest_lag_s(self) -> float:
        """The event loop was never found later than this since the server started, by the bounds of its histogram."""
        body = self._ask("GET", self._ports.operations, "/metrics")[1].decode()
        buckets: dict[float, float] = {}
        for family in text_string_to_metric_families(body):
            for found in family.samples:
                if found.name == "knhk_event_loop_lag_seconds_bucket":
                    buckets[float(found.labels["le"])] = found.value
        most = max(buckets.values(), default=0.0)
        return min((bound for bound, count in buckets.items() if count == most), default=0.0)

    def final_counts(self) -> dict[str, int]:
        """How many runs ended in each way: from the metrics or, where those do not say, from the listing."""
        counted = self.metrics().workflows
        if counted:
            return {state: counted.get(state, 0) for state in _FINAL}
        return {state: sum(1 for _ in self.runs(state)) for state in _FINAL}

    def runs(self, state: str) -> Iterator[dict[str, Any]]:
        """All runs in a state, page by page."""
        cursor, size = "", self._page_size(state)
        while True:
            page = self._page(state, size, cursor)
            items = next((value for value in page.values() if isinstance(value, list)), [])
            yield from items
            cursor = page.get("next_cursor") or page.get("cursor") or ""
            if not cursor or not items:
                return

    def _page_size(self, state: str) -> int:
        for size in _PAGE_SIZES:
            if self._ask("GET", self._ports.api, f"/workflows?state={state}&limit={size}")[0] == 200:
                return size
        raise BenchFailure("GET /workflows?state=&limit= is refused")

    def _page(self, state: str, size: int, cursor: str) -> dict[str, Any]:
        after = f"&cursor={quote(cursor)}" if cursor else ""
        status, body = self._ask("GET", self._ports.api, f"/workflows?state={state}&limit={size}{after}")
        if status != 200:
            raise BenchFailure(f"GET /workflows answered {status}: {body[:200]!r}")
        return msgspec.json.decode(body, type=dict[str, Any])

    def _ask(self, method: str, port: int, target: str, *, timeout_s: float = 30) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class Metrics(msgspec.Struct, frozen=True):
    """What is used of /metrics: runs by status, and how often the journal was synced (None if it is not said)."""

    workflows: dict[str, int]
    fsyncs: int | None


def read_metrics(text: str) -> Metrics:
    """Pick the figures out of the Prometheus text."""
    workflows: dict[str, int] = {}
    fsyncs: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for found in family.samples:
            if found.name == "knhk_workflows_total":
                status = found.labels.get("status", "")
                workflows[status] = workflows.get(status, 0) + int(found.value)
            elif _FSYNC_COUNT.fullmatch(found.name):
                fsyncs[found.name] = fsyncs.get(found.name, 0) + int(found.value)
    # If a server has both kinds of count they count the same syncs.
    return Metrics(workflows, max(fsyncs.values(), default=None))
