"""`qv-export serve` beside the same scheduler without a network, the Triton repository, and one answer at a time.

    python -m benchmarks.serving_http [--clients 1 4 16 64] [--rounds 3] [--memory-requests 0] [--without-triton]

The small checkpoint on this machine's CPU, one thread, 64 new tokens an answer whatever it says; clients in a closed
loop, questions of `engines/bench/questions.py`, half of them with a picture that is new each time. All contestants are
open all the time, and in every round each number of clients asks them one after another, so that what else the machine
does hits them alike; the table has medians of the rounds, and of each round's ratio to the scheduler in process:

- in process: the same scheduler and the same processor, with no server around them and a thread for each client;
- serve: over HTTP on loopback, streamed; the client is a process of its own that shares the cores with the server;
- Triton: the model repository in the tritonserver that nvidia-pytriton carries, with the same client;
- one at a time: serve with one KV slot.

`--memory-requests N`: resident memory of serve after a fifth of N requests of 16 clients and at the end, without
what its cache of picture embeddings grew by meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.http_clients import ask_all
from benchmarks.measure import REPOSITORY, measure, print_table, ratio_text, seconds_text
from benchmarks.serving import CAPACITY, HEADER_MEMORY, NUM_SLOTS, NUM_THREADS, SETTLE_SECONDS, memory_row

CLIENTS = (1, 4, 16, 64)
NUM_NEW_TOKENS = 64
MAX_QUEUE = 64
PATH = "/v1/chat/completions"
TRITON_PATH = "/v2/models/qwen2_vl/generate_stream"
HEADER = (
    "clients",
    "contestant",
    "tokens/s",
    "of in process",
    "CPU a token",
    "of in process",
    "first token, median",
    "p95",
    "load",
)

Ask = Callable[[int, int, int], dict[str, Any]]
"""(clients, requests, number of the first one): what the clients saw, and the processor's seconds."""


# --- the contestants --------------------------------------------------------------------------------


