"""Do the paper's two training ablations hold at this scale? (arXiv 2409.12191, tables 7 and 8)

    python -m examples.tiny.paper_ablations build/paper-ablations [--scale 0.15] [--samples 200]

Trains a small model from nothing for each variant, all with the same samples, and asks each the held-out questions:

- pictures resized to a fixed number of visual tokens (three numbers) against the dynamic resolution;
- one-dimensional positions against M-RoPE.

A variant takes `scale` times as long as the shipped training. A run that was killed goes on with the variant, and
the step, at which it stopped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from examples.tiny import batches
from examples.tiny.checkpoint import write_config_files
from examples.tiny.evaluate import BATCH, accuracy, answers, held_out
from examples.tiny.plan import Plan
from examples.tiny.reference_sessions import open_reference
from examples.tiny.tasks import TASKS
from examples.tiny.train import train
from export.processor import positions, processor
from export.processor.processor import Processor
from export.processor.settings import PIXELS_PER_TOKEN

FIXED_TOKENS = (6, 16, 36)


@dataclass(frozen=True)
class Variant:
    name: str
    tokens: int | None = None
    """Visual tokens to which every picture is resized; None leaves it its own size."""
    has_mrope: bool = True


VARIANTS = (
    Variant("dynamic resolution, M-RoPE"),
    *(Variant(f"{tokens} tokens a picture", tokens=tokens) for tokens in FIXED_TOKENS),
    Variant("1-D positions", has_mrope=False),
)


def fix_resolution(directory: Path, tokens: int) -> None:
    """Let a checkpoint's processor resize each picture and frame to about `tokens` visual tokens."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((directory / name).read_text(encoding="utf-8"))
        settings |= dict.fromkeys(("min_pixels", "max_pixels"), tokens * PIXELS_PER_TOKEN)
        (directory / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def one_dimensional_ids(token_ids: np.ndarray, *_: Any) -> tuple[np.ndarray, int]:
    """Every token's place in the sequence on all three axes, and no delta: positions as before M-RoPE."""
    return np.tile(np.arange(len(token_ids), dtype=np.int32), (3, 1)), 0


@contextmanager
def positions_of(variant: Variant) -> Iterator[None]:
    """The variant's position ids in training and evaluation."""
    ids: Callable[..., Any] = positions.mrope_position_ids if variant.has_mrope else one_dimensional_ids
    with patch.object(batches, "mrope_position_ids", ids), patch.object(processor, "mrope_position_ids", ids):
        yield


def accuracies(checkpoint: Path, number: int) -> dict[str, float]:
    """Of each task, by the PyTorch reference."""
    own, sessions = Processor.from_directory(checkpoint), open_reference(checkpoint, BATCH)
    figures = {}
    for task in TASKS:
        samples = held_out(task, number)
        inputs = [own.inputs_from_messages(sample.messages()) for sample in samples]
        figures[task] = accuracy(samples, answers(inputs, own, checkpoint, sessions))
    return figures


def run_variant(directory: Path, variant: Variant, plan: Plan, number: int) -> dict[str, float]:
    """Train and evaluate one variant in a directory of its own."""
    write_config_files(directory / "checkpoint")
    if variant.tokens is not None:
        fix_resolution(directory / "checkpoint", variant.tokens)
    with positions_of(variant):
        train(directory, plan)
        return accuracies(directory / "checkpoint", number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the paper's training ablations on the small model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--scale", type=float, default=0.15, help="length of each training, 1 is the shipped one's"
    )
    parser.add_argument("--samples", type=int, default=200, help="held-out samples a task")
    options = parser.parse_args()
    plan = Plan().scaled(options.scale)
    result: dict[str, dict[str, float]] = {}
    for variant in VARIANTS:
        folder = options.directory / variant.name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        result[variant.name] = run_variant(folder, variant, plan, options.samples)
        print(variant.name, result[variant.name], file=sys.stderr, flush=True)
    report = options.directory / "report.json"
    report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
