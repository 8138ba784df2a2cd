"""The vision encoder in 8 bits on a CPU, beside float32: seconds of one picture of 5,168 patches, worst token, memory.

    python -m benchmarks.quantized_vision [--work DIR] [--way int8 --way int8-weights] [--patches 5168] [--prepare]

The published encoder (665 million parameters, random weights), each bundle in a process of its own on all cores, one
call after a small one. The cosine is that of the token that lies furthest from float32's. `--prepare` exports alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.checkpoints import VISION_ONLY, add_work_option, checkpoint
from benchmarks.vision import ONE_LARGE, QUICK_LARGE, our_inputs
from export.exporter import export_checkpoint
from export.quantization.make import Part

MEASURE = "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the quantized vision encoder on a CPU.")
    add_work_option(parser)
    parser.add_argument(
        "--way", action="append", choices=["int8", "int8-weights", "int4"], help="default: int8"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: shows that the script works")
    parser.add_argument("--prepare", action="store_true", help="export the bundles and stop")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.output, is_quick=options.quick)))
        return
    ways = [MEASURE, *(options.way or ["int8"])]
    bundles = {way: _bundle(options.work, way, is_quick=options.quick) for way in ways}
    if options.prepare:
        return
    whole, embeds = 0.0, {}
    for way, bundle in bundles.items():
        output = bundle.with_suffix(".npy")
        command = [sys.executable, "-m", "benchmarks.quantized_vision", "--one", str(bundle)]
        command += ["--output", str(output), *(["--quick"] if options.quick else [])]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        embeds[way] = np.load(output)
        whole = whole or found["seconds"]
        print(
            f"{way:13} {found['seconds']:7.2f} s ({found['seconds'] / whole:.2f}x)  CPU {found['cpu_seconds']:7.2f} s  "
            f"peak {found['peak_mb']:6.0f} MB  worst token's cosine {worst_cosine(embeds[way], embeds[MEASURE]):.5f}",
            flush=True,
        )


def worst_cosine(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of two [V, C]."""
    products = (actual * expected).sum(1)
    return float((products / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)).min())


def _bundle(work: Path, way: str, *, is_quick: bool) -> Path:
    size, name = ("tiny", "tiny") if is_quick else ("2b", "vision-2b")
    bundle = work.resolve() / f"quantized-{name}-{way}"
    if not bundle.exists():
        source = checkpoint(
            work, f"{name}-of-quantized-vision", size=size, **({} if is_quick else VISION_ONLY)
        )
        quantize: dict[Part, str | None] = {} if way == MEASURE else {"vision": way}
        export_checkpoint(source, bundle, dtype="float32", weights="link", quantize=quantize)
    return bundle


def measure(path: Path, output: Path, *, is_quick: bool) -> dict[str, float]:
    """Seconds of one call, on the clock and of all cores together, and the process's peak memory."""
    from engines.backends.onnxruntime.session import OnnxRuntimeVision
    from export.bundle import open_bundle
    from export.inputs import VisionInputs

    vision = OnnxRuntimeVision(open_bundle(path))

    def encode(grids: list[list[int]]) -> np.ndarray:
        return vision.encode(VisionInputs.of(*our_inputs(grids)))

    encode(QUICK_LARGE)
    grids = QUICK_LARGE if is_quick else ONE_LARGE
    start, cpu_start = time.perf_counter(), time.process_time()
    embeds = encode(grids)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    np.save(output, embeds)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


if __name__ == "__main__":
    main()
