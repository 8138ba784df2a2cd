"""What a server of any protocol tells its operators: the scheduler's counts, by the names that stand at /metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engines.runtime.scheduler_limits import SchedulerStats


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
