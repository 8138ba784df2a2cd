"""A decode step of 2B's shape by OpenVINO on a CPU, weights in float32 or in 4 bits: what to hold ours against.

    PYTHON benchmarks/quantized_peer.py [--context 300] [--steps 8] [--threads 1] [--layers 28] [--way int4]

For an interpreter of its own with `openvino` and `numpy`; nothing of qv-export is imported. Random weights: every
product of the published 2B decoder (7 a layer, and the vocabulary's), 4-bit codes in groups of 128 as its own tools
compress them, RMS norms, the gated unit, and attention over a cache of `--context` tokens, read and not written. No
rotation and no sampling. The least of several steps; the embedding is not looked up.
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, GROUP = 1536, 8960, 12, 2, 128, 151_936, 128


def main() -> None:
    parser = argparse.ArgumentParser(description="Time OpenVINO at the shape of our decoder.")
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--way", action="append", choices=["float32", "int4"], help="default: both")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    ways = options.way or ["float32", "int4"]
    if options.one:
        print(run(ways[-1], options))
        return
    for way in ways:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way, "--one"], check=True)


def run(way: str, options: argparse.Namespace) -> str:
    """One step after another, and a line about the quickest."""
    import openvino as ov

    model, _held = decoder(way, options)
    started = time.perf_counter()
    compiled = ov.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": options.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request, loaded = compiled.create_infer_request(), time.perf_counter() - started
    x = np.random.default_rng(1).standard_normal((1, 1, HIDDEN)).astype(np.float32)
    cpu, wall = [], []
    for _ in range(options.steps):
        cpu_start, start = time.process_time(), time.perf_counter()
        request.infer([x])
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    version = ov.__version__.partition("-")[0]
    return (
        f"OpenVINO {version} {way:8} {options.layers} layers  decode {min(wall) * 1000:7.1f} ms, "
        f"CPU {min(cpu) * 1000:7.1f} ms  compiled in {loaded:.0f} s  peak {peak:6.0f} MB"
    )


def decoder(way: str, options: argparse.Namespace) -> tuple[Any, list[np.ndarray]]:
    """Hidden state [1, 1, 1536] to logits, and what must live as long as the model is compiled."""
    import openvino as ov
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    held: list[
        np.ndarray
    ] = []  # a constant in 4 bits reads the array that it is made of, and does not keep it

    def linear(x: Any, num_inputs: int, num_outputs: int) -> Any:
        if way == "float32":
            weight = random.random((num_outputs, num_inputs), np.float32) - 0.5
            return op.matmul(x, op.constant(weight), False, True)
        shape = [num_outputs, num_inputs // GROUP, GROUP]
        codes = random.integers(0, 256, num_outputs * num_inputs // 2, dtype=np.uint8)
        held.append(codes)
        weight = op.convert(ov.op.Constant(ov.Tensor(codes, ov.Shape(shape), ov.Type.i4)), "f16")
        scales = np.full((num_outputs, num_inputs // GROUP, 1), 0.01, np.float16)
        weight = op.multiply(weight, op.constant(scales))
        weight = op.reshape(weight, op.constant(np.array([num_outputs, num_inputs])), False)
        return op.matmul(x, op.convert(weight, "f32"), False, True)

    def norm(x: Any) -> Any:
        mean = op.reduce_mean(op.multiply(x, x), op.constant(np.array([2])), True)
        return op.divide(x, op.sqrt(op.add(mean, op.constant(np.float32(1e-6)))))

    def by_head(x: Any, heads: int) -> Any:
        return op.reshape(x, op.constant(np.array([1, heads, 1, HEAD_DIM])), False)

    def attention(x: Any) -> Any:
        q = by_head(linear(x, HIDDEN, HEADS * HEAD_DIM), HEADS)
        new = [by_head(linear(x, HIDDEN, KV_HEADS * HEAD_DIM), KV_HEADS) for _ in range(2)]
        cached = [
            random.standard_normal((1, KV_HEADS, options.context, HEAD_DIM)).astype(np.float32)
            for _ in range(2)
        ]
        # Query heads of a KV head as rows of one product, so that no key is copied for each of them.
        rows = op.reshape(q, op.constant(np.array([1, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM])), False)
        key, value = (op.concat([op.constant(old), one], 2) for old, one in zip(cached, new, strict=True))
        attended = op.scaled_dot_product_attention(rows, key, value)
        flat = op.reshape(attended, op.constant(np.array([1, 1, HEADS * HEAD_DIM])), False)
        return linear(flat, HEADS * HEAD_DIM, HIDDEN)

    def mlp(x: Any) -> Any:
        gate = op.swish(linear(x, HIDDEN, INTERMEDIATE))
        return linear(op.multiply(gate, linear(x, HIDDEN, INTERMEDIATE)), INTERMEDIATE, HIDDEN)

    hidden = op.parameter([1, 1, HIDDEN], np.float32)
    x = hidden
    for _ in range(options.layers):
        x = op.add(x, attention(norm(x)))
        x = op.add(x, mlp(norm(x)))
    return ov.Model([linear(norm(x), HIDDEN, VOCABULARY)], [hidden], "decoder"), held


if __name__ == "__main__":
    main()
