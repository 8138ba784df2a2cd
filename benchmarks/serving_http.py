"""`qv-export serve` beside the same scheduler without a network, the Triton repository, and one answer at a time.

    python -m benchmarks.serving_http [--clients 1 4 16 64] [--requests 64] [--memory-requests 0] [--without-triton]

The small checkpoint on this machine's CPU, one thread, 64 new tokens an answer whatever it says; clients in a closed
loop, questions of `engines/bench/questions.py`, half of them with a picture that is new each time. For each number of
clients the contestants run one after another, so that what else the machine does hits them alike:

- serve: over HTTP on loopback, streamed; the client is a process of its own that shares the cores with the server;
- in process: the same scheduler and the same processor, with no server around them and a thread for each client;
- Triton: the model repository in the tritonserver that nvidia-pytriton carries, with the same client;
- one at a time: serve with one KV slot.

`--memory-requests N`: resident memory of serve after a fifth of N requests of 16 clients and at the end, without
what its cache of picture embeddings grew by meanwhile.
"""

import argparse
import asyncio
import base64
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import measure, print_table, ratio_text, seconds_text
from benchmarks.serving import CAPACITY, HEADER_MEMORY, NUM_SLOTS, NUM_THREADS, SETTLE_SECONDS, memory_row

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = (1, 4, 16, 64)
NUM_NEW_TOKENS = 64
MAX_QUEUE = 64
HEADER = (
    "clients",
    "contestant",
    "tokens/s",
    "of in process",
    "CPU a token",
    "first token, median",
    "p95",
    "load",
)


# --- the client: a process of its own ---------------------------------------------------------------


def ask_all(
    port: int, path: str, kind: str, num_clients: int, num_requests: int, first: int, num_new_tokens: int
) -> dict[str, Any]:
    """What N clients see that ask at the same time over HTTP.

    Bodies are made before the clock starts, and of an answer no more is read than when it began and ended.
    """
    body_of: Callable[..., bytes] = {"openai": openai_body, "triton": triton_body}[kind]
    bodies = [body_of(number, num_new_tokens) for number in range(first, first + num_requests)]
    return asyncio.run(_ask_all(port, path, bodies, num_clients, num_new_tokens))


