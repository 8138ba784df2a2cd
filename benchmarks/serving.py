"""Continuous batching in process: tokens a second, time to the first one, growth of memory.

    python -m benchmarks.serving [--quick] [--work DIR] [--checkpoint DIR] [--requests N] [--memory-requests N]

In this process, the scheduler over ONNX Runtime on the small trained checkpoint: 1, 4 and 16 clients in a closed
loop, questions of `engines/bench/questions.py`, half of them with a picture that is new each time, 64 new tokens each
whatever they say. "One at a time" is the same scheduler with one KV slot, the rest of the clients waiting in the
queue. A process each, one after another; questions are prepared before the clock starts.
Then `--memory-requests` requests by 16 clients: resident memory after the first fifth against that at the end.
`--quick` asks a few questions: it shows that the script works and measures nothing.
"""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.checkpoints import add_work_option, exported
from benchmarks.measure import REPOSITORY, measure, print_table, ratio_text, seconds_text
from engines.bench.load import LoadResult, run_load

if TYPE_CHECKING:
    from engines.runtime.scheduler_limits import SchedulerLimits
    from engines.runtime.service import SchedulerService

CLIENTS = (1, 4, 16)
NUM_SLOTS = 16
CAPACITY = 512
NUM_NEW_TOKENS = 64
NUM_THREADS = 1  # products of the small checkpoint are too small to share
SETTLE_SECONDS = 2.5
"""More than a service is idle before it gives memory back (`engines.runtime.service`)."""
HEADER = (
    "clients",
    "tokens/s",
    "one at a time",
    "ratio",
    "first token, median",
    "p95",
    "one at a time, median",
    "p95",
)
HEADER_MEMORY = ("requests", "resident after a fifth", "at the end", "growth", "limit")


# --- contestants: each runs in a child of its own ---------------------------------------------------


def serve(bundle: str, num_clients: int, num_slots: int, num_requests: int) -> dict[str, Any]:
    """Load over a scheduler with `num_slots` slots: what the clients saw."""
    from engines.bench.serving import asker, prepared_requests
    from export.processor.processor import Processor

    processor = Processor.from_directory(bundle)
    requests = prepared_requests(processor, 2 * num_clients + num_requests, NUM_NEW_TOKENS)
    with open_service(bundle, num_slots) as service:
        ask = asker(service, requests)
        run_load(ask, num_clients, 2 * num_clients)  # warms every shape up
        result = run_load(ask, num_clients, num_requests, first=2 * num_clients)
        stats = service.stats()
    return {**summary(result), "mean_batch": stats.num_decode_rows / stats.num_decode_calls}


def grow(bundle: str, num_clients: int, num_requests: int) -> dict[str, Any]:
    """Resident bytes after the first fifth of the requests and at the end, no picture twice.

    Few different prompts, each with its picture altered every time it is asked: the caches must do their work, and
    the questions themselves take no memory. The cache of visual embeddings is full long before the first fifth, and
    the longest question asked in every slot first touches all memory of the KV cache that will be used.
    """
    from engines.bench.serving import asker, prepared_requests
    from engines.runtime.scheduler_limits import SchedulerLimits
    from export.processor.processor import Processor

    requests = prepared_requests(Processor.from_directory(bundle), 64, 16)
    first = num_requests // 5
    with open_service(bundle, NUM_SLOTS, SchedulerLimits(embedding_cache_bytes=2 << 20)) as service:
        longest = max(requests, key=lambda request: request.num_prompt_tokens)
        run_load(asker(service, [longest]), NUM_SLOTS, 2 * NUM_SLOTS)
        ask = asker(service, requests)
        run_load(ask, num_clients, first)
        before = resident_bytes()
        run_load(ask, num_clients, num_requests - first, first=first)
        return {"before": before, "after": resident_bytes(), "failed": service.stats().num_failed}


def open_service(bundle: str, num_slots: int, limits: "SchedulerLimits | None" = None) -> "SchedulerService":
    from engines.open import open_engine
    from engines.runtime.scheduler import Scheduler
    from engines.runtime.service import SchedulerService
    from export.bundle import open_bundle

    opened = open_bundle(Path(bundle))
    vision, decoder = open_engine(
        opened, None, num_slots=num_slots, capacity=CAPACITY, num_threads=NUM_THREADS
    )
    return SchedulerService(Scheduler(vision, decoder, opened.config, limits))


def summary(result: LoadResult) -> dict[str, Any]:
    return {
        "tokens_per_second": result.tokens_per_second,
        "first_token_median": result.first_token_seconds(0.5),
        "first_token_p95": result.first_token_seconds(0.95),
    }


def resident_bytes() -> int:
    """Of this process, once it has given back what it does not use."""
    time.sleep(SETTLE_SECONDS)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- the run ----------------------------------------------------------------------------------------


def row(num_clients: int, batched: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    return [
        str(num_clients),
        f"{batched['tokens_per_second']:,.0f}",
        f"{alone['tokens_per_second']:,.0f}",
        ratio_text(batched["tokens_per_second"], alone["tokens_per_second"]),
        seconds_text(batched["first_token_median"]),
        seconds_text(batched["first_token_p95"]),
        seconds_text(alone["first_token_median"]),
        seconds_text(alone["first_token_p95"]),
    ]


def memory_row(num_requests: int, before: int, after: int) -> list[str]:
    return [
        f"{num_requests:,}",
        f"{before / 1e6:.1f} MB",
        f"{after / 1e6:.1f} MB",
        f"{(after - before) / before:+.2%}",
        "+2%",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few questions, seconds")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=REPOSITORY / "models" / "qwen2-vl-tiny",
        help="(default: the small one)",
    )
    parser.add_argument(
        "--requests", type=int, default=192, help="of each measurement (default: %(default)s)"
    )
    parser.add_argument("--memory-requests", type=int, default=2000, help="(default: %(default)s)")
    add_work_option(parser)
    options = parser.parse_args()
    clients = CLIENTS[1:2] if options.quick else CLIENTS
    num_requests, num_memory_requests = (
        (8, 40) if options.quick else (options.requests, options.memory_requests)
    )
    bundle = exported(options.work, options.checkpoint.resolve(), "float32")

    rows = []
    for num_clients in clients:
        runs = [
            measure(
                f"{num_clients} clients, {num_slots} slots",
                serve,
                bundle=bundle,
                num_clients=num_clients,
                num_slots=num_slots,
                num_requests=num_requests,
            ).result
            for num_slots in (NUM_SLOTS, 1)
        ]
        rows.append(row(num_clients, *runs))
    print_table(f"Serving {bundle.name} in one process, {num_requests} requests each", HEADER, rows)
    run = measure(
        "memory", grow, bundle=bundle, num_clients=clients[-1], num_requests=num_memory_requests
    ).result
    print_table(
        "Resident memory", HEADER_MEMORY, [memory_row(num_memory_requests, run["before"], run["after"])]
    )


if __name__ == "__main__":
    main()
