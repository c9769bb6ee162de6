"""The exporter against a real receiver, by gRPC and by HTTP: what arrives, and what a bad collector costs."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from knhk.domain import event as ev
from knhk.domain import trace_context
from knhk.domain.event import Event
from knhk.domain.summary import Summary, fold
from knhk.observability import logs, otlp
from knhk.observability.exporter import BATCH, Exporter
from knhk.observability.metrics import Metrics
from knhk.platform.clock import SystemClock
from tests.integration.recovering import until
from tests.services.otlp import Receiver, attributes

SECOND = 1_000_000_000


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@asynccontextmanager
async def exporting(url: str, *, interval_s: float = 0.1, headers: str = "") -> AsyncIterator[tuple[Exporter, Metrics]]:
    metrics, endpoint = Metrics(), otlp.endpoint_of(url)
    exporter = Exporter(
        SystemClock(),
        otlp.resource("node-1", "host"),
        lambda: otlp.sender_to(endpoint, otlp.headers_of(headers)),
        interval_s=interval_s,
        sampling_rate=1.0,
        families=metrics.families,
        where=endpoint.url,
    )
    await exporter.start()
    try:
        yield exporter, metrics
    finally:
        await exporter.stop()


def run(exporter: Exporter, metrics: Metrics, workflow_id: int) -> None:
    summary = Summary(workflow_id)
    for event in (
        Event(100 * SECOND, ev.Submitted("name", "finance")),
        Event(101 * SECOND, ev.StepCompleted(100 * SECOND), step="a", attempt=1),
        Event(102 * SECOND, ev.Completed()),
    ):
        fold(summary, event)
        for one in (metrics, exporter.spans):
            one.take(summary, event, "process" if event.step else "")


def sent(exporter: Exporter, signal: str, name: str = "knhk_telemetry_sent") -> float:
    (family,) = [one for one in exporter.families() if one.name == name]
    return next(sample.value for sample in family.samples if sample.labels["signal"] == signal)


@pytest.mark.parametrize("way", ["grpc", "http"])
async def test_traces_metrics_and_logs_arrive(receiver: Receiver, way: str) -> None:
    url = receiver.grpc_url if way == "grpc" else receiver.http_url
    async with exporting(url, headers="x-tenant=blue, authorization=Basic abc") as (exporter, metrics):
        run(exporter, metrics, 5)
        logs.get("test").error("payment failed", workflow_id="wf-5", amount=3, ratio=0.5, ok=True, parts=[1, 2])
        await until(lambda: receiver.spans() and receiver.logs() and receiver.metrics())
        await until(lambda: sent(exporter, "traces") == 2)
    assert {span.trace_id for span in receiver.spans()} == {trace_context.trace_id(5)}
    assert receiver.headers[0]["x-tenant"] == "blue"
    assert receiver.headers[0]["authorization"] == "Basic abc"
    (record,) = [one for one in receiver.logs() if one.body.string_value == "payment failed"]
    assert record.severity_text == "ERROR"
    assert record.trace_id == trace_context.trace_id(5)
    assert abs(record.time_unix_nano / 1e9 - time.time()) < 60
    found = attributes(record)
    assert {key: found[key] for key in ("amount", "ratio", "ok")} == {"amount": 3, "ratio": 0.5, "ok": True}
    assert json.loads(found["parts"]) == [1, 2]
    shown = receiver.metrics()
    ended = shown["knhk_workflows_total"].sum
    assert ended.is_monotonic
    points = {tuple(sorted(attributes(point).items())): point.as_double for point in ended.data_points}
    assert points[("department", "finance"), ("status", "completed")] == 1
    (durations,) = shown["knhk_workflow_duration_seconds"].histogram.data_points
    assert (durations.count, durations.sum) == (1, 2.0)
    assert sum(durations.bucket_counts) == 1
    assert len(durations.bucket_counts) == len(durations.explicit_bounds) + 1
    assert durations.bucket_counts[list(durations.explicit_bounds).index(2.5)] == 1
    (labels,) = [
        attributes(part.resource) for signal, request in receiver.requests[:1] for part in _parts(signal, request)
    ]
    assert labels["service.name"] == "knhk"
    assert labels["service.instance.id"] == "node-1"


def _parts(signal: str, request: object) -> list[object]:
    names = {"traces": "resource_spans", "metrics": "resource_metrics", "logs": "resource_logs"}
    return list(getattr(request, names[signal]))


@pytest.mark.parametrize("way", ["grpc", "http"])
async def test_a_collector_that_takes_traces_alone_gets_traces_alone(receiver: Receiver, way: str) -> None:
    receiver.refuse = {"metrics", "logs"}
    async with exporting(receiver.grpc_url if way == "grpc" else receiver.http_url) as (exporter, metrics):
        logs.get("test").error("not for Jaeger")
        await asyncio.sleep(0.5)
        run(exporter, metrics, 6)
        await until(receiver.spans)
        assert exporter.health() == "ok"
    assert {signal for signal, _ in receiver.requests} == {"traces"}


@pytest.mark.parametrize("way", ["grpc", "http"])
async def test_what_a_busy_collector_refuses_is_sent_again(receiver: Receiver, way: str) -> None:
    receiver.busy = True
    async with exporting(receiver.grpc_url if way == "grpc" else receiver.http_url) as (exporter, metrics):
        run(exporter, metrics, 7)
        await until(lambda: exporter.health() != "ok")
        assert "does not take what is sent" in exporter.health()
        receiver.busy = False
        await until(receiver.spans)
        await until(lambda: exporter.health() == "ok")
        assert sent(exporter, "traces", "knhk_telemetry_dropped") == 0
    assert len(receiver.spans()) == 2


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_dead_collector_costs_nothing_but_telemetry(scheme: str) -> None:
    async with exporting(f"{scheme}://127.0.0.1:9") as (exporter, metrics):
        for workflow_id in range(20_000):
            run(exporter, metrics, workflow_id)
        await until(lambda: exporter.health() != "ok")
        assert len(exporter.spans) <= 32_768
        lost = sent(exporter, "traces", "knhk_telemetry_dropped")
        assert lost >= 40_000 - 32_768 - BATCH
        assert f"{int(lost)}" in exporter.health() or "records are lost" in exporter.health()
        began = time.monotonic()
    assert time.monotonic() - began < 10


async def test_a_collector_that_hangs_does_not_hold_up_the_stop(receiver: Receiver) -> None:
    receiver.slow_s = 60
    async with exporting(receiver.http_url) as (exporter, metrics):
        run(exporter, metrics, 8)
        await asyncio.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 20


async def test_what_is_queued_at_a_stop_is_sent(receiver: Receiver) -> None:
    async with exporting(receiver.http_url, interval_s=3600) as (exporter, metrics):
        for workflow_id in range(700):
            run(exporter, metrics, workflow_id)
    assert len(receiver.spans()) == 1_400
    assert receiver.metrics()


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://otel-collector:4317", ("otel-collector:4317", "grpc", False)),
        ("https://otel-collector:4317", ("otel-collector:4317", "grpc", True)),
        ("http://otel-collector:4318", ("http://otel-collector:4318", "http", False)),
        ("https://otlp.example.com/otlp/", ("https://otlp.example.com/otlp", "http", True)),
        ("grpc://[::1]", ("[::1]:4317", "grpc", False)),
        ("grpcs://host:443", ("host:443", "grpc", True)),
        ("collector:4317", ("collector:4317", "grpc", False)),
    ],
)
def test_what_an_endpoint_means(url: str, meant: tuple[str, str, bool]) -> None:
    assert otlp.endpoint_of(url) == meant
    assert otlp.endpoint_of(url, "grpc").protocol == "grpc"
    assert otlp.endpoint_of(url, "http").protocol == "http"


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:x"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ValueError):
        otlp.endpoint_of(url)