async def _ask_all(
    port: int, path: str, bodies: list[bytes], num_clients: int, num_new_tokens: int
) -> dict[str, Any]:
    left = iter(bodies)
    waits: list[float] = []

    async def client() -> None:
        for body in left:
            started = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{status!r}: {(await reader.read())[:500]!r}")
            await reader.readuntil(b"data: ")
            waits.append(time.perf_counter() - started)
            rest = await reader.read()
            if b'"error"' in rest:
                raise RuntimeError(rest[-500:])
            writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    seconds = time.perf_counter() - started
    waits.sort()
    return {
        "tokens_per_second": len(bodies) * num_new_tokens / seconds,
        "first_token_median": waits[len(waits) // 2],
        "first_token_p95": waits[min(int(0.95 * len(waits)), len(waits) - 1)],
    }


def openai_body(number: int, num_new_tokens: int) -> bytes:
    from engines.bench.questions import bench_question

    [message] = bench_question(number)
    content = [
        {"type": "image_url", "image_url": {"url": _data_url(part["image"])}}
        if part["type"] == "image"
        else part
        for part in message["content"]
    ]
    return json.dumps(
        {
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "max_tokens": num_new_tokens,
            "ignore_eos": True,
        }
    ).encode()


def triton_body(number: int, num_new_tokens: int) -> bytes:
    from engines.bench.questions import bench_question

    [message] = bench_question(number)
    content = [
        {"type": "image", "image": _data_url(part["image"])} if part["type"] == "image" else part
        for part in message["content"]
    ]
    messages = json.dumps([{"role": "user", "content": content}])
    return json.dumps({"messages": messages, "max_tokens": num_new_tokens, "stream": True}).encode()


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def ask_in_process(bundle: str, num_clients: int, num_requests: int, first: int) -> dict[str, Any]:
    """The same questions to the scheduler itself: decoded, answered, and nothing sent anywhere."""
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

        run_load(ask, num_clients, 2 * num_clients)
        before = time.process_time()
        result = summary(run_load(ask, num_clients, num_requests, first=first))
        return {**result, "cpu_seconds": time.process_time() - before}


# --- the servers ------------------------------------------------------------------------------------


@contextmanager
def serving(bundle: Path, num_slots: int) -> "Iterator[tuple[int, int]]":
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
def triton(bundle: Path, directory: Path) -> "Iterator[tuple[int, int]]":
    """Port and process of a tritonserver."""
    from engines.serving.settings import ServerSettings
    from engines.serving.triton.repository import write_repository
    from export.bundle import open_bundle
    from tests.support.triton import running_server

    repository = directory / "repository"
    settings = ServerSettings(num_slots=NUM_SLOTS, capacity=CAPACITY, num_threads=NUM_THREADS)
    write_repository(open_bundle(bundle), repository, settings, allow_unvalidated=True)
    with running_server(repository, directory) as server:
        yield server.http_port, server.process.pid


def over_http(
    name: str,
    path: str,
    kind: str,
    server: AbstractContextManager[tuple[int, int]],
    num_clients: int,
    num_requests: int,
) -> dict[str, Any]:
    with server as (port, process):
        arguments = {"port": port, "path": path, "kind": kind, "num_new_tokens": NUM_NEW_TOKENS}
        warm = 2 * num_clients
        measure(f"{name}, warm-up", ask_all, num_clients=num_clients, num_requests=warm, first=0, **arguments)
        before = cpu_seconds(process)
        result = measure(
            f"{name}, {num_clients} clients",
            ask_all,
            num_clients=num_clients,
            num_requests=num_requests,
            first=warm,
            **arguments,
        ).result
        return {**result, "cpu_seconds": cpu_seconds(process) - before}


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


PATH = "/v1/chat/completions"
TRITON_PATH = "/v2/models/qwen2_vl/generate_stream"


def rows_of(bundle: Path, num_clients: int, num_requests: int, *, with_triton: bool) -> list[list[str]]:
    contestants: dict[str, Callable[[], dict[str, Any]]] = {
        "in process": lambda: (
            measure(
                f"in process, {num_clients} clients",
                ask_in_process,
                bundle=bundle,
                num_clients=num_clients,
                num_requests=num_requests,
                first=2 * num_clients,
            ).result
        ),
        "serve": lambda: over_http(
            "serve", PATH, "openai", serving(bundle, NUM_SLOTS), num_clients, num_requests
        ),
    }
    if with_triton:
        contestants["Triton"] = lambda: in_directory(
            lambda directory: over_http(
                "Triton", TRITON_PATH, "triton", triton(bundle, directory), num_clients, num_requests
            )
        )
    contestants["one at a time"] = lambda: over_http(
        "one at a time", PATH, "openai", serving(bundle, 1), num_clients, num_requests
    )
    rows, reference = [], 0.0
    for name, run in contestants.items():
        result = run()
        reference = reference or result["tokens_per_second"]
        rows.append(
            [
                str(num_clients),
                name,
                f"{result['tokens_per_second']:,.0f}",
                ratio_text(result["tokens_per_second"], reference),
                seconds_text(result["cpu_seconds"] / num_requests / NUM_NEW_TOKENS),
                seconds_text(result["first_token_median"]),
                seconds_text(result["first_token_p95"]),
                f"{os.getloadavg()[0]:.1f}",
            ]
        )
    return rows


def in_directory(run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        return run(Path(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=64, help="of each measurement (default: %(default)s)")
    parser.add_argument("--memory-requests", type=int, default=0, help="(default: %(default)s, none)")
    parser.add_argument("--without-triton", action="store_true", help="where there is no tritonserver")
    options = parser.parse_args()
    from benchmarks.serving_triton import endless_checkpoint
    from export.exporter import export_checkpoint
    from tests.support.triton import missing

    if not options.without_triton and missing():
        parser.error(f"{missing()}, or give --without-triton")
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "bundle"
        export_checkpoint(endless_checkpoint(Path(name) / "checkpoint"), bundle)
        rows = [
            row
            for num_clients in options.clients
            for row in rows_of(bundle, num_clients, options.requests, with_triton=not options.without_triton)
        ]
        if rows:
            print_table(f"Serving over HTTP, {options.requests} requests each", HEADER, rows)
        if options.memory_requests:
            print_table(
                "Resident memory of serve, without what its cache of pictures grew by",
                (*HEADER_MEMORY, "grown in the cache"),
                [growth(bundle, options.memory_requests)],
            )


if __name__ == "__main__":
    main()
