"""Re-encryption and the erasure of departments on a real store, with damage, a failing disk, and deaths on the way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from knhk.bootstrap import Node
from knhk.bootstrap.protection import NodeProtection
from knhk.config import Config
from knhk.domain.errors import DataErased, DiskFull, IllegalTransition
from knhk.engine.control import Submission
from knhk.persistence.journal_check import verify_all
from knhk.persistence.rewriting import progress_of
from knhk.persistence.rocksdb_keys import run_key
from knhk.persistence.verification import Trust
from knhk.ports.keys import RunPath
from knhk.protection.erasure import Erasure
from knhk.protection.reencryption import Reencryption
from knhk.security.key_ring import KeyRing
from knhk.security.signing import verify
from tests.services.postgres import shared_server

DESCRIPTOR = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: w, department: sales}
spec:
  steps:
    - {name: a, action: process, params: {output: a secret of somebody}}
"""


class House:
    """Nodes one after the other on one data directory."""

    def __init__(self, path: Path, url: str = "") -> None:
        self.path, self.url = path, url
        self.node: Node | None = None

    async def open(self, *, encryption: bool = True) -> "tuple[Any, Any]":
        """A started node, and what protects it."""
        settings = {
            "path": self.path / "data",
            "url": self.url,
            "encryption": encryption,
            "maintenance_rate_bytes": 1 << 30,
        }
        self.node = Node(Config.model_validate({"persistence": settings}))
        await self.node.start()
        return self.node, NodeProtection(self.node)

    async def close(self) -> None:
        if self.node is not None:
            await self.node.stop()
        self.node = None


