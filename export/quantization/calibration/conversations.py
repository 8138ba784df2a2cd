"""The conversations that a user gives for calibration: a folder of pictures, or lines of OpenAI messages."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.json_object import parse_json
from export.files.untrusted import read_named_text
from export.inputs import ModelInputs
from export.processor.processor import Processor
from export.processor.text.conversation import with_paths_from
from export.processor.text.picture_folder import prompted_pictures
from export.records.manifest import Calibration

MAX_SAMPLES = 512
"""Conversations that are looked at, at most; of more, so many spread evenly."""

_MAX_LISTED = 10
_KEYS = ("messages", "tools")


@dataclass(frozen=True)
class Conversation:
    """One sample: what the processor is given."""

    name: str
    """For messages: the picture's, or the number of the line."""
    messages: Any
    tools: Any = None


class Conversations:
    """Samples by which weights are calibrated, prepared one at a time, once."""

    def __init__(self, source: Path, samples: Sequence[Conversation], processor: Processor) -> None:
        self.source = source
        self.samples = tuple(samples)
        self._processor = processor
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[ModelInputs]:
        """Each as tensors.

        Raises:
            UserError: a conversation that cannot be used, named.
        """
        for sample in self.samples:
            try:
                inputs = self._processor.inputs_from_messages(
                    sample.messages, tools=sample.tools, continue_final_message=_is_answered(sample.messages)
                )
            except UserError as error:
                raise UserError(f"--calibrate {self.source}, {sample.name}: {error}") from None
            for array in (inputs.token_ids, inputs.position_ids, inputs.patches, inputs.cu_seqlens):
                self._digest.update(f"{array.dtype}{array.shape}".encode())
                self._digest.update(array.tobytes())
            yield inputs

    def record(self) -> Calibration:
        """What was looked at, for the manifest."""
        return Calibration(self.source.resolve().name, len(self.samples), self._digest.hexdigest())


def read_conversations(path: Path, processor: Processor) -> Conversations:
    """Read what there is to calibrate by; pictures are decoded later, one conversation at a time.

    Args:
        path: a folder of pictures, each with its prompt in a `.txt` of the same name if there is one; or a file with
            an object a line: `messages` in the chat format, paths beside the file, and perhaps `tools`. Answers that
            are among the messages are looked at too.
        processor: the checkpoint's.

    Raises:
        UserError: nothing usable there; all lines that do not fit at once.
    """
    if path.is_dir():
        samples = [Conversation(picture.name, messages) for picture, messages in prompted_pictures(path)]
    else:
        samples = _lines(path)
    if not samples:
        raise UserError(
            f"--calibrate {path} holds no picture and no conversation.",
            'Give a folder of pictures, or a file with {"messages": [...]} a line.',
        )
    number = min(len(samples), MAX_SAMPLES)
    chosen = [samples[index * len(samples) // number] for index in range(number)]
    return Conversations(path, chosen, processor)


def _lines(path: Path) -> list[Conversation]:
    samples, problems = [], []
    for number, line in enumerate(read_named_text(path).splitlines(), 1):
        if line.strip():
            try:
                samples.append(_conversation(line, number, path.parent))
            except UserError as error:
                problems.append(str(error))
    if problems:
        more = len(problems) - _MAX_LISTED
        listed = [*problems[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else [])]
        raise UserError(f"--calibrate {path} is no list of conversations:\n- " + "\n- ".join(listed))
    return samples


def _conversation(line: str, number: int, directory: Path) -> Conversation:
    name = f"line {number}"
    content = parse_json(line, name)
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise UserError(f'{name}: must be an object with "messages", a list')
    if unknown := sorted(content.keys() - set(_KEYS)):
        raise UserError(f"{name}: unknown keys {', '.join(unknown):.200}; known are {', '.join(_KEYS)}")
    return Conversation(name, with_paths_from(content["messages"], directory), content.get("tools"))


def _is_answered(messages: Any) -> bool:
    """Whether the last message is the answer, which the model is then shown whole."""
    last = messages[-1] if messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"
