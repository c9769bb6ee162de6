"""What goes wrong, one function each: it breaks something, waits until the cluster has recovered, and mends it.

Each returns the seconds from the failure until every partition took a new run in and completed it, and a remark.
"""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Final, NamedTuple

import httpx

from knhk.cluster.assignment import partition_of_key
from knhk.domain.identifier import parse, partition_of
from tests.acceptance.acknowledged import ENDED, until
from tests.acceptance.fleet import PARTITIONS, TTL_S, Fleet
from tests.chaos.clients import Reply
from tests.chaos.load import Load
from tests.chaos.runs import Run
from tests.services.proxy import Mode, Proxy

PROBE: Final = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: probe}
spec:
  steps:
    - {name: one, action: process, params: {output: 1}}
"""
CUT_S: Final = 3.0 * TTL_S
_PROBES: Final = count(1)


class Shown(NamedTuple):
    """Seconds until everything worked again, and what else there is to say."""

    seconds: float
    remark: str = ""


Scenario = Callable[[Fleet, Load], Shown]


def recovered(fleet: Fleet, load: Load, since: float, without: str = "") -> float:
    """Seconds from `since` until every partition has taken in and completed a run.

    The run is given to nodes other than `without`: that one is not ready, and no load balancer would ask it.
    """
    keys: dict[int, str] = {}
    while len(keys) < PARTITIONS:
        key = f"probe-{next(_PROBES)}"
        keys.setdefault(partition_of_key(key.encode(), PARTITIONS), key)

    def probe(key: str) -> float:
        assert load.probe(key, PROBE, without)["state"] == "completed"
        return time.monotonic() - since

    with ThreadPoolExecutor(PARTITIONS) as pool:
        return max(pool.map(probe, keys.values()))


def owner(fleet: Fleet) -> str:
    """A node that owns partitions and does not lead."""
    shown = fleet.status()
    return next(str(one["node_id"]) for one in shown["nodes"] if one["role"] == "follower" and one["partitions"])


def kill_owner(fleet: Fleet, load: Load) -> Shown:
    return _killed(fleet, load, owner(fleet))


def kill_leader(fleet: Fleet, load: Load) -> Shown:
    leader = fleet.status()["leader"]
    shown = _killed(fleet, load, leader)
    assert fleet.status()["leader"] is not None
    return shown


def _killed(fleet: Fleet, load: Load, victim: str) -> Shown:
    owned = sum(one["owner"] == victim for one in fleet.status()["partitions"])
    fleet.kill(victim)
    took = recovered(fleet, load, time.monotonic())
    fleet.start(victim)
    fleet.settled()
    return Shown(took, f"{owned} of {PARTITIONS} partitions were its own")


def kill_etcd_member(fleet: Fleet, load: Load) -> Shown:
    epochs = [one["epoch"] for one in fleet.status()["partitions"]]
    number = _etcd_leader(fleet)
    fleet.etcd.kill(number)
    took = recovered(fleet, load, time.monotonic())
    time.sleep(TTL_S)
    moved = sum(one["epoch"] != epoch for one, epoch in zip(fleet.status()["partitions"], epochs, strict=True))
    fleet.etcd.start_member(number)
    fleet.settled()
    return Shown(took, f"etcd's own leader; {moved} partitions changed hands")


def _etcd_leader(fleet: Fleet) -> int:
    """The number of the member that leads."""
    shown = [
        httpx.post(f"{endpoint}/v3/maintenance/status", json={}, timeout=10).json() for endpoint in fleet.etcd.endpoints
    ]
    return next(number for number, one in enumerate(shown) if one["header"]["member_id"] == one["leader"])


def lose_etcd(fleet: Fleet, load: Load) -> Shown:
    """Two of three members: nothing can be decided. Work goes on until the leases end, then nobody writes."""
    for number in (0, 1):
        fleet.etcd.kill(number)
    before = len(load.acknowledged)
    until(lambda: not any(fleet.status(name)["member"] for name in fleet.running), 60)
    taken = len(load.acknowledged) - before
    time.sleep(1)
    stopped = len(load.acknowledged)
    time.sleep(1)
    assert len(load.acknowledged) == stopped, "somebody writes without a lease"
    for number in (0, 1):
        fleet.etcd.start_member(number)
    took = recovered(fleet, load, time.monotonic())
    fleet.settled()
    return Shown(took, f"{taken} runs taken until the leases ended, none after; time since etcd was back")


def kill_postgres(fleet: Fleet, load: Load) -> Shown:
    fleet.postgres.kill()
    time.sleep(2)
    fleet.postgres.start()
    took = recovered(fleet, load, time.monotonic())
    fleet.settled()
    return Shown(took, "down for 2 s; time since it was back")


def zombie(fleet: Fleet, load: Load) -> Shown:
    """SIGSTOP of an owner with commits on their way, past its lease: it wakes, sees that, and lets go of everything."""
    return _asleep(fleet, load, believes=False)


def zombie_that_believes(fleet: Fleet, load: Load) -> Shown:
    """The same of a node that wakes and believes that it has its lease still, which was revoked in etcd.

    It cannot find that out, because it is cut off from etcd too: only PostgreSQL keeps it from writing.
    """
    return _asleep(fleet, load, believes=True)


def _asleep(fleet: Fleet, load: Load, *, believes: bool) -> Shown:
    """Runs that a node has in memory go on elsewhere while it sleeps; it is asked about them before it wakes, and must
    not tell what it remembers."""
    victim = "believer" if believes else "zombie"
    # It waits so long for its commits that they are still on their way when others have taken over.
    fleet.add_behind_proxies(victim, timeout="60s", lease_ttl="60s" if believes else f"{TTL_S}s")
    fleet.settled()
    to_postgres, to_etcd = fleet.proxies[victim]
    held = load.hold(4 * PARTITIONS)
    remembered = [run for run in held if _owner_of(fleet, run) == victim]
    with ThreadPoolExecutor(32) as pool:
        _set([to_postgres], "stall")
        _set(to_etcd, "swallow" if believes else "forward")
        for run in remembered[:3]:
            pool.submit(load.ask, run, "signal", victim)
        time.sleep(0.5)  # commits are held back on the way now
        fleet.signal(victim, signal.SIGSTOP)
        began = time.monotonic()
        time.sleep(0.5)
        fleet.running.discard(victim)  # clients need not know it sooner
        if believes:
            fleet.etcd.revoke(f"/knhk/knhk/nodes/{victim}")
        took = recovered(fleet, load, began)
        fleet.settled()
        for run in held:
            load.open(run, 0.0)
        other = sorted(fleet.running)[0]
        until(lambda: all(_over(load.ask(run, "status", other)) for run in remembered))
        # What one may read from memory hangs on the lease, so that one whose lease was revoked is not asked.
        asked = [pool.submit(load.ask, run, "status", victim) for run in remembered if not believes]
        _set([to_postgres], "forward")  # what it had sent arrives, of an epoch that is over
        time.sleep(0.5)
        fleet.signal(victim, signal.SIGCONT)
        told = sum(one.result().body is not None for one in asked)
    remark = f"{to_postgres.late_bytes} bytes of its writes arrived late"
    if believes:
        until(lambda: fleet.metric(victim, "knhk_store_fenced_total") >= 1)
        remark += f"; {fleet.metric(victim, 'knhk_store_fenced_total'):.0f} commits refused as fenced"
    else:
        remark += f"; {told} of {len(asked)} questions answered"
        until(lambda: "everything stops" in fleet.log(victim))
    assert to_postgres.late_bytes, "nothing was on its way: the zombie wrote nothing"
    _set(to_etcd, "forward")
    fleet.running.add(victim)
    fleet.settled()
    return Shown(took, remark)


def _owner_of(fleet: Fleet, run: Run) -> str:
    return str(fleet.status()["partitions"][partition_of(parse(run.workflow_id))]["owner"])


def _over(reply: Reply) -> bool:
    return reply.body is not None and reply.body["state"] in ENDED


def wrong_clock(seconds: float) -> Scenario:
    """A node whose clock is wrong joins, works, and dies; the others go on with what it began."""

    def scenario(fleet: Fleet, load: Load) -> Shown:
        node = fleet.make("d")
        node.module, node.variables["WRONG_BY_S"] = "tests.chaos.wrong_clock", str(seconds)
        fleet.start("d")
        fleet.settled()
        took = recovered(fleet, load, time.monotonic())
        held = load.hold(4 * PARTITIONS)
        time.sleep(3)
        fleet.kill("d")
        again = recovered(fleet, load, time.monotonic())
        fleet.settled()
        for run in held:
            load.open(run, 1.0)
        return Shown(again, f"runs in all partitions {took:.1f} s after it joined; time since it died")

    return scenario


def cut_from_etcd(mode: Mode) -> Scenario:
    """The network between a node and etcd, for longer than its lease lives. Clients go on asking it too."""

    def scenario(fleet: Fleet, load: Load) -> Shown:
        _, to_etcd = fleet.proxies["b"]
        _set(to_etcd, mode)
        began = time.monotonic()
        others = sorted(fleet.running - {"b"})
        until(lambda: _members(fleet, others[0]) == others, 60)
        took = recovered(fleet, load, began, without="b")
        apart = time.monotonic() - began
        return _mended(fleet, to_etcd, Shown(took, f"cut for {apart:.0f} s"))

    return scenario


def cut_from_postgres(mode: Mode) -> Scenario:
    """The network between a node and PostgreSQL. Its lease in etcd is well. Clients go on asking it too."""

    def scenario(fleet: Fleet, load: Load) -> Shown:
        to_postgres, _ = fleet.proxies["b"]
        _set([to_postgres], mode)
        time.sleep(CUT_S)
        shown = _mended(fleet, [to_postgres], Shown(0.0, f"cut for {CUT_S:.0f} s"))
        return shown._replace(seconds=recovered(fleet, load, time.monotonic()))

    return scenario


def _set(proxies: list[Proxy], mode: Mode) -> None:
    for proxy in proxies:
        proxy.set(mode)


def _mended(fleet: Fleet, proxies: list[Proxy], shown: Shown) -> Shown:
    _set(proxies, "forward")
    return shown._replace(remark=f"{shown.remark}; settled {fleet.settled():.1f} s after it was mended")


def _members(fleet: Fleet, asked: str) -> list[str]:
    return sorted(one["node_id"] for one in fleet.status(asked)["nodes"])


def rolling_restart(fleet: Fleet, load: Load) -> Shown:
    """One node after the other, as docs/cluster.md says. No request may fail."""
    before, began = load.refused.copy(), time.monotonic()
    for name in sorted(fleet.running):
        fleet.stop(name)
        fleet.start(name)
        fleet.settled()
    took = time.monotonic() - began
    failed = load.refused - before
    assert not failed, f"requests failed: {dict(failed)}"
    return Shown(took, "no request failed; time of the whole restart")


def three_five_two(fleet: Fleet, load: Load) -> Shown:
    """Nodes come and go under load."""
    began = time.monotonic()
    for name in ("d", "e"):
        fleet.add(name)
    grown = fleet.settled()
    for name in ("a", "e", "d"):
        fleet.stop(name)
        fleet.settled()
    took = time.monotonic() - began
    return Shown(took, f"five settled in {grown:.1f} s; time of all five changes")
