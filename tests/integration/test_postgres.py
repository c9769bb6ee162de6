"""The PostgreSQL store against a real server that is killed, cut off, read-only, damaged, or owned by somebody else."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from knhk.domain.errors import Fenced, InvalidConfiguration, JournalCorrupt, StorageUnavailable, Unsupported
from knhk.domain.identifier import compose
from knhk.persistence import postgres, postgres_care, postgres_commit, postgres_projections
from knhk.persistence.journal_check import verify_all
from knhk.persistence.postgres import PostgresStore
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.postgres_session import Session
from knhk.persistence.postgres_tables import BLOCKS, LIVE_RUNS, RECEIPTS, TIMERS
from knhk.persistence.verification import Trust
from knhk.ports.append import Payload
from knhk.ports.journal import Claim
from tests.builders import CommitBuilder, workflow_id
from tests.services.postgres import PostgresServer, missing, shared_server
from tests.services.proxy import Proxy

A, B = workflow_id(1), workflow_id(2)


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server that the test may kill."""
    if why := missing():
        pytest.skip(why)
    server = PostgresServer().start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def url() -> str:
    return shared_server().new_database()


def store_at(url: str, **options: Any) -> PostgresStore:
    return PostgresStore(PostgresOptions(url, **options))


async def begun(store: PostgresStore) -> CommitBuilder:
    builder = CommitBuilder(await store.acquire(0))
    await store.append(builder.commit([builder.slice(A, 2, [Payload(0, 0, b"in")])], live=[A]))
    return builder


async def everything(store: PostgresStore) -> dict[str, list[tuple[Any, ...]]]:
    session = Session(store._options)
    try:
        tables = session.read("SELECT tablename FROM pg_tables WHERE schemaname = 'knhk'")
        return {table: sorted(tuple(row) for row in session.read(f"SELECT * FROM {table}")) for (table,) in tables}
    finally:
        session.close()


async def until(work: Any, timeout_s: float = 30.0) -> Any:
    """Repeat until the store is back."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await work()
        except StorageUnavailable:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)


async def test_a_zombie_writes_nothing(url: str) -> None:
    old, new = store_at(url), store_at(url)
    zombie = await begun(old)
    successor = CommitBuilder(await new.acquire(0))
    before = await everything(new)
    late = zombie.commit(
        [zombie.slice(A, 3, [Payload(2, 1, b"zombie")]), zombie.slice(B, 1)],
        descriptors=[(b"d" * 32, b"zombie")],
        claims=[Claim(b"c" * 32, B, b"r" * 32)],
        live=[B],
        not_live=[A],
        timers_set=[(5, B)],
        erased=[A],
    )
    for _ in range(3):
        with pytest.raises(Fenced):
            await old.append(late)
        await old.reopen()
    assert await everything(new) == before
    await new.append(successor.commit([successor.slice(B, 1)]))
    assert old.statistics()["fenced_total"] == 3
    await old.close()
    await new.close()


async def test_an_owner_that_takes_over_sees_what_its_predecessor_committed_until_then(url: str) -> None:
    """Appends of the old owner race with the new one's acquire: each is either in what it takes over, or refused."""
    old, new = store_at(url), store_at(url)
    zombie = await begun(old)
    refused = asyncio.Event()

    async def write() -> int:
        for number in range(1000):
            try:
                await old.append(zombie.commit([zombie.slice(B, 1)]))
            except Fenced:
                refused.set()
                return number
        raise AssertionError("nobody took over")

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.1)
    ownership = await new.acquire(0)
    committed = await writing
    assert ownership.head is not None
    assert ownership.head.block().height == committed
    assert await new.head(0) == ownership.head
    assert len(await new.receipts(B)) == committed
    await old.close()
    await new.close()


