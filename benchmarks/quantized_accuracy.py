"""What quantizing costs the small checkpoint: its tasks, answered by a plain bundle and by quantized ones.

    python -m benchmarks.quantized_accuracy PLAIN QUANTIZED... [--samples 500] [--reference] --answers DIR

Bundles of `models/qwen2-vl-tiny`, opened by ONNX Runtime, and by the PyTorch reference too where it is asked; samples
that no training run saw. For each quantized bundle and task: accuracy, the difference with its 95 percent interval
(paired), how often the text is the plain bundle's, and how often ONNX Runtime's is the reference's of the same weights.
Answers are kept in DIR by bundle, and those that are there are not asked again: a run that was stopped goes on.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from engines.open import open_engine
from examples.tiny.evaluate import BATCH, Sessions, answers, held_out
from examples.tiny.reference_sessions import CAPACITY, open_reference
from examples.tiny.scoring import is_right
from examples.tiny.tasks import TASKS, Sample
from export.bundle import open_bundle
from export.processor.processor import Processor
from validate.tasks.quality import compare_quality

ENGINES: Mapping[str, Callable[[Path], Sessions]] = {
    "onnxruntime": lambda path: open_engine(
        open_bundle(path), None, num_slots=BATCH, capacity=CAPACITY, num_threads=1
    ),
    "reference": lambda path: open_reference(path, BATCH),
}
"""Each by one thread: waiting for a second one would cost more than products this small take."""

Texts = dict[str, list[str]]
"""Answers by task."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Score quantized bundles beside the plain one.")
    parser.add_argument("plain", type=Path)
    parser.add_argument("quantized", type=Path, nargs="*")
    parser.add_argument("--samples", type=int, default=500, help="per task")
    parser.add_argument(
        "--reference", action="store_true", help="let PyTorch answer too, by the same weights"
    )
    parser.add_argument("--answers", type=Path, required=True, help="where answers are kept, and report.json")
    options = parser.parse_args()
    options.answers.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    samples = {task: held_out(task, options.samples) for task in TASKS}
    engines = list(ENGINES) if options.reference else ["onnxruntime"]
    plain: dict[str, Texts] = {}
    result: dict[str, dict[str, object]] = {}
    for path in [options.plain, *options.quantized]:
        said = {engine: asked(path, engine, samples, options.answers) for engine in engines}
        plain = plain or said
        for engine in engines:
            result[f"{path.name} by {engine}"] = scored(samples, plain[engine], said[engine])
        if options.reference:
            result[f"{path.name}: the engine as its reference"] = dict(agreement(*said.values()))
        for name in list(result)[-len(engines) - 1 :]:
            print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
        text = json.dumps(result, indent=1) + "\n"
        (options.answers / "report.json").write_text(text, encoding="utf-8")


def asked(path: Path, engine: str, samples: Mapping[str, Sequence[Sample]], directory: Path) -> Texts:
    """What an engine of a bundle answers, a file for each task."""
    key = open_bundle(path).manifest.key
    files = {task: directory / f"{path.name}-{key}.{engine}.{task}.json" for task in samples}
    texts = {
        task: json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        for task, file in files.items()
    }
    missing = [task for task in samples if len(texts[task]) < len(samples[task])]
    if missing:
        processor = Processor.from_directory(path)
        sessions = ENGINES[engine](path)
        for task in missing:
            inputs = [processor.inputs_from_messages(sample.messages()) for sample in samples[task]]
            texts[task] = answers(inputs, processor, path, sessions)
            files[task].write_text(json.dumps(texts[task], ensure_ascii=False) + "\n", encoding="utf-8")
    return {task: texts[task][: len(samples[task])] for task in samples}


def scored(samples: Mapping[str, Sequence[Sample]], plain: Texts, quantized: Texts) -> dict[str, object]:
    """By task and for all: accuracy beside the plain bundle's by the same engine, and how often the text is its."""
    rights = {
        task: [list(map(is_right, samples[task], texts[task])) for texts in (plain, quantized)]
        for task in samples
    }
    rights["all"] = [[right for sides in rights.values() for right in sides[side]] for side in (0, 1)]
    same = agreement(plain, quantized)
    return {task: {**compared(*sides), "same_text": same[task]} for task, sides in rights.items()}


def agreement(one: Texts, other: Texts) -> dict[str, float]:
    """By task and for all, the share of answers with the very same text."""
    same = {task: list(map(str.__eq__, texts, other[task])) for task, texts in one.items()}
    same["all"] = [item for items in same.values() for item in items]
    return {task: sum(items) / len(items) for task, items in same.items()}


def compared(plain: Sequence[bool], quantized: Sequence[bool]) -> dict[str, object]:
    quality = compare_quality(plain, quantized)
    return {
        "accuracy": quality.engine_accuracy,
        "difference": quality.difference,
        "interval": quality.interval,
    }


if __name__ == "__main__":
    main()
