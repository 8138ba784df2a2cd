"""Measures the scheduler over the engine: clients in a closed loop, in this process, without a network."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from engines.bench.load import LoadResult, TimedReply, run_load
from engines.bench.questions import bench_question
from engines.bench.report import BenchRow
from engines.bench.sampling import Spread, spread_of
from engines.runtime.answer import Event, FailureEvent, Request
from engines.runtime.service import SchedulerService
from export.checkpoint.generation_config import GenerationConfig
from export.processor.processor import Processor


@dataclass(frozen=True)
class Load:
    """What the clients ask."""

    num_clients: tuple[int, ...]
    num_new_tokens: int
    """Of every answer: no token ends it before."""
    rounds: int = 3
    questions_per_client: int = 2
    """In each round."""


def serving(service: SchedulerService, processor: Processor, load: Load) -> Iterator[BenchRow]:
    """Tokens a second and the time to the first one, by the number of clients."""
    for num_clients in load.num_clients:
        per_round = load.questions_per_client * num_clients
        requests = prepared_requests(processor, (load.rounds + 1) * per_round, load.num_new_tokens)
        ask = asker(service, requests)
        run_load(ask, num_clients, per_round)  # warms every shape up
        results = [
            run_load(ask, num_clients, per_round, first=(number + 1) * per_round)
            for number in range(load.rounds)
        ]
        yield from _rows(num_clients, results)


def _rows(num_clients: int, results: Sequence[LoadResult]) -> Iterator[BenchRow]:
    clients = f"{num_clients} client{'s' if num_clients > 1 else ''}"
    rates = spread_of([result.tokens_per_second for result in results])
    yield _row(f"{clients}, new tokens", rates, "tokens/s", more_is_better=True)
    waits = [1e3 * reply.first_token_seconds for result in results for reply in result.replies]
    yield _row(f"{clients}, first token", spread_of(waits), "ms")
    late = spread_of([1e3 * result.first_token_seconds(0.95) for result in results])
    yield _row(f"{clients}, first token, 95th percentile", late, "ms")


def _row(case: str, spread: Spread, unit: str, *, more_is_better: bool = False) -> BenchRow:
    return BenchRow(
        "serving", case, spread.median, spread.low, spread.high, unit, spread.num_samples, more_is_better
    )


def prepared_requests(processor: Processor, num_requests: int, num_new_tokens: int) -> list[Request]:
    """Questions whose pictures are decoded: what the processor costs is measured apart."""
    config = GenerationConfig(max_new_tokens=num_new_tokens)
    return [
        Request(processor.inputs_from_messages(bench_question(number)), config)
        for number in range(num_requests)
    ]


def asker(service: SchedulerService, requests: Sequence[Request]) -> Callable[[int], TimedReply]:
    """`ask` of `run_load`: the questions over and over; a picture that comes again has another value in it."""

    def ask(number: int) -> TimedReply:
        request = requests[number % len(requests)]
        patches = request.inputs.patches
        if number >= len(requests) and len(patches):
            patches = patches.copy()
            patches[0, 0] = number
            request = replace(request, inputs=replace(request.inputs, patches=patches))
        times: list[float] = []
        errors: list[BaseException] = []
        ended = threading.Event()

        def listen(event: Event) -> None:
            times.append(time.perf_counter())
            if isinstance(event, FailureEvent):
                errors.append(event.error)
            if event.is_last:
                ended.set()

        start = time.perf_counter()
        service.submit(request, listen)
        ended.wait()
        if errors:
            raise errors[0]
        return TimedReply(times[0] - start, times[-1] - start, len(times))

    return ask
