"""Prometheus families from the plain figures that the parts keep."""

from collections.abc import Mapping

from prometheus_client.core import HistogramMetricFamily

from knhk.domain.histogram import Histogram


def histogram_family(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    """One histogram without labels."""
    family = HistogramMetricFamily(name, text)
    add_histogram(family, (), histogram)
    return family


def labelled_histograms(name: str, text: str, label: str, histograms: Mapping[str, Histogram]) -> HistogramMetricFamily:
    """A histogram for each value of a label."""
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, histogram in histograms.items():
        add_histogram(family, (value,), histogram)
    return family


def add_histogram(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    """Add what a histogram has counted by now."""
    cumulated, buckets = 0, []
    for bound, count in zip((*map(float, histogram.bounds), "+Inf"), list(histogram.counts), strict=True):
        cumulated += count
        buckets.append((str(bound), float(cumulated)))
    family.add_metric(labels, buckets, histogram.total)
