"""A decoder's stages in processes of their own against one process: tokens a second, in one run.

    python -m benchmarks.ranks [--quick] [--work DIR] [--layers N]

A random checkpoint (hidden size 896, 14 heads over 2, 12 layers, float32), exported in one graph and in 2 and 3 stages,
behind the scheduler with 8 slots: 1 and 8 clients in a closed loop, 32 new tokens each, questions of
`engines/bench/questions.py`. Every contestant is a process of its own, or `mpirun` with its ranks; each rank has one
thread, and the one process as many as it has to be compared with. On one machine ranks share its cores, so what can be
won is what one process leaves idle; what is lost is the way from rank to rank.
`--quick` asks a few questions of a smaller one: it shows that the script works and measures nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import add_work_option, checkpoint
from benchmarks.measure import measure, print_table, ratio_text, seconds_text

NUM_SLOTS = 8
CAPACITY = 512
CLIENTS = (1, 8)
STAGES = (2, 3)
SIZES = {
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 16384,
}
HEADER = ("computes in", "clients", "tokens/s", "of one process, one thread", "first token, median")


def serve(bundle: str, num_threads: int, num_ranks: int | None, clients: list[int], per_client: int) -> Any:
    """In a child of its own: what clients saw of a bundle, by their number."""
    from engines.bench.load import run_load
    from engines.bench.serving import asker, prepared_requests
    from engines.open import choose_engine, open_chosen
    from engines.runtime.scheduler import Scheduler
    from engines.runtime.service import SchedulerService
    from engines.store.compatibility import this_machine
    from export.bundle import open_bundle

    opened = open_bundle(Path(bundle))
    chosen = choose_engine(opened, None, num_slots=NUM_SLOTS, capacity=CAPACITY, machine=this_machine())
    engine = open_chosen(
        opened,
        chosen,
        num_slots=NUM_SLOTS,
        capacity=CAPACITY,
        num_threads=num_threads,
        num_ranks=num_ranks,
    )
    found = []
    try:
        with SchedulerService(Scheduler(*engine, opened.config)) as service:
            for number in clients:
                requests = prepared_requests(opened.processor, (per_client + 1) * number, 32)
                ask = asker(service, requests)
                run_load(ask, number, number)  # warms every shape up
                result = run_load(ask, number, per_client * number, first=number)
                found.append((result.tokens_per_second, result.first_token_seconds(0.5)))
    finally:
        engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few questions, seconds")
    parser.add_argument("--layers", type=int, default=12, help="of the decoder (default: %(default)s)")
    add_work_option(parser)
    options = parser.parse_args()
    layers, per_client = (3, 1) if options.quick else (options.layers, 3)
    clients, stages = (CLIENTS[:1], STAGES[:1]) if options.quick else (CLIENTS, STAGES)
    source = checkpoint(options.work, f"ranks-{layers}", dtype="float32", num_hidden_layers=layers, **SIZES)

    contestants: list[tuple[str, int, int, int | None]] = [
        ("one process, one thread", 1, 1, None),
        *((f"one process, {number} threads", 1, number, None) for number in stages),
        *((f"{number} ranks, a stage each", number, 1, number) for number in stages),
        *((f"{number} ranks, images alone", 1, 1, number) for number in stages[:1]),
    ]
    rows: list[list[str]] = []
    baseline: list[float] = []
    for name, num_stages, num_threads, num_ranks in contestants:
        bundle = staged(options.work, source, num_stages)
        found = measure(
            name,
            serve,
            bundle=str(bundle),
            num_threads=num_threads,
            num_ranks=num_ranks,
            clients=list(clients),
            per_client=per_client,
        ).result
        baseline = baseline or [speed for speed, _ in found]
        rows += [
            [name, str(number), f"{speed:,.1f}", ratio_text(speed, alone), seconds_text(first)]
            for number, (speed, first), alone in zip(clients, found, baseline, strict=True)
        ]
    print_table(f"{layers} layers of hidden size 896, float32, {NUM_SLOTS} slots", HEADER, rows)


def staged(work: Path, source: Path, num_stages: int) -> Path:
    """The bundle of a checkpoint in so many stages, exported if it is not there yet."""
    from export.exporter import export_checkpoint

    bundle = work.resolve() / f"{source.name}-stages-{num_stages}"
    if not bundle.exists():
        export_checkpoint(source, bundle, weights="link", pipeline_stages=num_stages)
    return bundle


if __name__ == "__main__":
    main()
