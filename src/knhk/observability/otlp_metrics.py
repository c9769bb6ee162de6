"""The metrics of a scrape as OTLP: the same figures under the same names, so that a query works on either way."""

from collections.abc import Iterable

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from knhk.observability.otlp import SCOPE

_CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
_UNITS = {"_seconds": "s", "_bytes": "By", "_percentage": "%"}


def request(
    families: Iterable[Metric], resource: Resource, began_ns: int, now_ns: int
) -> tuple[ExportMetricsServiceRequest, int]:
    """The request, and how many data points are in it. Counters run from `began_ns`; both in Unix time.

    A counter keeps Prometheus's `_total` in its name.
    """
    made = ExportMetricsServiceRequest()
    part = made.resource_metrics.add()
    part.resource.CopyFrom(resource)
    scope = part.scope_metrics.add()
    scope.scope.CopyFrom(SCOPE)
    count = 0
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        metric = scope.metrics.add(name=name, description=family.documentation, unit=_unit(family.name))
        if family.type == "histogram":
            count += _add_histogram(metric, family, began_ns, now_ns)
            continue
        if family.type == "counter":
            metric.sum.aggregation_temporality = _CUMULATIVE
            metric.sum.is_monotonic = True
            points, began = metric.sum.data_points, began_ns
        else:
            points, began = metric.gauge.data_points, 0
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                point = points.add(start_time_unix_nano=began, time_unix_nano=now_ns, as_double=float(sample.value))
                _label(point, sample)
                count += 1
    return made, count


def _add_histogram(metric: pb.Metric, family: Metric, began_ns: int, now_ns: int) -> int:
    """Prometheus's cumulated buckets become counts of each; a series is what has the same labels but `le`."""
    metric.histogram.aggregation_temporality = _CUMULATIVE
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        series.setdefault(labels, []).append(sample)
    for samples in series.values():
        point = metric.histogram.data_points.add(start_time_unix_nano=began_ns, time_unix_nano=now_ns)
        before = 0
        for sample in samples:
            if sample.name.endswith("_bucket"):
                point.bucket_counts.append(int(sample.value) - before)
                before = int(sample.value)
                if sample.labels["le"] != "+Inf":
                    point.explicit_bounds.append(float(sample.labels["le"]))
            elif sample.name.endswith("_sum"):
                point.sum = float(sample.value)
        point.count = before
        _label(point, samples[0])
    return len(series)


def _label(point: pb.NumberDataPoint | pb.HistogramDataPoint, sample: Sample) -> None:
    for key, value in sample.labels.items():
        if key != "le":
            point.attributes.add(key=key).value.string_value = value


def _unit(name: str) -> str:
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "1")