@contextmanager
def in_process(bundle: Path) -> Iterator[Ask]:
    """A process of its own that has the scheduler and the clients."""
    command = [sys.executable, "-m", "benchmarks.serving_http", "--in-process", str(bundle)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask(*wanted: int) -> dict[str, Any]:
            print(json.dumps(wanted), file=child.stdin, flush=True)
            found: dict[str, Any] = json.loads(child.stdout.readline())  # type: ignore[union-attr]
            return found

        yield ask
        child.stdin.close()


def answer_in_process(bundle: str) -> None:
    """What that process does: a line of numbers on stdin, a line of results on stdout."""
    from benchmarks.serving import open_service, summary
    from engines.bench.load import run_load
    from engines.bench.questions import bench_question
    from engines.bench.serving import asker
    from engines.runtime.answer import Request
    from export.checkpoint.generation_config import GenerationConfig
    from export.processor.processor import Processor

    processor, config = Processor.from_directory(bundle), GenerationConfig(max_new_tokens=NUM_NEW_TOKENS)
    with open_service(bundle, NUM_SLOTS) as service:

        def ask(number: int) -> Any:
            started = time.perf_counter()
            request = Request(processor.inputs_from_messages(bench_question(number)), config)
            reply = asker(service, [request])(0)
            spent = time.perf_counter() - started - reply.seconds
            return replace(reply, first_token_seconds=reply.first_token_seconds + spent)

        for line in sys.stdin:
            num_clients, num_requests, first = json.loads(line)
            before = time.process_time()
            result = summary(run_load(ask, num_clients, num_requests, first=first))
            print(json.dumps({**result, "cpu_seconds": time.process_time() - before}), flush=True)


@contextmanager
def served(bundle: Path, num_slots: int) -> Iterator[Ask]:
    """A `qv-export serve`."""
    with serving(bundle, num_slots) as (port, process):
        yield over_http(port, PATH, "openai", process)


@contextmanager
def serving(bundle: Path, num_slots: int) -> Iterator[tuple[int, int]]:
    """Port and process of a `qv-export serve`."""
    from tests.support.serve import running_serve

    options = [
        "--slots",
        num_slots,
        "--max-context",
        CAPACITY,
        "--threads",
        NUM_THREADS,
        "--max-queue",
        MAX_QUEUE,
    ]
    with running_serve(bundle, *options, "--drain-seconds", 1) as server:
        yield server.port, server.process.pid


@contextmanager
def triton(bundle: Path, directory: Path) -> Iterator[Ask]:
    """A tritonserver with the model repository."""
    from engines.serving.settings import ServerSettings
    from engines.serving.triton.repository import write_repository
    from export.bundle import open_bundle
    from tests.support.triton import running_server

    repository = directory / "repository"
    settings = ServerSettings(num_slots=NUM_SLOTS, capacity=CAPACITY, num_threads=NUM_THREADS)
    write_repository(open_bundle(bundle), repository, settings, allow_unvalidated=True)
    with running_server(repository, directory) as server:
        yield over_http(server.http_port, TRITON_PATH, "triton", server.process.pid)


def over_http(port: int, path: str, kind: str, process: int) -> Ask:
    def ask(num_clients: int, num_requests: int, first: int) -> dict[str, Any]:
        before = cpu_seconds(process)
        result = measure(
            f"{path}, {num_clients} clients",
            ask_all,
            port=port,
            path=path,
            kind=kind,
            num_clients=num_clients,
            num_requests=num_requests,
            first=first,
            num_new_tokens=NUM_NEW_TOKENS,
        ).result
        return {**result, "cpu_seconds": cpu_seconds(process) - before}

    return ask


def cpu_seconds(process: int) -> float:
    """Of a server and every process below it, media processes too: what it costs, whatever else the machine does."""
    import psutil

    root = psutil.Process(process)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def resident_bytes(process: int) -> int:
    """Of a server that has given back what it does not use."""
    time.sleep(SETTLE_SECONDS)
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def growth(bundle: Path, num_requests: int) -> list[str]:
    """Every slot is filled to its end before anything is compared: its pages count once they are touched."""
    with serving(bundle, NUM_SLOTS) as (port, process):

        def ask(num: int, first: int, num_new_tokens: int) -> None:
            measure(
                f"memory, requests {first} to {first + num}", ask_all, port=port, path=PATH, kind="openai",
                num_clients=NUM_SLOTS, num_requests=num, first=first, num_new_tokens=num_new_tokens,
            )  # fmt: skip

        ask(2 * NUM_SLOTS, 0, CAPACITY - 128)
        ask(num_requests // 5, 2 * NUM_SLOTS, 16)
        before, cached_before = resident_bytes(process), cached_bytes(port)
        ask(num_requests - num_requests // 5, num_requests, 16)
        after, cached = resident_bytes(process), cached_bytes(port) - cached_before
        return [*memory_row(num_requests, before, after - cached), f"{cached / 1e6:.1f} MB"]


def cached_bytes(port: int) -> int:
    """Of the cache of picture embeddings, which is meant to grow up to its bound."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith("qv_embedding_cache_bytes{")]
    return int(float(line.rsplit(" ", 1)[1]))


# --- the run ----------------------------------------------------------------------------------------


def rounds_of(
    asks: dict[str, Ask], num_clients: int, num_rounds: int, num_requests: int
) -> dict[str, list[dict[str, Any]]]:
    """What each contestant did in each round, after one that warms every shape up."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asks}
    for number in range(num_rounds + 1):
        for name, ask in asks.items():
            # Who answers one at a time needs no more than a question each to show how long the last one waits.
            wanted = num_requests if number and name != ALONE else num_clients
            result = ask(num_clients, wanted, 1000 * num_clients + number * num_requests)
            found[name].append({**result, "cpu_seconds": result["cpu_seconds"] / wanted / NUM_NEW_TOKENS})
    return {name: results[1:] for name, results in found.items()}


def rows_of(num_clients: int, found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    [reference, *_] = found.values()
    rows = []
    for name, results in found.items():
        typical = {key: statistics.median(one[key] for one in results) for key in results[0]}
        ratio = {
            key: statistics.median(
                one[key] / other[key] for one, other in zip(results, reference, strict=True)
            )
            for key in ("tokens_per_second", "cpu_seconds")
        }
        rows.append(
            [
                str(num_clients),
                name,
                f"{typical['tokens_per_second']:,.0f}",
                ratio_text(ratio["tokens_per_second"], 1.0),
                seconds_text(typical["cpu_seconds"]),
                ratio_text(ratio["cpu_seconds"], 1.0),
                seconds_text(typical["first_token_median"]),
                seconds_text(typical["first_token_p95"]),
                f"{os.getloadavg()[0]:.1f}",
            ]
        )
    return rows


ALONE = "one at a time"


def table(bundle: Path, options: argparse.Namespace) -> list[list[str]]:
    with ExitStack() as opened, tempfile.TemporaryDirectory() as name:
        asks = {
            "in process": opened.enter_context(in_process(bundle)),
            "serve": opened.enter_context(served(bundle, NUM_SLOTS)),
        }
        if not options.without_triton:
            asks["Triton"] = opened.enter_context(triton(bundle, Path(name)))
        asks[ALONE] = opened.enter_context(served(bundle, 1))
        return [
            row
            for num_clients in options.clients
            for row in rows_of(
                num_clients,
                rounds_of(asks, num_clients, options.rounds, max(options.requests, 2 * num_clients)),
            )
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS, help="(default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each number of clients (default: %(default)s)"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=16,
        help="in a round, or two a client where those are more (default: %(default)s)",
    )
    parser.add_argument("--memory-requests", type=int, default=0, help="(default: %(default)s, none)")
    parser.add_argument("--without-triton", action="store_true", help="where there is no tritonserver")
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process:
        answer_in_process(options.in_process)
        return
    from benchmarks.serving_triton import endless_checkpoint
    from export.exporter import export_checkpoint
    from tests.support.triton import missing

    if not options.without_triton and missing():
        parser.error(f"{missing()}, or give --without-triton")
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "bundle"
        export_checkpoint(endless_checkpoint(Path(name) / "checkpoint"), bundle)
        if options.clients:
            print_table(f"Serving over HTTP, {options.rounds} rounds", HEADER, table(bundle, options))
        if options.memory_requests:
            print_table(
                "Resident memory of serve, without what its cache of pictures grew by",
                (*HEADER_MEMORY, "grown in the cache"),
                [growth(bundle, options.memory_requests)],
            )


if __name__ == "__main__":
    main()
