"""The scaling of a node, from its configuration: what changes the number of replicas, and who the replicas are."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from knhk.bootstrap.node import PARTITION, Node
from knhk.bootstrap.stores import projections_of
from knhk.config import Config
from knhk.domain.errors import InvalidConfiguration, ShuttingDown
from knhk.domain.event import ScalingDecided, ScalingEnded
from knhk.observability.logs import get
from knhk.ports.scaler import Processes, Scaler
from knhk.scaling import views
from knhk.scaling.asking import Asking
from knhk.scaling.autoscaler import Autoscaler, Settings
from knhk.scaling.crew import Crew, Machine
from knhk.scaling.decision import Policy
from knhk.scaling.dry_run import DryRun
from knhk.scaling.history import History
from knhk.scaling.kubernetes import KubernetesScaler
from knhk.scaling.ledger import ACTOR, Ledger
from knhk.scaling.load import Load
from knhk.scaling.members import Members
from knhk.scaling.meter import Meter, Places

if TYPE_CHECKING:
    from knhk.bootstrap.cluster import Cluster

_PERCENT = 100.0


class NodeScaling:
    """Implements api.scaling.ScalingFace for a node. `processes` changes how many processes this machine has."""

    def __init__(self, node: Node, cluster: "Cluster | None", processes: Processes | None = None) -> None:
        config = node.config
        self._meter = Meter(node.clock, config.platform.node_id, lambda: _places(node))
        self._processor_turn = asyncio.Lock()
        asking = Asking()
        closing: list[Callable[[], Awaitable[None]]] = [asking.aclose]
        scaler = _scaler(config, cluster, processes)
        crew: Crew = Machine(self.own, asking, processes.others if processes is not None else tuple)
        if cluster is not None:
            statefulset = scaler.statefulset if isinstance(scaler, KubernetesScaler) else ""
            crew = Members(cluster.member, self.own, asking, statefulset)
        if isinstance(scaler, KubernetesScaler):
            closing.append(scaler.aclose)
        self.autoscaler = Autoscaler(
            Settings(
                config.platform.enable_auto_scaling,
                config.scaling.check_interval_ns / 1e9,
                config.scaling.drain_limit_ns / 1e9,
            ),
            Bounds(config, processes if scaler is processes else None, get("knhk.scaling").warning),
            clock=node.clock,
            scaler=scaler,
            crew=crew,
            ledger=Ledger(node.store, lambda detail: _propose(node, detail)),
            history=History(projections_of(node.store, PARTITION), self._meter.means),
            meter=self._meter,
            schedules=lambda: node.engines[PARTITION].triggers.schedules() if PARTITION in node.engines else (),
            closing=closing,
        )
        if config.platform.enable_auto_scaling:
            node.folds.append(self._meter)
        node.metrics.show("scaling", lambda: views.families(self.autoscaler))

    async def own(self) -> Load:
        """The load of this process."""
        async with self._processor_turn:
            return self._meter.load(await asyncio.to_thread(self._meter.processor.look))

    def status(self) -> dict[str, Any]:
        return views.status(self.autoscaler)

    def explain(self) -> dict[str, Any]:
        return views.explain(self.autoscaler)


class Bounds:
    """The policy, which is asked for at each look: a machine knows how many processes it can have once it has begun.

    It is said once if that is fewer than the configuration asks for.
    """

    def __init__(self, config: Config, processes: Processes | None, warn: Callable[[str], object]) -> None:
        self._config, self._processes, self._warn = config, processes, warn
        self._said = False

    def __call__(self) -> Policy:
        most = None if self._processes is None else self._processes.most
        asked = self._config.scaling.max_replicas
        if most is not None and most < asked and not self._said:
            self._said = True
            self._warn(
                f"scaling.max_replicas is {asked}, and there are {most} partitions: no more processes than that. Start "
                "with more in platform.processes, which makes partitions for them."
            )
        return policy_of(self._config, most)


def policy_of(config: Config, most: int | None = None) -> Policy:
    """What the configuration allows, and the machine: no more than `most` replicas can be."""
    scaling = config.scaling
    return Policy(
        min_replicas=scaling.min_replicas if most is None else min(scaling.min_replicas, most),
        max_replicas=scaling.max_replicas if most is None else min(scaling.max_replicas, most),
        target_cpu=scaling.target_cpu / _PERCENT,
        target_memory=scaling.target_memory / _PERCENT,
        target_wait_s=config.monitoring.latency_target_ns / 1e9,
        up_cooldown_ns=scaling.scale_up_cooldown_ns,
        down_cooldown_ns=scaling.scale_down_cooldown_ns,
    )


def _scaler(config: Config, cluster: "Cluster | None", processes: Processes | None) -> Scaler:
    """The driver. Raises InvalidConfiguration if the one that was asked for is not there."""
    settings = config.scaling
    in_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (settings.service_account_path / "token").exists()
    if settings.driver == "kubernetes" or (settings.driver == "auto" and in_pod and cluster is not None):
        if cluster is None:
            raise InvalidConfiguration(
                "scaling.driver is kubernetes, and this node works alone: further replicas would not share its work",
                hint="Set cluster.mode, cluster.etcd and persistence.url; see docs/cluster.md.",
            )
        return KubernetesScaler.of_pod(os.environ, settings.service_account_path, settings.statefulset)
    if settings.driver in ("processes", "auto") and processes is not None:
        return processes
    if settings.driver == "processes":
        raise InvalidConfiguration("scaling.driver is processes, and this machine runs one process of KNHK")
    if cluster is None:
        return DryRun(lambda: 1)
    member = cluster.member
    return DryRun(lambda: max(1, sum(not one.leaving for one in member.view.nodes.values())))


async def _propose(node: Node, detail: ScalingDecided | ScalingEnded) -> int:
    engine = node.engines.get(PARTITION)
    if engine is None:
        raise ShuttingDown("this node does not lead")
    return await engine.control.propose(detail, actor=ACTOR)


def _places(node: Node) -> Places:
    """What is under way on this node or waits for a place, by what one node is meant to do at once.

    Runs that wait although there is a slot wait for something else, such as their limits.
    """
    schedulers = [engine.scheduler for engine in node.engines.values()]
    executors = [engine.executor for engine in node.engines.values()]
    platform = node.config.platform
    return Places(
        runs=sum(len(one.active) + (0 if one.has_slot else len(one.pending)) for one in schedulers),
        most_runs=platform.max_concurrent_workflows,
        steps=sum(one.running + one.waiting for one in executors),
        most_steps=platform.max_concurrent_steps,
    )
