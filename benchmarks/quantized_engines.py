"""What quantizing leaves of an engine's bytes, and whether each of its products reads codes: 2B's shapes, on a CPU.

    python -m benchmarks.quantized_engines [--layers 2] [--graph vision] [--work DIR] [--sm 80 --sm 89 --sm 120]

Random weights in the published sizes of the 2B model, exported and built with TensorRT-RTX for each architecture that
has the products: the decoder, of two layers unless `--layers 28` is asked, or with `--graph vision` the vision encoder,
of one block unless `--vision-depth 32` is asked. Prints a line an engine: its bytes, their share of the bfloat16
engine's, what the build says of its products, and the build's time and memory.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from engines.sizing.limits import Limits
from examples.random_checkpoint import write_checkpoint
from export.bundle import open_bundle
from export.contract import GraphName
from export.exporter import export_checkpoint
from export.quantization.make import Part

WAYS: dict[str, dict[Part, str | None]] = {
    "bfloat16": {},
    "int4": {"decoder": "int4"},
    "int4 with head": {"decoder": "int4", "head": "int4"},
    "int8": {"decoder": "int8"},
    "fp8": {"decoder": "fp8"},
    "fp8 with head": {"decoder": "fp8", "head": "int4"},
}
VISION_WAYS: dict[str, dict[Part, str | None]] = {
    "bfloat16": {},
    "int8 vision": {"vision": "int8"},
    "fp8 vision": {"vision": "fp8"},
}
LIMITS = Limits(max_context=2048, max_batch=4, max_patches=1024, max_segments=8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build quantized decoders of 2B's shapes.")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, help="kept for the next run; default: a directory that is removed"
    )
    parser.add_argument("--sm", type=int, action="append", help="default: 80, 89 and 120")
    parser.add_argument("--graph", choices=["decoder", "vision"], default="decoder")
    parser.add_argument("--vision-depth", type=int, default=1, help="blocks of the vision encoder")
    parser.add_argument("--way", action="append", help="default: all; the first is the measure")
    options = parser.parse_args()
    ways = WAYS if options.graph == "decoder" else VISION_WAYS
    if unknown := set(options.way or ()) - ways.keys():
        parser.error(f"--way {', '.join(unknown)}: of the {options.graph} there are {', '.join(ways)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        checkpoint = work / "checkpoint"
        if not checkpoint.exists():
            write_checkpoint(
                checkpoint, size="2b", num_hidden_layers=options.layers, vision_depth=options.vision_depth
            )
        for sm in options.sm or (80, 89, 120):
            whole = 0
            for way in options.way or ways:
                if way.startswith("fp8") and sm < 89:
                    continue
                bundle = work / way.replace(" ", "-")
                if not bundle.exists():
                    started = time.perf_counter()
                    export_checkpoint(checkpoint, bundle, quantize=ways[way], weights="link")
                    print(
                        f"{way}: exported in {time.perf_counter() - started:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                whole = build(way, bundle, options.graph, sm, work, whole)


def build(way: str, bundle: Path, graph: GraphName, sm: int, work: Path, whole: int) -> int:
    """Build one graph and print its line. Gives the first engine's bytes."""
    from engines.backends.tensorrt.build.builder import build_engine
    from engines.backends.tensorrt.options import BuildOptions

    output = work / f"{graph}.engine"
    options = BuildOptions(target="tensorrt-rtx", sm=(sm,))
    facts = build_engine(open_bundle(bundle), graph, LIMITS, options, output, lambda *_: None)
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
