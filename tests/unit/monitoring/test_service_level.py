"""The service level of a node from its fold, its signs of life and its journal."""

from types import SimpleNamespace

import pytest

from knhk.domain import event as ev
from knhk.domain.errors import StorageUnavailable
from knhk.domain.event import AnyDetail, Event, Failure
from knhk.domain.receipt import SignedBlock
from knhk.domain.summary import Summary
from knhk.monitoring.objectives import burning
from knhk.monitoring.service_level import ServiceLevel, Targets
from knhk.observability.uptime import Lifetime, Uptime
from knhk.persistence.memory import MemoryStore
from tests.simulation.clock import VirtualClock

MINUTE = 60 * 10**9
TARGETS = Targets(0.9999, 0.9999, 0.99, 1.0, 2, 30.0)
FAILED = ev.Failed(Failure("KNHK-X", "no"))


def level(clock: VirtualClock, *earlier: Lifetime) -> ServiceLevel:
    uptime = Uptime(MemoryStore(), clock)
    uptime._earlier = list(earlier)
    return ServiceLevel(clock, TARGETS, uptime)


def end(found: ServiceLevel, clock: VirtualClock, detail: AnyDetail, took_s: float = 0.1) -> None:
    now = clock.now_ns()
    found.take(Summary(1, submitted_at_ns=now - int(took_s * 1e9)), Event(now, detail), "")


async def test_ends_are_good_bad_or_neither() -> None:
    clock = VirtualClock()
    found = level(clock)
    end(found, clock, ev.Completed())
    end(found, clock, ev.Completed(), took_s=1.5)
    end(found, clock, FAILED)
    end(found, clock, ev.TimedOut(Failure("KNHK-X", "no")), took_s=2)
    end(found, clock, ev.Cancelled())
    end(found, clock, ev.Started())
    window = found.report()["windows"]["5m"]
    assert (window["workflows"], window["failed"], window["error_percent"]) == (4, 2, 50)
    slow = next(one for one in found.objectives if one.name == "latency").measure(300)
    assert (slow.bad, slow.total) == (2, 4)


@pytest.mark.parametrize(("down_s", "told"), [(20, False), (60, True)])
async def test_down_time_counts_and_a_restart_of_a_young_node_is_no_alert(down_s: int, told: bool) -> None:
    clock = VirtualClock()
    now = clock.now_ns()
    found = level(clock, Lifetime(now - (down_s + 5) * 10**9, now - down_s * 10**9))
    availability = found.objectives[0]
    assert availability.measure(3_600).bad == pytest.approx(down_s, abs=1.0)
    condition = burning(availability)
    assert (condition is not None) is told
    if condition is not None:
        assert (condition.name, condition.severity) == ("slo.availability", "critical")


async def test_a_store_that_fails_on_the_way_costs_and_doubles_nothing() -> None:
    clock, store = VirtualClock(), MemoryStore()
    progress = SimpleNamespace(began=-1, cursor=-1, at_rest=True)
    first = level(clock)
    await first.load(store, store, 0, progress)
    end(first, clock, FAILED)
    assert await first.store(store, progress)

    class Failing(MemoryStore):
        async def blocks(self, partition: int, from_height: int, limit: int) -> list[SignedBlock]:
            raise StorageUnavailable("not now")

    second = level(clock)
    end(second, clock, ev.Completed())
    with pytest.raises(StorageUnavailable):
        await second.load(store, Failing(), 0, SimpleNamespace(began=3, cursor=3, at_rest=True))
    assert not second.complete
    assert not await second.store(store, progress)  # nothing half-known is stored
    await second.load(store, store, 0, progress)
    assert second.report()["windows"]["6h"]["workflows"] == 2


async def test_nothing_is_stored_while_the_projector_is_at_work() -> None:
    clock, store = VirtualClock(), MemoryStore()
    found = level(clock)
    await found.load(store, store, 0, SimpleNamespace(began=-1, cursor=-1, at_rest=True))
    assert not await found.store(store, SimpleNamespace(began=-1, cursor=5, at_rest=False))
    assert await store.cursor("service_level/0") == -1
