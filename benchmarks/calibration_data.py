"""Writes conversations to calibrate the small checkpoint by: training samples of its tasks, with their answers.

    python -m benchmarks.calibration_data OUTPUT [--samples 16]

OUTPUT gets `conversations.jsonl` and the pictures beside it. No held-out sample is among them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from examples.tiny.tasks import TASKS, Sample, make_sample

SEED = 77
"""First number of every sample's seed: one of training runs, far from that of held-out samples."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write conversations to calibrate the small checkpoint by.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--samples", type=int, default=16, help="per task")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    lines = []
    for task in TASKS:
        for index in range(options.samples):
            messages = written(make_sample(task, (SEED, index)), options.output, f"{task}-{index}")
            lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    (options.output / "conversations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def written(sample: Sample, directory: Path, name: str) -> list[dict[str, Any]]:
    """The sample's messages and its answer; pictures and frames are files."""
    [message] = sample.messages()
    parts = []
    for number, part in enumerate(message["content"]):
        content = part.get(part["type"])
        if isinstance(content, Image.Image):
            content = _saved(content, directory / f"{name}-{number}.png")
        elif isinstance(content, list):
            content = [
                _saved(frame, directory / f"{name}-{number}-{index}.png")
                for index, frame in enumerate(content)
            ]
        parts.append({**part, part["type"]: content})
    return [{**message, "content": parts}, {"role": "assistant", "content": sample.answer}]


def _saved(image: Image.Image, path: Path) -> str:
    image.save(path)
    return path.name


if __name__ == "__main__":
    main()
