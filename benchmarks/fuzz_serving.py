"""Fuzzes a server with thousands of requests that a grammar makes up: it survives, and loses or mixes up nothing.

    python -m benchmarks.fuzz_serving [--requests N] [--clients N] [--seed S] [--quick]

A real tritonserver with the small trained checkpoint, on loopback, HTTP and gRPC. Every response must be an answer or
an error that names the client's mistake; no response may hold another request's mark; a question of the demo, asked
again and again in between, must be answered right. At the end every slot is free, every request is accounted for, the
processes are the ones that were started, and no mark stands in the log. Exits with 1 and the cases otherwise.
"""

import argparse
import base64
import http.client
import json
import queue
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from benchmarks.measure import REPOSITORY, print_table
from benchmarks.request_grammar import TYPES, Case, random_case
from engines.runtime.scheduler_limits import SchedulerLimits
from engines.serving.settings import ServerSettings
from engines.serving.triton.interface import MODEL_NAME
from engines.serving.triton.repository import write_repository
from examples.demo import demo_questions
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.support.triton import RunningServer, missing, running_server

TINY = REPOSITORY / "models" / "qwen2-vl-tiny"
HEADER = (
    "requests",
    "answered",
    "refused",
    "left",
    "right answers",
    "findings",
    "resident, a fifth",
    "at the end",
    "requests/s",
)
NUM_SLOTS = 8
CAPACITY = 512
CONTROL_EVERY = 20
"""Every so many requests a client asks the demo's question instead."""
FINISH_REASONS = {"stop", "length", "capacity", "deadline"}
FAULTS = ("a fault of the server", "Traceback", "Failed to process", "object at 0x")
MARK = re.compile(r"mark[0-9a-f]{12}")
SETTLE_SECONDS = 60
SLOW_SECONDS = 60


@dataclass
class Outcome:
    """What all clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, findings: list[str]) -> None:
        with self.lock:
            self.counts[kind] += 1
            self.findings += findings


class HttpClient:
    """One kept connection, opened again after the server or the client closed it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = http.client.HTTPConnection(url, timeout=120)

    def pieces(self, case: Case) -> Iterator[dict[str, Any]]:
        """Responses as they come.

        Raises:
            OSError, http.client.HTTPException, ValueError: what came was no response of the protocol.
        """
        self._connection.request("POST", f"/v2/models/{MODEL_NAME}/generate_stream", case.body)
        if case.leaves_after == 0:
            self.close()
            return
        response = self._connection.getresponse()
        try:
            for line in response:
                if not line.strip():
                    continue
                # An error before the model is a JSON object and no event, and repeats broken keys as they came.
                errors = "strict" if line.startswith(b"data:") else "replace"
                yield json.loads(line.removeprefix(b"data:").decode("utf-8", errors))
        finally:
            if not response.isclosed():
                self.close()

    def close(self) -> None:
        self._connection.close()


def grpc_pieces(url: str, case: Case) -> Iterator[dict[str, Any]]:
    """Responses to a request of tensors; closing the iterator cancels it."""
    dtypes: dict[str, Any] = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
    dtypes["BOOL"] = np.bool_
    inputs = []
    for name, value in case.fields.items():
        values = value if isinstance(value, list) else [value]
        raw = [one.encode("utf-8", "surrogatepass") if isinstance(one, str) else one for one in values]
        inputs.append(grpc.InferInput(name, [len(raw)], TYPES[name]))
        inputs[-1].set_data_from_numpy(np.array(raw, dtypes[TYPES[name]]))
    responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        is_finished = False
        try:
            client.async_stream_infer(MODEL_NAME, inputs, enable_empty_final_response=True)
            while not is_finished:
                result, error = responses.get(timeout=120)
                if error is not None:
                    is_finished = True
                    yield {"error": error.message()}
                    return
                is_finished = result.get_response().parameters["triton_final_response"].bool_param
                outputs = {name: result.as_numpy(name) for name in ("text", "finish_reason", "usage")}
                if all(output is not None for output in outputs.values()):
                    yield {name: output[0].decode() for name, output in outputs.items()}
        except InferenceServerException as error:  # the client's own check
            yield {"error": str(error)}
        finally:
            client.stop_stream(cancel_requests=not is_finished)


def ask(case: Case, http_client: HttpClient, grpc_url: str) -> tuple[str, list[str]]:
    """Send one request as its client would: how it ended, and what is wrong about that."""
    received: list[dict[str, Any]] = []
    start = time.perf_counter()
    try:
        pieces = grpc_pieces(grpc_url, case) if case.is_grpc else http_client.pieces(case)
        for piece in pieces:
            received.append(piece)
            if case.leaves_after is not None and len(received) >= case.leaves_after:
                break
        pieces.close()  # type: ignore[attr-defined]
    except (OSError, http.client.HTTPException, ValueError, queue.Empty) as error:
        http_client.close()
        return "broken", [f"{case.mark}: {type(error).__name__}: {error} after {received[-1:]}"]
    kind, findings = judge(case, received)
    if (seconds := time.perf_counter() - start) > SLOW_SECONDS:
        findings.append(f"{case.mark}: {kind} after {seconds:.0f} s")
    return kind, findings