async def test_connecting_anew_while_another_partition_commits_is_no_loss(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(url)
    await begun(store)
    other, run = CommitBuilder(await store.acquire(1)), compose(1_800_000_000_000, 1, 1)
    await store.append(other.commit([other.slice(run)]))
    writing = store._connections.writing

    @asynccontextmanager
    async def slow(doing: str) -> AsyncIterator[Any]:
        async with writing(doing) as connection:
            yield connection
        await store.append(other.commit([other.slice(run)]))  # after the heads were read

    monkeypatch.setattr(store._connections, "writing", slow)
    await store.reopen()
    await store.close()


async def test_a_killed_server_loses_nothing_and_doubles_nothing(own: PostgresServer) -> None:
    store = store_at(own.new_database())
    builder = await begun(store)
    for round_ in range(3):
        own.kill()
        commit = builder.commit([builder.slice(A, 1), builder.slice(B, 1)])
        with pytest.raises(StorageUnavailable):
            await store.append(commit)
        with pytest.raises(StorageUnavailable):
            await store.receipts(A)
        own.start()
        await until(store.reopen)
        await store.append(commit)
        await store.append(commit)  # known by its hash: its answer may have been lost
        assert await store.head(0) == commit.signed
        assert len(await store.receipts(B)) == round_ + 1
    await store.close()


@pytest.mark.parametrize("mode", ["swallow-answers", "swallow", "refuse"])
async def test_a_cut_in_the_middle_of_an_append(url: str, mode: Any) -> None:
    proxy = Proxy(shared_server().port)
    database = url.rpartition("/")[2]
    store = store_at(shared_server().url(database, proxy.port), timeout_s=1.0)
    try:
        builder = await begun(store)
        proxy.set(mode)
        commit = builder.commit([builder.slice(A, 1)])
        with pytest.raises(StorageUnavailable):
            await store.append(commit)
        with pytest.raises(StorageUnavailable):
            await store.reopen()
        proxy.set("forward")
        await until(store.reopen)
        head = await store.head(0)
        assert head is not None
        assert (head == commit.signed) == (mode == "swallow-answers")
        await store.append(commit)
        following = builder.commit([builder.slice(A, 1)])
        await store.append(following)
        assert await store.receipts(A) == builder.chains[A]
    finally:
        await store.close()
        proxy.close()


async def test_reads_go_on_while_the_server_is_read_only(own: PostgresServer) -> None:
    store = store_at(own.new_database())
    builder = await begun(store)
    own.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    own.sql("SELECT pg_reload_conf()")
    commit = builder.commit([builder.slice(A, 1)])

    await asyncio.sleep(0.3)
    with pytest.raises(StorageUnavailable, match="read-only"):
        await store.append(commit)
    with pytest.raises(StorageUnavailable):
        await store.reopen()
    assert len(await store.receipts(A)) == 2
    own.sql("ALTER SYSTEM RESET default_transaction_read_only")
    own.sql("SELECT pg_reload_conf()")
    await until(store.reopen)
    await store.append(commit)
    assert len(await store.receipts(A)) == 3
    await store.close()


async def test_a_standby_that_was_behind_is_not_written_to(url: str) -> None:
    store = store_at(url)
    builder = await begun(store)
    earlier = await everything(store)
    await store.append(builder.commit([builder.slice(A, 1)]))
    database = url.rpartition("/")[2]
    (_, epoch, height, block_hash) = earlier["partitions"][0]
    shared_server().sql(
        f"DELETE FROM knhk.blocks WHERE height > {height};"
        f"UPDATE knhk.partitions SET height = {height}, block_hash = '\\x{block_hash.hex()}', epoch = {epoch}",
        database,
    )
    with pytest.raises(JournalCorrupt, match="blocks 1 to 1 were acknowledged and are not there"):
        await store.reopen()
    with pytest.raises(Fenced):
        await store.append(builder.commit([builder.slice(A, 1)]))
    await store.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE knhk.receipts SET slice = set_byte(slice, 60, get_byte(slice, 60) # 1)", "corrupt"),
        ("UPDATE knhk.receipts SET slice = substr(slice, 1, 20)", "corrupt"),
        ("UPDATE knhk.payloads SET payloads = '\\x07'", "corrupt"),
        ("DELETE FROM knhk.receipts", "missing"),
        ("DELETE FROM knhk.blocks WHERE height = 0", "missing"),
        ("UPDATE knhk.blocks SET signed = '\\x00' WHERE height = 0", "corrupt"),
    ],
)
async def test_changed_rows_are_found(url: str, change: str, problem: str) -> None:
    store = store_at(url)
    builder = await begun(store)
    await store.append(builder.commit([builder.slice(B, 1)]))
    trust = Trust.of([], lambda *_: True)
    clean = await verify_all(store, store.scanner(), trust, lambda *_: None)
    shared_server().sql(change, url.rpartition("/")[2])
    report = await verify_all(store, store.scanner(), trust, lambda *_: None)
    assert set(report.problems) - set(clean.problems), report
    assert getattr(report, problem), report
    await store.close()


async def test_damaged_pages_are_found(own: PostgresServer) -> None:
    url = own.new_database()
    database = url.rpartition("/")[2]
    store = store_at(url)
    await begun(store)
    file = own.data / own.sql("SELECT pg_relation_filepath('knhk.receipts')", database)
    own.sql("CHECKPOINT")
    own.stop()
    with file.open("r+b") as page:
        page.seek(8000)
        byte = page.read(1)
        page.seek(8000)
        page.write(bytes([byte[0] ^ 1]))
    own.start()
    with pytest.raises(JournalCorrupt, match="page"):
        await until(lambda: store.receipts(A))
    with pytest.raises(JournalCorrupt):
        store.scanner().verify_files()
    await store.close()


async def test_a_head_that_is_gone_is_damage(url: str) -> None:
    store = store_at(url)
    await begun(store)
    shared_server().sql("DELETE FROM knhk.blocks", url.rpartition("/")[2])
    for read in (store.head, store.acquire):
        with pytest.raises(JournalCorrupt):
            await read(0)
    await store.close()


