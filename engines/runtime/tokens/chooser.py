"""What one answer's tokens are chosen by: its settings, made ready once, and what it holds so far."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.penalties import Written, looks_back, repeating_tokens
from export.checkpoint.generation_config import GenerationConfig
from export.contract import MAX_ASKED

if TYPE_CHECKING:
    from engines.runtime.tokens.guided import Guide

Scores = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
"""[vocab]"""

_NONE = np.zeros(0, np.int64)


class Chooser:
    """Chooses for one answer, with its own chance.

    Args:
        config: how.
        prompt: [S] token ids.
        answer: ids so far; grows as the answer does.
        vocab_size: how many tokens there are.
        seed: of its chance; None draws one.
        guide: what the answer must look like; None: anything.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt: TokenIds,
        answer: Sequence[int],
        vocab_size: int,
        seed: int | None,
        guide: "Guide | None",
    ) -> None:
        self.config, self.guide = config, guide
        self.generator = np.random.default_rng(seed)
        self.written = Written(prompt, answer)
        self.seen = np.zeros(vocab_size, np.bool_)
        self.seen[prompt] = True
        self.is_greedy = config.is_greedy
        self.looks_back = looks_back(config)
        self.suppressed = _mask_of(config.suppress_tokens, vocab_size) if config.suppress_tokens else None
        """[vocab] true where a token is never chosen, one for all that suppress the same; None: none is."""
        is_plain = self.is_greedy and not self.looks_back and config.repetition_penalty == 1.0
        self.is_plain_in_form = is_plain and guide is not None
        """Whether the likeliest token that the guide allows is the choice, unless it is suppressed."""
        self.is_plain = is_plain and guide is None and config.num_logprobs is None
        """Whether the likeliest token is the choice, unless it is suppressed."""
        biased = {token_id: bias for token_id, bias in config.logit_bias if token_id < vocab_size}
        self.is_bias_sound = len(biased) == sum(token_id < vocab_size for token_id, _ in config.logit_bias)
        """False where an id has two biases, which are added one after the other."""
        self.biased_ids = np.array(sorted(biased), np.int64)
        self.biases = np.array([biased[int(token_id)] for token_id in self.biased_ids], np.float32)
        """[n] of `biased_ids`."""
        self.asked_ids = self.biased_ids if len(self.biased_ids) <= MAX_ASKED else _NONE
        self.counts = (
            np.zeros(vocab_size, np.int32) if config.presence_penalty or config.frequency_penalty else None
        )
        """[vocab] how often the answer holds each token; None: nobody asks."""
        self.most_often = 0
        self.is_top_k = 0 < config.top_k < vocab_size
        self.needs_sum = not self.is_greedy and not self.is_top_k
        """Whether a choice looks at the probability of tokens that are not among the likeliest."""
        self.may_rule_out = bool(config.no_repeat_ngram_size or config.min_new_tokens)
        """Whether `rule_out` does anything."""
        self.may_lower = (
            self.looks_back
            or config.repetition_penalty != 1.0
            or self.suppressed is not None
            or guide is not None
        )
        """Whether the score of a token that nobody named may be lowered."""

    def allowed(self) -> Mask | None:
        """[vocab], of which one must come; None: any may."""
        return None if self.guide is None else self.guide.allowed()

    def is_suppressed(self, token_id: int) -> bool:
        """Whether a token is never chosen."""
        return self.suppressed is not None and bool(self.suppressed[token_id])

    def note(self, token_id: int) -> None:
        """A token was chosen."""
        self.seen[token_id] = True
        if self.counts is not None:
            self.counts[token_id] += 1
            self.most_often = max(self.most_often, int(self.counts[token_id]))

    def rule_out(self, scores: Scores, ids: TokenIds) -> None:
        """What repeats, or ends too early.

        Args:
            scores: [n] of tokens; changed in place.
            ids: [n]
        """
        config = self.config
        if config.no_repeat_ngram_size:
            scores[np.isin(ids, repeating_tokens(self.written, config.no_repeat_ngram_size))] = -np.inf
        if len(self.written.answer) < config.min_new_tokens:
            scores[np.isin(ids, config.eos_token_ids)] = -np.inf


@lru_cache(maxsize=8)
def _mask_of(token_ids: tuple[int, ...], vocab_size: int) -> Mask:
    mask = np.zeros(vocab_size, np.bool_)
    mask[[token_id for token_id in token_ids if token_id < vocab_size]] = True
    return mask
