"""One node's membership: its lease in etcd, and the partitions that it takes and gives away.

    every few hundred ms:  renew the lease -> read what is in etcd -> give away what another ought to own, take what is
                           free and ought to be ours

Invariant: a node owns a partition only while its lease is certainly alive. `deadline` is counted from before each
renewal was sent, so that etcd can never give a partition to another node before this one has let go of it. If etcd is
out of reach nothing changes hands, and what runs goes on, until the deadline; then everything stops, and begins anew
with a new lease. The epoch in the journal fences even a node that was stopped for longer than it could notice.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec

from knhk.cluster import view as views
from knhk.cluster.etcd import Etcd
from knhk.cluster.view import Held, Home, Node, Owner, View
from knhk.domain.errors import CoordinationUnavailable, Fenced, IncompatibleVersion, KnhkError, Unavailable
from knhk.ports.environment import Clock

TICKS: Final = 16
"""How many times etcd is read in the time to live of a lease."""
_RENEWALS: Final = 4
_MARGIN: Final = 0.2
_AT_ONCE: Final = 8


class Partitions(Protocol):
    """The engines of this process, as the membership starts and stops them."""

    async def prepare(self) -> None:
        """Do what must be done before the node joins, or joins anew. Raises KnhkError."""
        ...

    async def take(self, partition: int) -> int:
        """Own a partition; returns the epoch. Raises KnhkError."""
        ...

    async def give_up(self, partition: int) -> None:
        """Let go of a partition gracefully: when this returns, nothing more is written to it."""
        ...

    async def drop(self, partition: int) -> None:
        """Let go of a partition at once."""
        ...


class Settings(msgspec.Struct, frozen=True):
    """What a member is told: `prefix` is the cluster's place in etcd, `ttl_s` the time to live of leases.

    Where each node has its own journal, `partitions` does not count: each has one. `movable` and `takeover`: see
    View.at_home.
    """

    prefix: str
    partitions: int
    ttl_s: int
    movable: bool = False
    takeover: bool = False


class Member:
    """Implements ports.duty.Duty. `note` is told what happens, in words."""

    room = "cluster"

    def __init__(
        self,
        settings: Settings,
        node: Node,
        etcd: Etcd,
        partitions: Partitions,
        clock: Clock,
        note: Callable[[str], None],
        monotonic: Callable[[], float],
    ) -> None:
        """`monotonic` tells seconds, and goes on while the process is stopped."""
        self.settings, self.node, self.etcd = settings, node, etcd
        self.view = View()
        self.owned: dict[int, int] = {}
        """The partitions of this node with their epochs."""
        self.trouble: KnhkError | None = None
        self.read_at = 0.0
        self._partitions, self._clock, self._note, self.now = partitions, clock, note, monotonic
        self._lease = 0
        self._renewed_at = self.deadline = 0.0
        self.gone: dict[str, float] = {}
        """Since when nodes that have a journal are not there (`now`)."""
        self.stuck: dict[int, str] = {}
        """Why partitions could not be moved, the last time that it was tried."""
        self._moving: dict[int, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._stopping = self._left = False

    async def start(self) -> None:
        """Join; returns when the node has taken what is free of its share, or etcd does not answer.

        Raises IncompatibleVersion.
        """
        with suppress(Unavailable):
            await self._tick()
            await self._settled()
        self._task = asyncio.create_task(self._forever(), name="cluster")
        self._guard = asyncio.create_task(self._watch_deadline(), name="cluster-lease")

    async def leave(self, limit_s: float) -> None:
        """Give every partition away, then leave the cluster; where the others are is read on until `stop`.

        Safe if `start` failed.
        """
        self.node = msgspec.structs.replace(self.node, leaving=True)
        if self._lease:
            with suppress(CoordinationUnavailable):
                await self._announce()
        over = self.now() + limit_s
        while (self.owned or self._moving) and self.now() < over and self._lease:
            await self._clock.sleep(0.05)
        self._left = True
        await self._drop_all()
        await self._end_lease()

    async def stop(self) -> None:
        """Let go of everything and end."""
        self._stopping = True
        for task in (self._task, self._guard):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._drop_all()
        await self._end_lease()
        await self.etcd.close()

    def health(self) -> str:
        """Whether this node is a member, and etcd answers."""
        if self.trouble is not None:
            left = max(0.0, self.deadline - self.now())
            state = f"the lease ends in {left:.1f} s" if self._lease else "this node owns nothing"
            return f"{self.trouble.message}; {state}"
        return "ok" if self._lease else "not a member yet"

    @property
    def is_member(self) -> bool:
        """Whether the lease is alive."""
        return self._lease != 0

    def owns(self, partition: int) -> bool:
        """Whether a partition is certainly this node's: in this very moment no other can have it."""
        return partition in self.owned and self.now() < self.deadline

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return max(self.view.homes, default=-1) + 1 if self.node.own_journal else self.settings.partitions

    def wanted(self, view: View) -> dict[int, str]:
        """Who ought to own which partition."""
        if not self.node.own_journal:
            return view.wanted(self.settings.partitions)
        return view.at_home(movable=self.settings.movable, takeover=self.settings.takeover)

    def holds(self, _partition: int) -> bool:
        """Whether what this node owns is certainly its own in this very moment, whatever it did not hear of."""
        return self._lease != 0 and self.now() < self.deadline

    @property
    def leads(self) -> bool:
        """Whether this node alone does what must be done once."""
        return views.LEADING in self.owned

    def lost(self, partition: int) -> None:
        """The journal belongs to another: forget the partition. Its key in etcd is removed, if it is still ours."""
        if self.owned.pop(partition, None) is not None:
            self._note(f"partition {partition} was taken over by another node")
            self._move(partition, self._abandon(partition))

    async def _end_lease(self) -> None:
        lease, self._lease = self._lease, 0
        if lease:
            with suppress(CoordinationUnavailable):
                await self.etcd.revoke(lease)

    async def _forever(self) -> None:
        while True:
            try:
                await self._tick()
                self.trouble = None
            except KnhkError as error:
                if self.trouble is None:
                    self._note(error.message)
                self.trouble = error
            await self._clock.sleep(self.settings.ttl_s / TICKS)

    async def _watch_deadline(self) -> None:
        """Apart from the ticks, which may hang on a peer that does not answer."""
        while True:
            if self._lease and self.now() >= self.deadline - _MARGIN * self.settings.ttl_s:
                self._note("the lease in etcd could not be renewed in time: everything stops")
                self._lease = 0
                await self._drop_all()
            await self._clock.sleep(self.settings.ttl_s / TICKS)

    async def _tick(self) -> None:
        if not self._left:
            await self._keep_lease()
        await self.look()
        if self._lease and not self._stopping:
            if self.node.own_journal and not self.node.leaving:
                await self._have_a_home()
            await self._reconcile()

    async def look(self) -> None:
        """Read what is in etcd now. Raises CoordinationUnavailable."""
        entries = await self.etcd.under(f"{self.settings.prefix}/")
        self.view, self.read_at = views.read(entries, self.settings.prefix), self.now()
        holders = {home.holder for home in self.view.homes.values()} - set(self.view.nodes)
        self.gone = {name: self.gone.get(name, self.read_at) for name in holders}

    async def _have_a_home(self) -> None:
        """Make a partition of this node's own, if it has none: the first number that is free."""
        me, homes = self.node.node_id, self.view.homes
        if any(home.origin == me for home in homes.values()):
            return
        number = views.free_number(homes)
        if await self.etcd.create(self._home_key(number), _json(Home(me, me)), 0):
            self._note(f"partition {number} is this node's own")
        await self.look()

    async def home(self, partition: int) -> Home:
        """Where a partition's journal is, as etcd has it now. Nobody changes that but the owner of the partition.

        Raises CoordinationUnavailable.
        """
        key = self._home_key(partition)
        return msgspec.json.decode((await self.etcd.under(key))[key].value, type=Home)

    async def settle(self, partition: int, home: Home) -> None:
        """Write down where the journal of a partition is, of which this node has the owner key.

        Raises Fenced if it is another's by now, CoordinationUnavailable.
        """
        values = {self._home_key(partition): (_json(home), 0)}
        if not await self.etcd.put_while(self._owner_key(partition), self._lease, values):
            raise Fenced(f"partition {partition} was taken over by another node")

    async def _keep_lease(self) -> None:
        now = self.now()
        if not self._lease:
            await self._partitions.prepare()
            await self._refuse_others()  # before others give it anything
            lease = await self.etcd.grant(self.settings.ttl_s)
            if not await self.etcd.create(self._node_key, _json(self.node), lease):
                await self.etcd.revoke(lease)
                raise CoordinationUnavailable(
                    f"another process is in the cluster as {self.node.node_id!r}, or was until a moment ago"
                )
            try:
                await self._refuse_others()  # nor has one joined at the same time
            except IncompatibleVersion:
                await self.etcd.revoke(lease)
                raise
            self._lease, self._renewed_at, self.deadline = lease, now, now + self.settings.ttl_s
            self._note(f"joined the cluster as {self.node.node_id!r}")
        elif now - self._renewed_at >= self.settings.ttl_s / _RENEWALS:
            lease = self._lease
            if await self.etcd.renew(lease):
                self._renewed_at, self.deadline = now, now + self.settings.ttl_s
            elif lease == self._lease:
                self._note("the lease in etcd is over: everything stops")
                self._lease = 0
                await self._drop_all()

    async def _refuse_others(self) -> None:
        """Raise IncompatibleVersion if a node that was there before does not work with this one."""
        me = self.node
        view = views.read(await self.etcd.under(f"{self.settings.prefix}/nodes/"), self.settings.prefix)
        other = view.against(me)
        if other is not None and other.own_journal != me.own_journal:
            raise IncompatibleVersion(
                f"this node has {_journal(me)}, and node {other.node_id!r} of the same cluster has {_journal(other)}",
                hint="Set persistence.url on all nodes or on none, or give this cluster another cluster.name.",
            )
        if other is not None:
            raise IncompatibleVersion(
                f"version {me.version} (protocol {me.protocol}, at least {me.least}) does not work with node "
                f"{other.node_id!r} of version {other.version} (protocol {other.protocol}, at least {other.least})"
            )

    async def _reconcile(self) -> None:
        wanted = self.wanted(self.view)
        me = self.node.node_id
        for partition in range(self.partitions):
            if partition in self._moving or len(self._moving) >= _AT_ONCE:
                continue
            held, ought = self.view.owners.get(partition), wanted.get(partition)
            if partition in self.owned:
                if ought != me and (ought is not None or self.node.leaving):
                    self._move(partition, self._hand_over(partition, ought))
            elif ought == me and (held is None or self._is_stale_of_mine(held)):
                self._move(partition, self._take(partition, held))

    def _is_stale_of_mine(self, held: Held) -> bool:
        """Whether the key is this very lease's, and nothing runs behind it: taking it over had failed."""
        return held.lease == self._lease

    async def _take(self, partition: int, held: Held | None) -> None:
        lease, key = self._lease, self._owner_key(partition)
        if held is None and not await self.etcd.create(key, _json(Owner(self.node.node_id)), lease):
            return
        epoch = await self._partitions.take(partition)
        if self._lease != lease:  # it ended meanwhile
            await self._partitions.drop(partition)
            return
        self.owned[partition] = epoch
        await self.etcd.put(key, _json(Owner(self.node.node_id, epoch)), lease)

    async def _hand_over(self, partition: int, to: str | None) -> None:
        await self._partitions.give_up(partition)
        self.owned.pop(partition, None)
        await self._release(partition)
        self._note(f"partition {partition} was given up for {to or 'others'}")

    async def _abandon(self, partition: int) -> None:
        await self._partitions.drop(partition)
        await self._release(partition)

    async def _release(self, partition: int) -> None:
        """Let others take the partition; if etcd does not answer, they can when the lease is over."""
        await self.etcd.delete_mine(self._owner_key(partition), self._lease)

    async def _drop_all(self) -> None:
        moving = dict(self._moving)
        for task in moving.values():
            task.cancel()
        await asyncio.gather(*moving.values(), return_exceptions=True)
        dropped = {*self.owned, *moving}
        self.owned.clear()
        await asyncio.gather(*(self._partitions.drop(one) for one in dropped))

    def _move(self, partition: int, work: Coroutine[Any, Any, None]) -> None:
        async def moving() -> None:
            try:
                await work
                self.stuck.pop(partition, None)
            except KnhkError as error:
                if self.stuck.get(partition) != error.message:
                    self._note(f"partition {partition}: {error.message}")
                self.stuck[partition] = error.message
            finally:
                self._moving.pop(partition, None)

        self._moving[partition] = asyncio.create_task(moving(), name=f"move-{partition}")

    async def _settled(self) -> None:
        """Until nothing moves; what was left over because too much moved at once follows."""
        while self._moving:
            await asyncio.gather(*self._moving.values(), return_exceptions=True)
            await self._tick()

    async def _announce(self) -> None:
        await self.etcd.put(self._node_key, _json(self.node), self._lease)

    @property
    def _node_key(self) -> str:
        return f"{self.settings.prefix}/nodes/{self.node.node_id}"

    def _owner_key(self, partition: int) -> str:
        return f"{self.settings.prefix}/owners/{partition}"

    def _home_key(self, partition: int) -> str:
        return f"{self.settings.prefix}/homes/{partition}"

    async def drain(self, node_id: str, *, drained: bool) -> None:
        """Have a node give its partitions to the others, or take part again. Raises CoordinationUnavailable."""
        key = f"{self.settings.prefix}/drained/{node_id}"
        await (self.etcd.put(key, self.node.node_id) if drained else self.etcd.delete(key))


def _json(value: Node | Owner | Home) -> str:
    return msgspec.json.encode(value).decode()


def _journal(node: Node) -> str:
    return "a journal of its own" if node.own_journal else "its journal in a database"
