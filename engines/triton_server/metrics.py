"""What does the server tell its operators? The scheduler's counts as Triton custom metrics, at /metrics."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from engines.runtime.scheduler_limits import SchedulerStats

UPDATE_SECONDS = 0.25


@dataclass(frozen=True)
class Metric:
    name: str
    kind: Literal["COUNTER", "GAUGE"]
    doc: str
    value: Callable[[SchedulerStats], float]


METRICS = (
    Metric("qv_slots", "GAUGE", "KV slots", lambda s: s.num_slots),
    Metric("qv_slots_used", "GAUGE", "KV slots that answers are being written in", lambda s: s.slots_used),
    Metric("qv_queue_length", "GAUGE", "requests that wait for a KV slot", lambda s: s.queue_length),
    Metric(
        "qv_embedding_cache_bytes",
        "GAUGE",
        "visual embeddings kept for pictures that come again",
        lambda s: s.embedding_cache_bytes,
    ),
    Metric("qv_requests_total", "COUNTER", "requests taken", lambda s: s.num_submitted),
    Metric("qv_requests_refused_total", "COUNTER", 'sent away with "try later"', lambda s: s.num_refused),
    Metric("qv_requests_finished_total", "COUNTER", "answered to the end", lambda s: s.num_finished),
    Metric("qv_requests_cancelled_total", "COUNTER", "given up by their clients", lambda s: s.num_cancelled),
    Metric("qv_requests_expired_total", "COUNTER", "ended by their deadline", lambda s: s.num_expired),
    Metric("qv_requests_failed_total", "COUNTER", "ended by an engine's fault", lambda s: s.num_failed),
    Metric(
        "qv_prompt_tokens_total",
        "COUNTER",
        "prompt tokens of admitted requests",
        lambda s: s.num_prompt_tokens,
    ),
    Metric("qv_reused_tokens_total", "COUNTER", "those found in a KV slot", lambda s: s.num_reused_tokens),
    Metric(
        "qv_new_tokens_total",
        "COUNTER",
        "tokens written; its rate is tokens a second",
        lambda s: s.num_new_tokens,
    ),
    Metric(
        "qv_pictures_encoded_total",
        "COUNTER",
        "pictures and videos encoded",
        lambda s: s.num_pictures_encoded,
    ),
    Metric(
        "qv_picture_cache_hits_total",
        "COUNTER",
        "found in the cache instead",
        lambda s: s.num_picture_cache_hits,
    ),
    Metric("qv_decode_calls_total", "COUNTER", "decode steps of the engine", lambda s: s.num_decode_calls),
    Metric(
        "qv_decode_rows_total",
        "COUNTER",
        "answers they went on with: by calls, the mean batch",
        lambda s: s.num_decode_rows,
    ),
    Metric(
        "qv_queue_seconds_sum",
        "COUNTER",
        "seconds of waiting, of all admitted requests",
        lambda s: s.queue_seconds,
    ),
    Metric("qv_queue_seconds_count", "COUNTER", "admitted requests", lambda s: s.num_admitted),
    Metric(
        "qv_first_token_seconds_sum",
        "COUNTER",
        "seconds to the first token, of all answers",
        lambda s: s.first_token_seconds,
    ),
    Metric(
        "qv_first_token_seconds_count", "COUNTER", "answers with a first token", lambda s: s.num_first_tokens
    ),
)


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
