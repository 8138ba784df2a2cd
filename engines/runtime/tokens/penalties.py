"""What is added to or taken from logits before a temperature: penalties, biases, tokens that may not come now.

Pure functions on one row of logits, float32 [vocab]. `repetition_penalty`, `no_repeat_ngram_size` and `min_new_tokens`
mean what Transformers' logits processors of the same names mean; `presence_penalty`, `frequency_penalty` and
`logit_bias` what OpenAI's API says of them: they look at the answer alone, not at the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.checkpoint.generation_config import GenerationConfig

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """What stands before the next token."""

    prompt: TokenIds
    answer: Sequence[int]


NOTHING_WRITTEN = Written(np.zeros(0, np.int64), ())


def looks_back(config: GenerationConfig) -> bool:
    """Whether logits are changed by more than the repetition penalty and the tokens that are never chosen."""
    return bool(
        config.presence_penalty
        or config.frequency_penalty
        or config.no_repeat_ngram_size
        or config.min_new_tokens
        or config.logit_bias
    )


def adjusted_logits(logits: Logits, written: Written, config: GenerationConfig) -> Logits:
    """All but the repetition penalty, in order: repeated n-grams, penalties, biases, an end that comes too early.

    Args:
        logits: [vocab], left unchanged.
        written: prompt and answer so far.
        config: which of them, and how strong.
    """
    adjusted = logits.copy()
    if config.no_repeat_ngram_size:
        adjusted[repeating_tokens(written, config.no_repeat_ngram_size)] = -np.inf
    if config.presence_penalty or config.frequency_penalty:
        token_ids, counts = np.unique(np.asarray(written.answer, np.int64), return_counts=True)
        adjusted[token_ids] -= (config.presence_penalty + config.frequency_penalty * counts).astype(
            np.float32
        )
    for token_id, bias in config.logit_bias:
        if token_id < adjusted.size:
            adjusted[token_id] += np.float32(bias)
    if len(written.answer) < config.min_new_tokens:
        adjusted[[token_id for token_id in config.eos_token_ids if token_id < adjusted.size]] = -np.inf
    return adjusted


def repeating_tokens(written: Written, size: int) -> list[int]:
    """Tokens that would end a run of `size` tokens that stands in prompt or answer already."""
    tokens = np.concatenate([written.prompt, np.asarray(written.answer, np.int64)])
    if len(tokens) + 1 < size:
        return []
    if size == 1:
        return sorted(set(tokens.tolist()))
    beginning = tokens[len(tokens) - size + 1 :]
    windows = (
        np.lib.stride_tricks.sliding_window_view(tokens, size) if len(tokens) >= size else tokens[:0, None]
    )
    found = windows[(windows[:, : size - 1] == beginning).all(axis=1)] if len(windows) else windows
    return sorted({int(window[-1]) for window in found})
