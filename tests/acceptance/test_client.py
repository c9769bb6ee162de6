"""The SDK's clients against a real server, which is killed while they use it."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

import knhk
from knhk.domain.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InvalidDescriptor,
    ServerUnreachable,
    WorkflowNotFound,
)
from tests.acceptance.server import Server, free_port


def slow(pause: str = "200ms") -> knhk.Workflow:
    flow = knhk.Workflow("slow", department="sales")
    word = flow.input("word", type="string", default="x")
    nap = flow.step("nap", "wait", {"duration": pause, "output": word})
    flow.output("word", nap.output)
    return flow


def test_what_a_program_does_with_a_server(server: Server) -> None:
    with knhk.Client(server.api) as client:
        done = client.run(slow(), {"word": "hello"})
        assert (done.state, done.outputs, done.step("nap").output) == ("completed", {"word": "hello"}, "hello")
        first = client.submit(slow("10m"), idempotency_key="order-1")
        again = client.submit(slow("10m"), idempotency_key="order-1")
        assert (again.workflow_id, again.replayed) == (first.workflow_id, True)
        with pytest.raises(IdempotencyConflict):
            client.submit(slow("20m"), idempotency_key="order-1")
        assert client.pause(first.workflow_id, "lunch").state == "paused"
        assert client.resume(first.workflow_id).state == "running"
        with pytest.raises(TimeoutError):
            client.wait(first.workflow_id, timeout_s=0.2)
        assert client.cancel(first.workflow_id, "no more").state == "cancelled"
        with pytest.raises(IllegalTransition):
            client.cancel(first.workflow_id)
        assert client.retry(first.workflow_id).state == "running"
        assert client.cancel(first.workflow_id).ended
        kinds = [receipt.kind for receipt in client.receipts(done.workflow_id)]
        assert (kinds[0], kinds[-1]) == ("workflow.submitted", "workflow.completed")
        assert [receipt.kind for receipt in client.events(done.workflow_id)] == kinds
        listed = {one.workflow_id for one in client.list(department="sales").workflows}
        deadline = time.monotonic() + 30
        while listed != {done.workflow_id, first.workflow_id} and time.monotonic() < deadline:
            listed = {one.workflow_id for one in client.list(department="sales").workflows}
        assert listed == {done.workflow_id, first.workflow_id}
        assert {one.name for one in client.actions()} >= {"http", "process"}
        client.delete(done.workflow_id)
        assert client.status(done.workflow_id).erased
        with pytest.raises(WorkflowNotFound):
            client.status("wf-1")
        with pytest.raises(WorkflowNotFound):
            client.status("../workers")
        with pytest.raises(InvalidDescriptor):
            client.submit("apiVersion: knhk/v1")


async def test_the_same_with_an_event_loop(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(slow().to_yaml())
    async with knhk.AsyncClient(server.api) as client:
        runs = await asyncio.gather(*(client.run(file, {"word": str(number)}) for number in range(5)))
        assert [run.outputs for run in runs] == [{"word": str(number)} for number in range(5)]
        submitted = await client.submit(slow("10m").to_dict())
        with pytest.raises(TimeoutError):
            await client.wait(submitted.workflow_id, timeout_s=0.2)
        assert (await client.cancel(submitted.workflow_id)).state == "cancelled"
        kinds = [receipt.kind async for receipt in client.events(submitted.workflow_id)]
        assert kinds[-1] == "workflow.cancelled"
        with pytest.raises(WorkflowNotFound):
            await client.status("wf-1")


def test_a_server_that_is_killed_and_comes_back_is_not_noticed(server: Server) -> None:
    with knhk.Client(server.api, attempts=30) as client:
        submitted = client.submit(slow("3s"))
        seen: list[int] = []

        def follow() -> None:
            with knhk.Client(server.api, attempts=30) as own:
                seen.extend(receipt.seq for receipt in own.events(submitted.workflow_id))

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(0.5)
        server.kill()
        other: list[knhk.Client] = []
        submitting = threading.Thread(target=lambda: other.append(client.submit(slow("10ms"), {"word": "late"})))  # type: ignore[arg-type]
        submitting.start()
        time.sleep(0.5)
        server.start()
        submitting.join(timeout=60)
        follower.join(timeout=60)
        assert seen == list(range(len(seen)))
        assert client.status(submitted.workflow_id).state == "completed"
        assert client.wait(other[0].workflow_id).state == "completed"  # type: ignore[attr-defined]


def test_no_server_is_said_at_once() -> None:
    with knhk.Client(f"http://127.0.0.1:{free_port()}", attempts=1) as client, pytest.raises(ServerUnreachable):
        client.status("wf-1234567890")


def asking() -> knhk.Workflow:
    flow = knhk.Workflow("asking")
    paid = flow.step("paid", "wait_for", {"event": "payment", "correlate": "B-1"})
    flow.step("boss", "approval", {"approvers": ["ann"]}, depends_on=[paid])
    flow.output("sum", paid.output.data.sum)
    return flow


def wait_for_step(client: knhk.Client, workflow_id: str, step: str) -> None:
    deadline = time.monotonic() + 30
    while client.status(workflow_id).step(step).state != "waiting":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_tells_a_run_what_it_waits_for(server: Server) -> None:
    with knhk.Client(server.api) as client:
        first, second, third = (client.submit(asking()).workflow_id for _ in range(3))
        for run in (first, second, third):
            wait_for_step(client, run, "paid")
        told = client.signal(first, "payment", {"sum": 3}, correlate="B-1", signal_id="p-1")
        assert (told.step, told.replayed) == ("paid", False)
        assert client.signal(first, "payment", {"sum": 3}, correlate="B-1", signal_id="p-1").replayed is True
        wait_for_step(client, first, "boss")
        assert client.approve(first, "ann", comment="fine").workflow_id == first
        assert client.wait(first, timeout_s=30).state == "completed"
        published = client.publish("payment", "B-1", {"sum": 4})
        assert {second, third} == set(published.delivered_to)
        wait_for_step(client, second, "boss")
        client.reject(second, "ann", step="boss")
        assert client.wait(second, timeout_s=30).state == "failed"

    async def asynchronously() -> None:
        async with knhk.AsyncClient(server.api) as client:
            assert (await client.approve(third, "ann")).workflow_id == third
            assert (await client.wait(third, timeout_s=30)).state == "completed"
            fourth = (await client.submit(asking())).workflow_id
            await client.signal(fourth, "payment", {"sum": 1}, correlate="B-1")
            with pytest.raises(IllegalTransition):
                await client.reject(first, "ann")
            assert (await client.publish("other", "B-2")).delivered_to == []
            blob = await client.blobs.put(b"x" * 3_000_000)
            assert await client.blobs.size(blob) == 3_000_000
            assert sum([len(piece) async for piece in client.blobs.read(blob)]) == 3_000_000

    asyncio.run(asynchronously())
