"""What quantizing leaves of an engine's bytes, and whether each of its products reads codes: 2B's shapes, on a CPU.

    python -m benchmarks.quantized_engines [--layers 2] [--work DIR] [--sm 80 --sm 89 --sm 120]

Random weights in the published sizes of the 2B model, of fewer layers unless `--layers 28` is asked, exported and built
with TensorRT-RTX for each architecture that has the products. Prints a line an engine: its bytes, their share of the
bfloat16 engine's, what the build says of its products, and the build's time and memory.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from engines.sizing.limits import Limits
from examples.random_checkpoint import write_checkpoint
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from export.quantization.make import Part

WAYS: dict[str, dict[Part, str | None]] = {
    "bfloat16": {},
    "int4": {"decoder": "int4"},
    "int4 with head": {"decoder": "int4", "head": "int4"},
    "int8": {"decoder": "int8"},
    "fp8": {"decoder": "fp8"},
}
LIMITS = Limits(max_context=2048, max_batch=4, max_patches=1024, max_segments=8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build quantized decoders of 2B's shapes.")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, help="kept for the next run; default: a directory that is removed"
    )
    parser.add_argument("--sm", type=int, action="append", help="default: 80, 89 and 120")
    parser.add_argument("--way", choices=WAYS, action="append", help="default: all; the first is the measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        checkpoint = work / "checkpoint"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, size="2b", num_hidden_layers=options.layers, vision_depth=1)
        for sm in options.sm or (80, 89, 120):
            whole = 0
            for way in options.way or WAYS:
                if way == "fp8" and sm < 89:
                    continue
                bundle = work / way.replace(" ", "-")
                if not bundle.exists():
                    started = time.perf_counter()
                    export_checkpoint(checkpoint, bundle, quantize=WAYS[way], weights="link")
                    print(
                        f"{way}: exported in {time.perf_counter() - started:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                whole = build(way, bundle, sm, work, whole)


def build(way: str, bundle: Path, sm: int, work: Path, whole: int) -> int:
    """Build one decoder and print its line. Gives the bfloat16 engine's bytes."""
    from engines.backends.tensorrt.build.builder import build_engine
    from engines.backends.tensorrt.options import BuildOptions

    output = work / "decoder.engine"
    options = BuildOptions(target="tensorrt-rtx", sm=(sm,))
    facts = build_engine(open_bundle(bundle), "decoder", LIMITS, options, output, lambda *_: None)
    output.unlink()
    whole = whole or facts.engine_bytes
    expanded = [warning.message for warning in facts.warnings if not warning.is_expected]
    print(
        f"SM{sm} {way:15} {facts.engine_bytes / 1e6:8.0f} MB {facts.engine_bytes / whole:5.2f}x "
        f"{facts.seconds:5.0f} s {facts.peak_rss_bytes / 1e9:4.1f} GB  {'; '.join([*facts.notes, *expanded])}",
        flush=True,
    )
    return whole


if __name__ == "__main__":
    main()
