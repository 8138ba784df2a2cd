"""Cost of an export, next to `torch.onnx.export` on Transformers' modules.

    python -m benchmarks.export [--quick] [--work DIR] [--checkpoint 2B_DIR] [--skip-peer] [--repeats N]

Measures wall seconds and peak RSS of whole processes, imports included, bfloat16:
- 2B, random weights: `qv-export export --weights link` (both graphs, with KV cache), against
  `torch.onnx.export(dynamo=True)` of Transformers' vision tower (traced for one image) and of its decoder
  without cache, in one process as ours;
- 72B-shaped, sparse files as weights: ours alone, since the peer would hold 147 GB.
`--quick` runs tiny shapes in seconds: it shows that the script works and measures nothing.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

from benchmarks.checkpoints import QV_EXPORT, add_work_option, checkpoint
from benchmarks.measure import (
    Measurement,
    bytes_text,
    measure,
    measure_command,
    print_table,
    ratio_text,
    seconds_text,
)

HEADER = ("export, bfloat16", "seconds", "peak RSS", "limit", "peer's seconds / ours", "peer's RSS / ours")


def export_ours(name: str, source: Path, output: Path, repeats: int) -> Measurement:
    """Median time and largest peak of `repeats` runs of the command line."""
    arguments = ("export", str(source), "--output", str(output), "--weights", "link", "--dtype", "bfloat16")
    runs = []
    for _ in range(repeats):
        shutil.rmtree(output, ignore_errors=True)
        runs.append(measure_command(name, [*QV_EXPORT, *arguments]))
    shutil.rmtree(output)
    wall_seconds = statistics.median(run.wall_seconds for run in runs)
    return Measurement(name, wall_seconds, max(run.peak_rss_bytes for run in runs), None)


def export_peer(source: str, output: str) -> dict[str, float]:
    """In a child: both of Transformers' modules to ONNX files; returns the seconds of each phase."""
    start = time.perf_counter()
    from benchmarks import peers

    directory = Path(output)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = peers.load_model(source, "bfloat16")
    loaded = time.perf_counter()
    peers.export_vision(model, directory / "vision.onnx", "bfloat16")
    vision = time.perf_counter()
    peers.export_language_model(model, directory / "decoder.onnx", "bfloat16")
    seconds = {"load": loaded - start, "vision": vision - loaded, "decoder": time.perf_counter() - vision}
    shutil.rmtree(directory)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds")
    parser.add_argument("--checkpoint", type=Path, help="a 2B checkpoint to use instead of a generated one")
    parser.add_argument("--skip-peer", action="store_true", help="measure ours alone")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours (default: %(default)s)")
    add_work_option(parser)
    options = parser.parse_args()
    small, large = ("tiny", "tiny") if options.quick else ("2b", "72b")
    source = options.checkpoint or checkpoint(options.work, f"qwen2-vl-{small}-random", size=small)
    sparse = checkpoint(options.work, f"qwen2-vl-{large}-sparse", size=large, sparse=True)
    output = options.work.resolve() / "exported"

    ours = export_ours(f"ours, {small}", source.resolve(), output, options.repeats)
    ours_large = export_ours(f"ours, {large}-shaped", sparse, output, options.repeats)
    rows = [
        [ours.name, seconds_text(ours.wall_seconds), bytes_text(ours.peak_rss_bytes), "20 s, 1.2 GB", "", ""],
        [
            ours_large.name,
            seconds_text(ours_large.wall_seconds),
            bytes_text(ours_large.peak_rss_bytes),
            "60 s, 2 GB",
            "",
            "",
        ],
    ]
    if not options.skip_peer:
        peer = measure(f"torch.onnx.export, {small}", export_peer, source=source.resolve(), output=output)
        phases = ", ".join(f"{phase} {seconds_text(seconds)}" for phase, seconds in peer.result.items())
        rows.append(
            [
                f"{peer.name} ({phases})",
                seconds_text(peer.wall_seconds),
                bytes_text(peer.peak_rss_bytes),
                "",
                ratio_text(peer.wall_seconds, ours.wall_seconds),
                ratio_text(peer.peak_rss_bytes, ours.peak_rss_bytes),
            ]
        )
    print_table("Export", HEADER, rows)


if __name__ == "__main__":
    main()
