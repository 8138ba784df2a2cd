"""Runs the stages, most valuable first, and writes what is known after each.

python -m benchmarks.gpu_proof --minutes 10 -o OUT          on a GPU
python -m benchmarks.gpu_proof --dry-run -o OUT             every line with small sizes on a CPU
python -m benchmarks.gpu_proof --into-page OUT/proof.json   the figures into docs/performance.md
"""

import argparse
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_proof import stages
from benchmarks.gpu_proof.results import (
    Proof,
    StageResult,
    put_into_page,
    read_proof,
    table,
    worst,
    write_proof,
)
from benchmarks.gpu_proof.settings import Settings


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="for all stages together")
    parser.add_argument("-o", "--output", type=Path, help="directory for proof.json and proof.md")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on a CPU, no figures")
    parser.add_argument("--engine", type=Path, help="a TensorRT-RTX engine for SM80, to be loaded")
    parser.add_argument("--only", action="append", default=[], help="a stage's name; repeat it for several")
    parser.add_argument(
        "--into-page", type=Path, metavar="PROOF", help="write a proof into docs/performance.md"
    )
    parser.add_argument("--stage", choices=[stage.name for stage in stages.STAGES], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = Settings(arguments.dry_run, arguments.engine)
    if arguments.into_page:
        put_into_page(read_proof(arguments.into_page), stages.page_of_the_project())
        return 0
    if arguments.stage:
        stage = next(stage for stage in stages.STAGES if stage.name == arguments.stage)
        print("\n" + stages.to_json(stages.run_here(stage, settings)))
        return 0
    if arguments.output is None:
        parser.error("give -o OUT")
    return _prove(settings, 60 * arguments.minutes, tuple(arguments.only), arguments.output)


def _prove(settings: Settings, seconds: float, names: tuple[str, ...], output: Path) -> int:
    output.mkdir(parents=True, exist_ok=True)
    proof = Proof(_machine(settings), f"{datetime.now(UTC):%Y-%m-%d}", settings.is_dry_run)
    write_proof(proof, output)

    def report(result: StageResult) -> None:
        nonlocal proof
        proof = replace(proof, stages=(*proof.stages, result))
        write_proof(proof, output)
        print(
            f"{result.stage}: {result.status}, {result.seconds:.0f} s {result.reason}",
            file=sys.stderr,
            flush=True,
        )

    stages.run_all(settings, seconds, names, report)
    print(table(proof))
    return worst(proof.stages)


def _machine(settings: Settings) -> str:
    import torch

    if settings.is_dry_run:
        return f"a CPU, PyTorch {torch.__version__}"
    import triton

    driver = torch.cuda.get_device_name()
    return f"{driver}, PyTorch {torch.__version__}, Triton {triton.__version__}"


if __name__ == "__main__":
    sys.exit(main())
