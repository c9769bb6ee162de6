"""The state of a cluster as one node knows it, and what it does not know: from etcd, and from the nodes themselves."""

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from knhk.cluster.etcd import State
from knhk.cluster.member import TICKS
from knhk.cluster.view import Node, View, read
from knhk.domain.errors import CoordinationUnavailable, KnhkError
from knhk.domain.times import rfc3339

if TYPE_CHECKING:
    from knhk.bootstrap.cluster import Cluster

_ANSWER_S: Final = 2.0
_LATE: Final = 4
"""So many readings of etcd may be missing before what was read last counts as old."""
NOW: Final = "now"
ONE_MEMBER: Final = "what one member of etcd has, perhaps out of date"
NOTHING: Final = "nothing: etcd could not be read since this node started"


async def status(cluster: "Cluster") -> dict[str, Any]:
    """Nodes, partitions, leader, etcd. `known` says how far that is to be believed, `unknown` what is not known."""
    member = cluster.member
    states = asyncio.create_task(member.etcd.members())
    view, known = await _view(cluster)
    said = await _asked(cluster, view)
    etcd = await states
    wanted = member.wanted(view)
    counted = Counter(held.owner.node_id for held in view.owners.values())
    now = member.now()
    return {
        "cluster": cluster.name,
        "node_id": member.node.node_id,
        "member": member.is_member,
        "lease_left_s": cluster.lease_left_s,
        "age_s": round(now - member.read_at, 2) if member.read_at else None,
        "trouble": member.trouble.message if member.trouble else "",
        "known": known,
        "unknown": list(_unknown(known, etcd, view, said)),
        "leader": view.leader,
        "nodes": [_node(name, one, view, counted[name], said[name]) for name, one in sorted(view.nodes.items())],
        "partitions": [_partition(number, view, wanted.get(number), said) for number in range(cluster.partitions)],
        "unowned": sum(number not in view.owners for number in range(cluster.partitions)),
        "moving": moving(view, wanted),
        "etcd": [
            {"endpoint": one.endpoint, "trouble": one.trouble, "role": one.role, "version": one.version} for one in etcd
        ],
    }


def moving(view: View, wanted: dict[int, str]) -> int:
    """How many partitions are not where they ought to be."""
    return sum(
        number not in view.owners or view.owners[number].owner.node_id != name for number, name in wanted.items()
    )


async def _view(cluster: "Cluster") -> tuple[View, str]:
    """The newest view that can be had, and where it is from."""
    member = cluster.member
    age_s = member.now() - member.read_at
    if member.read_at and age_s <= _LATE * member.settings.ttl_s / TICKS:
        return member.view, NOW
    if member.read_at and (member.trouble is None or member.is_member):
        return member.view, f"as it was {age_s:.1f} s ago"
    try:
        return read(await member.etcd.glimpse(f"{member.settings.prefix}/"), member.settings.prefix), ONE_MEMBER
    except CoordinationUnavailable:
        return member.view, f"as it was {age_s:.1f} s ago" if member.read_at else NOTHING


async def _asked(cluster: "Cluster", view: View) -> dict[str, dict[str, Any] | None]:
    """What each node says of itself; None if it does not answer."""

    async def one(name: str, url: str) -> dict[str, Any] | None:
        if name == cluster.member.node.node_id:
            return cluster.here()
        try:
            async with asyncio.timeout(_ANSWER_S):
                found = dict(await cluster.router.at(url, "GET", "/cluster/here"))
        except (KnhkError, TimeoutError):
            return None
        return found if found.get("node_id") == name else None

    answers = await asyncio.gather(*(one(name, node.api) for name, node in view.nodes.items()))
    return dict(zip(view.nodes, answers, strict=True))


def _unknown(known: str, etcd: list[State], view: View, said: dict[str, dict[str, Any] | None]) -> Any:
    answering = sum(not one.trouble for one in etcd)
    if 2 * answering <= len(etcd):
        yield f"{answering} of {len(etcd)} members of etcd are well, which is no majority: nothing changes hands"
    if known != NOW:
        yield "who is a member and who owns what now, and which nodes have come since"
    for name in sorted(view.nodes):
        if said[name] is None:
            yield f"what {name} does: it does not answer this node"


def _node(name: str, node: Node, view: View, owned: int, said: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "node_id": name,
        "role": "leader" if name == view.leader else "follower",
        "state": "leaving" if node.leaving else "drained" if name in view.drained else "active",
        "answers": said is not None,
        "lease_left_s": None if said is None else said["lease_left_s"],
        "partitions": owned,
        "api": node.api,
        "version": node.version,
        "started_at": rfc3339(node.started_at_ns),
    }


def _partition(number: int, view: View, wanted: str | None, said: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    held = view.owners.get(number)
    owner = None if held is None else said.get(held.owner.node_id)
    has = {} if owner is None else owner["partitions"].get(str(number), {})
    return {
        "partition": number,
        "owner": None if held is None else held.owner.node_id,
        "epoch": 0 if held is None else held.owner.epoch,
        "wanted": wanted,
        "active": has.get("active"),
        "lag_blocks": has.get("lag_blocks"),
        "home": None if (home := view.homes.get(number)) is None else home.holder,
        "restored": has.get("restored"),
    }
