"""What quantizing costs the small checkpoint: its tasks, answered by a plain bundle and by quantized ones.

    python -m benchmarks.quantized_accuracy PLAIN QUANTIZED... [--samples 500] --output report.json

Bundles of `models/qwen2-vl-tiny`, opened by ONNX Runtime; samples that no training run saw. For each quantized bundle
and task: accuracy, the difference with its 95 percent interval (paired), and how often the text is the plain bundle's.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.open import open_engine
from examples.tiny.evaluate import BATCH, answers, held_out
from examples.tiny.reference_sessions import CAPACITY
from examples.tiny.scoring import is_right
from examples.tiny.tasks import TASKS
from export.bundle import open_bundle
from export.processor.processor import Processor
from validate.tasks.quality import compare_quality


def main() -> None:
    parser = argparse.ArgumentParser(description="Score quantized bundles beside the plain one.")
    parser.add_argument("plain", type=Path)
    parser.add_argument("quantized", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=500, help="per task")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    paths = [options.plain, *options.quantized]
    engines = {
        path.name: open_engine(open_bundle(path), None, num_slots=BATCH, capacity=CAPACITY) for path in paths
    }
    processor = Processor.from_directory(options.plain)
    result: dict[str, dict[str, object]] = {name: {} for name in engines}
    everything: dict[str, list[bool]] = {name: [] for name in engines}
    for task in TASKS:
        samples = held_out(task, options.samples)
        inputs = [processor.inputs_from_messages(sample.messages()) for sample in samples]
        said = {name: answers(inputs, processor, options.plain, engine) for name, engine in engines.items()}
        right = {name: list(map(is_right, samples, texts)) for name, texts in said.items()}
        for name, texts in said.items():
            everything[name] += right[name]
            same = sum(map(str.__eq__, texts, said[options.plain.name])) / len(samples)
            result[name][task] = compared(right[options.plain.name], right[name], same)
            print(task, name, result[name][task], file=sys.stderr, flush=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in engines:
        result[name]["all"] = compared(everything[options.plain.name], everything[name], None)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compared(plain: Sequence[bool], quantized: Sequence[bool], same: float | None) -> dict[str, object]:
    quality = compare_quality(plain, quantized)
    return {
        "accuracy": quality.engine_accuracy,
        "difference": quality.difference,
        "interval": quality.interval,
        "same_text": same,
    }


if __name__ == "__main__":
    main()
