"""What the operations server may know and do of a node."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric

from knhk import __version__
from knhk.bootstrap.clustered import has_own_journal
from knhk.bootstrap.diagnostics import NodeDiagnostics
from knhk.bootstrap.node import Node
from knhk.bootstrap.recovery import NodeRecovery
from knhk.domain.errors import Unavailable
from knhk.domain.histogram import merged
from knhk.engine.service import Engine
from knhk.monitoring.monitor import Monitor
from knhk.observability.readings import OK, Readings
from knhk.ports.duty import Duty

if TYPE_CHECKING:
    from knhk.bootstrap.cluster import Cluster
    from knhk.bootstrap.local import Local

_DRIFT_S: Final = 5.0


class NodeOperations:
    """Implements ops.operations.Operations for a node."""

    def __init__(
        self,
        node: Node,
        duties: Sequence[Duty],
        recovery: NodeRecovery,
        stopping: asyncio.Event,
        diagnostics: NodeDiagnostics,
        monitor: Monitor,
        company: "Cluster | Local | None" = None,
    ) -> None:
        self._company = company
        self._node, self._recovery, self._stopping = node, recovery, stopping
        self._diagnostics, self._duties = diagnostics, (*duties, *diagnostics.duties)
        monitor.checks = self._checks
        self.started = False
        node.metrics.connect(self._readings())
        diagnostics.checks = self._checks
        node.metrics.show("readiness", self._readiness)

    @property
    def version(self) -> str:
        return __version__

    @property
    def uptime_s(self) -> float:
        return self._node.uptime.seconds

    @property
    def halted(self) -> str | None:
        halted = self._node.engine.halted
        if halted is not None and halted.done() and self._company is None:
            return halted.result().message
        return self._diagnostics.hopeless

    async def health(self) -> Mapping[str, str]:
        return self._checks()

    async def ready(self) -> tuple[bool, str]:
        return self._can_admit()

    def _can_admit(self) -> tuple[bool, str]:
        if not self.started:
            return False, "starting"
        if self._stopping.is_set() or self._node.engine.admission.closed:
            return False, "shutting down"
        if (stuck := self._diagnostics.stuck) is not None:
            return False, stuck
        trouble = next((one.trouble for one in self._node.engines.values() if one.trouble is not None), None)
        if trouble is not None:
            return False, trouble.message
        return (True, "") if self._company is None else self._company.can_admit()

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return self._node.metrics.exposition(accept)

    async def checkpoint(self) -> Mapping[str, Any]:
        own = {} if has_own_journal(self._node.config) else {self._node.partition: self._recovery}
        guests = {} if self._company is None else self._company.recoveries
        written = []
        for partition, recovery in {**own, **guests}.items():
            snapshot = await recovery.snapshots.take()
            written.append({"partition": partition, "path": str(snapshot.path), "height": snapshot.height})
        if not written:
            raise Unavailable("this node has no partition just now", retry_after_s=1.0)
        first = {"path": written[0]["path"], "height": written[0]["height"]}
        return first if self._company is None else {**first, "partitions": written}

    async def drill(self) -> Mapping[str, Any]:
        return await self._recovery.drills.drill()

    async def shutdown(self) -> None:
        self._stopping.set()

    def _readiness(self) -> Iterator[Metric]:
        """What /ready and the liveness probe say, for the metrics."""
        halted = self.halted is not None
        ready = self._can_admit()[0] and not halted
        yield GaugeMetricFamily("knhk_ready", "1 if a workflow would be admitted now, as /ready says.", float(ready))
        yield GaugeMetricFamily("knhk_halted", "1 if only a restart can help, as /health says.", float(halted))

    def _checks(self) -> dict[str, str]:
        drift_s = self._node.clock.drift_s
        jumped = f"the machine's clock has moved by {drift_s:+.1f} s since the start"
        checks = {**self._persistence(), "observability": OK if abs(drift_s) < _DRIFT_S else jumped}
        for duty in self._duties:
            found, known = duty.health(), checks.get(duty.room, OK)
            checks[duty.room] = found if known == OK else known if found == OK else f"{known}; {found}"
        return checks

    def _persistence(self) -> dict[str, str]:
        """What the engines say: of the first that has something to say."""
        found = [engine.health() for engine in self._node.engines.values()]
        checks = next((one for one in found if one["persistence"] != OK), self._node.engine.health())
        return checks if self._company is None else {**checks, self._company.room: self._company.health()}

    def _recovery_figures(self) -> dict[str, float]:
        if self._company is None or not has_own_journal(self._node.config):
            return self._recovery.figures()
        return _worst([self._recovery.figures(), *(one.figures() for one in self._company.recoveries.values())])

    def _readings(self) -> Readings:
        node = self._node

        def total(figure: Callable[[Engine], int]) -> Callable[[], int]:
            return lambda: sum(figure(engine) for engine in node.engines.values())

        def stores() -> list[Any]:
            return list({id(one): one for one in node.stores.values()}.values())

        return Readings(
            version=__version__,
            active=total(lambda engine: len(engine.scheduler.active)),
            pending=total(lambda engine: len(engine.scheduler.pending)),
            commits=lambda: node.commits,
            rejections=lambda: node.rejections,
            store=lambda: _added(one.statistics() for one in stores()),
            store_histograms=lambda: merged([one.histograms() for one in stores()]),
            projection_lag=total(lambda engine: max(0, engine.committer.height - engine.projector.cursor)),
            uptime_percentage=self._node.uptime.percentage,
            steps_running=total(lambda engine: engine.executor.running),
            steps_waiting=total(lambda engine: engine.executor.waiting),
            free_bytes=node.store.free_bytes,
            checks=self._checks,
            recovery=self._recovery_figures,
        )


def _worst(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several journals: what is counted is added, of all else the greatest is taken."""
    found: dict[str, float] = {}
    for one in figures:
        for name, value in one.items():
            known = found.get(name)
            total = name.endswith("_total")
            found[name] = value if known is None else known + value if total else max(known, value)
    return found


def _added(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in figures:
        for name, value in one.items():
            total[name] = total.get(name, 0.0) + value
    return total
