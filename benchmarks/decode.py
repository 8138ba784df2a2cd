"""Cost of one more token on this CPU, by the size of the KV cache.

    python -m benchmarks.decode [--quick] [--work DIR] [--checkpoint 2B_DIR] [--repeats N] [--skip-peer]

2B, random weights, float32, one prompt of 270 text tokens, 32 new tokens, greedy:
- ours (engine and generation loop) against Transformers' `generate`, a process each on all cores, run in
  turn `--repeats` times; the table says how many tokens both agree on;
- ours with KV caches of 512 to 32,768 tokens: a copy of the cache per token would show as a slope.
Milliseconds are the median over tokens and repeats, the first token (prefill) apart.
`--quick` runs tiny shapes in seconds: it shows that the script works and measures nothing.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import add_work_option, checkpoint, exported
from benchmarks.measure import Measurement, bytes_text, measure, print_table, ratio_text, seconds_text

CAPACITIES = (512, 2048, 8192, 32768)
QUICK_CAPACITIES = (512, 1024)
NUM_PROMPT_TOKENS = 270
NUM_NEW_TOKENS = 32
HEADER = ("decode, float32", "per token", "prefill", "peak RSS", "to ours", "equal tokens")
HEADER_CAPACITY = ("KV cache, tokens", "per token", "peak RSS", "to the smallest")


def prompt_ids(vocab_size: int) -> list[int]:
    """Ordinary tokens without end or picture tokens, which have the highest ids."""
    import numpy as np

    return [int(i) for i in np.random.default_rng(0).integers(0, vocab_size * 9 // 10, NUM_PROMPT_TOKENS)]


# --- contestants: each runs in a child of its own ---------------------------------------------------


def run_ours(bundle: str, capacity: int) -> dict[str, Any]:
    """Tokens, prefill seconds and the seconds of each further token."""
    import numpy as np

    from engines.backends.onnxruntime.session import OnnxRuntimeDecoder
    from engines.runtime.generate import generate
    from export.bundle import open_bundle
    from export.checkpoint.generation_config import GenerationConfig
    from export.inputs import ModelInputs

    opened = open_bundle(Path(bundle))
    model = opened.config
    decoder = OnnxRuntimeDecoder(opened, num_slots=1, capacity=capacity)
    inputs = ModelInputs(
        token_ids=np.array(prompt_ids(model.decoder.vocab_size), np.int64),
        position_ids=np.broadcast_to(np.arange(NUM_PROMPT_TOKENS, dtype=np.int32), (3, NUM_PROMPT_TOKENS)),
        position_delta=0,
        patches=np.zeros((0, model.vision.patch_values), np.float32),
        positions=np.zeros((2, 0), np.int32),
        cu_seqlens=np.zeros(1, np.int32),
        grids=(),
    )
    config = GenerationConfig(max_new_tokens=NUM_NEW_TOKENS)
    times, tokens = [time.perf_counter()], []
    for event in generate(inputs, NoVision(), decoder, config, model=model):
        times.append(time.perf_counter())
        tokens.append(event.token_id)
    return _result(times, tokens)


class NoVision:
    """Stands where the vision session goes: a text prompt never calls it."""

    def encode(self, *_inputs: Any, **_named: Any) -> Any:
        raise AssertionError("a text prompt has no pictures")


def run_peer(source: str) -> dict[str, Any]:
    """The same through Transformers' generate, tokens timed by a streamer."""
    import torch

    from benchmarks import peers

    model = peers.load_model(source, "float32")
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt_ids(model.config.text_config.vocab_size)])
    clock = TokenClock()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_NEW_TOKENS,
            streamer=clock,
        )
    return _result(clock.times, output[0, NUM_PROMPT_TOKENS:].tolist())


class TokenClock:
    """A streamer that notes when each token comes; generate puts the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _result(times: list[float], tokens: list[int]) -> dict[str, Any]:
    """Times: start, first token, second token, ..."""
    seconds = [after - before for before, after in pairwise(times)]
    return {"tokens": tokens, "prefill": seconds[0], "per_token": seconds[1:]}


# --- the run ----------------------------------------------------------------------------------------


def median_per_token(runs: list[Measurement]) -> float:
    return statistics.median(seconds for run in runs for seconds in run.result["per_token"])


def contestant_row(runs: list[Measurement], ours: list[Measurement]) -> list[str]:
    pairs = list(zip(runs[0].result["tokens"], ours[0].result["tokens"], strict=True))
    return [
        runs[0].name,
        seconds_text(median_per_token(runs)),
        seconds_text(statistics.median(run.result["prefill"] for run in runs)),
        bytes_text(max(run.peak_rss_bytes for run in runs)),
        ratio_text(median_per_token(runs), median_per_token(ours)),
        f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds")
    parser.add_argument("--checkpoint", type=Path, help="a 2B checkpoint to use instead of a generated one")
    parser.add_argument("--skip-peer", action="store_true", help="measure ours alone")
    parser.add_argument(
        "--repeats", type=int, default=2, help="processes per contestant (default: %(default)s)"
    )
    add_work_option(parser)
    options = parser.parse_args()
    size = "tiny" if options.quick else "2b"
    source = (options.checkpoint or checkpoint(options.work, f"qwen2-vl-{size}-random", size=size)).resolve()
    bundle = exported(options.work, source, "float32")
    capacities = QUICK_CAPACITIES if options.quick else CAPACITIES

    by_capacity: dict[int, list[Measurement]] = {capacity: [] for capacity in capacities}
    peers = []
    for _ in range(options.repeats):
        for capacity, runs in by_capacity.items():
            runs.append(measure(f"ours, cache of {capacity:,}", run_ours, bundle=bundle, capacity=capacity))
        if not options.skip_peer:
            peers.append(measure("Transformers generate", run_peer, source=source))
    ours = by_capacity[capacities[0]]
    rows = [contestant_row(runs, ours) for runs in (ours, peers) if runs]
    print_table(f"{NUM_PROMPT_TOKENS} prompt tokens, {NUM_NEW_TOKENS} new ones", HEADER, rows)
    smallest = median_per_token(by_capacity[capacities[0]])
    capacity_rows = [
        [
            f"{capacity:,}",
            seconds_text(median_per_token(runs)),
            bytes_text(max(run.peak_rss_bytes for run in runs)),
            ratio_text(median_per_token(runs), smallest),
        ]
        for capacity, runs in by_capacity.items()
    ]
    print_table("The same by capacity of the KV cache", HEADER_CAPACITY, capacity_rows)


if __name__ == "__main__":
    main()
