"""Cost of a validation: time, and memory of one engine and one reference that are never there together.

    python -m benchmarks.validate [--quick] [--work DIR] [--checkpoint DIR] [--level LEVEL]

A 2B-shaped checkpoint with random weights unless one is given; `qv-export validate` on its float32 or bfloat16
bundle, whole process. The limit is 16 GB in float32 on a CPU.
`--quick` runs a tiny shape in seconds: it shows that the script works and measures nothing.
"""

import argparse
import json
from pathlib import Path

from benchmarks.checkpoints import QV_EXPORT, add_work_option, checkpoint, exported
from benchmarks.measure import bytes_text, measure_command, print_table, seconds_text

HEADER = ("validate", "level", "cases", "gates", "verdict", "seconds", "peak RSS", "limit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape, seconds")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint to use instead of a generated one")
    parser.add_argument("--level", default="quick", help="of the validation (default: %(default)s)")
    parser.add_argument(
        "--dtype", default="bfloat16", help="of a generated checkpoint and the graphs (default: %(default)s)"
    )
    add_work_option(parser)
    options = parser.parse_args()
    size = "tiny" if options.quick else "2b"
    name = f"qwen2-vl-{size}-random" + ("" if options.dtype == "bfloat16" else f"-{options.dtype}")
    source = options.checkpoint or checkpoint(options.work, name, size=size, dtype=options.dtype)
    bundle = exported(options.work, source.resolve(), options.dtype)
    report = options.work.resolve() / "validation"
    command = ("validate", str(bundle), "--level", options.level, "--report", str(report))
    run = measure_command(f"validate {bundle.name}", [*QV_EXPORT, *command])
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    verdict = content["verdict"]
    row = [
        bundle.name,
        options.level,
        str(len(content["cases"])),
        str(verdict["num_gates"]),
        "pass" if verdict["passed"] else "fail",
        seconds_text(run.wall_seconds),
        bytes_text(run.peak_rss_bytes),
        "16 GB",
    ]
    print_table("Validation", HEADER, [row])


if __name__ == "__main__":
    main()
