"""While the store cannot be written, every request is answered soon, and what was acknowledged is still told."""

import asyncio

from knhk.domain.errors import DiskFull
from knhk.ports.append import Commit
from tests.unit.api.descriptors import HEAD, NAPS, SUM
from tests.unit.api.node import problem_of, running

STEPS = f"""{HEAD}metadata: {{name: steps}}
spec:
  steps:
    - {{name: nap, action: wait, params: {{duration: 300ms}}}}
    - {{name: after, action: process, depends_on: [nap]}}
"""


async def test_nothing_hangs_and_everything_goes_on() -> None:
    broken = False

    def faults(_stage: str, _commit: Commit | None) -> None:
        if broken:
            raise DiskFull("no room")

    async with running(faults) as node:
        waiting, done = await node.id_of(NAPS), await node.id_of(SUM, "5s")
        moving = await node.id_of(STEPS)
        broken = True
        await asyncio.sleep(0.6)  # the timer of `moving` fires, and cannot be recorded
        async with asyncio.timeout(3):
            problem_of(await node.http.post(f"/workflows/{waiting}/cancel"), 503, "KNHK-5002")
            for _ in range(3):
                problem_of(await node.http.post("/workflows", content=SUM), 503, "KNHK-5002")
            shown = (await node.http.get(f"/workflows/{moving}")).json()
            assert [step["state"] for step in shown["steps"]] == ["waiting", "pending"]
            assert (await node.http.get(f"/workflows/{waiting}")).json()["state"] == "running"
            assert (await node.http.get(f"/workflows/{done}")).json()["state"] == "completed"
        broken = False
        async with asyncio.timeout(10):
            while (answer := await node.http.post("/workflows", content=SUM)).status_code == 503:
                await asyncio.sleep(0.02)
            assert answer.status_code in (200, 202)
            while (await node.http.get(f"/workflows/{moving}")).json()["state"] != "completed":
                await asyncio.sleep(0.01)
        # The decision was still being tried when 503 was answered, and has come through since.
        assert (await node.http.get(f"/workflows/{waiting}")).json()["state"] == "cancelled"
