"""Ablations: breaks one mechanism at a time in the trained model and asks again.

    python -m examples.tiny.ablations models/qwen2-vl-tiny --output ablations.json [--samples 200]

Also reads text over a range of picture sizes, since any resolution is the family's promise.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor

from examples.tiny.checkpoint import checkpoint_argument
from examples.tiny.evaluate import BATCH, HELD_OUT_SEED, accuracy, answers, held_out
from examples.tiny.pictures import FACES, load_font, text_scene
from examples.tiny.reference_sessions import open_reference
from examples.tiny.tasks import Medium, Sample, Turn, random_code
from export.inputs import ModelInputs
from export.models.qwen2_vl import decoder as reference_decoder
from export.processor.processor import Processor

Change = Callable[[Sample, ModelInputs], ModelInputs]
"""What an ablation does to a prompt's tensors."""


def swap_rows_and_columns(_: Sample, inputs: ModelInputs) -> ModelInputs:
    """The vision encoder's rotary takes each patch's row for its column."""
    return replace(inputs, positions=inputs.positions[::-1].copy())


def remove_first_boundary(_: Sample, inputs: ModelInputs) -> ModelInputs:
    """The first two pictures, or steps of a video, see each other's patches."""
    return replace(inputs, cu_seqlens=np.delete(inputs.cu_seqlens, 1))


def stop_time(sample: Sample, inputs: ModelInputs) -> ModelInputs:
    """All steps of a video have the temporal id of the first; text keeps its own."""
    if sample.media[0].kind != "video":
        return inputs
    position_ids = inputs.position_ids.copy()
    second = np.flatnonzero(np.ptp(position_ids, axis=0))[0]  # the first visual token has three equal ids
    start = int(second) - 1
    length = int(np.prod(inputs.grids[0])) // 4
    position_ids[0, start : start + length] = position_ids[0, start]
    return replace(inputs, position_ids=position_ids)


def zero_temporal_section() -> AbstractContextManager[Any]:
    """The temporal frequencies of M-RoPE are zero: that section of every query and key is not turned at all."""
    tables = reference_decoder.mrope_tables

    def without_time(config: Any) -> tuple[Tensor, Tensor]:
        frequencies, axis_of = tables(config)
        return frequencies * (axis_of != 0), axis_of

    return patch.object(reference_decoder, "mrope_tables", without_time)


@dataclass(frozen=True)
class Ablation:
    name: str
    tasks: tuple[str, ...]
    change: Change = lambda _, inputs: inputs
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


ABLATIONS = (
    Ablation("intact", ("read", "pictures", "direction", "order")),
    Ablation(
        "temporal section of M-RoPE zeroed",
        ("read", "pictures", "direction", "order"),
        context=zero_temporal_section,
    ),
    Ablation("all steps of a video at one time", ("direction", "order"), stop_time),
    Ablation("rows and columns swapped in the vision rotary", ("read", "pictures"), swap_rows_and_columns),
    Ablation("first cu_seqlens boundary removed", ("pictures", "order"), remove_first_boundary),
)
PICTURE_SIZES = (
    *((28, 28), (56, 28), (84, 28), (112, 28), (112, 56), (168, 56), (112, 112), (224, 56)),
    *((168, 168), (300, 80), (500, 60), (224, 224), (750, 80), (1000, 100)),
)


def read_at(size: tuple[int, int], seed: int) -> Sample:
    """Two to five characters somewhere on a picture of exactly this size, of 24 to 40 pixels if there is room."""
    rng = np.random.default_rng([HELD_OUT_SEED, seed, *size])
    while True:
        text = random_code(rng, 2, 5)
        smallest, largest = (18, 20) if size[0] < 56 else (24, max(25, min(size[1], 40)))
        font = load_font(FACES[rng.integers(len(FACES))], int(rng.integers(smallest, largest + 1)))
        scene = text_scene(text, rng, font, size, spacing=2)
        if scene.size == size:
            return Sample("read", (Medium("image", (scene,)),), (Turn("What does the text say?", text),))


def main() -> None:
    parser = argparse.ArgumentParser(description="Break the small model's mechanisms one at a time.")
    parser.add_argument("checkpoint", type=checkpoint_argument)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    processor, sessions = (
        Processor.from_directory(options.checkpoint),
        open_reference(options.checkpoint, BATCH),
    )
    result: dict[str, Any] = {
        "samples": options.samples,
        "ablations": {},
        "sizes": [],
    }
    for ablation in ABLATIONS:
        figures = {}
        with ablation.context():
            for task in ablation.tasks:
                samples = held_out(task, options.samples)
                inputs = [
                    ablation.change(sample, processor.inputs_from_messages(sample.messages()))
                    for sample in samples
                ]
                said = answers(inputs, processor, options.checkpoint, sessions)
                figures[task] = accuracy(samples, said)
        result["ablations"][ablation.name] = figures
        print(ablation.name, figures, file=sys.stderr, flush=True)
    for size in PICTURE_SIZES:
        samples = [read_at(size, seed) for seed in range(options.samples)]
        inputs = [processor.inputs_from_messages(sample.messages()) for sample in samples]
        said = answers(inputs, processor, options.checkpoint, sessions)
        result["sizes"].append([*size, accuracy(samples, said)])
        print(size, result["sizes"][-1][2], file=sys.stderr, flush=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
