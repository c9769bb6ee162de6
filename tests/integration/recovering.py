"""A node that runs workflows in the test's own process, ships what it commits, and is lost and restored."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from knhk.bootstrap import Node
from knhk.bootstrap.recovery import NodeRecovery
from knhk.bootstrap.stores import open_store, store_options
from knhk.config import Config, Observability, Persistence, Recovery
from knhk.engine.control import Submission
from knhk.ports.environment import PublicKey
from knhk.recovery import restore
from knhk.recovery.places import Place
from knhk.recovery.recover import Part, Recovered, Segments, recover
from knhk.security.signing import verify

HELLO = b"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: hello, department: engineering}
spec:
  inputs: {number: {type: integer}}
  steps:
    - {name: first, action: process, params: {output: {text: "${{ inputs.number }} and more to store"}}}
    - {name: second, action: process, depends_on: [first]}
"""
NAPS = b"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: naps}
spec:
  timeout: 2h
  steps:
    - {name: nap, action: wait, params: {duration: 1h}}
"""


class House:
    """One machine: its directory, and the node on it while it runs."""

    def __init__(
        self, directory: Path, backup_to: str, *, encryption: bool = False, ship_ms: int = 40, url: str = ""
    ) -> None:
        self.directory = directory
        self.config = Config(
            persistence=Persistence(
                path=directory / "data", key_path=directory / "keys", url=url, encryption=encryption
            ),
            observability=Observability(),
            recovery=Recovery(
                checkpoint_path=directory / "checkpoints",
                backup_to=backup_to,
                ship_interval_ns=ship_ms * 1_000_000,
                snapshot_interval_ns=3600 * 1_000_000_000,
            ),
        )
        self.node: Node
        self.recovery: NodeRecovery
        self.submitted: list[int] = []

    @property
    def data(self) -> Path:
        return self.directory / "data"

    async def start(self) -> "House":
        self.node = Node(self.config)
        self.recovery = NodeRecovery(self.node)
        await self.node.start()
        for duty in self.recovery.duties:
            await duty.start()
        return self

    async def run(self, count: int, descriptor: bytes = HELLO, **given: Any) -> list[int]:
        """Workflows that are acknowledged; of the plain one, until they have ended."""
        names = []
        for number in range(count):
            inputs = {"number": number} if descriptor is HELLO else {}
            submission = Submission(descriptor, inputs, **given)
            wait_s = 30.0 if descriptor is HELLO else 0.0
            names.append((await self.node.engine.control.submit(submission, wait_s=wait_s)).workflow_id)
        self.submitted += names
        return names

    async def shipped(self) -> None:
        """Wait until all that is committed has arrived."""
        shipper = self.recovery.shipper
        assert shipper is not None
        await until(lambda: shipper.cursor == self.node.engine.committer.height and shipper.lag_ns() == 0)

    async def stop(self) -> None:
        for duty in reversed(self.recovery.duties):
            await duty.stop()
        await self.node.stop()

    async def crash(self) -> None:
        """Stop without the last chance to ship."""
        if self.recovery.shipper is not None and self.recovery.shipper._task is not None:
            self.recovery.shipper._task.cancel()
            await asyncio.gather(self.recovery.shipper._task, return_exceptions=True)
        await self.node.stop()

    def lose(self) -> None:
        """The disk is gone, all of it but the keys."""
        shutil.rmtree(self.data)
        shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)

    async def restore(
        self,
        snapshot: str | None = None,
        place: str | None = None,
        *,
        to_ns: int = 0,
        pinned: list[PublicKey] | None = None,
    ) -> Recovered:
        source = None if snapshot is None else restore.find(snapshot, pinned, verify)
        options = store_options(self.config.persistence)
        segments = None if place is None else Segments(Place.of(place), to_ns, options)

        def opened(path: Path) -> Any:
            persistence = self.config.persistence.model_copy(update={"path": path})
            return open_store(self.config.model_copy(update={"persistence": persistence}), read_only=True)

        return await asyncio.to_thread(
            recover,
            self.data,
            [Part("", source, () if segments is None else (segments,))],
            pinned=pinned,
            check=verify,
            open_store=opened,
            now_ns=time.time_ns(),
            progress=lambda _stage, _done, _total: None,
        )

    async def states(self) -> dict[int, str]:
        control = self.node.engine.control
        return {one: (await control.status(one))["state"] for one in self.submitted}


async def until(good: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not good():
            await asyncio.sleep(0.01)