@pytest.fixture(params=["rocksdb", "postgres"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path, shared_server().new_database() if request.param == "postgres" else "")
    yield made
    await made.close()


async def run(node: Node, count: int = 1) -> list[int]:
    return [(await node.engine.control.submit(Submission(DESCRIPTOR), wait_s=30)).workflow_id for _ in range(count)]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


async def valid(node: Node) -> bool:
    trust = Trust.of(await node.store.keys(), verify)
    report = await verify_all(node.store, node.store.scanner(), trust, lambda *_: None)
    assert report.valid, report.problems
    return report.verified_count == report.total_count


async def test_a_row_that_does_not_decrypt_is_left_as_it_is_and_named(house: House) -> None:
    node, _ = await house.open(encryption=False)
    runs = await run(node, 3)
    key = run_key(runs[1], 0)
    damaged = b"\xff not a row"
    await node.store.change(lambda _, changes: changes.put("receipts", key, damaged))
    await house.close()
    node, protection = await house.open()
    await protection.keys._reencryption.start()
    await until(lambda: protection.keys._reencryption.complete)
    assert (await protection.keys._reencryption.status())["rows_damaged"] >= 1
    assert "do not decrypt" in protection.keys._reencryption.health()
    assert await node.store.look(lambda database: database.get("receipts", key)) == damaged
    await protection.keys._reencryption.stop()


async def test_re_encryption_waits_while_the_disk_is_full_and_then_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = await house.open(encryption=False)
    await run(node, 3)
    await house.close()
    node, protection = await house.open()
    monkeypatch.setattr("knhk.protection.reencryption._RETRY_S", 0.05)
    change, failing = node.store.change, True

    async def fails(*given: Any, **named: Any) -> None:
        if failing:
            raise DiskFull("no space left")
        await change(*given, **named)

    monkeypatch.setattr(node.store, "change", fails)
    await protection.keys._reencryption.start()
    await until(lambda: "no space left" in protection.keys._reencryption.health())
    assert not protection.keys._reencryption.complete
    failing = False
    await until(lambda: protection.keys._reencryption.complete)
    assert protection.keys._reencryption.health() == "ok"
    assert await valid(node)
    await protection.keys._reencryption.stop()


async def test_a_page_that_was_half_done_is_the_same_when_it_is_done_again(house: House) -> None:
    node, protection = await house.open()
    await run(node, 20)
    keys = protection.keys
    assert await keys.rotate_data_keys() == 2
    for _ in range(3):  # a page, then a new duty, as after a crash
        await Reencryption(node.store, node.clock, bytes_per_s=1 << 30)._one_page()
    assert (await node.store.look(progress_of)).generation == 2
    assert await keys.rotate_data_keys() == 3
    await protection.keys._reencryption.start()
    await until(lambda: protection.keys._reencryption.complete)
    keys.destroy(1)
    keys.destroy(2)
    assert await valid(node)
    await protection.keys._reencryption.stop()


async def test_a_department_whose_erasure_was_interrupted_is_erased_at_the_next_start(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, protection = await house.open()
    runs = await run(node, 5)
    monkeypatch.setattr(KeyRing, "end_department_erasure", lambda *_args, **_given: None)  # it dies before the end
    assert await protection.erasure.department("sales", actor="test") == 5
    monkeypatch.undo()
    await house.close()
    node, protection = await house.open()
    ring = node.store.cipher.keys
    assert isinstance(ring, KeyRing)
    assert ring.department_erasures
    later = await run(node)
    await protection.erasure.start()
    await until(lambda: not ring.department_erasures)
    scope = ring.scope_of("sales")
    for one in runs:
        with pytest.raises(DataErased):
            ring.run_key(RunPath(1, scope, one))
    assert (await node.engine.control.inspect(later[0]))["outputs"] == {"a": "a secret of somebody"}
    assert await valid(node)
    await protection.erasure.stop()


async def test_a_department_with_runs_that_have_not_ended_is_not_touched(house: House) -> None:
    node, protection = await house.open()
    ended = await run(node, 2)
    waits = DESCRIPTOR.replace(
        b"action: process, params: {output: a secret of somebody}", b"action: wait, params: {duration: 1h}"
    )
    waiting = await node.engine.control.submit(Submission(waits))
    with pytest.raises(IllegalTransition, match=f"wf-{waiting.workflow_id}"):
        await protection.erasure.department("sales", actor="test")
    ring = node.store.cipher.keys
    assert isinstance(ring, KeyRing)
    assert not ring.department_erasures
    assert (await node.engine.control.inspect(ended[0]))["outputs"] == {"a": "a secret of somebody"}
    begun = ring.begin_department_erasure("sales", "test", "", node.clock.now_ns())
    erasure = Erasure(node.engine, node.clock, ring, node.store.note_ring)
    assert await erasure._finished(begun), "one that had only begun when the process died is given up"
    assert not ring.department_erasures
    assert await valid(node)


async def test_rows_of_a_department_that_is_being_erased_get_no_newer_keys(house: House) -> None:
    node, protection = await house.open()
    runs = await run(node, 3)
    ring = node.store.cipher.keys
    assert isinstance(ring, KeyRing)
    before = await node.store.look(lambda database: database.get("payloads", run_key(runs[0], 0)))
    ring.begin_department_erasure("sales", "test", "", node.clock.now_ns())
    await protection.keys._reencryption.start()
    await until(lambda: protection.keys._reencryption.complete)
    assert await node.store.look(lambda database: database.get("payloads", run_key(runs[0], 0))) == before
    await protection.keys._reencryption.stop()


async def test_an_erasure_is_not_acknowledged_before_its_keys_are_destroyed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = await house.open()
    (one,) = await run(node)
    ring = node.store.cipher.keys
    assert isinstance(ring, KeyRing)
    path = RunPath(1, ring.scope_of("sales"), one)
    settle, failing, failures = KeyRing.settle_erasure, True, 0

    def fails(self: KeyRing, *given: Any, **named: Any) -> None:
        nonlocal failures
        if failing:
            failures += 1
            raise DiskFull("no space left for the key ring")
        settle(self, *given, **named)

    monkeypatch.setattr(KeyRing, "settle_erasure", fails)
    erasing = asyncio.ensure_future(node.engine.control.erase(one, actor="test"))
    await until(lambda: failures >= 2)
    assert ring.run_key(path)
    failing = False
    with contextlib.suppress(DiskFull):  # it may have been told that the outcome is open
        await erasing
    await until(lambda: not ring.pending_erasures)
    with pytest.raises(DataErased):
        ring.run_key(path)
    await until(lambda: node.engine.committer.fault is None)
    assert (await node.engine.control.status(one))["erased"]
    assert await valid(node)
