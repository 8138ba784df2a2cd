"""Decode steps and prefill of quantized bundles beside a plain one, on ONNX Runtime: time a token, and peak memory.

    python -m benchmarks.quantized BUNDLE... [--context 300] [--steps 8] [--threads 1]

One bundle a process, and the least of several steps. With one thread that thread's own CPU time, which neighbours
change little; with several the time on the clock, for a machine that does nothing else. Bundles of one checkpoint, such
as `benchmarks.quantized_engines --work DIR` leaves; the first is the measure.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description="Time quantized decoders on a CPU.")
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--context", type=int, default=300, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.bundles[0], options.context, options.steps, options.threads)))
        return
    first = None
    for bundle in options.bundles:
        command = [sys.executable, "-m", "benchmarks.quantized", str(bundle), "--one"]
        command += ["--context", str(options.context), "--steps", str(options.steps)]
        command += ["--threads", str(options.threads)]
        measured = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        first = first or measured
        shares = {name: measured[name] / first[name] for name in measured}
        print(
            f"{bundle.name:18} decode {measured['decode_ms']:7.1f} ms ({shares['decode_ms']:.2f}x)  prefill "
            f"{measured['prefill_ms']:7.0f} ms ({shares['prefill_ms']:.2f}x)  peak {measured['peak_mb']:6.0f} MB",
            flush=True,
        )


def measure(path: Path, context: int, steps: int, num_threads: int) -> dict[str, float]:
    """Milliseconds of a prefill and of the quickest decode step, and the process's peak memory."""
    from engines.backends.onnxruntime.session import OnnxRuntimeDecoder
    from export.bundle import open_bundle
    from export.inputs import DecoderInputs

    bundle = open_bundle(path)
    decoder = OnnxRuntimeDecoder(bundle, 1, context + steps, num_threads=num_threads)
    clock = time.process_time if num_threads == 1 else time.perf_counter
    hidden = bundle.config.decoder.hidden_size
    token_ids = np.random.default_rng(0).integers(10, 100, (1, context))

    def call(tokens: np.ndarray, start: int) -> float:
        count = tokens.shape[1]
        inputs = DecoderInputs(
            token_ids=tokens,
            visual_embeds=np.zeros((0, hidden), np.float32),
            position_ids=np.broadcast_to(
                np.arange(start, start + count, dtype=np.int32), (3, 1, count)
            ).copy(),
            write_index=np.array([start]),
            kv_lengths=np.array([start + count]),
            logits_index=np.array([[count - 1]]),
        )
        before = clock()
        decoder.forward(0, inputs)
        return (clock() - before) * 1000

    prefill = call(token_ids, 0)
    decode = min(call(token_ids[:, :1], context + step) for step in range(steps))
    return {
        "decode_ms": decode,
        "prefill_ms": prefill,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


if __name__ == "__main__":
    main()
