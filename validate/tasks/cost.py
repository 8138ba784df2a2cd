"""What quantizing cost: an engine of quantized weights beside the checkpoint that they were made of.

Not whether the engine computes what its weights mean, which the gates on errors say, but how far those weights are from
the ones that were trained: in likelihoods, in words, and in questions answered rightly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.inputs import ModelInputs
from validate.execution import OpenEngine
from validate.gates.gates import COST_GATES, COST_LIMITS, GateResult, GateSettings
from validate.tasks.quality import TaskQuality, compare_quality, is_right
from validate.tasks.runs import TaskSet

ALL = "all tasks"

_MAX_FORCED = 200
"""Answers whose likelihoods are compared, at most. Each of their tokens keeps a row of logits on disk."""


@dataclass(frozen=True)
class Said:
    """What a model answered to every question."""

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class QuantizationCost:
    """An engine beside the unquantized checkpoint in float32, on the same questions."""

    num_tokens: int
    """Of the unquantized checkpoint's answers, forced upon both."""
    kl_mean: float
    """KL(unquantized || engine) of a token, in nats."""
    kl_p99: float
    same_text: float
    """Share of questions with the very same answer, right or wrong."""
    by_task: Mapping[str, TaskQuality]
    """Accuracies, paired; `ALL` together last."""
    limits: Mapping[str, float]

    @property
    def gates(self) -> tuple[GateResult, ...]:
        """Losses of each task, and what else a limit was given for."""
        results = []
        for task, quality in self.by_task.items():
            loss, limit = max(0.0, -quality.interval[1]), self.limits["cost.loss"]
            results.append(
                GateResult("cost.loss", task, loss <= limit, loss, limit, detail=quality.sentence())
            )
        measured = {
            "cost.kl_mean": self.kl_mean,
            "cost.kl_p99": self.kl_p99,
            "cost.different_text": 1 - self.same_text,
        }
        for name, value in measured.items():
            if name in self.limits:
                limit = self.limits[name]
                results.append(GateResult(name, ALL, value <= limit, value, limit))
        return tuple(results)

    def sentences(self) -> list[str]:
        """For people: one a task, then likelihoods and words."""
        likelihoods = (
            f"KL a token {self.kl_mean:.2g} nats, 99th percentile {self.kl_p99:.2g}, over {self.num_tokens} forced "
            f"tokens; the same text in {self.same_text:.1%} of the answers"
        )
        return [*(f"{task}: {quality.sentence()}" for task, quality in self.by_task.items()), likelihoods]


def limits_of(settings: GateSettings) -> dict[str, float]:
    """The default limits, and those that the gates' file gives."""
    return {**COST_LIMITS, **{name: value for name, value in settings.limits.items() if name in COST_GATES}}


def answer_all(tasks: TaskSet, engine: OpenEngine) -> Said:
    """Greedy answers to all questions."""
    sessions = (engine.vision, engine.decoder, engine.config)
    tokens = [tasks.answer_tokens(inputs, *sessions) for inputs in tasks.inputs]
    return Said(tuple(map(tasks.text, tokens)), tuple(tokens))


def forced_logits(engine: OpenEngine, prompt: ModelInputs, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits [T, vocab] before each of the forced tokens."""
    embeds = engine.encode([prompt])
    last = np.array([len(prompt.token_ids) - 1])
    logits = engine.prefill(0, [prompt], embeds, [last])
    if len(tokens) > 1:
        logits += engine.decode(0, [prompt], np.array([tokens[:-1]], np.int64))
    return np.concatenate(logits)


def record_unquantized(tasks: TaskSet, engine: OpenEngine, directory: Path) -> Said:
    """What the unquantized checkpoint answers, and its logits before each token, one file a question."""
    said = answer_all(tasks, engine)
    for index in _forced(said):
        np.save(_file(directory, index), forced_logits(engine, tasks.inputs[index], said.tokens[index]))
    return said


def measure_cost(
    tasks: TaskSet,
    unquantized: Said,
    directory: Path,
    engine: OpenEngine,
    limits: Mapping[str, float],
    progress: Callable[[float], None] = lambda _: None,
) -> QuantizationCost:
    """Ask the engine what the unquantized checkpoint was asked.

    Args:
        tasks: the questions.
        unquantized: what `record_unquantized` gave.
        directory: where it kept its logits.
        engine: of the quantized weights.
        limits: by name of `COST_GATES`.
        progress: told the fraction that is done.
    """
    divergences = []
    forced = _forced(unquantized)
    for count, index in enumerate(forced):
        progress(count / (len(forced) or 1) / 2)
        expected = np.load(_file(directory, index))
        actual = forced_logits(engine, tasks.inputs[index], unquantized.tokens[index])
        divergences.append(_kl(expected, actual))
    progress(0.5)
    said = answer_all(tasks, engine)
    kl = np.concatenate(divergences) if divergences else np.zeros(1)
    rights = [
        [is_right(text, expected) for text, expected in zip(answers.texts, tasks.expected, strict=True)]
        for answers in (unquantized, said)
    ]
    kinds = tasks.names or ("",) * len(tasks.inputs)
    names = [*dict.fromkeys(kinds)]
    by_task = {name: _quality(rights, kinds, {name}) for name in names if len(names) > 1}
    same = sum(map(str.__eq__, said.texts, unquantized.texts)) / len(said.texts)
    return QuantizationCost(
        num_tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        same_text=same,
        by_task={**by_task, ALL: _quality(rights, kinds, set(names))},
        limits=limits,
    )


def _quality(rights: Sequence[Sequence[bool]], names: Sequence[str], wanted: set[str]) -> TaskQuality:
    before, after = (
        [right for right, name in zip(side, names, strict=True) if name in wanted] for side in rights
    )
    return compare_quality(before, after)


def _forced(said: Said) -> list[int]:
    """Questions whose likelihoods are compared: those with an answer, spread evenly over the tasks."""
    answered = [index for index, tokens in enumerate(said.tokens) if tokens]
    step = max(1, -(-len(answered) // _MAX_FORCED))
    return answered[::step]


def _file(directory: Path, index: int) -> Path:
    return directory / f"unquantized.{index}.npy"


def _kl(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """KL(expected || actual) of each row of logits."""
    p, q = _log_softmax(expected), _log_softmax(actual)
    divergence: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def _log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def ask_unquantized(tasks: TaskSet, checkpoint: Path, directory: Path) -> Said:
    """What the unquantized checkpoint answers in float32; it is loaded for this and dropped after.

    Raises:
        UserError: no sound checkpoint of the model's kind.
    """
    from validate.reference.high_precision import HighPrecisionReference  # noqa: PLC0415 - torch
    from validate.reference.sessions import ReferenceDecoder, ReferenceVision  # noqa: PLC0415 - torch

    model = HighPrecisionReference.from_directory(checkpoint).model
    decoder = ReferenceDecoder(model, 1, tasks.longest_context)
    return record_unquantized(tasks, OpenEngine(ReferenceVision(model), decoder, model.config), directory)
