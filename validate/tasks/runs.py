"""Answers of the reference and of an engine to questions, through the runtime that serves them."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.runtime.generate import collect_generations, generate
from engines.session import DecoderSession, VisionSession
from export.checkpoint.config import ModelConfig
from export.checkpoint.generation_config import GenerationConfig, load_generation_config
from export.errors import UserError
from export.files.json_object import read_json_object
from export.inputs import ModelInputs
from export.processor.processor import Processor
from validate.tasks.quality import is_right, load_tasks

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, eq=False)
class TaskSet:
    """Questions as tensors, and how their answers are read."""

    inputs: tuple[ModelInputs, ...]
    expected: tuple[str, ...]
    processor: Processor
    generation: GenerationConfig
    names: tuple[str, ...] = ()
    """Of each question's kind; empty: none has one."""

    @property
    def longest_context(self) -> int:
        """Tokens that a KV slot needs for any of them."""
        return max(len(inputs.token_ids) for inputs in self.inputs) + self.generation.max_new_tokens

    def rightly_answered(
        self, vision: VisionSession, decoder: DecoderSession, config: ModelConfig
    ) -> list[bool]:
        """Greedy answers to all questions, one entry each."""
        return [
            is_right(self._answer(inputs, vision, decoder, config), expected)
            for inputs, expected in zip(self.inputs, self.expected, strict=True)
        ]

    def _answer(
        self, inputs: ModelInputs, vision: VisionSession, decoder: DecoderSession, config: ModelConfig
    ) -> str:
        return self.text(self.answer_tokens(inputs, vision, decoder, config))

    def answer_tokens(
        self, inputs: ModelInputs, vision: VisionSession, decoder: DecoderSession, config: ModelConfig
    ) -> tuple[int, ...]:
        """The greedy answer to one question, its end among the tokens."""
        [generation] = collect_generations(generate(inputs, vision, decoder, self.generation, model=config))
        return tuple(generation.token_ids)

    def text(self, tokens: Sequence[int]) -> str:
        """An answer's words."""
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True))


def load_task_set(path: Path, directory: Path) -> TaskSet:
    """Read questions and prepare them with a bundle's processor.

    Raises:
        UserError: the file is no list of tasks, or a picture cannot be used; the line is named.
    """
    processor = Processor.from_directory(directory)
    tasks = load_tasks(path)
    inputs = []
    for number, task in enumerate(tasks, 1):
        try:
            inputs.append(processor.inputs_from_messages(task.messages))
        except UserError as error:
            raise UserError(f"{path}, task {number}: {error}") from None
    eos = read_json_object(directory / "config.json").get("eos_token_id")
    settings = load_generation_config(directory, (eos,) if isinstance(eos, int) else ())
    greedy = replace(settings, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    return TaskSet(
        tuple(inputs),
        tuple(task.answer for task in tasks),
        processor,
        greedy,
        tuple(task.name for task in tasks),
    )


def reference_answers(tasks: TaskSet, directory: Path) -> Sequence[bool]:
    """What the float32 reference answers rightly; it is loaded for this and dropped after."""
    from validate.reference.high_precision import HighPrecisionReference  # noqa: PLC0415 - torch
    from validate.reference.sessions import ReferenceDecoder, ReferenceVision  # noqa: PLC0415 - torch

    model = HighPrecisionReference.from_directory(directory).model
    decoder = ReferenceDecoder(model, 1, tasks.longest_context)
    right = tasks.rightly_answered(ReferenceVision(model), decoder, model.config)
    del model, decoder
    gc.collect()
    return right
