"""Cost of compiling engines on a CPU, next to the plain way through TensorRT-RTX's parser.

    python -m benchmarks.engine_build [--quick] [--work DIR] [--engines NAME ...] [--skip-plain]

Builds for SM89, bfloat16, with the default limits (16,384 patches in 64 segments; batch 8, prompts of 2,048 tokens,
context 4,096): 2B's vision encoder and decoder, and a 7B-shaped decoder whose weights are sparse files, each tensor
with a few bytes of its own. The plain way is what the documentation shows: `parser.parse` with the file's path, one
profile, the engine as one buffer. Seconds and peak RSS are of whole processes, imports included. `--quick` runs tiny
shapes and measures nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import add_work_option, checkpoint, exported, mark_tensors
from benchmarks.measure import Measurement, bytes_text, measure, print_table, ratio_text, seconds_text

HEADER = (
    "engine for SM89, bfloat16",
    "seconds",
    "peak RSS",
    "engine",
    "limit",
    "seconds, of ours",
    "RSS, of ours",
)
LIMITS = {
    "vision, 2b": "60 s, 5 GB",
    "decoder, 2b": "60 s, 9 GB",
    "decoder, 7b-shaped": "24 GB",
}
ARCHITECTURE = 89


def build_ours(bundle: str, graph: Any, output: str) -> int:
    """In a child, which has another one for the build; gives the engine's bytes."""
    from engines.backends.tensorrt.build.builder import BuildOptions, build_engine
    from engines.sizing.limits import Limits
    from export.bundle import open_bundle

    options = BuildOptions("tensorrt-rtx", (ARCHITECTURE,))
    facts = build_engine(open_bundle(Path(bundle)), graph, Limits(), options, Path(output), lambda *_: None)
    return facts.engine_bytes


def build_plainly(bundle: str, graph: Any, output: str) -> int:
    """In a child: the bodies and the shapes of ours, and nothing else of it."""
    import tensorrt_rtx_bindings as trt

    from engines.backends.tensorrt.attention import attention_bodies
    from engines.backends.tensorrt.build.network import graph_for_parser
    from engines.backends.tensorrt.build.profiles import graph_profiles, shape_ranges
    from engines.sizing.limits import Limits
    from export.bundle import open_bundle
    from export.checkpoint.config import load_config
    from export.contract import graph_contract

    opened, limits = open_bundle(Path(bundle)), Limits()
    config, dtype = load_config(opened.directory), opened.manifest.dtype
    path = opened.directory / f"{graph}.onnx"
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    body = attention_bodies(graph, dtype, limits.max_context, config)[0]
    model = graph_for_parser(path, body, limits.max_context)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise RuntimeError(parser.get_error(0).desc())
    build_config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in shape_ranges(
        graph_contract(graph, config, dtype), graph_profiles(graph, config, limits)[0]
    ):
        profile.set_shape(name, shapes.minimum, shapes.optimum, shapes.maximum)
    build_config.add_optimization_profile(profile)
    build_config.num_compute_capabilities = 1
    build_config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{ARCHITECTURE}"), 0)
    engine = builder.build_serialized_network(network, build_config)
    return Path(output).write_bytes(engine)


def row(measured: Measurement, ours: Measurement | None = None) -> list[str]:
    ratios = ["", ""]
    if ours:
        ratios = [
            ratio_text(measured.wall_seconds, ours.wall_seconds),
            ratio_text(measured.peak_rss_bytes, ours.peak_rss_bytes),
        ]
    return [
        measured.name,
        seconds_text(measured.wall_seconds),
        bytes_text(measured.peak_rss_bytes),
        bytes_text(measured.result),
        LIMITS.get(measured.name, ""),
        *ratios,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds")
    parser.add_argument("--skip-plain", action="store_true", help="measure ours alone")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=("vision", "decoder", "decoder-7b"),
        default=("vision", "decoder", "decoder-7b"),
        help="which to build (default: all); decoder-7b needs 19 GB of free memory and 16 GB of disk",
    )
    add_work_option(parser)
    options = parser.parse_args()
    size, large = ("tiny", "tiny") if options.quick else ("2b", "7b")
    output = options.work.resolve() / "built.engine"
    rows = []
    if {"vision", "decoder"} & set(options.engines):
        source = checkpoint(options.work, f"qwen2-vl-{size}-random", size=size)
        bundle = exported(options.work, source, "bfloat16")
    for graph in ("vision", "decoder"):
        if graph in options.engines:
            arguments = {"bundle": bundle, "graph": graph, "output": output}
            ours = measure(f"{graph}, {size}", build_ours, **arguments)
            rows.append(row(ours))
            if not options.skip_plain:
                rows.append(row(measure(f"plainly: {graph}, {size}", build_plainly, **arguments), ours))
    if "decoder-7b" in options.engines:
        sparse = checkpoint(options.work, f"qwen2-vl-{large}-marked", size=large, sparse=True)
        mark_tensors(sparse)
        arguments = {
            "bundle": exported(options.work, sparse, "bfloat16"),
            "graph": "decoder",
            "output": output,
        }
        rows.append(row(measure(f"decoder, {large}-shaped", build_ours, **arguments)))
    output.unlink()
    print_table("Engines", HEADER, rows)


if __name__ == "__main__":
    main()
