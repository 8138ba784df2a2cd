"""Whether the engine answers as many questions right as the reference, as far as this many questions can tell.

The same questions go to both, so the difference is paired: only the questions on which the two disagree count.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.untrusted import read_named_text
from export.processor.text.picture_folder import user_message
from validate.gates.gates import GateResult

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Task:
    """A question with a known answer, in the chat format."""

    messages: tuple[dict[str, Any], ...]
    answer: str
    name: str = ""
    """Of the kind of question, by which accuracies are told apart."""


@dataclass(frozen=True)
class TaskQuality:
    """Accuracy of both, and the 95 percent interval of the difference."""

    num_tasks: int
    reference_accuracy: float
    engine_accuracy: float
    difference: float
    """Engine minus reference."""
    interval: tuple[float, float]
    allowed_loss: float

    @property
    def gate(self) -> GateResult:
        """Fails where even the hopeful end of the interval loses more than is allowed."""
        loss = max(0.0, -self.interval[1])
        return GateResult(
            "task_quality.loss",
            "tasks",
            loss <= self.allowed_loss,
            loss,
            self.allowed_loss,
            detail=self.sentence(),
        )

    def sentence(self) -> str:
        low, high = self.interval
        return (
            f"{self.num_tasks} tasks: reference {self.reference_accuracy:.1%}, engine {self.engine_accuracy:.1%}, "
            f"difference {self.difference:+.1%} (95% interval {low:+.1%} to {high:+.1%})"
        )


def compare_quality(
    reference_right: Sequence[bool], engine_right: Sequence[bool], allowed_loss: float = 0.0
) -> TaskQuality:
    """Paired comparison; Tango-like interval by Wald with a pseudo-count (Agresti and Min 2005, `+0.5` a cell).

    Args:
        reference_right, engine_right: one entry a task, in the same order; at least one.
        allowed_loss: accuracy that may be lost for certain.
    """
    pairs = list(zip(reference_right, engine_right, strict=True))
    lost = sum(ours and not theirs for ours, theirs in pairs)
    won = sum(theirs and not ours for ours, theirs in pairs)
    count = len(pairs)
    lost_smoothed, won_smoothed, count_smoothed = lost + 0.5, won + 0.5, count + 2
    center = (won_smoothed - lost_smoothed) / count_smoothed
    spread = lost_smoothed + won_smoothed - (won_smoothed - lost_smoothed) ** 2 / count_smoothed
    half = Z_95 * math.sqrt(spread) / count_smoothed
    return TaskQuality(
        num_tasks=count,
        reference_accuracy=sum(reference_right) / count,
        engine_accuracy=sum(engine_right) / count,
        difference=(won - lost) / count,
        interval=(max(-1.0, center - half), min(1.0, center + half)),
        allowed_loss=allowed_loss,
    )


def is_right(answer: str, expected: str) -> bool:
    """Equal up to case, surrounding space and a final full stop."""
    return _normal(answer) == _normal(expected)


def load_tasks(path: Path) -> list[Task]:
    """Read a `.jsonl` file: one object a line with `image` or `images` (paths beside the file), `prompt`, `answer`,
    and `task`, a name for its kind, by which accuracies are told apart.

    Raises:
        UserError: no such file, or lines that do not fit; all at once.
    """
    lines = read_named_text(path).splitlines()
    tasks, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            task = _task(line, path.parent)
            if isinstance(task, Task):
                tasks.append(task)
            else:
                problems.append(f"line {number}: {task}")
    if problems or not tasks:
        raise UserError(f"{path} is no list of tasks:\n- " + "\n- ".join(problems or ["it is empty"]))
    return tasks


def _task(line: str, directory: Path) -> Task | str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    if problem := _field_problem(content):
        return problem
    images = content.get("images", [content["image"]] if "image" in content else [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        return '"images" must be a list of paths'
    return Task(
        (user_message(content["prompt"], (directory / image for image in images)),),
        content["answer"],
        content.get("task", ""),
    )


def _field_problem(content: Any) -> str | None:
    if not isinstance(content, dict) or not isinstance(content.get("prompt"), str):
        return 'needs "prompt", a text'
    if not isinstance(content.get("answer"), str):
        return 'needs "answer", a text'
    known = ("prompt", "answer", "image", "images", "task")
    if unknown := content.keys() - set(known):
        return f"unknown keys {', '.join(sorted(unknown))}; known are {', '.join(known)}"
    return None if isinstance(content.get("task", ""), str) else '"task" must be a text'


def _normal(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()
