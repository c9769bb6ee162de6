"""The `s3` action against a real S3 server."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded
from knhk.actions.s3 import Buckets, action
from knhk.config.actions_section import S3Connection, S3Options
from knhk.domain.errors import ReceiptCorrupt
from knhk.persistence.blob_area import BlobArea
from knhk.ports.blobs import NoBlobs
from tests.integration.test_shell_action import invocation
from tests.services.s3 import ACCESS_KEY, S3, SECRET_KEY

MiB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    running = S3(tmp_path_factory.mktemp("s3"))
    yield running.start()
    running.stop()


class Store:
    """The action with one bucket that is written, one that is only read, and the area of its blobs."""

    def __init__(self, server: S3, path: Path) -> None:
        self.blobs = BlobArea(path / "blobs", inline_bytes=1000, max_bytes=64 * MiB, min_free_bytes=0)
        self.blobs.open()
        given: dict[str, Any] = {"endpoint": server.endpoint, "access_key_id": ACCESS_KEY}
        given |= {"secret_access_key": SECRET_KEY, "bucket": "actions"}
        connections = (
            S3Connection(name="data", prefix="some/where", write=True, **given),
            S3Connection(name="readonly", **given),
            S3Connection(name="wrong", write=True, **{**given, "secret_access_key": "guessed-secret"}),
            S3Connection(name="nobody", write=True, **{**given, "endpoint": "http://127.0.0.1:9"}),
        )
        self.buckets = Buckets(S3Options(connections=connections, max_read_bytes=10_000, max_entries=3), self.blobs)

    async def run(self, operation: str, key: str = "", connection: str = "data", **params: Any) -> Outcome:
        return await self.buckets.run(invocation(connection=connection, key=key, operation=operation, **params))

    async def output(self, operation: str, key: str = "", **params: Any) -> dict[str, Any]:
        outcome = await self.run(operation, key, **params)
        assert isinstance(outcome, Succeeded), outcome
        return dict(outcome.output)


@pytest.fixture
def store(server: S3, tmp_path: Path) -> Store:
    return Store(server, tmp_path)


async def test_put_get_head_list_copy_and_delete(store: Store) -> None:
    put = await store.output("put", "first/a.txt", content="häl")
    assert (put["key"], put["size"]) == ("first/a.txt", 4)
    assert (await store.output("get", "first/a.txt"))["content"] == "häl"
    assert (await store.output("head", "first/a.txt"))["e_tag"] == put["e_tag"]
    assert (await store.output("head", "none")) == {"key": "none", "exists": False}
    await store.output("put", "first/b.json", json={"a": [1]})
    assert (await store.output("get", "first/b.json", format="json"))["content"] == {"a": [1]}
    await store.output("put", "first/c", base64="/w==")
    assert (await store.output("get", "first/c"))["content_encoding"] == "base64"
    assert (await store.output("copy", "first/a.txt", to="first/d"))["from"] == "first/a.txt"
    listed = await store.output("list", "first")
    assert ([one["key"] for one in listed["entries"]], listed["more"]) == (
        ["first/a.txt", "first/b.json", "first/c"],
        True,
    )
    rest = await store.output("list", "first", after="first/c")
    assert ([one["key"] for one in rest["entries"]], rest["more"]) == (["first/d"], False)
    for _ in range(2):  # again, after a crash
        assert (await store.output("delete", "first/d"))["deleted"] is True
    seen = await store.output("list", "some/where/first", connection="readonly")
    assert len(seen["entries"]) == 3, "the prefix of the connection is in front of every key"


async def test_conditions(store: Store) -> None:
    first = await store.output("put", "once", content="one", if_absent=True)
    again = await store.output("put", "once", content="one", if_absent=True)
    assert again["e_tag"] == first["e_tag"], "the attempt after a crash finds what it has put"
    await store.output("put", "other", content="mine")
    outcome = await Buckets(store.buckets._options, store.blobs).run(
        _by_another(connection="data", key="once", operation="put", content="two", if_absent=True)
    )
    assert isinstance(outcome, Failed)
    assert outcome.code == "KNHK-S3-CONDITION"
    changed = await store.output("put", "once", content="two", if_match=first["e_tag"])
    refused = await store.run("put", "once", content="three", if_match=first["e_tag"])
    assert isinstance(refused, Failed)
    assert refused.code == "KNHK-S3-CONDITION"
    assert (await store.output("get", "once"))["e_tag"] == changed["e_tag"]


def _by_another(**params: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(invocation(**params), idempotency_key="wf-2/pack")


async def test_large_objects_go_through_blobs(store: Store) -> None:
    data = os.urandom(20 * MiB + 3)
    sink = store.blobs.begin()
    sink.write(data)
    reference = sink.finish("image/png").to_dict()
    assert (await store.output("put", "big.png", content=reference))["size"] == len(data)
    store.blobs.collect(next(store.blobs.names()), 1 << 63)
    read = await store.output("get", "big.png")
    assert (read["content_encoding"], read["content"]) == ("blob", reference)
    assert b"".join(store.blobs.pieces(reference["$blob"])) == data
    too_large = await store.run("get", "big.png", max_size="1MB")
    assert isinstance(too_large, Failed)
    assert too_large.code == "KNHK-S3-TOO-LARGE"
    inline = await store.run("get", "big.png", blob="never")
    assert isinstance(inline, Failed)
    assert inline.code == "KNHK-S3-TOO-LARGE"


async def test_a_damaged_blob_becomes_no_object(store: Store) -> None:
    sink = store.blobs.begin()
    sink.write(os.urandom(20 * MiB))
    reference = sink.finish()
    file = store.blobs.find(reference.digest)
    assert file is not None
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ReceiptCorrupt):
        await store.run("put", "damaged", content=reference.to_dict())
    assert (await store.output("head", "damaged"))["exists"] is False


async def test_what_goes_wrong(store: Store) -> None:
    cases: list[tuple[Outcome, str]] = [
        (await store.run("get", "none"), "KNHK-S3-NOT-FOUND"),
        (await store.run("get", "x", connection="other"), "KNHK-ACTION-NOT-ALLOWED"),
        (await store.run("put", "x", connection="readonly", content="x"), "KNHK-ACTION-NOT-ALLOWED"),
        (await store.run("delete", "x", connection="readonly"), "KNHK-ACTION-NOT-ALLOWED"),
        (await store.run("put", "x", connection="wrong", content="x"), "KNHK-ACTION-NOT-ALLOWED"),
        (await store.run("put", "x"), "KNHK-ACTION-PARAMS"),
        (await store.run("put", "x", base64="!"), "KNHK-ACTION-PARAMS"),
        (await store.run("get", ""), "KNHK-ACTION-PARAMS"),
        (await store.run("copy", "x"), "KNHK-ACTION-PARAMS"),
        (await store.run("get", "../../outside"), "KNHK-ACTION-PARAMS"),
        (await store.run("get", "x", connection="nobody", timeout="3s"), "KNHK-S3-UNAVAILABLE"),
    ]
    for outcome, code in cases:
        assert isinstance(outcome, Failed | RetryLater), outcome
        assert outcome.code == code, outcome
        assert "guessed-secret" not in outcome.message
        assert SECRET_KEY not in outcome.message
    assert "names no bucket" in action(S3Options(), NoBlobs("a test")).traits.disabled