def judge(case: Case, received: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """Which way a request ended, and what must not be in what came."""
    text = json.dumps(received)
    findings = [f"{case.mark}: holds {found}" for found in set(MARK.findall(text)) - {case.mark}]
    findings += [f"{case.mark}: {fault} in {text[:500]}" for fault in FAULTS if fault in text]
    last = received[-1] if received else {}
    if "error" in last:
        return "refused", findings
    if case.leaves_after is not None:
        return "left", findings
    if last.get("finish_reason") not in FINISH_REASONS:
        findings.append(f"{case.mark}: ended with {last}")
    return "answered", findings


def control_case() -> tuple[Case, str]:
    """A question of the demo with its right answer."""
    question = next(question for question in demo_questions() if len(question.images) == 1)
    picture = base64.b64encode(question.images[0].read_bytes()).decode()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question.prompt}]
    fields = {"messages": json.dumps([{"role": "user", "content": content}])}
    return Case(
        "control", fields, json.dumps(fields).encode(), is_grpc=False, leaves_after=None
    ), question.answer


def client(server: RunningServer, numbers: Iterator[int], seed: int, outcome: Outcome) -> None:
    """Ask until the numbers are used up. Case n depends on the seed and n alone, whichever client sends it."""
    http_client = HttpClient(server.http)
    control, answer = control_case()
    while True:
        with outcome.lock:
            number = next(numbers, None)
        if number is None:
            return
        if number % 1000 == 0:
            print(f"request {number:,}", file=sys.stderr, flush=True)
        if number % CONTROL_EVERY == 0:
            text = "".join(piece.get("text", str(piece)) for piece in http_client.pieces(control))
            findings = (
                []
                if text == answer
                else [f"request {number}: the demo's answer was {text!r}, not {answer!r}"]
            )
            outcome.add("right" if text == answer else "wrong", findings)
            continue
        kind, findings = ask(random_case(Random(f"{seed} {number}")), http_client, server.grpc)
        outcome.add(kind, [f"request {number}: {finding}" for finding in findings])


def run_clients(server: RunningServer, numbers: range, num_clients: int, seed: int, outcome: Outcome) -> None:
    shared = iter(numbers)

    def run() -> None:
        try:
            client(server, shared, seed, outcome)
        except Exception as error:  # noqa: BLE001  a client that dies is a finding
            outcome.add("broken", [f"a client ended: {type(error).__name__}: {error}"])

    threads = [threading.Thread(target=run) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def end_findings(server: RunningServer, processes: list[int]) -> list[str]:
    """What is not as it must be once all clients are gone."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (metrics := server.metrics())["qv_slots_used"] + metrics[
        "qv_queue_length"
    ] and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)  # the last counts reach /metrics
    metrics = server.metrics()
    findings = []
    if metrics["qv_slots_used"] or metrics["qv_queue_length"]:
        findings.append(
            f"{metrics['qv_slots_used']:.0f} slots are not free, {metrics['qv_queue_length']:.0f} wait"
        )
    if metrics["qv_requests_failed_total"]:
        findings.append(f"{metrics['qv_requests_failed_total']:.0f} requests failed in the engine")
    ends = sum(metrics[f"qv_requests_{end}_total"] for end in ("finished", "cancelled", "expired", "failed"))
    if ends != metrics["qv_requests_total"]:
        findings.append(f"{metrics['qv_requests_total']:.0f} requests were taken and {ends:.0f} ended")
    if server.processes() != processes or not server.is_ready():
        findings.append("the server or its model was started again, or is not ready")
    if marks := set(MARK.findall(server.log.read_text(encoding="utf-8", errors="replace"))):
        findings.append(f"the log holds {len(marks)} requests' texts")
    return findings


@contextmanager
def serving(directory: Path) -> Iterator[RunningServer]:
    """A server with the small trained checkpoint until the context ends; `directory` takes all files."""
    export_checkpoint(TINY, directory / "bundle")
    # A small cache of visual embeddings is full soon, and is not what resident memory grows by.
    scheduler = SchedulerLimits(embedding_cache_bytes=2 << 20)
    settings = ServerSettings(num_slots=NUM_SLOTS, capacity=CAPACITY, scheduler=scheduler)
    write_repository(
        open_bundle(directory / "bundle"), directory / "repository", settings, allow_unvalidated=True
    )
    with running_server(directory / "repository", directory) as server:
        yield server


def resident_bytes(server: RunningServer) -> int:
    """Of the server and its model."""
    return sum(psutil.Process(process).memory_info().rss for process in server.processes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the grammar (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a hundred requests, seconds")
    parser.add_argument(
        "--work", type=Path, help="where the bundle and the log go (default: a temporary folder)"
    )
    options = parser.parse_args()
    if reason := missing():
        sys.exit(f"No server can be started here: {reason}.")
    num_requests = 100 if options.quick else options.requests
    outcome = Outcome()
    with tempfile.TemporaryDirectory(dir=options.work) as scratch, serving(Path(scratch)) as server:
        processes = server.processes()
        start = time.perf_counter()
        fifth = num_requests // 5
        run_clients(server, range(fifth), options.clients, options.seed, outcome)
        before = resident_bytes(server)
        run_clients(server, range(fifth, num_requests), options.clients, options.seed, outcome)
        seconds = time.perf_counter() - start
        outcome.findings += end_findings(server, processes)
        after = resident_bytes(server) if server.processes() == processes else 0
    print(*outcome.findings, sep="\n", file=sys.stderr)
    counts = outcome.counts
    row = [
        f"{num_requests:,}",
        *(f"{counts[kind]:,}" for kind in ("answered", "refused", "left")),
        f"{counts['right']} of {counts['right'] + counts['wrong']}",
        str(len(outcome.findings)),
        f"{before / 1e6:.0f} MB",
        f"{after / 1e6:.0f} MB",
        f"{num_requests / seconds:.0f}",
    ]
    print_table(f"Requests of the grammar, seed {options.seed}, {options.clients} clients", HEADER, [row])
    sys.exit(1 if outcome.findings else 0)


if __name__ == "__main__":
    main()
