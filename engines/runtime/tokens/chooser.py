"""What one answer's tokens are chosen by: its settings, made ready once, and what it holds so far."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.penalties import Written, looks_back, repeating_tokens
from engines.runtime.tokens.sampling import apply_repetition_penalty
from export.checkpoint.generation_config import GenerationConfig

if TYPE_CHECKING:
    from engines.runtime.tokens.guided import Guide

Scores = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
"""[vocab]"""

MAX_ASKED = 64
"""Ids of a row whose logits an engine is asked for: enough for every bias that people set by hand."""
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
        self._suppressed = np.zeros(vocab_size, np.bool_)
        self._suppressed[[token_id for token_id in config.suppress_tokens if token_id < vocab_size]] = True
        self._has_suppressed = bool(self._suppressed.any())
        self.is_plain = (
            self.is_greedy
            and not self.looks_back
            and config.repetition_penalty == 1.0
            and guide is None
            and config.num_logprobs is None
        )
        """Whether the likeliest token is the choice, unless it is suppressed."""
        biased = {token_id: bias for token_id, bias in config.logit_bias if token_id < vocab_size}
        self._is_bias_sound = len(biased) == sum(token_id < vocab_size for token_id, _ in config.logit_bias)
        self._biased = np.array(sorted(biased), np.int64)
        self._bias = np.array([biased[int(token_id)] for token_id in self._biased], np.float32)
        self.asked_ids = self._biased if len(self._biased) <= MAX_ASKED else _NONE
        self._counts = (
            np.zeros(vocab_size, np.int32) if config.presence_penalty or config.frequency_penalty else None
        )
        self._most_often = 0
        self.is_top_k = 0 < config.top_k < vocab_size
        self.needs_sum = not self.is_greedy and not self.is_top_k
        """Whether a choice looks at the probability of tokens that are not among the likeliest."""
        self.is_adjusted = bool(
            self._has_suppressed or self.looks_back or config.repetition_penalty != 1.0 or guide is not None
        )
        """Whether `adjust` does anything, as lower the score of a token that nobody named."""

    def allowed(self) -> Mask | None:
        """[vocab], of which one must come; None: any may."""
        return None if self.guide is None else self.guide.allowed()

    def is_suppressed(self, token_id: int) -> bool:
        return bool(self._suppressed[token_id])

    def note(self, token_id: int) -> None:
        """A token was chosen."""
        self.seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1
            self._most_often = max(self._most_often, int(self._counts[token_id]))

    def adjust(
        self, scores: Scores, ids: TokenIds, edge: float, allowed: Mask | None
    ) -> tuple[Scores, np.float32]:
        """What `sampling.next_token` makes of logits before the temperature, for some tokens of a row.

        Args:
            scores: [n] their logits; -inf where there is none. Left unchanged.
            ids: [n]
            edge: no other token's logit is larger.
            allowed: see `allowed`.

        Returns:
            [n] their scores, and a bound on the score of every other token. Each adjustment grows with the logit and
            float32 rounds alike for all, so what it makes of the edge, at its most favourable, bounds the others.
        """
        config, bound = self.config, np.array([edge], np.float32)
        if config.repetition_penalty != 1.0:
            scores = apply_repetition_penalty(scores, self.seen[ids], config.repetition_penalty)
            bound = np.maximum(
                bound, apply_repetition_penalty(bound, np.ones(1, np.bool_), config.repetition_penalty)
            )
        if self.looks_back:
            scores, bound = self._looked_back(scores.copy(), ids, bound)
        if self._has_suppressed:
            scores = np.where(self._suppressed[ids], np.float32(-np.inf), scores)
        if allowed is not None:
            scores = np.where(allowed[ids], scores, np.float32(-np.inf))
        return scores, bound[0]

    def _looked_back(self, scores: Scores, ids: TokenIds, bound: Scores) -> tuple[Scores, Scores]:
        config = self.config
        if (
            not self._is_bias_sound
        ):  # an id with two biases: added one after the other, which this does not do
            return scores, np.array([np.inf], np.float32)
        if config.no_repeat_ngram_size:
            scores[np.isin(ids, repeating_tokens(self.written, config.no_repeat_ngram_size))] = -np.inf
        if self._counts is not None:
            counts = self._counts[ids]
            taken = config.presence_penalty + config.frequency_penalty * counts
            scores -= np.where(counts > 0, taken, 0.0).astype(np.float32)
            extremes = config.presence_penalty + config.frequency_penalty * np.array([1, self._most_often])
            bound = bound - np.float32(min(0.0, *extremes))
        if len(self._biased):
            place = np.searchsorted(self._biased, ids).clip(max=len(self._biased) - 1)
            is_biased = (self._biased[place] == ids) & (scores > -np.inf)
            scores[is_biased] += self._bias[place[is_biased]]
            unknown = np.ones(len(self._biased), np.bool_)
            unknown[place[is_biased]] = False
            bound = bound + np.float32(max(0.0, self._bias[unknown].max(initial=0.0)))
        if len(self.written.answer) < config.min_new_tokens:
            scores[np.isin(ids, config.eos_token_ids)] = -np.inf
        return scores, bound
