"""Evaluates the small model on samples that it never saw, and the exported graphs against PyTorch.

    python -m examples.tiny.evaluate models/qwen2-vl-tiny [--bundle BUNDLE] [--samples 500] --output report.json

Without a bundle only the PyTorch reference answers. The seeds start where no training run arrives.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.runtime.answer import Request
from engines.runtime.generate import collect_generations, generate_batch
from engines.session import DecoderSession, VisionSession
from examples.tiny.checkpoint import checkpoint_argument
from examples.tiny.reference_sessions import CAPACITY, open_reference
from examples.tiny.scoring import is_right
from examples.tiny.tasks import TASKS, Sample, make_sample
from export.checkpoint.generation_config import load_generation_config
from export.inputs import ModelInputs
from export.processor.processor import Processor

HELD_OUT_SEED = 1_000_003
"""First number of every held-out sample's seed; training runs use small ones."""
BATCH = 16
MAX_NEW_TOKENS = 40
Sessions = tuple[VisionSession, DecoderSession]


def held_out(task: str, number: int) -> list[Sample]:
    return [make_sample(task, (HELD_OUT_SEED, i)) for i in range(number)]


def answers(
    inputs: Sequence[ModelInputs], processor: Processor, checkpoint: Path, sessions: Sessions
) -> list[str]:
    """Greedy answers through the product's own runtime, several at a time."""
    config = replace(load_generation_config(checkpoint), max_new_tokens=MAX_NEW_TOKENS)
    texts: list[str] = []
    for first in range(0, len(inputs), BATCH):
        requests = [Request(prompt, config) for prompt in inputs[first : first + BATCH]]
        events = generate_batch(requests, *sessions, model=processor.config)
        for generation in collect_generations(events):
            ids = [token for token in generation.token_ids if token not in config.eos_token_ids]
            texts.append(processor.tokenizer.decode(ids, skip_special_tokens=False))
    return texts


def accuracy(samples: Sequence[Sample], texts: Sequence[str]) -> float:
    return sum(map(is_right, samples, texts)) / len(samples)


def by_size(samples: Sequence[Sample], texts: Sequence[str]) -> dict[int, float]:
    """Accuracy by the number of shapes where a box is asked for, else by the number of the answer's characters."""
    groups: dict[int, list[tuple[Sample, str]]] = {}
    for sample, text in zip(samples, texts, strict=True):
        size = len(sample.media[0].scenes[0].shapes) if sample.task == "box" else len(sample.answer)
        groups.setdefault(size, []).append((sample, text))
    return {size: accuracy(*zip(*groups[size], strict=True)) for size in sorted(groups)}


def report(checkpoint: Path, bundle: Path | None, number: int) -> dict[str, Any]:
    """Accuracy by task and engine, agreement sample by sample, and the wrong answers."""
    processor = Processor.from_directory(checkpoint)
    engines: dict[str, Sessions] = {"pytorch": open_reference(checkpoint, BATCH)}
    if bundle is not None:
        from engines.open import open_engine
        from export.bundle import open_bundle

        engines["onnxruntime"] = open_engine(open_bundle(bundle), None, num_slots=BATCH, capacity=CAPACITY)
    result: dict[str, Any] = {"samples": number, "tasks": {}}
    for task in TASKS:
        samples = held_out(task, number)
        inputs = [processor.inputs_from_messages(sample.messages()) for sample in samples]
        texts = {name: answers(inputs, processor, checkpoint, engine) for name, engine in engines.items()}
        entry: dict[str, Any] = {name: accuracy(samples, said) for name, said in texts.items()}
        if len(texts) == 2:
            entry["agreement"] = sum(map(str.__eq__, *texts.values())) / number
        wrong = [
            (s, said) for s, said in zip(samples, texts["pytorch"], strict=True) if not is_right(s, said)
        ]
        entry["by_size"] = by_size(samples, texts["pytorch"])
        entry["wrong"] = [{"prompt": s.prompt, "truth": s.answer, "said": said} for s, said in wrong[:20]]
        result["tasks"][task] = entry
        figures = ", ".join(f"{key} {value:.1%}" for key, value in entry.items() if isinstance(value, float))
        print(f"{task}: {figures}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the small model on held-out samples.")
    parser.add_argument("checkpoint", type=checkpoint_argument)
    parser.add_argument("--bundle", type=Path, help="what qv-export export wrote from this checkpoint")
    parser.add_argument("--samples", type=int, default=500, help="per task")
    parser.add_argument("--output", type=Path, required=True, help="JSON report to write")
    options = parser.parse_args()
    content = report(options.checkpoint, options.bundle, options.samples)
    options.output.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
