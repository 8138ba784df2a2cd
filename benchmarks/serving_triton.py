"""What clients of a real tritonserver see: tokens a second, time to the first one, memory over many requests.

    python -m benchmarks.serving_triton [--quick] [--requests 128] [--memory-requests 2000]

The server that nvidia-pytriton carries, on this machine's CPU with the small trained checkpoint, 64 new tokens each
whatever they say; 1, 4 and 16 clients in a closed loop over HTTP on loopback, questions of
`engines/bench/questions.py`, half of them with a picture that is new each time. "One at a time" is the same server
with one KV slot. The clients share the machine with the server.
Then `--memory-requests` requests of 16 new tokens by 16 clients: resident memory of the model's process after the
first fifth against that at the end.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import print_table, ratio_text, seconds_text
from benchmarks.serving import (
    CAPACITY,
    CLIENTS,
    HEADER_MEMORY,
    NUM_NEW_TOKENS,
    NUM_SLOTS,
    NUM_THREADS,
    SETTLE_SECONDS,
    memory_row,
)
from engines.bench.load import LoadResult, TimedReply, run_load
from engines.bench.questions import bench_question
from engines.runtime.scheduler_limits import SchedulerLimits
from engines.serving.settings import ServerSettings
from engines.serving.triton.repository import write_repository
from examples.triton.client import stream_over_http
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.support.triton import RunningServer, missing, running_server

TINY = Path(__file__).parents[1] / "models" / "qwen2-vl-tiny"
MEMORY_NEW_TOKENS = 16
HEADER = (
    "clients",
    "tokens/s",
    "one at a time",
    "ratio",
    "first token, median",
    "p95",
    "one at a time, p95",
)


def ask(server: RunningServer, number: int, num_new_tokens: int = NUM_NEW_TOKENS) -> TimedReply:
    [message] = bench_question(number)
    images = [part["image"] for part in message["content"] if part["type"] == "image"]
    [text] = [part["text"] for part in message["content"] if part["type"] == "text"]
    start = time.perf_counter()
    times, usage = [], ""
    for piece in stream_over_http(server.http, text, images, settings={"max_tokens": num_new_tokens}):
        times.append(time.perf_counter() - start)
        usage = piece["usage"]
    return TimedReply(times[0], times[-1], json.loads(usage)["completion_tokens"])


def load(repository: Path, num_clients: int, num_requests: int) -> LoadResult:
    """What the clients saw, on a server of their own that has been warmed up."""
    with tempfile.TemporaryDirectory() as name, running_server(repository, Path(name)) as server:
        run_load(lambda number: ask(server, number), num_clients, 2 * num_clients)
        return run_load(lambda number: ask(server, number), num_clients, num_requests, first=2 * num_clients)


def resident_bytes(server: RunningServer) -> int:
    """Of the process that runs the model, once it has given back what it does not use."""
    time.sleep(SETTLE_SECONDS)
    [model] = server.processes()[1:]
    status = Path(f"/proc/{model}/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def endless_checkpoint(directory: Path) -> Path:
    """The small checkpoint without a token that ends an answer: answers have the length that is asked for."""
    shutil.copytree(TINY, directory)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((directory / name).read_text(encoding="utf-8"))
        content.pop("eos_token_id")
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def growth(repository: Path, num_clients: int, num_requests: int) -> list[str]:
    first = num_requests // 5
    with tempfile.TemporaryDirectory() as name, running_server(repository, Path(name)) as server:

        def ask_shortly(number: int) -> TimedReply:
            return ask(server, number, MEMORY_NEW_TOKENS)

        # Pages of the KV cache count once they are touched: fill every slot to its end before anything is compared.
        run_load(lambda number: ask(server, number, CAPACITY), num_clients, 4 * num_clients)
        run_load(ask_shortly, num_clients, first)
        before = resident_bytes(server)
        run_load(ask_shortly, num_clients, num_requests - first, first=first)
        after = resident_bytes(server)
    return memory_row(num_requests, before, after)


def row(num_clients: int, batched: LoadResult, alone: LoadResult) -> list[str]:
    rates = [result.tokens_per_second for result in (batched, alone)]
    return [
        str(num_clients),
        *(f"{rate:,.0f}" for rate in rates),
        ratio_text(rates[0], rates[1]),
        seconds_text(batched.first_token_seconds(0.5)),
        seconds_text(batched.first_token_seconds(0.95)),
        seconds_text(alone.first_token_seconds(0.95)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a real tritonserver on this machine's CPU.")
    parser.add_argument("--quick", action="store_true", help="a few questions, seconds")
    parser.add_argument(
        "--requests", type=int, default=128, help="of each measurement (default: %(default)s)"
    )
    parser.add_argument("--memory-requests", type=int, default=2000, help="(default: %(default)s)")
    options = parser.parse_args()
    if missing():
        parser.error(str(missing()))
    clients = CLIENTS[:2] if options.quick else CLIENTS
    num_requests, num_memory = (8, 40) if options.quick else (options.requests, options.memory_requests)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        export_checkpoint(endless_checkpoint(directory / "checkpoint"), directory / "bundle")
        bundle = open_bundle(directory / "bundle")
        batching = ServerSettings(num_slots=NUM_SLOTS, capacity=CAPACITY, num_threads=NUM_THREADS)
        # Its cache of visual embeddings is full long before the first fifth.
        small_cache = replace(batching, scheduler=SchedulerLimits(embedding_cache_bytes=2 << 20))
        repositories: list[Path] = []
        for settings in (batching, replace(batching, num_slots=1), small_cache):
            repositories.append(directory / f"repository-{len(repositories)}")
            write_repository(bundle, repositories[-1], settings, allow_unvalidated=True)
        rows = [
            row(n, *(load(repository, n, num_requests) for repository in repositories[:2])) for n in clients
        ]
        print_table(f"tritonserver over HTTP, {num_requests} requests each", HEADER, rows)
        grown = growth(repositories[-1], clients[-1], num_memory)
        print_table("Resident memory of the model's process", HEADER_MEMORY, [grown])


if __name__ == "__main__":
    main()
