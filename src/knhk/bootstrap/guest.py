"""A partition in the process of another one, with a data directory of its own or in the same database."""

import asyncio

from knhk.bootstrap.node import Node
from knhk.bootstrap.protection import NodeProtection
from knhk.bootstrap.recovery import NodeRecovery
from knhk.bootstrap.stores import open_store
from knhk.config import Config
from knhk.engine.signals import Elsewhere
from knhk.ports.duty import Duty


class Guest:
    """A partition in the process of another one, with what works by itself for its data directory."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.recovery: NodeRecovery | None = None
        self.duties: list[Duty] = []
        if not node.config.persistence.url:
            self.recovery = NodeRecovery(node)
            self.duties = [*self.recovery.duties, *NodeProtection(node).duties]

    @classmethod
    async def open(cls, host: Node, config: Config, partition: int) -> "Guest":
        """A partition, of which this is the configuration, with its store open and nothing at work.

        Raises what opening its store raises.
        """
        if config.persistence.url:
            await host.store.acquire(partition)
            store = host.store
        else:
            store = await asyncio.to_thread(open_store, config)
        return cls(Node(config, partition, beside=host, store=store))

    @classmethod
    async def start(cls, host: Node, config: Config, partition: int, give_event: Elsewhere) -> "Guest":
        """Take a partition over. Raises what opening its store raises."""
        guest = await cls.open(host, config, partition)
        if config.persistence.url:
            guest.node.engine.signals.elsewhere = give_event
        await guest.begin()
        return guest

    async def begin(self) -> None:
        """Go on with what is in the journal. What fails is stopped again."""
        try:
            await self.node.start()
            for duty in self.duties:
                await duty.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop at once; the runs first, so that duties that follow the journal see its end."""
        await self.node.halt()
        for duty in reversed(self.duties):
            await duty.stop()
        await self.node.leave()
