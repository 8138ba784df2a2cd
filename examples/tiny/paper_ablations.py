"""The paper's two ablations at this scale. (arXiv 2409.12191, tables 7 and 8)

    python -m examples.tiny.paper_ablations models/qwen2-vl-tiny build/paper-ablations [--scale 0.25] [--samples 200]

- Table 7 asks one model about pictures of their own size, and resized to a fixed number of visual tokens.
- Table 8 compares M-RoPE with one-dimensional positions. Those are the decoder's alone: two decoders learn the tasks
  from nothing with the same samples (the plan's warm-up, `scale` times as long), and then see through the checkpoint's
  vision encoder.

The two trainings run side by side. A run that was killed goes on with the step at which it stopped.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from examples.tiny import batches
from examples.tiny.checkpoint import checkpoint_argument, read_weights, write_config_files, write_weights
from examples.tiny.evaluate import BATCH, accuracy, answers, held_out
from examples.tiny.plan import Plan
from examples.tiny.reference_sessions import open_reference
from examples.tiny.tasks import TASKS
from examples.tiny.train import train
from export.models.qwen2_vl import positions
from export.processor.processor import Processor
from export.processor.settings import PIXELS_PER_TOKEN

FIXED_TOKENS = (6, 16, 36)
VISUAL_TOKENS = "visual tokens"
Figures = dict[str, float]
"""Accuracy by task, and how many visual tokens a question has on average."""


def ask(checkpoint: Path, number: int) -> Figures:
    """The held-out questions, answered by the PyTorch reference."""
    own, sessions = Processor.from_directory(checkpoint), open_reference(checkpoint, BATCH)
    figures, lengths = Figures(), list[int]()
    for task in TASKS:
        samples = held_out(task, number)
        inputs = [own.inputs_from_messages(sample.messages()) for sample in samples]
        figures[task] = accuracy(samples, answers(inputs, own, checkpoint, sessions))
        lengths += [len(prompt.patches) // own.config.vision.patches_per_token for prompt in inputs]
    return figures | {VISUAL_TOKENS: float(np.mean(lengths))}


# --- table 7: fixed against dynamic resolution ------------------------------------------------------------


def fix_resolution(checkpoint: Path, directory: Path, tokens: int) -> None:
    """The same model in another directory, whose processor resizes each picture and frame to about `tokens`."""
    shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((directory / name).read_text(encoding="utf-8"))
        settings |= dict.fromkeys(("min_pixels", "max_pixels"), tokens * PIXELS_PER_TOKEN)
        (directory / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# --- table 8: M-RoPE against one-dimensional positions ----------------------------------------------------


def one_dimensional_ids(token_ids: np.ndarray, *_: Any) -> tuple[np.ndarray, int]:
    """Every token's place in the sequence on all three axes, and no delta: positions as before M-RoPE."""
    return np.tile(np.arange(len(token_ids), dtype=np.int32), (3, 1)), 0


@contextmanager
def position_ids_by(ids: Callable[..., Any]) -> Iterator[None]:
    """Position ids in training and evaluation."""
    with patch.object(batches, "mrope_position_ids", ids), patch.object(positions, "mrope_position_ids", ids):
        yield


POSITIONS: dict[str, Callable[..., Any]] = {
    "M-RoPE": positions.mrope_position_ids,
    "1-D positions": one_dimensional_ids,
}


def train_decoder(name: str, directory: Path, checkpoint: Path, plan: Plan, number: int) -> Figures:
    """Train a decoder with the positions of that name from what pictures show, and ask it about pictures.

    Args:
        name: a key of POSITIONS.
        directory: of the training.
        checkpoint: gives the vision encoder.
        plan: of the training.
        number: held-out samples a task.
    """
    torch.set_num_threads(1)
    write_config_files(directory / "checkpoint")
    with position_ids_by(POSITIONS[name]):
        train(directory, plan)
        write_config_files(directory / "seeing")
        write_weights(directory / "seeing", read_weights((directory / "checkpoint", checkpoint)))
        return ask(directory / "seeing", number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the paper's two ablations on the small model.")
    parser.add_argument("checkpoint", type=checkpoint_argument)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scale", type=float, default=0.25, help="length of each training, 1 is the plan's")
    parser.add_argument("--samples", type=int, default=200, help="held-out samples a task")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    result: dict[str, dict[str, Figures]] = {"resolution": {}, "positions": {}}

    def note(table: str, name: str, figures: Figures) -> None:
        result[table][name] = figures
        print(name, figures, file=sys.stderr, flush=True)

    plan = Plan().only("text").scaled(options.scale)
    with ProcessPoolExecutor(len(POSITIONS), get_context("fork")) as pool:
        runs = {}
        for name in POSITIONS:
            folder = options.directory / name.replace(" ", "-")
            runs[name] = pool.submit(train_decoder, name, folder, options.checkpoint, plan, options.samples)
        for name, run in runs.items():
            note("positions", name, run.result())
    for tokens in FIXED_TOKENS:
        fix_resolution(options.checkpoint, options.directory / f"{tokens}-tokens", tokens)
        note("resolution", f"{tokens} tokens", ask(options.directory / f"{tokens}-tokens", options.samples))
    note("resolution", "dynamic", ask(options.checkpoint, options.samples))
    report = options.directory / "report.json"
    report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