async def test_a_server_that_does_not_sync_is_refused() -> None:
    if why := missing():
        pytest.skip(why)
    server = PostgresServer(fsync="off").start()
    try:
        store = store_at(server.url())
        with pytest.raises(InvalidConfiguration, match="fsync"):
            await store.acquire(0)
        await store.close()
    finally:
        server.close()


async def test_a_large_commit_is_sent_in_pieces_and_is_still_all_or_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_commit, "LARGEST_MESSAGE_BYTES", 1000)
    store, other = store_at(url), store_at(url)
    builder = await begun(store)
    runs = [workflow_id(number) for number in range(10, 20)]

    def large() -> Any:
        slices = [
            builder.slice(run, 1, [Payload(len(builder.chains.get(run, [])), 0, bytes(range(200)) * 3)]) for run in runs
        ]
        return builder.commit(slices)

    assert len(postgres_commit.appending(large(), store._codec).ahead) == 3
    builder = CommitBuilder(await store.acquire(0))
    await store.append(large())
    assert await store.payload(runs[9], 0, 0) == bytes(range(200)) * 3
    await other.acquire(0)
    before = await everything(other)
    with pytest.raises(Fenced):
        await store.append(large())
    assert await everything(other) == before
    await store.close()
    await other.close()


async def test_nodes_that_start_together_make_the_tables_once(url: str) -> None:
    stores = [store_at(url) for _ in range(5)]
    epochs = await asyncio.gather(*(store.acquire(0) for store in stores))
    assert sorted(one.epoch for one in epochs) == [1, 2, 3, 4, 5]
    for store in stores:
        await store.close()


async def test_tables_of_a_newer_version_are_refused(url: str) -> None:
    store = store_at(url)
    await begun(store)
    await store.close()
    shared_server().sql("UPDATE knhk.schema_version SET version_num = '9999'", url.rpartition("/")[2])
    for read_only in (False, True):
        newer = PostgresStore(PostgresOptions(url), read_only=read_only)
        with pytest.raises(Unsupported, match="9999"):
            await newer.head(0)
        await newer.close()


async def test_nothing_is_made_by_reading(url: str) -> None:
    reader = PostgresStore(PostgresOptions(url), read_only=True)
    with pytest.raises(InvalidConfiguration, match="no KNHK store"):
        await reader.keys()
    await reader.close()
    assert shared_server().sql("SELECT to_regnamespace('knhk')", url.rpartition("/")[2]) == ""


async def test_a_wrong_url_says_so(tmp_path: Path) -> None:
    for url, error in (
        (shared_server().url("nowhere"), InvalidConfiguration),
        ("postgresql://knhk:secret@127.0.0.1:1/knhk", StorageUnavailable),
    ):
        store = store_at(url)
        with pytest.raises(error) as raised:
            await store.head(0)
        assert "secret" not in str(raised.value)
        await store.close()


@pytest.mark.parametrize(
    "statement",
    [postgres_commit._WITH_MARKS, postgres._BLOCK_RECEIPTS, postgres._STORE_ROWS, postgres_projections._STORE],
)
async def test_statements_of_the_hot_path_never_read_a_whole_table(url: str, statement: str) -> None:
    """The plan is made once for a connection, here as mostly on tables that are empty and look cheap to read."""
    store = store_at(url)
    await store.head(0)
    try:
        async with store._connections.writing("explaining") as connection:
            count = len((await connection.prepare(statement)).get_parameters())
            await connection.execute(f"PREPARE probed AS {statement}")
            found = await connection.fetch(f"EXPLAIN EXECUTE probed ({', '.join(['NULL'] * count)})")
        plan = "\n".join([row[0] for row in found])
        assert "Seq Scan" not in plan, plan
    finally:
        await store.close()


async def test_rows_that_are_cared_for_are_looked_up_each_by_all_of_its_key(url: str) -> None:
    store = store_at(url)
    await store.head(0)
    key = bytes(20)
    statements = [
        (table, table.delete([key[: table._layout.size]])[0]) for table in (RECEIPTS, BLOCKS, TIMERS, LIVE_RUNS)
    ]
    statements += [(RECEIPTS, RECEIPTS.replace([(key[: RECEIPTS._layout.size], b"", b"")])[0])]

    def read(query: str, *_given: Any) -> list[Any]:
        statements.append((RECEIPTS, query))
        return []

    RECEIPTS.get(read, [key[: RECEIPTS._layout.size]])
    try:
        for number, (table, query) in enumerate(statements):
            async with store._connections.writing("explaining") as connection, connection.transaction():
                await connection.execute(postgres_care._BY_INDEX)
                count = len((await connection.prepare(query)).get_parameters())
                await connection.execute(f"PREPARE cared_{number} AS {query}")
                found = await connection.fetch(f"EXPLAIN EXECUTE cared_{number} ({', '.join(['NULL'] * count)})")
            plan = "\n".join([row[0] for row in found])
            looked_up = re.search(r"Index Cond: \((.*)\)", plan)
            assert looked_up, plan
            assert looked_up[1].count(" = ") == len(table._columns), plan
    finally:
        await store.close()
