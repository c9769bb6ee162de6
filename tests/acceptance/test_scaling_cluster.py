"""A cluster in a StatefulSet takes a replica away: drained, under load, nothing is lost; then one comes back."""

from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.acceptance.acknowledged import until
from tests.acceptance.fleet import Fleet, verified
from tests.chaos.load import Load
from tests.services import etcd, postgres
from tests.services.kubernetes import ApiServer


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path / "kubernetes", replicas=3)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.fixture
def fleet(tmp_path: Path, api: ApiServer) -> Iterator[Fleet]:
    if why := etcd.missing() or postgres.missing():
        pytest.skip(why)
    made = Fleet(
        tmp_path,
        platform={"enable_auto_scaling": True},
        monitoring={"latency_target": "0s"},
        scaling={
            "driver": "kubernetes",
            "statefulset": "knhk",
            "service_account_path": str(api.account),
            "min_replicas": 2,
            "target_cpu": 100,
            "target_memory": 100,
            "check_interval": "300ms",
            "scale_down_cooldown": "1h",
        },
    )
    try:
        made.add("knhk-0")
        with ThreadPoolExecutor() as both:
            list(both.map(made.add, ("knhk-1", "knhk-2")))
        yield made
    finally:
        made.close()


@pytest.mark.soak
@pytest.mark.timeout(280)
def test_a_replica_is_drained_before_it_goes_and_takes_part_when_it_is_back(
    fleet: Fleet, api: ApiServer, tmp_path: Path
) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 3)
    api.down = True
    fleet.settled()
    load.start().release()
    until(lambda: len(load.acknowledged) > 20)
    until(lambda: "the API server is shutting down" in _leaders_health(fleet))
    api.down = False

    until(lambda: api.replicas == 2)
    assert _marks(fleet) == 1
    owners = {one["owner"] for one in fleet.status()["partitions"]}
    assert "knhk-2" not in owners, "it still owned something when its pod was to be deleted"
    fleet.stop("knhk-2")  # as the StatefulSet's controller does
    fleet.settled()
    until(lambda: _marks(fleet) == 0)

    answers = [fleet.nodes[name].client.get("/scaling").json() for name in ("knhk-0", "knhk-1")]
    for shown in answers:  # whichever is asked, the leader answers
        assert (shown["driver"], shown["leads"]) == ("kubernetes", True)
        (decision,) = shown["decisions"]
        assert (decision["before"], decision["after"], decision["drains"]) == (3, 2, ["knhk-2"])
        assert decision["outcome"] == "done"
        assert "makes 1 replicas" in decision["reason"]
    told = fleet.any().cli("scaling", "explain", "-o", "json")
    assert {one["replica"] for one in told["loads"]} == {"knhk-0", "knhk-1"}

    api.set(3)  # an operator wants three again
    fleet.start("knhk-2")
    fleet.settled()
    assert {one["owner"] for one in fleet.status()["partitions"]} == {"knhk-0", "knhk-1", "knhk-2"}
    assert not api.faults
    load.finish().check()
    assert not [code for code in load.refused if code.startswith("KNHK")], load.refused
    for name in sorted(fleet.running):
        fleet.stop(name)
    assert verified(fleet)["workflows"] >= len(load.acknowledged)


def _leaders_health(fleet: Fleet) -> str:
    leader = fleet.status()["leader"]
    return (
        ""
        if leader is None
        else str(httpx.get(f"{fleet.nodes[leader].ops}/health/detailed").json()["checks"]["scaling"])
    )


def _marks(fleet: Fleet) -> int:
    """How many nodes are marked as drained in etcd."""
    first, last = (b64encode(f"/knhk/knhk/drained{end}".encode()).decode() for end in ("/", "0"))
    answer = httpx.post(f"{fleet.etcd.endpoints[0]}/v3/kv/range", json={"key": first, "range_end": last})
    return int(answer.json().get("count", 0))
