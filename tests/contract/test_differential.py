"""The same random history in the memory store and in another one: every answer must be the same."""

import random
from pathlib import Path
from typing import Any

import pytest

from knhk.domain.errors import Fenced
from knhk.ports.append import Commit, Payload
from knhk.ports.journal import Claim
from tests.builders import CommitBuilder, altered, workflow_id
from tests.contract.backends import MemoryBackend, PostgresBackend, RocksDbBackend

STEPS = 120
RUNS = [workflow_id(number, partition) for partition in (0, 3) for number in range(12)]


class History:
    """Applies each random step to both stores and compares what they say."""

    def __init__(self, seed: int, backend: RocksDbBackend | PostgresBackend, path: Path) -> None:
        self.random = random.Random(seed)
        self.backend: Any = backend
        self.oracle_backend = MemoryBackend(path)
        self.store: Any = backend.open()
        self.oracle: Any = self.oracle_backend.open()
        self.builders: dict[int, CommitBuilder] = {}

    async def acquire(self, partition: int) -> None:
        mine, expected = await self.store.acquire(partition), await self.oracle.acquire(partition)
        assert mine == expected
        chains = self.builders[partition].chains if partition in self.builders else {}
        self.builders[partition] = CommitBuilder(mine)
        self.builders[partition].chains = chains

    def commit(self, partition: int) -> Commit:
        rng, builder = self.random, self.builders[partition]
        runs = [run for run in RUNS if (run >> 12) & 1023 == partition]
        slices = []
        for run in rng.sample(runs, rng.randrange(1, 5)):
            count, first = rng.randrange(1, 5), len(builder.chains.get(run, []))
            payloads = [
                Payload(first + at, slot, rng.randbytes(rng.choice((0, 20, 400))) * rng.choice((1, 4)))
                for at in range(count)
                for slot in (0, 1)
                if rng.random() < 0.4
            ]
            slices.append(builder.slice(run, count, payloads))
        some = [part.workflow_id for part in slices]
        return builder.commit(
            slices,
            descriptors=[(bytes([rng.randrange(4)]) * 32, b"d%d" % rng.randrange(4))],
            claims=[Claim(bytes([rng.randrange(30)]) * 32, some[0], rng.randbytes(32))],
            live=[run for run in some if rng.random() < 0.5],
            not_live=[run for run in some if rng.random() < 0.5],
            timers_set=[(rng.randrange(50), run) for run in some],
            timers_cleared=[(rng.randrange(50), run) for run in some],
            erased=[run for run in runs if rng.random() < 0.05],
        )

    async def step(self) -> None:
        rng = self.random
        partition = rng.choice((0, 3))
        match rng.choices(("append", "refused", "rows", "acquire", "reopen", "restart"), (60, 10, 15, 3, 4, 4))[0]:
            case "append":
                commit = self.commit(partition)
                await self.store.append(commit)
                await self.oracle.append(commit)
            case "refused":
                builder = self.builders[partition]
                wrong = altered(CommitBuilder(await self.oracle.acquire(5)).commit(), partition=partition)
                await self.store.acquire(5)
                wrong = altered(wrong, height=builder.height + rng.choice((0, 2)), epoch=builder.epoch)
                for store in (self.store, self.oracle):
                    with pytest.raises(Fenced):
                        await store.append(wrong)
            case "rows":
                rows = {rng.randbytes(rng.randrange(1, 3)): rng.choice((None, rng.randbytes(5))) for _ in range(8)}
                for store in (self.store, self.oracle):
                    await store.store("fold", rows, rng.randrange(1) + len(rows))
            case "acquire":
                await self.acquire(partition)
            case "reopen":
                await self.store.reopen()
            case "restart":
                self.store = await self.backend.restart(self.store)
                self.oracle = await self.oracle_backend.restart(self.oracle)

    async def everything(self, store: Any) -> list[Any]:
        found: list[Any] = []
        for partition in (0, 3, 5):
            found += [await store.head(partition), await store.live(partition), await store.blocks(partition, 0, 999)]
            found += [await store.timers(partition, 25, 7), await store.timers(partition, 99, 999)]
            found += [await store.block_receipts(signed) for signed in await store.blocks(partition, 0, 999)]
        for run in RUNS:
            found += [await store.receipts(run, seq) for seq in (0, 1, 5, 9)]
            found += [await store.payload(run, seq, slot) for seq in range(20) for slot in (0, 1)]
        for number in range(30):
            found += [await store.claim(bytes([number]) * 32), await store.descriptor(bytes([number]) * 32)]
        found += [await store.cursor("fold"), await store.rows("fold", b""), await store.rows("fold", b"\xff")]
        found += [await store.rows("fold", b"", before=b"\x80", limit=3), await store.rows("fold", b"\x00")]
        scanner = store.scanner()
        return [*found, list(scanner.scan_receipts()), list(scanner.scan_blocks()), list(scanner.scan_payloads())]


@pytest.mark.parametrize("kind", [RocksDbBackend, PostgresBackend], ids=["rocksdb", "postgres"])
@pytest.mark.parametrize("seed", range(4))
async def test_the_store_answers_as_the_oracle_does(seed: int, kind: type, tmp_path: Path) -> None:
    history = History(seed, kind(tmp_path), tmp_path)
    for partition in (0, 3):
        await history.acquire(partition)
    for number in range(STEPS):
        await history.step()
        if number % 20 == 19:
            assert await history.everything(history.store) == await history.everything(history.oracle)
    await history.store.close()
