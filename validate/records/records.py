"""What a case yields, how it is measured, and how the reference's part is kept on disk."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from export.errors import UserError
from export.files.atomic import replace_text
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes
from validate.records.metrics import LogitsMetrics, TensorMetrics, compare_logits, compare_tensors

TENSORS = ("visual_embeds", "prefill_logits", "decode_logits")
MAX_PROMPT_LOGITS = 64
"""Prompt tokens whose logits are compared, spread evenly: with 151,936 ids each, all of a long prompt would not fit."""


@dataclass(frozen=True, eq=False)
class PromptAnswer:
    """What one prompt and its forced continuation yield."""

    visual_embeds: npt.NDArray[np.float32]  # [V, C]
    prefill_logits: npt.NDArray[np.float32]  # [K', vocab]
    decode_logits: npt.NDArray[np.float32]  # [T, vocab], one for each forced token


@dataclass(frozen=True, eq=False)
class ExpectedPrompt:
    """The high_precision's answer to one prompt, and what it was asked."""

    continuation: npt.NDArray[np.int64]  # [T] forced tokens
    prompt_index: npt.NDArray[np.int64]  # [K'] prompt tokens whose logits are compared
    answer: PromptAnswer


@dataclass(frozen=True)
class Measurement:
    """Metrics of a case against the high_precision, all prompts together."""

    tensors: Mapping[str, TensorMetrics]
    """By name, see TENSORS. Without pictures there is no `visual_embeds`."""
    error_by_step: tuple[float, ...]
    """`worst_token_error` of the logits of each decode step, over the batch."""
    likeliest: tuple[tuple[int, ...], ...] = ()
    """[B][T + 1] ids that the engine finds likeliest: after each prompt, and after each forced token."""
    expected: tuple[tuple[int, ...], ...] = ()
    """[B][T + 1] the same of the reference."""


@dataclass(frozen=True, eq=False)
class Record:
    """What the reference says about a case: one entry of a golden set."""

    inputs_sha256: str
    dtype: str
    """The engine's dtype, whose noise this is."""
    prompts: tuple[ExpectedPrompt, ...]
    noise: Measurement


def spread_index(num_tokens: int) -> npt.NDArray[np.int64]:
    """Up to MAX_PROMPT_LOGITS indices of a prompt's tokens, first and last among them."""
    index = np.linspace(0, num_tokens - 1, min(num_tokens, MAX_PROMPT_LOGITS)).round().astype(np.int64)
    return np.unique(index)


def measure_answers(actual: Sequence[PromptAnswer], expected: Sequence[PromptAnswer]) -> Measurement:
    """Compare one case's answers, prompt by prompt in one pool of tokens.

    Raises:
        ValueError: shapes differ.
    """
    tensors: dict[str, TensorMetrics] = {}
    for name in TENSORS:
        pools = [
            np.concatenate([getattr(answer, name) for answer in answers]) for answers in (actual, expected)
        ]
        if pools[1].size:
            tensors[name] = (compare_tensors if name == "visual_embeds" else compare_logits)(*pools)
    num_steps = len(expected[0].decode_logits)
    steps = (
        compare_tensors(
            *(np.stack([a.decode_logits[step] for a in answers]) for answers in (actual, expected))
        )
        for step in range(num_steps)
    )
    likeliest, wanted = (tuple(map(_likeliest, answers)) for answers in (actual, expected))
    return Measurement(tensors, tuple(step.worst_token_error for step in steps), likeliest, wanted)


def _likeliest(answer: PromptAnswer) -> tuple[int, ...]:
    logits = np.concatenate([answer.prefill_logits[-1:], answer.decode_logits])
    return tuple(logits.argmax(-1).tolist())


ERRORS = (
    "max_abs",
    "mean_abs",
    "relative_l2",
    "worst_token_error",
    "mean_kl",
    "worst_kl",
    "worst_lost_margin",
)


def loudest(draws: Sequence[Measurement]) -> Measurement:
    """Of several draws of a case's noise the largest of each error; what is no error is the first one's."""
    tensors = {}
    for name, first in draws[0].tensors.items():
        found = [draw.tensors[name] for draw in draws]
        errors = {
            error: max(getattr(one, error) for one in found) for error in ERRORS if hasattr(first, error)
        }
        tensors[name] = replace(first, **errors)
    by_step = zip(*(draw.error_by_step for draw in draws), strict=True)
    return Measurement(tensors, tuple(map(max, by_step)))


def measurement_from_json(content: Mapping[str, Any]) -> Measurement:
    tensors = {
        name: (TensorMetrics if name == "visual_embeds" else LogitsMetrics)(**fields)
        for name, fields in content["tensors"].items()
    }
    likeliest, expected = (
        tuple(map(tuple, content.get(name, ()))) for name in ("likeliest", "expected")
    )  # records of older versions have none
    return Measurement(tensors, tuple(content["error_by_step"]), likeliest, expected)


def write_record(directory: Path, name: str, record: Record) -> None:
    """Write one case's record: arrays to NAME.npz, then NAME.json, whose presence says that both are whole."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for row, prompt in enumerate(record.prompts):
        arrays[f"{row}.continuation"], arrays[f"{row}.prompt_index"] = (
            prompt.continuation,
            prompt.prompt_index,
        )
        arrays |= {f"{row}.{tensor}": getattr(prompt.answer, tensor) for tensor in TENSORS}
    np.savez(directory / f"{name}.npz", allow_pickle=False, **arrays)
    content = {
        "inputs_sha256": record.inputs_sha256,
        "dtype": record.dtype,
        "num_prompts": len(record.prompts),
        "noise": asdict(record.noise),
    }
    write_json(directory / f"{name}.json", content)


@dataclass(frozen=True)
class RecordSummary:
    """A record without its arrays."""

    inputs_sha256: str
    noise: Measurement


def read_summary(directory: Path, name: str) -> RecordSummary | None:
    """What a case's record is for and its noise, or None where there is no record.

    Raises:
        UserError: it cannot be read.
    """
    path = directory / f"{name}.json"
    if not path.is_file():
        return None
    with reading(path):
        content = _content(path)
        return RecordSummary(content["inputs_sha256"], measurement_from_json(content["noise"]))


def read_case_record(directory: Path, name: str) -> Record:
    """A case's record.

    Raises:
        UserError: it is missing or cannot be read.
    """
    path = directory / f"{name}.json"
    with reading(path):
        content = _content(path)
        with np.load(directory / f"{name}.npz") as arrays:
            prompts = tuple(_expected_prompt(arrays, row) for row in range(content["num_prompts"]))
        noise = measurement_from_json(content["noise"])
        return Record(content["inputs_sha256"], content["dtype"], prompts, noise)


def _content(path: Path) -> Any:
    """Not only finite numbers: an engine's error may be infinite."""
    return json.loads(read_own_bytes(path, MAX_JSON_BYTES))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged record raises into a UserError that names it."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, BadZipFile) as error:
        raise UserError(f"{path} is no readable record of a case: {error}.", "Record it again.") from None


def write_json(path: Path, content: Any) -> None:
    """Write so that a reader sees the old file or the whole new one."""
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _expected_prompt(arrays: Any, row: int) -> ExpectedPrompt:
    answer = PromptAnswer(*(arrays[f"{row}.{tensor}"] for tensor in TENSORS))
    return ExpectedPrompt(arrays[f"{row}.continuation"], arrays[f"{row}.prompt_index"], answer)
