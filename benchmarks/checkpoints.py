"""The checkpoints that benchmarks run on: random ones of the real shapes, written once and kept.

They lie in `build/benchmarks` (or where --work says) and are found again by name.
"""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, measure, measure_command

DEFAULT_WORK = REPOSITORY / "build" / "benchmarks"

# Runs the command line from the checkout, installed or not.
QV_EXPORT = (sys.executable, "-m", "qv_export")

# The vision encoder alone matters: one decoder layer and few words keep the rest of the file small.
VISION_ONLY = {"num_hidden_layers": 1, "vocab_size": 1024}


def add_work_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work",
        type=Path,
        default=DEFAULT_WORK,
        help="folder for generated checkpoints and exported graphs (default: %(default)s)",
    )


def checkpoint(work: Path, name: str, **options: Any) -> Path:
    """The checkpoint `work/name`, written by `write_checkpoint(**options)` if it is not there yet."""
    directory = work.resolve() / name
    if not directory.exists():
        partial = directory.with_name(f"{name}.{os.getpid()}.partial")
        try:
            measure(f"write {name}", write, directory=str(partial), options=options)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory


def mark_tensors(directory: Path) -> None:
    """Make the tensors of a sparse checkpoint differ, one block of each: TensorRT keeps equal constants once."""
    from export.weights.safetensors_file import read_safetensors_header

    for path in directory.glob("*.safetensors"):
        with path.open("r+b") as file:
            for tensor in read_safetensors_header(path):
                mark = hashlib.sha256(tensor.name.encode()).digest()
                file.seek(tensor.offset_bytes)
                file.write(mark[: tensor.length_bytes])


def exported(work: Path, source: Path, dtype: str) -> Path:
    """A fresh bundle of a checkpoint, through the command line."""
    bundle = work.resolve() / "bundles" / f"{source.name}-{dtype}"
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    options = ("--output", str(bundle), "--weights", "link", "--dtype", dtype)
    measure_command(f"export {source.name}", [*QV_EXPORT, "export", str(source), *options])
    return bundle


def write(directory: str, options: dict[str, Any]) -> None:
    """In a child: NumPy and the tokenizer's training stay out of the measuring process."""
    from examples.random_checkpoint import write_checkpoint

    write_checkpoint(Path(directory), **options)
