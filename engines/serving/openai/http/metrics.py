"""The scheduler's counts for Prometheus, by the names that the Triton model has too."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from engines.runtime.scheduler_limits import SchedulerStats
from engines.serving.metrics import METRICS


class SchedulerCollector:
    """Asked at each scrape.

    Args:
        stats: gives a copy of the counts.
        model: label that tells models apart.
    """

    def __init__(self, stats: Callable[[], SchedulerStats], model: str) -> None:
        self._stats, self._model = stats, model

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        values = {metric.name: float(metric.value(stats)) for metric in METRICS}
        for metric in METRICS:
            # The library appends the suffixes itself; a sum and its count are one family.
            family: Metric
            if metric.kind == "GAUGE":
                family = GaugeMetricFamily(metric.name, metric.doc, labels=["model"])
                family.add_metric([self._model], values[metric.name])
            elif metric.name.endswith("_sum"):
                name = metric.name.removesuffix("_sum")
                family = SummaryMetricFamily(name, metric.doc, labels=["model"])
                family.add_metric([self._model], int(values[f"{name}_count"]), values[metric.name])
            elif metric.name.endswith("_count"):
                continue
            else:
                family = CounterMetricFamily(metric.name, metric.doc, labels=["model"])
                family.add_metric([self._model], values[metric.name])
            yield family
