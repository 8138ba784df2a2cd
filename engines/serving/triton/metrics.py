"""The scheduler's counts as Triton custom metrics, at Triton's /metrics."""

import threading
from collections.abc import Callable
from typing import Any

from engines.runtime.scheduler_limits import SchedulerStats
from engines.serving.metrics import METRICS

UPDATE_SECONDS = 0.25


class MetricsReporter:
    """Writes the scheduler's counts to Triton a few times a second, in a thread of its own.

    Args:
        stats: gives a copy of the counts.
        backend: Triton's `triton_python_backend_utils`.
        model: label that tells models apart.
    """

    def __init__(self, stats: Callable[[], SchedulerStats], backend: Any, model: str) -> None:
        self._stats = stats
        self._families, self._reporters = [], []
        for metric in METRICS:
            kind = getattr(backend.MetricFamily, metric.kind)
            family = backend.MetricFamily(name=metric.name, description=metric.doc, kind=kind)
            self._families.append(family)
            self._reporters.append((metric, family.Metric(labels={"model": model})))
        self._written = {metric.name: 0.0 for metric in METRICS}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def write(self) -> None:
        stats = self._stats()
        for metric, reporter in self._reporters:
            value = float(metric.value(stats))
            if metric.kind == "GAUGE":
                reporter.set(value)
            elif value > self._written[metric.name]:
                reporter.increment(value - self._written[metric.name])
            self._written[metric.name] = value

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.write()
        # Triton's objects must go before its side of the model does: later, they take the process down with them.
        self._reporters.clear()
        self._families.clear()

    def _run(self) -> None:
        while not self._ended.wait(UPDATE_SECONDS):
            self.write()
