"""Cost of dividing a 72B-shaped decoder among ranks, and of building one rank's engine.

    python -m benchmarks.tensor_parallel [--quick] [--work DIR] [--ranks 4 --ranks 8] [--engine-layers N]

Measures whole processes, imports included, bfloat16, sparse files as weights:
- `qv-export export --weights link --tensor-parallel N`: seconds, peak RSS, bytes on disk of the bundle's own files;
- with `--engine-layers`, the TensorRT-RTX engine of the last rank of the largest group, of a decoder of so many layers.
`--quick` runs a tiny shape in seconds: it shows that the script works and measures nothing.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import QV_EXPORT, add_work_option, checkpoint, mark_tensors
from benchmarks.measure import Measurement, bytes_text, measure, measure_command, print_table, seconds_text

HEADER = (
    "72B-shaped, bfloat16",
    "seconds",
    "peak RSS",
    "limit",
    "weight bytes written",
    "other bytes written",
)


def export_ranks(source: Path, output: Path, ranks: int) -> tuple[Measurement, int, int]:
    """The export, and the bytes that it wrote: of weights, and of everything else."""
    shutil.rmtree(output, ignore_errors=True)
    arguments = ("export", str(source), "--output", str(output), "--weights", "link", "--dtype", "bfloat16")
    run = measure_command(f"export, {ranks} ranks", [*QV_EXPORT, *arguments, "--tensor-parallel", str(ranks)])
    files = [path for path in output.rglob("*") if path.is_file()]
    weights = sum(
        path.stat().st_size
        for path in files
        if path.suffix == ".safetensors" and not _is_linked(path, source)
    )
    others = sum(path.stat().st_size for path in files if path.suffix != ".safetensors")
    return run, weights, others


def _is_linked(path: Path, source: Path) -> bool:
    original = source / path.name
    return original.exists() and original.stat().st_ino == path.stat().st_ino


def build_rank(bundle: str, graph: str, output: str) -> dict[str, Any]:
    """In a child: one rank's engine; its bytes and layers that speak to other ranks."""
    from engines.backends.tensorrt.build.builder import BuildOptions, build_engine
    from engines.sizing.limits import Limits
    from export.bundle import open_bundle

    options = BuildOptions(target="tensorrt-rtx", sm=(80,), only_logits=True)
    limits = Limits(max_batch=4, max_context=1024, max_prompt_tokens=512)
    facts = build_engine(open_bundle(Path(bundle)), graph, limits, options, Path(output), lambda *_: None)
    collectives = sum(layer.type == "DIST_COLLECTIVE" for layer in facts.layers)
    Path(output).unlink()
    return {
        "engine_bytes": facts.engine_bytes,
        "collectives": collectives,
        "seconds": facts.seconds,
        "peak_rss_bytes": facts.peak_rss_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds")
    parser.add_argument("--ranks", type=int, action="append", help="sizes of the group (default: 4 and 8)")
    parser.add_argument(
        "--engine-layers", type=int, help="build one rank's engine of a decoder of so many layers"
    )
    parser.add_argument("--skip-export", action="store_true", help="only the engine")
    add_work_option(parser)
    options = parser.parse_args()
    size = "tiny" if options.quick else "72b"
    sizes = options.ranks or ([2] if options.quick else [4, 8])
    output = options.work.resolve() / "divided"
    rows = []
    if not options.skip_export:
        source = checkpoint(options.work, f"qwen2-vl-{size}-sparse", size=size, sparse=True)
        for ranks in sizes:
            run, weights, others = export_ranks(source, output, ranks)
            took = [seconds_text(run.wall_seconds), bytes_text(run.peak_rss_bytes), "60 s, 2 GB"]
            rows.append([run.name, *took, str(weights), bytes_text(others)])
    if options.engine_layers:
        ranks = sizes[-1]
        few = {"size": size, "sparse": True, "num_hidden_layers": options.engine_layers}
        shallow = checkpoint(options.work, f"qwen2-vl-{size}-{options.engine_layers}-layers", **few)
        mark_tensors(shallow)
        export_ranks(shallow, output, ranks)
        graph = f"decoder.rank{ranks - 1}"
        built = measure(
            f"build {graph}", build_rank, bundle=output, graph=graph, output=output / "rank.engine"
        )
        told = f"{options.engine_layers} layers, {built.result['collectives']} collectives, "
        told += f"engine {bytes_text(built.result['engine_bytes'])}"
        peak = max(built.peak_rss_bytes, built.result["peak_rss_bytes"])
        rows.append(
            [
                f"{built.name} of {ranks}: {told}",
                seconds_text(built.wall_seconds),
                bytes_text(peak),
                "",
                "",
                "",
            ]
        )
    shutil.rmtree(output, ignore_errors=True)
    print_table("Ranks", HEADER, rows)


if __name__ == "__main__":
    main()
